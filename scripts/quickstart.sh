#!/usr/bin/env bash
# From nothing to a report: clips with sound, audio features, a trained patch, scores, one answer. 2 cores, no GPU.
#   bash scripts/quickstart.sh [OUT] [SEED]       # default runs/quickstart 0
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
OUT=${1:-runs/quickstart} SEED=${2:-0}
CONFIG=configs/sideworld/audio.yaml
SECONDS=0

echo "1/6 clips with sound"
pave prepare sideworld --out "$OUT/data" --seed "$SEED"
echo "2/6 audio features"
pave extract audio --videos "$OUT/data/videos" --out "$OUT/data/features/audio" --weights asset:sideworld/audio.safetensors
echo "3/6 train a patch and LoRA on the frozen base"
pave train $CONFIG --out "$OUT/train" data.root="$OUT/data" train.seed="$SEED"
rm -rf "$OUT/eval"  # answers of an earlier model
echo "4/6 evaluate: base, patched, patched with the sounds of other clips"
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/base" --base-only --batch 32
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/patched" --batch 32
pave eval --ckpt "$OUT/train/final" --out "$OUT/eval/shuffled" --shuffle-sides --batch 32
echo "5/6 ask one question about one clip"
pave demo --ckpt "$OUT/train/final" --video "$OUT/data/videos/test_00000.mp4" --ask "Which sound is heard? Answer with one word."
echo "6/6 report"
pave side-report --base "$OUT/eval/base" --patched "$OUT/eval/patched" --shuffled "$OUT/eval/shuffled" --out "$OUT"
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $OUT/report.md"
