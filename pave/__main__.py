"""`python -m pave`: the command line."""

import sys

from pave.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
