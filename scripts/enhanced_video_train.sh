#!/usr/bin/env bash
# Trains the published recipe with dense frames (LLaVA-Video-178K):
#   bash scripts/enhanced_video_train.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train enhanced_video "$@"
