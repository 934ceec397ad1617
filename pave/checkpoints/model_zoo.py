"""The released PAVE checkpoints: what each is, what was published for it, and the commands to get, score and try it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
LENGTHS = {"videomme": 16, "mvbench": 16, "mlvu": 16}
"""Of answers, where they are a letter."""
FOLDERS = {
    ("avsd", "audio"): "Charades_*_audio_imagebind_feat",
    **{(task, "dense"): "languagebind_feat" for task in LENGTHS},
}
"""Of published features below the data, where their names are known; else features/SIDE."""
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
"""What was published for each benchmark, named as `pave eval` names it; the numbers are 100 times as large."""
SPLITS = {"avqa": "val", "egoexo": "val", "scanqa": "val"}
"""What the numbers are for, where it is not `test`."""


class Recipe(NamedTuple):
    """How the checkpoints of one kind were trained."""

    task: str
    sides: tuple[str, ...]
    """In the order of their patches in the file."""
    epochs: int
    batch: int
    """Samples a device and step."""
    accumulation: int
    """Steps whose gradients are added up."""
    depth: int = 2
    """Layers of each patch."""


class Release(NamedTuple):
    """One released checkpoint."""

    name: str
    size: str
    """Of the base, LLaVA-OneVision: 0.5b or 7b."""
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
_MUSIC = Recipe("music_avqa", ("audio",), 2, 4, 4, depth=3)
# One epoch, as the official table says; the official script has two.
_SCANQA = Recipe("scanqa", ("scene3d",), 1, 4, 4)
_SQA3D = Recipe("sqa3d", ("scene3d",), 2, 4, 8)
_EGOEXO = Recipe("egoexo", ("exo",), 2, 2, 16)
_VIDEO = Recipe("llava_video", ("dense",), 1, 2, 8)
# The dense patch came from a checkpoint like the last and stayed frozen; an audio patch and LoRA went on from there.
_AVSD_BOTH = Recipe("avsd", ("dense", "audio"), 2, 2, 8)
RELEASES = (
    Release("pave_v5_1_3_lora_avsd_imagebind", "0.5b", _AVSD, {"avsd": (134.5,)}),
    Release("pave_5_1_3_lora_avsd_7B_imagebind", "7b", _AVSD, {"avsd": (152.9,)}),
    Release("pave_v5_1_3_lora_avsd_audio_and_dense_7B", "7b", _AVSD_BOTH, {"avsd": (160.0,)}),
    Release("pave_v5_1_3_lora_avqa_imagebind", "0.5b", _AVQA, {"avqa": (90.4,)}),
    Release("pave_v5_1_3_lora_avqa_7B_imagebind", "7b", _AVQA, {"avqa": (93.8,)}),
    Release(
        "pave_v5_1_3_lora_music_avqa_2epoch_imagebind_3layers", "0.5b", _MUSIC, {"music_avqa": (77.3, 89.8, 74.1, 78.8)}
    ),
    Release(
        "pave_v5_1_3_lora_music_avqa7B_2epoch_imagebind_3layers", "7b", _MUSIC, {"music_avqa": (79.7, 93.0, 78.0, 82.3)}
    ),
    Release("pave_scanqa_v5_1_3_3d_lora", "0.5b", _SCANQA, {"scanqa": (84.2, 13.1, 17.0, 42.1, 23.1, 40.0)}),
    Release("pave_scanqa_v5_1_3_3d_lora_7B", "7b", _SCANQA, {"scanqa": (103.4, 16.0, 19.9, 49.0, 29.1, 48.5)}),
    Release("pave_sqa3d_v5_1_3_3d_lora_2epochs", "0.5b", _SQA3D, {"sqa3d": (51.1, 52.8)}),
    Release("pave_sqa3d_v5_1_3_3d_lora_7B_2epoch", "7b", _SQA3D, {"sqa3d": (59.0, 61.4)}),
    Release("pave_egoexo_v5_1_3_3d_lora_2epoch", "0.5b", _EGOEXO, {"egoexo": (32.4,)}),
    Release("pave_egoexo_v5_1_3_3d_lora_7B_2epoch", "7b", _EGOEXO, {"egoexo": (44.2,)}),
    Release(
        "pave_v5_1_2_lora",
        "0.5b",
        _VIDEO,
        {"videomme": (57.8, 42.7, 37.4, 46.0), "mvbench": (46.6,), "mlvu": (51.6,)},
        rope=True,
    ),
    Release(
        "pave_v5_1_3_lora_7B",
        "7b",
        _VIDEO,
        {"videomme": (71.1, 59.4, 49.2, 59.9), "mvbench": (58.0,), "mlvu": (67.0,)},
    ),
)


def find(name: str) -> Release:
    """A release by its published name. Raises UserError with the nearest one."""
    for release in RELEASES:
        if release.name == name:
            return release
    raise UserError(f"no released checkpoint '{name}'; {nearest(name, [r.name for r in RELEASES])}")


def table() -> str:
    """Every release with its commands, as text."""
    return "\n\n".join(
        "\n".join([release.name, *(f"  {line}" for line in (*_facts(release), *commands(release)))])
        for release in RELEASES
    )


def _facts(release: Release) -> list[str]:
    recipe = release.recipe
    numbers = [
        f"{benchmark} {', '.join(f'{metric} {x}' for metric, x in zip(METRICS[benchmark], values, strict=True))}"
        for benchmark, values in release.published.items()
    ]
    return [
        f"task: {recipe.task}; side-channel: {' + '.join(recipe.sides)}; base: {release.base}",
        f"patch: {recipe.depth} layers, {'3D' if release.rope else 'no'} rope; "
        f"trained: {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}, "
        f"batch {recipe.batch} x accumulation {recipe.accumulation}",
        f"published: {'; '.join(numbers)}",
    ]


def default_folder(name: str) -> Path:
    """Where `pave fetch` puts a release unless told otherwise."""
    return Path("checkpoints", name)


def commands(release: Release) -> list[str]:
    """The commands that fetch, score and try a release; data, video and encoder weights are the user's."""
    sides = release.recipe.sides
    # The official files name neither side nor rope, so both are given, in the order of the patches.
    named = [f"sides.{side}.rope={str(release.rope).lower()}" for side in sides]
    ckpt = default_folder(release.name)
    model = [f"--ckpt {ckpt} --base {release.base} base.dtype=float16", *named]
    made = [f"sides.{side}.{setting}" for side in sides for setting in ENCODERS.get(side, ())]
    ready = [f"--features {side}=FEATURES" for side in sides if side not in ENCODERS]
    return [
        f"pave fetch {release.name}",
        *(
            " ".join(["pave eval", *model, *_stored(sides, task), f"data.task={task} data.root=data/{task}"])
            + f" --split {SPLITS.get(task, 'test')} --max-new-tokens {LENGTHS.get(task, 1024)} --out {ckpt}/{task}"
            for task in release.published
        ),
        " ".join(["pave demo", *model, *made, *ready, '--video VIDEO.mp4 --ask "What happens here?"']),
    ]


def _stored(sides: Sequence[str], task: str) -> list[str]:
    """Where the features of each side lie below the data."""
    folders = [(side, FOLDERS.get((task, side), f"features/{side}")) for side in sides]
    return [f"'sides.{side}.features={folder}'" for side, folder in folders]
