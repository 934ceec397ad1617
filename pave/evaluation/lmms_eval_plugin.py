"""A plug-in of lmms-eval, `lmms_eval --model pave` (doc/guides/lmms_eval.md); nothing else imports this file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lmms_eval.api.model import lmms
from torch.utils.data import DataLoader
from tqdm import tqdm

from pave.checkpoints import load
from pave.data.dataset import make_sample, read_side_tokens, select_frame_sampling, side_channels
from pave.evaluation.evaluate import UnreadableVideo, make_prompt_group
from pave.inference import generation
from pave.inference.generation import PromptGroup
from pave.media.feature_files import feature_file
from pave.types import Question, UserError

MAX_NEW_TOKENS = 1024
"""Where a task does not say, as lmms-eval's own models."""
SAMPLING_ARGUMENTS = ("temperature", "top_p", "top_k")
"""Generation arguments without meaning in greedy decoding."""


def manifest() -> Any:
    """Name the class below for `--model pave`; lmms-eval calls this by its entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("pave", simple_class_path=f"{__name__}.{Model.__name__}")


class Request(NamedTuple):
    """One request of lmms-eval."""

    text: str
    video: Path
    features: tuple[Path | None, ...]
    """One file for each entry of `side_channels`; None where this document has none."""
    max_new_tokens: int
    until: tuple[str, ...]
    """An answer ends before the first of these."""


class Model(lmms):
    """A trained folder that answers, greedily, about one video a question."""

    is_simple = True

    def __init__(
        self,
        ckpt: str,
        base: str | None = None,
        base_only: bool = False,
        device: str | None = None,
        batch_size: int | str = 1,
        workers: int = 2,
        trust_plugins: bool = False,
        **overrides: Any,
    ) -> None:
        """Load a model from lmms-eval's --model_args; `overrides` are key=value, such as sides.audio.features=DIR."""
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: expected a whole number above 0")

        self.batch_size, self.workers = int(batch_size), workers
        self.device = torch.device(load.choose_device(device))
        settings = [f"{key}={value}" for key, value in overrides.items()]
        self.model, self.config = load.load_model(
            Path(ckpt), base, settings, base_only, str(self.device), trust_plugins
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer in the order of the requests. Raises UserError, before the first answer, for an unusable request."""
        parsed = [self._parse_request(*request.args) for request in requests]

        # A length holds for a whole batch, so that requests of each length are answered on their own.
        groups_by_length: dict[int, dict[tuple[Any, ...], list[int]]] = {}
        for i, request in enumerate(parsed):
            # A base that encodes a video for each question shares nothing between different questions.
            text = request.text if self.model.base.prompt_conditioned else ""
            videos = groups_by_length.setdefault(request.max_new_tokens, {})
            videos.setdefault((request.video, request.features, text), []).append(i)

        answers = [""] * len(parsed)
        with tqdm(total=len(parsed), desc="answer", unit="question", disable=self.rank > 0) as bar:
            for max_new_tokens, videos in groups_by_length.items():
                groups = list(videos.values())
                for indices, texts in zip(groups, self._answer_groups(parsed, groups, max_new_tokens)):
                    for i, text in zip(indices, texts):
                        answers[i] = _cut(text, parsed[i].until)
                    bar.update(len(indices))
        return answers

    def _answer_groups(
        self, requests: Sequence[Request], groups: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Iterator[list[str]]:
        """The answers to each group of requests about one video. Raises UserError for an unreadable video."""
        decoding = generation.greedy_decoding(self.model, max_new_tokens)
        data: Any = [[requests[i] for i in group] for group in groups]
        # Videos are read while batches are collated, which is in the workers.
        for batch in DataLoader(data, self.batch_size, num_workers=self.workers, collate_fn=self._read_groups):
            if isinstance(batch, UnreadableVideo):
                raise UserError(batch)
            for rows in generation.answers(self.model, batch, decoding, self.batch_size):
                yield self.model.base.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Raises UserError: only generate_until is supported."""
        kind = requests[0].request_type
        raise UserError(
            f"task {requests[0].task_name}: is of type {kind}, pave does generate_until; choose another task"
        )

    generate_until_multi_round = loglikelihood

    def _parse_request(
        self, text: str, arguments: Mapping[str, Any], to_visual: Any, doc_id: int, task: str, split: str
    ) -> Request:
        name = f"task {task}, document {doc_id}"
        visuals = to_visual(self.task_dict[task][split][doc_id])
        if not visuals or len(visuals) != 1 or not isinstance(visuals[0], str):
            kinds = ", ".join(type(x).__name__ for x in visuals or ()) or "nothing"
            raise UserError(f"{name}: shows {kinds}, expected the path of one video; choose a video task")

        video = Path(os.path.abspath(visuals[0]))
        if not video.exists():
            raise UserError(f"{video}: no such video ({name}); let lmms-eval download the task's videos again")
        files = tuple(self._find_features(side, video, f"{task}/{doc_id}") for side in side_channels(self.config))
        return Request(text, video, files, *_parse_decoding(name, arguments))

    def _find_features(self, side: str, video: Path, document: str) -> Path | None:
        """The document's own file, or the one named by most of its video's path; None where it may do without."""
        folder = Path(self.config.data.root) / self.config.sides[side].features
        parts = video.with_suffix("").parts[1:]
        names = [document, *("/".join(parts[i:]) for i in range(len(parts)))]
        files = [feature_file(folder, Question(document, str(video), "", (), features=name)) for name in names]
        for file in files:
            if file.exists():
                return file

        if self.config.data.missing == "error":
            hint = f"add sides.{side}.features=DIR to --model_args, or data.missing=absent to do without"
            raise UserError(f"{files[-1]}: no such {side} features, and no {document} in that folder; {hint}")
        return None

    def _read_groups(self, groups: Sequence[Sequence[Request]]) -> list[PromptGroup] | UnreadableVideo:
        """Read the video of each group, or say why one cannot be read."""
        try:
            return [self._read_group(group) for group in groups]
        except UserError as error:
            return UnreadableVideo(error)

    def _read_group(self, group: Sequence[Request]) -> PromptGroup:
        from pave.media.video import read_clip

        config, base, first = self.config, self.model.base, group[0]
        clip = read_clip(first.video, select_frame_sampling(config.base, base))
        sides = {}
        for (name, side), file in zip(side_channels(config).items(), first.features):
            dim = config.sides[name].side_dim
            sides[name] = None if file is None else read_side_tokens(side.load, file, dim)

        sample = make_sample(config, base, first.text, clip, sides)
        return make_prompt_group(base, sample, [(request.text, ()) for request in group[1:]], config)


def _parse_decoding(name: str, arguments: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Take the longest answer and its ends from generation arguments. Raises UserError unless they are greedy."""
    remaining = {key: value for key, value in arguments.items() if key not in SAMPLING_ARGUMENTS}
    max_new_tokens = remaining.pop("max_new_tokens", MAX_NEW_TOKENS)
    until = remaining.pop("until", None) or ()
    does_sample = remaining.pop("do_sample", bool(arguments.get("temperature")))
    num_beams = remaining.pop("num_beams", 1)

    if does_sample or num_beams not in (1, None):
        greedy = "do_sample=False,temperature=0,num_beams=1"
        raise UserError(f"{name}: asks for sampling or beams, pave is greedy; add --gen_kwargs {greedy}")
    if remaining:
        argument = next(iter(remaining))
        raise UserError(f"{name}: generation argument '{argument}' is not supported; take it out of the task")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UserError(f"{name}: max_new_tokens={max_new_tokens}, expected a whole number above 0")
    return max_new_tokens, (until,) if isinstance(until, str) else tuple(until)


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of some ends."""
    for end in filter(None, until):
        text = text.split(end)[0]
    return text.strip()
