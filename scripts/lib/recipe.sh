# Sourced by scripts/*_train.sh and scripts/*_eval.sh: one published recipe, from its data to its score.
#   bash scripts/TASK_train.sh DATA OUT [key=value ...] [--resume]    # trains configs/TASK.yaml into OUT/final
#   bash scripts/TASK_eval.sh DATA CKPT [key=value ...]               # scores a checkpoint into CKPT_eval
# CKPT is a folder that `pave train` wrote, an official folder, or its zip. PROCESSES=2 uses two of the node's GPUs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# train TASK DATA OUT [key=value ...]: with ZeRO-2 over the GPUs; train.deepspeed=null goes without deepspeed.
train() {
  local task=$1 data=${2:?folder of the data set} out=${3:?folder for the checkpoints}
  bash scripts/train.sh "configs/$task.yaml" --out "$out" data.root="$data" \
    train.deepspeed=configs/distributed/zero2.json "${@:4}"
}

# evaluate TASK DATA CKPT [key=value ...]: answers as the official code makes them, in half precision, and their score.
# An official folder states neither side-channel nor data set: the config of the recipe does.
evaluate() {
  local task=$1 data=${2:?folder of the data set} ckpt=${3:?folder or zip of a checkpoint}
  bash scripts/lib/pave.sh eval --ckpt "$ckpt" --recipe "configs/$task.yaml" --out "${OUT:-${ckpt%.zip}_eval}" \
    --max-new-tokens "${MAX_NEW_TOKENS:-1024}" base.dtype=float16 data.root="$data" "${@:4}"
}

# benchmarks TASK DATA CKPT [key=value ...]: option letters on each of the three benchmarks below DATA.
benchmarks() {
  local config=$1 data=${2:?folder of the benchmarks} ckpt=${3:?folder or zip of a checkpoint} scored=0 benchmark
  for benchmark in videomme/test mvbench/test mlvu/dev; do
    local task=${benchmark%/*}
    [ -d "$data/$task" ] || continue
    scored=1
    OUT=${ckpt%.zip}_eval/$task MAX_NEW_TOKENS=16 \
      evaluate "$config" "$data/$task" "$ckpt" data.task="$task" data.eval_split="${benchmark#*/}" "${@:4}"
  done
  [ $scored = 1 ] || { echo "$data: holds none of videomme/, mvbench/, mlvu/ (doc/datasets)" >&2; exit 1; }
}
