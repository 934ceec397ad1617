"""Sessions: load a video with its side-channels, then answer questions with any of the patches, or the base alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, TextStreamer

from pave import config as configs
from pave.checkpoints import hot_swap
from pave.checkpoints import load as load_checkpoint
from pave.config import Config
from pave.data.collate import Sample, collate, encode_conversation, expand_video_tokens, to_device
from pave.data.dataset import make_sample, read_side_tokens, select_frame_sampling
from pave.inference import provenance, untrusted_media
from pave.inference.provenance import Provenance, SideProvenance
from pave.inference.untrusted_media import MediaReader, SideRequest, is_features
from pave.models import lora
from pave.models.patch.patch import Patch
from pave.models.patched_model import PatchedModel
from pave.sides.base import get_side
from pave.types import SideTokens, UserError
from pave.utils import registry

VIDEO_PLACEHOLDER = "<video>"
"""Marks the place of the frames in a prompt."""


def load_with_patches(
    ckpt: Path,
    base: str | None,
    overrides: Sequence[str],
    device: str | None,
    patches: Sequence[tuple[str, str]],
    trust_plugins: bool = False,
) -> tuple[PatchedModel, Config]:
    """Load a trained folder and add the patches of further (name, folder) to it.

    Raises UserError for a patch that does not fit, and for plugins of others without `trust_plugins`.
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
    """Names of the patches that are on; None: as the model is configured; empty: the base alone."""
    max_new_tokens: int = 128


class Answer(NamedTuple):
    """An answer. The HTTP API documents these field names."""

    text: str
    tokens: int
    prompt_tokens: int
    finished: bool
    """Whether the answer ended by itself, before `max_new_tokens`."""
    patches: dict[str, float]
    """Weights of the patches that were on."""


class _EncodedSide(NamedTuple):
    """Tokens of one side-channel, or the reason why there are none."""

    tokens: SideTokens | None
    absent: str = ""
    note: str = ""


