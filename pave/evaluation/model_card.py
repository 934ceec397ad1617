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
from pave.models import patched_model
from pave.types import UserError
from pave.utils.json_files import read_json

CARD_FILE = "README.md"
SHOWN = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "seed"),
)
"""Training settings that a model card tells."""
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
from pathlib import Path

from pave import Pave
from pave.inference.demo import answer

model = Pave.from_pretrained("{name}"{overrides})
print(answer(model, model.config, Path("clip.mp4"), "What is heard?", {features}))
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


def card(
    trained: patched_model.PatchedModel, config: Config, name: str, license: str = "", results: Sequence[Path] = ()
) -> str:
    """The model card of a folder, Markdown with metadata; `name` is the folder or the repository.

    Raises UserError for results that are not there or of other weights.
    """
    base, sides, data = config.base, config.sides, config.data
    public = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base.path) is not None and not Path(base.path).exists()
    channels = {patch: side.side or patch for patch, side in sides.items()}
    metadata = {
        "library_name": "pave",
        "pipeline_tag": "video-text-to-text",
        "tags": list(dict.fromkeys(["pave", "video", *channels.values(), *(["lora"] if config.lora.r else [])])),
        **({"license": license} if license else {}),
        **({"base_model": base.path, "base_model_relation": "adapter"} if public else {}),
    }
    rows = [
        f"| {patch} | {channels[patch]} | {side.side_dim} | {side.hidden_dim}, {side.heads}, {side.num_layers} "
        f"| {sum(x.numel() for x in trained.patches[patch].parameters()):,} | {side.weight:g} |"
        for patch, side in sides.items()
    ]
    files = {patch: f"{patch}.safetensors" for patch in sides}
    said = {key: config.train[key] for key in SHOWN if key in config.train}
    if config.patch_lr is not None:
        said["patch_lr"] = config.patch_lr
    where = f"`{base.path}`" if public else f"a `{base.name}` base that is not on the hub (give `base.path=FOLDER`)"
    tasks = [one.task or task for task, one in data.mixture.items()] or [data.task]
    trust = bool(patch_folder.foreign_plugins(config))
    return CARD.format(
        **TODO,
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        name=name,
        folder=Path(name).name,
        version=__version__,
        summary=f"Patches for {', '.join(dict.fromkeys(channels.values())) or 'no side-channel'} on {where}.",
        patches="\n".join(rows),
        lora=f"LoRA on the language model: rank {config.lora.r}, alpha {config.lora.alpha}."
        if config.lora.r
        else "No LoRA.",
        data=f"{', '.join(f'`{task}`' for task in tasks)}, split `{data.train_split}`",
        frames=_frames(base),
        newline=base.newline,
        encoders=", ".join(f"`{Path(s.encoder).name}`" for s in sides.values() if s.encoder) or "the usual encoders",
        recipe=", ".join(f"`{key}={value}`" for key, value in said.items()) or "nothing",
        flags="".join(f" --features {patch}={file}" for patch, file in files.items())
        + (" --trust-plugins" if trust else ""),
        overrides=("" if public else ', ["base.path=FOLDER"]') + (", trust_plugins=True" if trust else ""),
        features="{" + ", ".join(f'"{patch}": Path("{file}")' for patch, file in files.items()) + "}",
        results="\n\n".join(_scores(trained, config, folder) for folder in results) or "None are given.",
        licence=f"`{license}`." if license else "TODO: name the licence of your own.",
    )


def _scores(trained: patched_model.PatchedModel, config: Config, folder: Path) -> str:
    """What `pave eval` found, as a table with all that it needs to be understood."""
    found = run_folder.read_metrics(folder)
    manifest = read_json(folder / run_folder.MANIFEST, run_folder.EXPECTED, ("base", "sides", "weights"))
    # Half precision rounds the base's norms, which the hash covers, so it can be compared in one type only.
    same = manifest["base"]["dtype"] == config.base.dtype and manifest["sides"]
    if same and manifest["weights"] != load.fingerprint(trained):
        raise UserError(f"{folder}: scores of other weights than this model's; run `pave eval` on this one")
    used = [f"{name} ({side['probe']})" if side["probe"] else name for name, side in manifest["sides"].items()]
    count, chance = found["coverage"], found["chance"]
    about = (
        f"`{found['task']}`, split `{found['split']}`: {count['answered']} of {count['questions']} questions answered"
    )
    limit = f", only the first {count['asked']} asked" if count["asked"] < count["questions"] else ""
    rows = [
        f"| {name} | {x if isinstance(x, int) else f'{x:.4g}'} | {f'{chance[name]:.4g}' if name in chance else ''} |"
        for name, x in found["metrics"].items()
    ]
    return "\n".join(
        [
            f"{about}{limit}. Side-channels: {', '.join(used) or 'none'}; weights in {manifest['base']['dtype']}.",
            *("", "| metric | score | chance |", "|---|---|---|"),
            *rows,
        ]
    )


def _frames(base: BaseConfig) -> str:
    """Which frames a base looks at, in words."""
    if base.frame_sampling == "native":
        return "frames by the base's own rule"
    return f"{base.fps:g} frames a second, at most {base.frames}" if base.fps else f"{base.frames} frames"
