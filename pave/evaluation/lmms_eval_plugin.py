"""A plug-in of lmms-eval, `lmms_eval --model pave` (doc/guides/lmms_eval.md); nothing else imports this file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lmms_eval.api.model import lmms
from torch.utils.data import DataLoader
from tqdm import tqdm

from pave.checkpoints import load
from pave.data.collate import encode_conversation, expand_video_tokens
from pave.data.dataset import feature_file, make_sample, read_side_tokens, select_frame_sampling, side_channels
from pave.evaluation.evaluate import UnreadableVideo
from pave.inference import generation
from pave.inference.generation import PromptGroup
from pave.types import Question, UserError

MAX_NEW_TOKENS = 1024
"""Where a task does not say, as lmms-eval's own models."""
ONLY_SAMPLING = ("temperature", "top_p", "top_k")
"""Generation arguments without meaning in greedy decoding."""


def manifest() -> Any:
    """For the entry point: `--model pave` is the class below."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("pave", simple_class_path=f"{__name__}.{Model.__name__}")


class Ask(NamedTuple):
    """One request of lmms-eval."""

    text: str
    video: Path
    features: tuple[Path | None, ...]
    """Of each side-channel in the order of `plugins`; None where this document has none."""
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
        """From lmms-eval's --model_args; `overrides` are our key=value, such as sides.audio.features=DIR."""
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: expected a whole number above 0")
        self.batch_size, self.workers = int(batch_size), workers
        self.device = torch.device(load.choose_device(device))
        texts = [f"{key}={value}" for key, value in overrides.items()]
        device = str(self.device)
        self.model, self.config = load.load_model(Path(ckpt), base, texts, base_only, device, trust_plugins)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests. Raises UserError, before the first, for what is missing or not done."""
        asks = [self._ask(*request.args) for request in requests]
        prompt_conditioned = self.model.base.prompt_conditioned
        videos: dict[tuple[Any, ...], list[int]] = {}
        for i, ask in enumerate(asks):
            own = ask.text if prompt_conditioned else ""
            videos.setdefault((ask.max_new_tokens, ask.video, ask.features, own), []).append(i)
        texts = [""] * len(asks)
        with tqdm(total=len(asks), desc="answer", unit="question", disable=self.rank > 0) as bar:
            for most in dict.fromkeys(ask.max_new_tokens for ask in asks):
                how = generation.greedy_decoding(self.model, most)
                groups = [group for key, group in videos.items() if key[0] == most]
                data: Any = [[asks[i] for i in group] for group in groups]
                order = iter(groups)
                # Collated, and so read, by the workers.
                for read in DataLoader(data, self.batch_size, num_workers=self.workers, collate_fn=self._read):
                    if isinstance(read, UnreadableVideo):
                        raise UserError(read)
                    for rows in generation.answers(self.model, read, how, self.batch_size):
                        said = self.model.base.tokenizer.batch_decode(rows, skip_special_tokens=True)
                        for i, text in zip(next(order), said):
                            texts[i] = _cut(text, asks[i].until)
                        bar.update(len(said))
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Not done."""
        kind = requests[0].request_type
        raise UserError(
            f"task {requests[0].task_name}: is of type {kind}, pave does generate_until; choose another task"
        )

    generate_until_multi_round = loglikelihood

    def _ask(self, text: str, wanted: Mapping[str, Any], to_visual: Any, doc_id: int, task: str, split: str) -> Ask:
        where = f"task {task}, document {doc_id}"
        found = to_visual(self.task_dict[task][split][doc_id])
        if not found or len(found) != 1 or not isinstance(found[0], str):
            kinds = ", ".join(type(x).__name__ for x in found or ()) or "nothing"
            raise UserError(f"{where}: shows {kinds}, expected the path of one video; choose a video task")
        video = Path(os.path.abspath(found[0]))
        if not video.exists():
            raise UserError(f"{video}: no such video ({where}); let lmms-eval download the task's videos again")
        files = tuple(self._features(side, video, f"{task}/{doc_id}") for side in side_channels(self.config))
        return Ask(text, video, files, *_decoding(where, wanted))

    def _features(self, side: str, video: Path, own: str) -> Path | None:
        """The document's own file, or the one named by most of its video's path; None where it may do without."""
        folder = Path(self.config.data.root) / self.config.sides[side].features
        path = video.with_suffix("").parts[1:]
        names = [own, *("/".join(path[i:]) for i in range(len(path)))]
        files = [feature_file(folder, Question(own, str(video), "", (), features=name)) for name in names]
        file = next((file for file in files if file.exists()), None)
        if file is None and self.config.data.missing == "error":
            hint = f"add sides.{side}.features=DIR to --model_args, or data.missing=absent to do without"
            raise UserError(f"{files[-1]}: no such {side} features, and no {own} in that folder; {hint}")
        return file

    def _read(self, groups: Sequence[Sequence[Ask]]) -> list[PromptGroup] | UnreadableVideo:
        """Groups of requests about one video each, or why one cannot be read."""
        try:
            return [self._asked(*group) for group in groups]
        except UserError as error:
            return UnreadableVideo(error)

    def _asked(self, first: Ask, *others: Ask) -> PromptGroup:
        from pave.media.video import read_clip

        config, base = self.config, self.model.base
        clip = read_clip(first.video, select_frame_sampling(config.base, base))
        sides = {
            name: None if file is None else read_side_tokens(side.load, file, config.sides[name].side_dim)
            for (name, side), file in zip(side_channels(config).items(), first.features)
        }
        sample = make_sample(config, base, first.text, clip, sides)
        assert sample.pixels is not None
        visual = base.visual_token_ids(len(sample.pixels), tuple(sample.pixels.shape[-2:]), sample.frame_seconds)
        encoded, longest = [encode_conversation(base, ask.text) for ask in others], config.data.max_length
        return PromptGroup(
            sample, [sample.ids, *(expand_video_tokens(e.ids, e.labels, visual, longest)[0] for e in encoded)]
        )


def _decoding(where: str, wanted: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """How long an answer may be and where it ends. Raises UserError for anything but greedy decoding."""
    left = {name: value for name, value in wanted.items() if name not in ONLY_SAMPLING}
    most, until = left.pop("max_new_tokens", MAX_NEW_TOKENS), left.pop("until", None) or ()
    if left.pop("do_sample", bool(wanted.get("temperature"))) or left.pop("num_beams", 1) not in (1, None):
        mend = "do_sample=False,temperature=0,num_beams=1"
        raise UserError(f"{where}: asks for sampling or beams, pave is greedy; add --gen_kwargs {mend}")
    if left:
        raise UserError(f"{where}: generation argument '{next(iter(left))}' is not done here; take it out of the task")
    if not isinstance(most, int) or most < 1:
        raise UserError(f"{where}: max_new_tokens={most}, expected a whole number above 0")
    return most, (until,) if isinstance(until, str) else tuple(until)


def _cut(text: str, until: Sequence[str]) -> str:
    for end in filter(None, until):
        text = text.split(end)[0]
    return text.strip()
