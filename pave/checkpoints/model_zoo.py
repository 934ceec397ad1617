"""The official PAVE checkpoints: what each is, the numbers published for it, the commands to get, score and try it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pave.types import UserError
from pave.utils.registry import nearest

REPOSITORY = "zhuomingliu/PAVE"
"""On the hub; one zip file for each checkpoint."""
ENCODERS = {
    "audio": ["encoder=imagebind_huge.pth"],
    "dense": ["encoder=LanguageBind_Video_merge", "encoder_options=[tower=languagebind]"],
}
"""Sides that `pave demo` can make from the video itself, with the published weights of their encoders."""
ANSWER_TOKENS = {"videomme": 16, "mvbench": 16, "mlvu": 16}
"""Longest answer in tokens, where answers are a letter."""
FEATURE_FOLDERS = {
    ("avsd", "audio"): "Charades_*_audio_imagebind_feat",
    **{(task, "dense"): "languagebind_feat" for task in ANSWER_TOKENS},
}
"""Folders of the published features below the data, where their names are known; else features/SIDE."""
METRICS = {
    "avsd": ("CIDEr",),
    "avqa": ("accuracy",),
    "music_avqa": ("accuracy Audio", "accuracy Visual", "accuracy Audio-Visual", "accuracy"),
    "scanqa": ("CIDEr", "BLEU-4", "METEOR", "ROUGE_L", "EM", "EM_refined"),
    "sqa3d": ("EM", "EM_refined"),
    "egoexo": ("accuracy",),
    "videomme": ("accuracy short", "accuracy medium", "accuracy long", "accuracy"),
    "mvbench": ("accuracy",),
    "mlvu": ("accuracy",),
}
"""The metrics published for each benchmark, named as by `pave eval`; published numbers are 100 times as large."""
SPLITS = {"avqa": "val", "egoexo": "val", "scanqa": "val"}
"""Splits of the published numbers, where they are not `test`."""


class Recipe(NamedTuple):
    """How the checkpoints of one kind were trained."""

    task: str
    sides: tuple[str, ...]
    """In the order of their patches in the file."""
    epochs: int
    batch_size: int
    """Samples a device and step."""
    accumulation_steps: int
    """Steps whose gradients are added up."""
    num_layers: int = 2
    """Of each patch."""


class Checkpoint(NamedTuple):
    """One official checkpoint."""

    name: str
    size: str
    """Size of the base, LLaVA-OneVision: 0.5b or 7b."""
    recipe: Recipe
    published: Mapping[str, tuple[float, ...]]
    """Benchmark -> a number for each of its METRICS, as in the official README."""
    rope: bool = False
    """3D rotary embedding."""

    @property
    def base(self) -> str:
        """Hub name of the base."""
        return f"lmms-lab/llava-onevision-qwen2-{self.size}-ov"


_AVSD = Recipe("avsd", ("audio",), 1, 4, 4)
_AVQA = Recipe("avqa", ("audio",), 2, 4, 4)
_MUSIC = Recipe("music_avqa", ("audio",), 2, 4, 4, num_layers=3)
# One epoch, as the official table says; the official script has two.
_SCANQA = Recipe("scanqa", ("scene3d",), 1, 4, 4)
_SQA3D = Recipe("sqa3d", ("scene3d",), 2, 4, 8)
_EGOEXO = Recipe("egoexo", ("exo",), 2, 2, 16)
_VIDEO = Recipe("llava_video", ("dense",), 1, 2, 8)
# The dense patch came from a checkpoint like the last and stayed frozen; an audio patch and LoRA went on from there.
_AVSD_BOTH = Recipe("avsd", ("dense", "audio"), 2, 2, 8)
CHECKPOINTS = (
    Checkpoint("pave_v5_1_3_lora_avsd_imagebind", "0.5b", _AVSD, {"avsd": (134.5,)}),
    Checkpoint("pave_5_1_3_lora_avsd_7B_imagebind", "7b", _AVSD, {"avsd": (152.9,)}),
    Checkpoint("pave_v5_1_3_lora_avsd_audio_and_dense_7B", "7b", _AVSD_BOTH, {"avsd": (160.0,)}),
    Checkpoint("pave_v5_1_3_lora_avqa_imagebind", "0.5b", _AVQA, {"avqa": (90.4,)}),
    Checkpoint("pave_v5_1_3_lora_avqa_7B_imagebind", "7b", _AVQA, {"avqa": (93.8,)}),
    Checkpoint(
        "pave_v5_1_3_lora_music_avqa_2epoch_imagebind_3layers", "0.5b", _MUSIC, {"music_avqa": (77.3, 89.8, 74.1, 78.8)}
    ),
    Checkpoint(
        "pave_v5_1_3_lora_music_avqa7B_2epoch_imagebind_3layers", "7b", _MUSIC, {"music_avqa": (79.7, 93.0, 78.0, 82.3)}
    ),
    Checkpoint("pave_scanqa_v5_1_3_3d_lora", "0.5b", _SCANQA, {"scanqa": (84.2, 13.1, 17.0, 42.1, 23.1, 40.0)}),
    Checkpoint("pave_scanqa_v5_1_3_3d_lora_7B", "7b", _SCANQA, {"scanqa": (103.4, 16.0, 19.9, 49.0, 29.1, 48.5)}),
    Checkpoint("pave_sqa3d_v5_1_3_3d_lora_2epochs", "0.5b", _SQA3D, {"sqa3d": (51.1, 52.8)}),
    Checkpoint("pave_sqa3d_v5_1_3_3d_lora_7B_2epoch", "7b", _SQA3D, {"sqa3d": (59.0, 61.4)}),
    Checkpoint("pave_egoexo_v5_1_3_3d_lora_2epoch", "0.5b", _EGOEXO, {"egoexo": (32.4,)}),
    Checkpoint("pave_egoexo_v5_1_3_3d_lora_7B_2epoch", "7b", _EGOEXO, {"egoexo": (44.2,)}),
    Checkpoint(
        "pave_v5_1_2_lora",
        "0.5b",
        _VIDEO,
        {"videomme": (57.8, 42.7, 37.4, 46.0), "mvbench": (46.6,), "mlvu": (51.6,)},
        rope=True,
    ),
    Checkpoint(
        "pave_v5_1_3_lora_7B",
        "7b",
        _VIDEO,
        {"videomme": (71.1, 59.4, 49.2, 59.9), "mvbench": (58.0,), "mlvu": (67.0,)},
    ),
)


def find_checkpoint(name: str) -> Checkpoint:
    """Find a checkpoint by its published name. Raises UserError with the nearest one."""
    for checkpoint in CHECKPOINTS:
        if checkpoint.name == name:
            return checkpoint
    names = [checkpoint.name for checkpoint in CHECKPOINTS]
    raise UserError(f"no official checkpoint '{name}'; {nearest(name, names)}")


def table() -> str:
    """List every checkpoint with its commands, as text."""
    blocks = []
    for checkpoint in CHECKPOINTS:
        lines = [*_describe(checkpoint), *commands(checkpoint)]
        blocks.append("\n".join([checkpoint.name, *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)


def _describe(checkpoint: Checkpoint) -> list[str]:
    """Task, geometry, recipe and published numbers, a line each."""
    recipe = checkpoint.recipe
    scores = []
    for benchmark, values in checkpoint.published.items():
        numbers = [f"{metric} {x}" for metric, x in zip(METRICS[benchmark], values, strict=True)]
        scores.append(f"{benchmark} {', '.join(numbers)}")
    return [
        f"task: {recipe.task}; side-channel: {' + '.join(recipe.sides)}; base: {checkpoint.base}",
        f"patch: {recipe.num_layers} layers, {'3D' if checkpoint.rope else 'no'} rope; "
        f"trained: {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}, "
        f"batch {recipe.batch_size} x accumulation {recipe.accumulation_steps}",
        f"published: {'; '.join(scores)}",
    ]


def default_folder(name: str) -> Path:
    """Where `pave fetch` puts a checkpoint unless given another folder."""
    return Path("checkpoints", name)


def commands(checkpoint: Checkpoint) -> list[str]:
    """The commands that fetch, score and try a checkpoint; data, video and encoder weights are the user's."""
    sides, folder = checkpoint.recipe.sides, default_folder(checkpoint.name)
    # The official files name neither side nor rope, so both are set, in the order of the patches.
    rope = [f"sides.{side}.rope={str(checkpoint.rope).lower()}" for side in sides]
    model = " ".join([f"--ckpt {folder} --base {checkpoint.base} base.dtype=float16", *rope])

    lines = [f"pave fetch {checkpoint.name}"]
    for task in checkpoint.published:
        features = []
        for side in sides:
            features.append(f"'sides.{side}.features={FEATURE_FOLDERS.get((task, side), f'features/{side}')}'")
        lines.append(
            f"pave eval {model} {' '.join(features)} data.task={task} data.root=data/{task} "
            f"--split {SPLITS.get(task, 'test')} --max-new-tokens {ANSWER_TOKENS.get(task, 1024)} --out {folder}/{task}"
        )

    inputs = [f"sides.{side}.{setting}" for side in sides for setting in ENCODERS.get(side, ())]
    inputs += [f"--features {side}=FEATURES" for side in sides if side not in ENCODERS]
    lines.append(f'pave demo {model} {" ".join(inputs)} --video VIDEO.mp4 --ask "What happens here?"')
    return lines
