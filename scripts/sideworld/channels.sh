#!/usr/bin/env bash
# From nothing to a report for one side-channel of the small world: dense, exo, scene3d or two (audio and dense).
#   bash scripts/sideworld/channels.sh CHANNEL [OUT] [SEED]       # default runs/sideworld_CHANNEL 0; audio: quickstart.sh
# `two` goes on from what `dense` gave in DENSE, by default runs/sideworld_dense.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x .venv/bin/pave ] || bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
CHANNEL=${1:?dense, exo, scene3d or two}
OUT=${2:-runs/sideworld_$CHANNEL} SEED=${3:-0}
CONFIG=configs/sideworld/$CHANNEL.yaml
DATA="$OUT/data" FEATURES="$OUT/data/features"
SECONDS=0

case $CHANNEL in
  dense)
    pave prepare sideworld --out "$DATA" --seed "$SEED" --channels dense
    pave extract dense fps=8 --videos "$DATA/videos" --out "$FEATURES/dense" --weights asset:sideworld/base
    ;;
  exo)
    pave prepare sideworld --out "$DATA" --seed "$SEED" --channels exo
    pave extract exo --videos "$DATA/exo" --out "$FEATURES/exo" --weights asset:sideworld/base
    ;;
  scene3d)
    pave prepare sideworld --out "$DATA" --seed "$SEED" --channels depth
    pave extract scene3d tower=base views=4 --videos "$DATA/depth" --out "$FEATURES/scene3d" --weights asset:sideworld/base
    ;;
  two)
    START=${DENSE:-runs/sideworld_dense}/train/final
    [ -d "$START" ] || { echo "$START: no such folder; run \`bash $0 dense\` first" >&2; exit 1; }
    pave prepare sideworld --out "$DATA" --seed "$SEED" --channels audio dense
    pave extract audio --videos "$DATA/videos" --out "$FEATURES/audio" --weights asset:sideworld/audio.safetensors
    pave extract dense fps=8 --videos "$DATA/videos" --out "$FEATURES/dense" --weights asset:sideworld/base
    ;;
  *)
    echo "$CHANNEL: expected dense, exo, scene3d or two" >&2
    exit 1
    ;;
esac
# First only what no picture answers, for the other questions hold a new patch down; exo is learnt without that.
if [ "$CHANNEL" = exo ]; then
  pave train "$CONFIG" --out "$OUT/train" data.root="$DATA" train.seed="$SEED"
elif [ "$CHANNEL" = two ]; then
  pave train "$CONFIG" --out "$OUT/first" data.root="$DATA" train.seed="$SEED" data.train_split=channels lora.init_from="$START"
  pave train "$CONFIG" --out "$OUT/train" data.root="$DATA" train.seed="$SEED" lora.init_from="$OUT/first/final" sides.audio.init_from="$OUT/first/final"
else
  pave train "$CONFIG" --out "$OUT/first" data.root="$DATA" train.seed="$SEED" data.train_split=channels
  pave train "$CONFIG" --out "$OUT/train" data.root="$DATA" train.seed="$SEED" lora.init_from="$OUT/first/final"
fi
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/base" --base-only --batch 32
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/patched" --batch 32
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/shuffled" --shuffle-sides --batch 32
pave side-report --base "$OUT/eval/base" --patched "$OUT/eval/patched" --shuffled "$OUT/eval/shuffled" --out "$OUT"
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $OUT/report.md"
