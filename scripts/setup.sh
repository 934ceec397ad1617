#!/usr/bin/env bash
# Makes .venv with pave in it; does nothing where that is done. An importable torch (a GPU node's own) is used as it
# is, else a pinned one is installed. Everything else comes under a constraint, so that nothing replaces torch.
#   PYTHON=python3.12 bash scripts/setup.sh     # another interpreter; pip's own PIP_* variables work as ever
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
TORCH_PIN=2.13.0
STAMP=.venv/pave.stamp

if [ -f "$STAMP" ] && cmp -s "$STAMP" pyproject.toml; then exit 0; fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  { echo "setup: $("$PYTHON" --version) is too old; pave needs Python 3.10 or newer (set PYTHON=...)" >&2; exit 1; }

[ -d .venv ] || "$PYTHON" -m venv .venv
if host=$("$PYTHON" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null); then
  # A path file rather than --system-site-packages: that one does not see packages of a virtual environment.
  echo "setup: using the torch that $PYTHON already has"
  echo "$host" >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pave_host.pth"
elif ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  echo "setup: installing torch $TORCH_PIN"
  .venv/bin/python -m pip install -q --disable-pip-version-check "torch==$TORCH_PIN"
fi

version=$(.venv/bin/python -c 'import torch; print(torch.__version__)')
printf 'torch==%s\n' "${version%%+*}" >.venv/constraints.txt
echo "setup: installing pave under the constraint torch==${version%%+*}"
.venv/bin/python -m pip install -q --disable-pip-version-check -c .venv/constraints.txt -e '.[dev]'
after=$(.venv/bin/python -c 'import torch; print(torch.__version__)')
[ "$version" = "$after" ] || { echo "setup: torch changed from $version to $after; delete .venv and report this" >&2; exit 1; }
.venv/bin/python -c 'from transformers import LlavaOnevisionForConditionalGeneration' ||
  { echo "setup: transformers does not import; a torchvision that does not fit torch $version is the usual cause" >&2; exit 1; }
cp pyproject.toml "$STAMP"
echo "setup: done, torch $version in .venv"
