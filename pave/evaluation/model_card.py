"""A model card from the config and the scores of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from pave import __version__
from pave.checkpoints import load, patch_folder
from pave.config import BaseConfig, Config
from pave.evaluation import run_folder
from pave.models.patched_model import PatchedModel
from pave.types import UserError
from pave.utils import tables
from pave.utils.json_files import read_json

CARD_FILE = "README.md"
SHOWN_SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "seed",
)
"""Training settings that a model card states."""
CARD = """---
{metadata}---

# {name}

{summary} Made with [PAVE](https://arxiv.org/abs/2503.19794), by `pave` {version}.

{intended}

| patch | side-channel | token width | inner width, heads, layers | parameters | weight |
|---|---|---|---|---|---|
{patches}

{lora}

## Use

With `pave` installed, and these files in the folder `{folder}`:

```
pave demo --ckpt {folder} --video clip.mp4 --ask "What is heard?"{flags}
```

```python
from pave import Pave

patched = Pave.from_pretrained("{name}"{overrides})
print(patched.ask("clip.mp4", "What is heard?", {features}))
```

The command wants a local folder. The adapter files alone are a plain peft folder for the base.

## Training

* Data: {data}. {terms}
* Side-channels: features of {encoders}.
* Video: {frames}, newline `{newline}`.
* Set apart from the published recipe of PAVE: {recipe}. `pave.yaml` holds all settings.

## Results

{results}

## Limits

* It was trained on the data above. Other kinds of questions, videos or languages were not tried, unless this page
  says so.
* Each patch wants the features that it was trained with: same encoder, same options. A missing side-channel adds
  nothing, and the answer is then a guess from the picture.
* What the base gets wrong, and what it has learnt from its own data, is still there.

## Licence

{licence} These tensors were trained on top of the base and on features of the encoders, whose licences apply to them
too; the published PAVE weights are for academic use only.

## Citation

```bibtex
@inproceedings{{liu2025pave,
  title = {{PAVE: Patching and Adapting Video Large Language Models}},
  author = {{Zhuoming Liu and Yiquan Li and Khoi Duc Nguyen and Yiwu Zhong and Yin Li}},
  booktitle = {{CVPR}},
  year = {{2025}}
}}
```

Cite the base, the encoders and the data sets too. {contact}
"""
TODO = {
    "intended": "TODO: what it is for, and what it is not for.",
    "terms": "TODO: where the data came from, and under which terms.",
    "contact": "TODO: who made it, and where to ask.",
}
"""What only a person can say, by its place in the card."""


def card(model: PatchedModel, config: Config, name: str, license: str = "", results: Sequence[Path] = ()) -> str:
    """Write the model card of a folder, Markdown with metadata; `name` is the folder or the repository.

    Raises UserError for results that are not there or of other weights.
    """
    base, sides, data = config.base, config.sides, config.data
    channels = [side.side or patch for patch, side in sides.items()]
    is_public = _is_hub_name(base.path)
    base_text = (
        f"`{base.path}`" if is_public else f"a `{base.name}` base that is not on the hub (give `base.path=FOLDER`)"
    )

    recipe = {key: config.train[key] for key in SHOWN_SETTINGS if key in config.train}
    if config.patch_lr is not None:
        recipe["patch_lr"] = config.patch_lr
    tasks = [entry.task or task for task, entry in data.mixture.items()] or [data.task]
    lora = (
        f"LoRA on the language model: rank {config.lora.r}, alpha {config.lora.alpha}." if config.lora.r else "No LoRA."
    )

    # Files that a user gives for this model, and what else the commands need.
    flags = "".join(f" --features {patch}={patch}.safetensors" for patch in sides)
    features = ", ".join(f'"{patch}": "{patch}.safetensors"' for patch in sides)
    arguments = "" if is_public else ', ["base.path=FOLDER"]'
    if patch_folder.foreign_plugins(config):
        flags += " --trust-plugins"
        arguments += ", trust_plugins=True"

    return CARD.format(
        **TODO,
        metadata=_metadata(config, channels, license),
        name=name,
        folder=Path(name).name,
        version=__version__,
        summary=f"Patches for {', '.join(dict.fromkeys(channels)) or 'no side-channel'} on {base_text}.",
        patches="\n".join(_patch_rows(model, config)),
        lora=lora,
        data=f"{', '.join(f'`{task}`' for task in tasks)}, split `{data.train_split}`",
        frames=_describe_frames(base),
        newline=base.newline,
        encoders=", ".join(f"`{Path(s.encoder).name}`" for s in sides.values() if s.encoder) or "the usual encoders",
        recipe=", ".join(f"`{key}={value}`" for key, value in recipe.items()) or "nothing",
        flags=flags,
        overrides=arguments,
        features=f"{{{features}}}",
        results="\n\n".join(_results(model, config, folder) for folder in results) or "None are given.",
        licence=f"`{license}`." if license else "TODO: name the licence of your own.",
    )


def _is_hub_name(path: str) -> bool:
    """Whether a path is org/name and no folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None and not Path(path).exists()


def _metadata(config: Config, channels: Sequence[str], license: str) -> str:
    """The YAML head of the card, which the hub reads."""
    tags = ["pave", "video", *channels]
    if config.lora.r:
        tags.append("lora")
    metadata = {
        "library_name": "pave",
        "pipeline_tag": "video-text-to-text",
        "tags": list(dict.fromkeys(tags)),
    }

    if license:
        metadata["license"] = license
    if _is_hub_name(config.base.path):
        metadata |= {"base_model": config.base.path, "base_model_relation": "adapter"}
    return yaml.safe_dump(metadata, sort_keys=False)


def _patch_rows(model: PatchedModel, config: Config) -> list[str]:
    """One line of the table for each patch."""
    rows = []
    for patch, side in config.sides.items():
        parameters = sum(x.numel() for x in model.patches[patch].parameters())
        shape = f"{side.side_dim} | {side.hidden_dim}, {side.heads}, {side.num_layers}"
        rows.append(f"| {patch} | {side.side or patch} | {shape} | {parameters:,} | {side.weight:g} |")
    return rows


def _results(model: PatchedModel, config: Config, folder: Path) -> str:
    """The scores of one evaluation, with all that is needed to understand them. Raises UserError."""
    metrics = run_folder.read_metrics(folder)
    manifest = read_json(folder / run_folder.MANIFEST, run_folder.EXPECTED, ("base", "sides", "weights"))

    # Half precision rounds the base's norms, which the hash covers, so it can be compared in one type only.
    is_comparable = manifest["base"]["dtype"] == config.base.dtype and manifest["sides"]
    if is_comparable and manifest["weights"] != load.fingerprint(model):
        raise UserError(f"{folder}: scores of other weights than this model's; run `pave eval` on this one")

    sides = [f"{name} ({side['probe']})" if side["probe"] else name for name, side in manifest["sides"].items()]
    coverage, chance = metrics["coverage"], metrics["chance"]
    counts = f"{coverage['answered']} of {coverage['questions']} questions answered"
    if coverage["asked"] < coverage["questions"]:
        counts += f", only the first {coverage['asked']} asked"

    rows = []
    for name, value in metrics["metrics"].items():
        score = str(value) if isinstance(value, int) else f"{value:.4g}"
        rows.append([name, score, f"{chance[name]:.4g}" if name in chance else ""])
    lines = [
        f"`{metrics['task']}`, split `{metrics['split']}`: {counts}. "
        f"Side-channels: {', '.join(sides) or 'none'}; weights in {manifest['base']['dtype']}.",
        "",
        *tables.markdown(["metric", "score", "chance"], rows),
    ]
    return "\n".join(lines)


def _describe_frames(base: BaseConfig) -> str:
    """Say which frames of a video a base takes."""
    if base.frame_sampling == "native":
        return "frames by the base's own rule"
    return f"{base.fps:g} frames a second, at most {base.frames}" if base.fps else f"{base.frames} frames"
