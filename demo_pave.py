"""Ask one question about one video: python demo_pave.py --ckpt DIR --video FILE --ask "..." (see pave demo --help)."""

import sys

from pave.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
