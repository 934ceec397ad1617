#!/usr/bin/env bash
# The test suite, in .venv, which is made if there is none. Options go to pytest. --all adds the slow tests, and those of
# the page in the browser: it needs an older Pillow than the rest, so they run in .venv/demo, which lies on top of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
DEMO=.venv/demo
STAMP=$DEMO/pave.stamp
JOBS=$(.venv/bin/python -c 'import os; print(min(os.cpu_count() or 1, 8))')

case " $* " in *" --all "*) ;; *) exec .venv/bin/python -m pytest -n "$JOBS" "$@" ;; esac
if ! { [ -f "$STAMP" ] && cmp -s "$STAMP" pyproject.toml; }; then
  echo "test: installing the extras demo and browser in $DEMO"
  .venv/bin/python -m venv "$DEMO"
  # A .pth of .venv, such as that of a node's own torch, is not read from here, so all its folders are named.
  .venv/bin/python -c 'import sys; print(*(p for p in sys.path if p.endswith("site-packages")), sep="\n")' \
    >"$("$DEMO/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pave_host.pth"
  "$DEMO/bin/python" -m pip install -q --disable-pip-version-check -c .venv/constraints.txt -e '.[demo,browser]'
  cp pyproject.toml "$STAMP"
fi
status=0
.venv/bin/python -m pytest -n "$JOBS" "$@" || status=$?
"$DEMO/bin/python" -m pytest -n "$JOBS" --all tests/test_serve*.py || status=$?
exit "$status"
