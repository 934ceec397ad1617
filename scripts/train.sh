#!/usr/bin/env bash
# `pave train` on every GPU of a node.
#   bash scripts/train.sh CONFIG --out OUT [key=value ...] [--resume]     # PROCESSES=2 for so many processes
exec bash "$(dirname "$0")/lib/pave.sh" train "$@"
