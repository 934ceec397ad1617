#!/usr/bin/env bash
# Trains and scores the published recipe of configs/multiple_side_channels.yaml, from what enhanced_video.sh gave on 7B.
#   bash scripts/recipes/multiple_side_channels.sh DATA OUT lora.init=runs/enhanced_video_7b/final [key=value ...]
source "$(dirname "$0")/common.sh"
train multiple_side_channels "$@"
evaluate
