#!/usr/bin/env bash
# The quickstart's audio experiment on the tiny version of another base, which is trained first.
#   bash scripts/sideworld/bases.sh BASE [OUT] [SEED] [key=value ...]    # qwen2_5_vl, video_llava, video_panda, ppllava
# DATA=FOLDER     clips and audio features that are there, such as those of the quickstart
# WEIGHTS=FOLDER  the tiny base, where it is already made
# PATCH=FOLDER    with ppllava besides: a patch before pooling, and this trained one of the shipped base put on it, as it
#                 is and on a language model in other coordinates
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x .venv/bin/pave ] || bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
BASE=${1:?qwen2_5_vl, video_llava, video_panda or ppllava}
OUT=${2:-runs/sideworld_$BASE} SEED=${3:-0}
DATA=${DATA:-$OUT/data} WEIGHTS=${WEIGHTS:-$OUT/base} PATCH=${PATCH:-}
CONFIG=configs/sideworld/audio.yaml
SECONDS=0

# Where what a patch adds grows slowly it has eight times the weight, and more steps: Video-Panda's twice as many, PPLLaVA's
# as many again before, about the sound and one thing in the picture alone, on cached features.
BOOST="sides.audio.weight=8 lora.alpha=2"
case $BASE in
  qwen2_5_vl) FRAMES=32 RECIPE="" ;;
  video_llava) FRAMES=16 RECIPE="" ;;
  video_panda) FRAMES=16 RECIPE="$BOOST train.max_steps=300" ;;
  ppllava) FRAMES=32 RECIPE=$BOOST ;;
  *)
    echo "$BASE: expected qwen2_5_vl, video_llava, video_panda or ppllava" >&2
    exit 1
    ;;
esac
if [ ! -d "$DATA/features/audio" ]; then
  pave prepare sideworld --out "$DATA" --seed "$SEED"
  pave extract audio --videos "$DATA/videos" --out "$DATA/features/audio" --weights asset:sideworld/audio.safetensors
fi
[ -d "$WEIGHTS" ] || pave pretrain "$BASE" --out "$WEIGHTS" --seed "$SEED"
set -- base.name="$BASE" base.path="$WEIGHTS" base.frames=$FRAMES base.newline=no_token data.root="$DATA" \
  train.seed="$SEED" train.per_device_train_batch_size=32 $RECIPE "${@:4}"

# experiment NAME PLUGIN [--train-part PART] [--source PATCH] [--rotate] [key=value ...]: on cached features
experiment() {
  PYTHONPATH=scripts python -m experiments.cached_features $CONFIG "$OUT/cached_$1.json" "${SETTINGS[@]}" \
    base.name="$2" "${@:3}"
}

SETTINGS=("$@") START=()
if [ "$BASE" = ppllava ]; then
  mkdir -p "$OUT"
  experiment after ppllava
  START=(sides.audio.init_from="$OUT/cached_after" lora.init_from="$OUT/cached_after")
fi
pave train $CONFIG --out "$OUT/train" "${SETTINGS[@]}" "${START[@]}"
rm -rf "$OUT/eval"
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/base" --base-only --batch 32
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/patched" --batch 32
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/shuffled" --shuffle-sides --batch 32
pave side-report --base "$OUT/eval/base" --patched "$OUT/eval/patched" --shuffled "$OUT/eval/shuffled" --out "$OUT"
if [ "$BASE" = ppllava ] && [ -n "$PATCH" ]; then
  FROM_PATCH=(--source "$PATCH" sides.audio.weight=1 lora.alpha=16) # as it was trained
  experiment before experiments.patch_before_pooling
  experiment carried ppllava --train-part nothing "${FROM_PATCH[@]}"
  experiment carried_before experiments.patch_before_pooling --train-part nothing "${FROM_PATCH[@]}"
  experiment output ppllava --train-part output "${FROM_PATCH[@]}"
  experiment rotated ppllava --train-part nothing --rotate "${FROM_PATCH[@]}"
  experiment rotated_output ppllava --train-part output --rotate "${FROM_PATCH[@]}"
fi
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $OUT/report.md"
