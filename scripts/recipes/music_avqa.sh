#!/usr/bin/env bash
# Trains and scores the published recipe of configs/music_avqa.yaml, where its numbers are.
#   bash scripts/recipes/music_avqa.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train music_avqa "$@"
evaluate
