#!/usr/bin/env bash
# The test suite, in .venv, which is made if there is none. Options go to pytest. --all adds the slow tests, and those of
# the extras demo, browser and deepspeed, in an environment that lies on top of .venv: gradio takes an older Pillow.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
MORE=.venv/extras
STAMP=$MORE/pave.stamp
JOBS=$(.venv/bin/python -c 'import os; print(min(os.cpu_count() or 1, 8))')

case " $* " in *" --all "*) ;; *) exec .venv/bin/python -m pytest -n "$JOBS" "$@" ;; esac
if ! { [ -f "$STAMP" ] && cmp -s "$STAMP" pyproject.toml; }; then
  echo "test: installing the extras demo, browser and deepspeed in $MORE"
  .venv/bin/python -m venv "$MORE"
  # All folders of .venv by name: what its own .pth files add is not seen from here.
  .venv/bin/python -c 'import sys; print(*(p for p in sys.path if p.endswith("site-packages")), sep="\n")' \
    >"$("$MORE/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pave_host.pth"
  "$MORE/bin/python" -m pip install -q --disable-pip-version-check -c .venv/constraints.txt -e '.[demo,browser,deepspeed]'
  cp pyproject.toml "$STAMP"
fi
status=0
.venv/bin/python -m pytest -n "$JOBS" --durations=30 "$@" || status=$?
"$MORE/bin/python" -m pytest -n "$JOBS" --all tests/unit/inference tests/end_to_end/test_server_*.py tests/end_to_end/test_distributed.py -k "server or web_page or zero" || status=$?
exit "$status"
