"""Questions about one video: with any of the patches, and of the base model alone; apart from any interface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import StoppingCriteriaList, TextStreamer

from pave import config as configs
from pave.checkpoints import hot_swap
from pave.checkpoints import load as load_checkpoint
from pave.config import Config
from pave.data import visual_token_cache
from pave.data.collate import Sample, collate, conversation, expand, to_device
from pave.data.dataset import key_frames, make_sample, side_tokens
from pave.inference import provenance, untrusted_media
from pave.inference.provenance import Provenance, SideProvenance
from pave.inference.untrusted_media import MediaReader, SideRequest, is_features
from pave.models import lora
from pave.models.patch.patch import Patch
from pave.models.patched_model import PatchedModel
from pave.sides.base import SideChannel, get_side
from pave.types import SideTokens, UserError
from pave.utils import registry

VIDEO_MARK = "<video>"
"""Stands for the frames in a prompt."""


def load_with_patches(
    ckpt: Path,
    base: str | None,
    overrides: Sequence[str],
    device: str | None,
    patches: Sequence[tuple[str, str]],
    trust_plugins: bool = False,
) -> tuple[PatchedModel, Config]:
    """A trained folder, and the patches of further (name, folder) on it. UserError: one that does not fit.

    See `checkpoint.read_config` for plugins.
    """
    model, config = load_checkpoint.load_model(ckpt, base, overrides, device=device, trust_plugins=trust_plugins)
    for name, folder in patches:
        config = hot_swap.add(model, config, name, Path(folder), trust_plugins=trust_plugins)
    return model, config


class LoadedVideo(NamedTuple):
    """A video with its side-channels, ready for questions."""

    sample: Sample
    provenance: Provenance


@dataclass(frozen=True)
class AnswerRequest:
    """One question, and how to answer it."""

    question: str
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, answer) turns."""
    patches: tuple[str, ...] | None = None
    """Those that are on; None: as the model is configured; empty: the base itself."""
    max_new_tokens: int = 128


class Answer(NamedTuple):
    """An answer."""

    text: str
    tokens: int
    prompt_tokens: int
    finished: bool
    """Not cut off."""
    patches: dict[str, float]
    """Those that were on, with their weights."""


