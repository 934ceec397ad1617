#!/usr/bin/env bash
# Trains the published recipe for Music-AVQA: bash scripts/music_avqa_train.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train music_avqa "$@"