class Session:
    """A model that loads videos and answers questions about them; for one thread."""

    def __init__(self, model: PatchedModel, config: Config, read: MediaReader = untrusted_media.read) -> None:
        self.model, self.config, self._read = model, config, read
        self.device = next(model.parameters()).device
        self._weights = dict(model.patch_weights)
        self._sides = {name: get_side(side.side or name) for name, side in config.sides.items()}
        self._options = {
            name: configs.options(side.options_type, config.sides[name].encoder_options)
            for name, side in self._sides.items()
        }
        self._encoders: dict[str, nn.Module] = {}

    def load_encoders(self) -> None:
        """Load all encoders now instead of at first use. Raises UserError for weights of another kind."""
        for name, side in self.config.sides.items():
            if side.encoder:
                self._encoder(name)

    def load_video(self, video: Path, files: Mapping[str, Path], without: Collection[str] = ()) -> LoadedVideo:
        """Read a video, and each side-channel from its entry in `files` (features or media), else from the video.

        A side-channel that the video does not have, and each named in `without`, is left out; the provenance says why.
        Raises UserError for an unreadable file or an unknown side-channel.
        """
        self._check_names([*files, *without])
        requests: dict[str, SideRequest] = {}
        encoded: dict[str, _EncodedSide] = {}
        for name in self.config.sides:
            request = "left out" if name in without else self._side_request(name, video, files.get(name))
            if isinstance(request, SideRequest):
                requests[name] = request
            else:
                encoded[name] = _EncodedSide(None, request)

        media = self._read(video, select_frame_sampling(self.config.base, self.model.base), requests)
        for name in requests:
            encoded[name] = self._encode(name, media.sides[name], video)

        tokens = {name: encoded[name].tokens for name in self.config.sides}
        sample = make_sample(self.config, self.model.base, "", media.clip, tokens)
        assert sample.frame_seconds is not None
        sides = {
            name: self._side_provenance(name, encoded[name], sample.frame_seconds, files.get(name, video).name)
            for name in self.config.sides
        }
        frames = sample.frame_seconds.tolist()
        return LoadedVideo(sample, Provenance(video.name, media.info, len(media.clip.frames), frames, sides))

    def is_in_video(self, name: str) -> bool:
        """Whether a video file can hold this side-channel."""
        return self._sides[name].reads_video

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.config.sides:
                hint = registry.nearest(name, self.config.sides)
                raise UserError(f"this model has no side-channel '{name}'; {hint}")

    def _side_request(self, name: str, video: Path, file: Path | None) -> SideRequest | str:
        """How to read a side-channel, or the reason why there is none."""
        settings, side = self.config.sides[name], self._sides[name]

        # Features need no encoder, which may be large.
        needs_encoder = settings.encoder and (file is None or not is_features(file))
        read = side.reader(self._encoder(name), self._options[name]) if needs_encoder else None
        load = partial(read_side_tokens, side.load, dim=settings.side_dim)

        if file is not None:
            return SideRequest(file, load, read)
        if read is None:
            return f"{video.name}: no encoder makes features of it; give features, or sides.{name}.encoder"
        if not side.reads_video:
            return f"{video.name}: a video does not hold it; give a file of its own"
        return SideRequest(video, load, read, from_video=True)

    def _encode(self, name: str, content: object, video: Path) -> _EncodedSide:
        """Turn what was read of a side-channel into tokens. Raises UserError for tokens of a wrong width."""
        if isinstance(content, UserError):
            return _EncodedSide(None, str(content).replace(f"{video.parent}/", ""))
        if isinstance(content, SideTokens):
            return _EncodedSide(content)

        settings, side = self.config.sides[name], self._sides[name]
        tokens = side.encode(content, self._encoder(name), self._options[name])
        width = tokens.x.shape[-1]
        if width != settings.side_dim:
            raise UserError(
                f"{settings.encoder}: gives {name} features {width} wide, this patch was trained on {settings.side_dim}"
            )
        return _EncodedSide(tokens, note=side.note(content))

    def _side_provenance(self, name: str, side: _EncodedSide, frame_seconds: Tensor, source: str) -> SideProvenance:
        if side.tokens is None:
            return SideProvenance(source, side.absent)
        patch = self.model.patches[name]
        assert isinstance(patch, Patch)
        return provenance.describe_side(patch, side.tokens, frame_seconds, source, side.note)

    def _encoder(self, name: str) -> nn.Module:
        """The encoder of a side-channel, loaded at first use."""
        if name not in self._encoders:
            weights = Path(configs.resolve(self.config.sides[name].encoder))
            self._encoders[name] = self._sides[name].build(weights, self._options[name], self.device).eval()
        return self._encoders[name]

    def ask(
        self,
        video: LoadedVideo,
        request: AnswerRequest,
        emit: Callable[[str], None] = lambda piece: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer one question greedily; `emit` gets each piece of text at once, `is_stopped` is asked at each token.

        Raises UserError for an unknown patch, a text with special tokens, and a conversation that is too long.
        """
        self._set_patches(request.patches)
        sample = self._add_conversation(video.sample, request)
        tokenizer = self.model.base.tokenizer
        batch = to_device(collate([sample], tokenizer.pad_token_id, left=True), self.device)
        del batch["labels"]

        new = self.model.generate(
            **batch,
            max_new_tokens=request.max_new_tokens,
            streamer=_CallbackStreamer(tokenizer, emit),
            stopping_criteria=StoppingCriteriaList(
                [lambda ids, scores: torch.tensor([is_stopped()], device=ids.device)]
            ),
        )[0]

        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        end = self.model.base.hf.generation_config.eos_token_id
        is_finished = int(new[-1]) in (end if isinstance(end, list) else [end])
        patches = {name: weight for name, weight in self.model.patch_weights.items() if weight}
        return Answer(text, len(new), len(sample.ids), is_finished, patches)

    def _set_patches(self, patches: Collection[str] | None) -> None:
        """Switch on these patches; None: as the model is configured."""
        if patches is None:
            self.model.set_patches(self._weights)
            return
        self.model.set_patches({name: self._weights.get(name, 1.0) for name in patches})
        if not patches:
            # The base alone is also without a LoRA that came without a patch.
            lora.set_weights(self.model.base.hf, dict.fromkeys(self.model.lora_patches, 0.0))

    def _add_conversation(self, sample: Sample, request: AnswerRequest) -> Sample:
        """The sample of a video with the token ids of the conversation."""
        base = self.model.base
        for text in (request.question, *(text for turn in request.history for text in turn)):
            for mark in (VIDEO_PLACEHOLDER, *base.tokenizer.all_special_tokens):
                if mark in text:
                    raise UserError(
                        f"the text holds '{mark}', which means something to the model; write it differently"
                    )

        encoded = encode_conversation(base, request.question, request.history, None, self.config.data.labels)
        assert sample.pixels is not None
        visual = base.visual_token_ids(len(sample.pixels), tuple(sample.pixels.shape[-2:]), sample.frame_seconds)
        max_length = min(self.config.data.max_length, base.hf.config.get_text_config().max_position_embeddings)
        ids, labels = expand_video_tokens(encoded.ids, encoded.labels, visual, max_length)
        if len(ids) == max_length:
            raise UserError(
                f"the conversation and {len(visual)} visual tokens exceed {max_length} tokens; begin a new one"
            )
        return sample._replace(ids=ids, labels=labels, prompt_ids=encoded.prompt_ids)


class _CallbackStreamer(TextStreamer):
    """Passes the answer on while it is generated, a word at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, emit: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers."""
        if text:
            self._emit(text)
