#!/usr/bin/env bash
# Trains and scores the published recipe of configs/multiple_side_channels.yaml, from what enhanced_video gave on 7B:
#   bash scripts/recipes/enhanced_video.sh VIDEOS TRAINED \
#     base.path=lmms-lab/llava-onevision-qwen2-7b-ov sides.dense.rope=false
#   bash scripts/recipes/multiple_side_channels.sh DATA OUT lora.init_from=TRAINED/final [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train multiple_side_channels "$@"
evaluate
