#!/usr/bin/env bash
# Trains the published recipe with dense frames and sound (AVSD), from what enhanced_video_train.sh made on the 7B base:
#   bash scripts/multiple_side_channels_train.sh DATA OUT lora.init_from=TRAINED/final [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train multiple_side_channels "$@"