class Session:
    """A model that looks at videos and answers questions; for one thread."""

    def __init__(self, model: PatchedModel, config: Config, read: MediaReader = untrusted_media.read) -> None:
        self.model, self.config, self._read = model, config, read
        self._weights = dict(model.patch_weights)
        self._encoders: dict[str, Any] = {}
        self.device = next(model.parameters()).device

    def load_encoders(self) -> None:
        """Load all that the config names, else it happens when they are needed. UserError: not such weights."""
        for name, side in self.config.sides.items():
            if side.encoder:
                self._encoder(name)

    def load_video(self, video: Path, files: Mapping[str, Path], without: Collection[str] = ()) -> LoadedVideo:
        """Read a video, and each side-channel from its file: feature file, folder of them, or media; else the video.

        One that the video does not have is left out, and the facts say why; as they do for those left out by name.
        UserError: an unreadable file, an unknown side-channel.
        """
        for name in [*files, *without]:
            if name not in self.config.sides:
                known = registry.nearest(name, self.config.sides)
                raise UserError(f"this model has no side-channel '{name}'; {known}")
        plans: dict[str, SideRequest | str] = {
            name: "left out" if name in without else self._plan(name, video, files.get(name))
            for name in self.config.sides
        }
        wanted = {name: plan for name, plan in plans.items() if isinstance(plan, SideRequest)}
        media = self._read(video, key_frames(self.config.base, self.model.base), wanted)
        made = {
            name: self._encode(name, media.sides[name], video) if isinstance(plan, SideRequest) else (plan, "")
            for name, plan in plans.items()
        }
        sides = {name: None if isinstance(tokens, str) else tokens for name, (tokens, _) in made.items()}
        sample = make_sample(self.config, self.model.base, "", media.clip, sides)
        assert sample.frame_seconds is not None
        said: dict[str, SideProvenance] = {}
        for name, (tokens, note) in made.items():
            source = files.get(name, video).name
            if isinstance(tokens, str):
                said[name] = SideProvenance(source, tokens)
            else:
                patch = self.model.patches[name]
                assert isinstance(patch, Patch)
                said[name] = provenance.describe_side(patch, tokens, sample.frame_seconds, source, note)
        frames = sample.frame_seconds.tolist()
        return LoadedVideo(sample, Provenance(video.name, media.info, len(media.clip.frames), frames, said))

    def _plan(self, name: str, video: Path, file: Path | None) -> SideRequest | str:
        """How to read it, or why there is none."""
        config, side = self.config.sides[name], self._side(name)
        # An encoder is loaded only where it is needed.
        encodes = config.encoder and (file is None or not is_features(file))
        reader = side.reader(self._encoder(name), self._options(name)) if encodes else None
        wanted = SideRequest(
            file or video, partial(side_tokens, side.load, dim=config.side_dim), reader, from_video=file is None
        )
        if file is not None or (reader and self.in_video(name)):
            return wanted
        if reader:
            return f"{video.name}: a video does not hold it; give a file of its own"
        return f"{video.name}: no encoder makes features of it; give features, or sides.{name}.encoder"

    def in_video(self, name: str) -> bool:
        """Whether a side-channel can be in the video itself."""
        return self._side(name).reads_video

    def _encode(self, name: str, made: Any, video: Path) -> tuple[SideTokens | str, str]:
        """Tokens of what was read, or why there are none; and what is unusual about it."""
        if isinstance(made, UserError):
            return str(made).replace(f"{video.parent}/", ""), ""
        if isinstance(made, SideTokens):
            return made, ""
        side, config = self._side(name), self.config.sides[name]
        tokens = side.encode(made, self._encoder(name), self._options(name))
        if tokens.x.shape[-1] != config.side_dim:
            found, wanted = tokens.x.shape[-1], config.side_dim
            raise UserError(f"{config.encoder}: gives {name} features {found} wide, this patch was trained on {wanted}")
        return tokens, side.note(made)

    def _side(self, name: str) -> SideChannel:
        return get_side(self.config.sides[name].side or name)

    def _options(self, name: str) -> Any:
        return configs.options(self._side(name).options_type, self.config.sides[name].encoder_options)

    def _encoder(self, name: str) -> Any:
        if name not in self._encoders:
            weights = Path(configs.resolve(self.config.sides[name].encoder))
            self._encoders[name] = self._side(name).build(weights, self._options(name), self.device).eval()
        return self._encoders[name]

    def ask(
        self,
        scene: LoadedVideo,
        ask: AnswerRequest,
        say: Callable[[str], None] = lambda piece: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer one question; `say` gets the answer as it comes. UserError: an unknown patch, too long a text."""
        self._switch(ask.patches)
        sample = self._about(scene.sample, ask)
        tokenizer = self.model.base.tokenizer
        batch = to_device(collate([sample], tokenizer.pad_token_id, left=True), self.device)
        del batch["labels"]
        new = self.model.generate(
            **batch,
            max_new_tokens=ask.max_new_tokens,
            streamer=_Speaker(tokenizer, say),
            stopping_criteria=StoppingCriteriaList([lambda ids, scores: torch.tensor([stopped()], device=ids.device)]),
        )[0]
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        end = self.model.base.hf.generation_config.eos_token_id
        finished = int(new[-1]) in (end if isinstance(end, list) else [end])
        on = {name: weight for name, weight in self.model.patch_weights.items() if weight}
        return Answer(text, len(new), len(sample.ids), finished, on)

    def _switch(self, patches: Collection[str] | None) -> None:
        self.model.set_patches(self._weights if patches is None else {n: self._weights.get(n, 1.0) for n in patches})
        if patches is not None and not patches:
            # The base alone is also without a LoRA that came without a patch.
            lora.set_weights(self.model.base.hf, dict.fromkeys(self.model.lora_patches, 0.0))

    def _about(self, sample: Sample, ask: AnswerRequest) -> Sample:
        """The sample of a scene with the conversation in it."""
        base, tokenizer = self.model.base, self.model.base.tokenizer
        for text in (ask.question, *(text for turn in ask.history for text in turn)):
            for mark in (VIDEO_MARK, *tokenizer.all_special_tokens):
                if mark in text:
                    raise UserError(
                        f"the text holds '{mark}', which means something to the model; write it differently"
                    )
        encoded = conversation(base, ask.question, ask.history, None, self.config.data.labels)
        visual = visual_token_cache.ids(base, sample.pixels, sample.frame_seconds)
        limit = min(self.config.data.max_length, base.hf.config.get_text_config().max_position_embeddings)
        ids, labels = expand(encoded.ids, encoded.labels, visual, limit)
        if len(ids) == limit:
            raise UserError(f"the conversation and {len(visual)} visual tokens exceed {limit} tokens; begin a new one")
        return sample._replace(ids=ids, labels=labels, prompt_ids=encoded.prompt_ids)


class _Speaker(TextStreamer):
    """Tells an answer as it is found, a word at a time."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers."""
        if text:
            self.say(text)
