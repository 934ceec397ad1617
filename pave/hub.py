"""`from pave import Pave`: a model with its config, from and to folders and the hub; its patches come and go."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from pave import __version__, checkpoint, evaluate, live, model, score
from pave import config as configs
from pave.config import BaseConfig, Config
from pave.io.atomic import atomic_folder
from pave.io.hub import folder as hub_folder
from pave.types import UserError

CARD_FILE = "README.md"
SHOWN = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "seed"),
)
"""Training settings that a model card tells."""


class Pave(model.Pave):
    """A model that knows its config."""

    def __init__(self, loaded: model.Pave, config: Config) -> None:
        super().__init__(loaded.base, dict(loaded.patches.items()))
        self.patch_weights, self.loras, self.config = loaded.patch_weights, loaded.loras, config
        # Without it a folder of a base that has learnt would be written without what the base has learnt.
        self.tuned = loaded.tuned
        self.train(loaded.training)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        overrides: Sequence[str] = (),
        device: str | None = None,
        trust_plugins: bool = False,
    ) -> Pave:
        """A trained model from a folder, ours or a released one, or from the hub; `overrides` are `key=value`.

        What it names of bases, sides and tasks must be pave's own, or in `overrides`, unless `trust_plugins` lets any
        module run that it names.
        Raises UserError where there is no such folder, no way to the hub, or a tensor is missing or misshapen.
        """
        return cls(*evaluate.load_model(_folder(source), None, overrides, device=device, trust_plugins=trust_plugins))

    def save_pretrained(self, folder: str | Path, license: str = "", results: Sequence[str | Path] = ()) -> None:
        """Write a folder of ours with a model card, whole or not at all; `results` are folders of `pave eval`.

        Raises UserError for a folder without scores, or with those of other weights.
        """
        self._save(Path(folder), Path(folder).name, license, results)

    def push_to_hub(
        self, repository: str, private: bool = False, license: str = "", results: Sequence[str | Path] = ()
    ) -> str:
        """Upload what `save_pretrained` writes to a repository, made if there is none. Returns its address.

        Raises UserError without a way to the hub, a valid name or the right to write, and as `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self._save(folder, repository, license, results)
            try:
                api = HfApi()
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder))
            except (OSError, HTTPError, HFValidationError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(f"{repository}: the hub refuses: {reason}; check name, login and network") from error

    def _save(self, folder: Path, name: str, license: str, results: Sequence[str | Path]) -> None:
        with atomic_folder(folder) as temporary:
            checkpoint.write(self, self.config, temporary)
            text = card(self, checkpoint.as_it_is(self, self.config), name, license, [Path(one) for one in results])
            (temporary / CARD_FILE).write_text(text)

    def add(self, name: str, source: str | Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> None:
        """Put the patch and the LoRA of a folder of ours on this model as patch `name`; see `live.add`."""
        self.config = live.add(self, self.config, name, _folder(source), overrides, trust_plugins)

    def remove(self, name: str) -> None:
        """Take a patch off this model, and its LoRA with the last patch that it came with."""
        self.config = live.remove(self, self.config, name)

    def hotswap(self, source: str | Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> None:
        """Replace all patches and LoRAs by those of a folder of ours on the same base; see `live.hotswap`."""
        self.config = live.hotswap(self, self.config, _folder(source), overrides, trust_plugins)


def _folder(source: str | Path) -> Path:
    patterns = ["*.json", "*.safetensors", "*.yaml", "*.bin"]
    return hub_folder(configs.resolve(str(source)), "a folder that `pave train` wrote", patterns)


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
from pave.demo import answer

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


def card(trained: model.Pave, config: Config, name: str, license: str = "", results: Sequence[Path] = ()) -> str:
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
        f"| {patch} | {channels[patch]} | {side.dim} | {side.width}, {side.heads}, {side.depth} "
        f"| {sum(x.numel() for x in trained.patches[patch].parameters()):,} | {side.weight:g} |"
        for patch, side in sides.items()
    ]
    files = {patch: f"{patch}.safetensors" for patch in sides}
    said = {key: config.train[key] for key in SHOWN if key in config.train}
    if config.patch_lr is not None:
        said["patch_lr"] = config.patch_lr
    where = f"`{base.path}`" if public else f"a `{base.name}` base that is not on the hub (give `base.path=FOLDER`)"
    tasks = [one.task or task for task, one in data.mix.items()] or [data.task]
    trust = bool(checkpoint.own_plugins(config))
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


def _scores(trained: model.Pave, config: Config, folder: Path) -> str:
    """What `pave eval` found, as a table with all that it needs to be understood."""
    found, manifest = (_json(folder / file) for file in (score.METRICS, score.MANIFEST))
    # Half precision rounds the base's norms, which the hash covers, so it can be compared in one type only.
    same = manifest["base"]["dtype"] == config.base.dtype and manifest["sides"]
    if same and manifest["weights"] != evaluate.fingerprint(trained):
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


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a folder that `pave eval` wrote")
    return json.loads(file.read_text())


def _frames(base: BaseConfig) -> str:
    """Which frames a base looks at, in words."""
    if base.choice == "own":
        return "frames by the base's own rule"
    return f"{base.fps:g} frames a second, at most {base.frames}" if base.fps else f"{base.frames} frames"
