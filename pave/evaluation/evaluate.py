"""`pave eval`: the questions of a split answered by any number of processes, each adding to a file of its own."""

from __future__ import annotations

import dataclasses
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pave import __version__
from pave.checkpoints.load import fingerprint
from pave.config import Config
from pave.data import extraction, perturbations, visual_token_cache
from pave.data.collate import conversation, expand
from pave.data.collate import to_device as to_device
from pave.data.dataset import Questions, plugins
from pave.data.perturbations import Probe
from pave.evaluation import run_folder, score
from pave.evaluation.run_folder import MANIFEST, METRICS, PARTS
from pave.inference import generation
from pave.inference.generation import Asked
from pave.models.patched_model import Pave
from pave.types import Question, UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate."""

    split: str | None = None
    """None takes the config's data.eval_split."""
    shuffle_sides: bool = False
    """Every question gets the side-channels of another video, but for those that `sides` names."""
    batch: int = 8
    """Questions at once."""
    workers: int = 2
    """Processes that decode videos."""
    max_new_tokens: int = 64
    keep_going: bool = False
    """Count unreadable questions as wrong instead of stopping at the first."""
    sides: Sequence[str] = ()
    """Probes, such as audio=drop (pave/data/perturbations.py)."""
    limit: int | None = None
    """Ask only so many questions, the first."""
    allow_missing: bool = False
    """Leave out questions whose files are missing, and score whatever has been answered."""
    part: tuple[int, int] = (0, 1)
    """This process's share of the videos, i of n."""


class Bad(str):
    """Why the questions about a video could not be read."""


class Videos(Dataset[Asked | Bad]):
    """Groups of questions about one video each; one that cannot be read comes out as the reason."""

    def __init__(self, questions: Questions, groups: Sequence[Sequence[int]]) -> None:
        self.questions, self.groups = questions, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Asked | Bad:
        first, *others = self.groups[index]
        try:
            sample = self.questions[first]
            assert sample.pixels is not None
            visual = visual_token_cache.ids(self.questions.base, sample.pixels, sample.frame_seconds)
            return Asked(sample, [sample.ids, *(self._prompt(i, visual) for i in others)])
        except UserError as error:
            return Bad(error)

    def _prompt(self, index: int, visual: Sequence[int]) -> list[int]:
        question, base, data = self.questions.questions[index], self.questions.base, self.questions.config.data
        encoded = conversation(base, self.questions.task.prompt(question), question.history, None, data.labels)
        return expand(encoded.ids, encoded.labels, visual, data.max_length)[0]


def main(model: Pave, config: Config, out: Path, options: Options) -> str:
    """Answer what has no answer yet in folder `out`; whoever finishes last merges and scores. Returns what to say.

    Raises UserError where the folder holds answers that were found in another way, and for an unreadable question.
    """
    split, task = options.split or config.data.eval_split, config.data.task
    sides = list(plugins(config))
    probes = dict.fromkeys(sides, Probe("shuffle")) if options.shuffle_sides else {}
    probes |= perturbations.parse(options.sides, sides)
    questions = _questions(model, config, split, probes, not options.allow_missing)
    how = generation.decoding(model, options.max_new_tokens)
    run_folder.claim(out / MANIFEST, {**describe(model, config, split, questions, probes), "decoding": how._asdict()})
    asked = score.first(questions.questions, options.limit)
    done = {qid for qid, record in run_folder.gather(out).items() if "text" in record}
    videos: dict[tuple[str, ...], list[int]] = {}
    by_question = getattr(model.base, "by_question", False)
    for i, question in enumerate(asked):
        if not options.allow_missing or _is_there(questions, question):
            own = question.qid if by_question else ""
            videos.setdefault((question.video, question.features, own), []).append(i)
    mine = list(videos.values())[options.part[0] :: options.part[1]]
    todo = [group for video in mine if (group := [i for i in video if asked[i].qid not in done])]
    _answer(model, Videos(questions, todo), how, options, out)
    answered = run_folder.gather(out)
    left = sum(q.qid not in answered for q in asked)
    if left and not options.allow_missing:
        return (
            f"{sum(map(len, todo))} questions answered here; {left} of {len(asked)} are still missing. "
            "The last process merges and scores, or the same command again"
        )
    result = score.score(out, task, split, questions.root, options.limit, options.allow_missing)
    log.info("%s", out / METRICS)
    return score.table(result)


def _questions(model: Pave, config: Config, split: str, probes: Mapping[str, Probe], complete: bool) -> Questions:
    """The questions of a split, with probes in place."""
    fed = [name for name in plugins(config) if name not in probes or probes[name].kind != "drop"]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sides=fed))
    questions = Questions(config, model.base, split, with_answers=False, complete=complete)
    if shuffled := [name for name in fed if name in probes and probes[name].kind == "shuffle"]:
        questions.shuffle_sides(shuffled)
    spoilt = [name for name in fed if name in probes and name not in shuffled]
    questions.probes = {name: partial(perturbations.change, probes[name]) for name in spoilt}
    return questions


def _is_there(questions: Questions, question: Question) -> bool:
    """Whether the files of a question exist."""
    sides = questions.plugins if questions.config.data.missing == "error" else ()
    files = [*questions.visual(question), *(questions.features(name, question) for name in sides)]
    return all(file.exists() for file in files)


def describe(
    model: Pave, config: Config, split: str, questions: Questions, probes: Mapping[str, Probe]
) -> dict[str, Any]:
    """All that decides the answers, but for the files of the data set."""
    data = config.data
    sides = {}
    for name in plugins(config):
        store = questions.root / config.sides[name].features / extraction.MANIFEST
        sides[name] = {
            "probe": str(probes[name]) if name in probes else "",
            "weight": model.patch_weights[name],
            "features": json.loads(store.read_text()) if store.is_file() else config.sides[name].features,
        }
    return {
        "pave": __version__,
        "task": data.task,
        "split": split,
        "questions": len(questions),
        "prompts": score.prompt_version(questions.task, questions.questions),
        "base": dataclasses.asdict(config.base),
        "weights": fingerprint(model),
        "sides": sides,
        "data": {"missing": data.missing, "max_length": data.max_length, "video_tokens": data.video_tokens},
    }


def _answer(model: Pave, videos: Videos, how: generation.Decoding, options: Options, out: Path) -> None:
    """Answer the questions about videos into a new file among the parts, a batch at a time."""
    questions, groups = videos.questions, videos.groups
    (out / PARTS).mkdir(exist_ok=True)
    if not groups:
        return
    length = [len(questions.task.prompt(q)) + sum(map(len, sum(q.history, ()))) for q in questions.questions]
    batches = _batches(groups, length, options.batch)
    loader = DataLoader(videos, batch_sampler=batches, num_workers=options.workers, collate_fn=list)
    i, n = options.part
    file = out / PARTS / f"{i}-of-{n}-{uuid.uuid4().hex}.jsonl"
    bar = tqdm(total=sum(map(len, groups)), desc="answer", unit="question", disable=i > 0)
    with file.open("x", encoding="utf-8") as handle, bar:
        for numbers, items in zip(batches, loader):
            good = [item for item in items if not isinstance(item, Bad)]
            for reason in (item for item in items if isinstance(item, Bad)):
                if not options.keep_going:
                    raise UserError(f"{reason} (--keep-going counts such questions as wrong instead)")
                log.warning("counted as wrong: %s", reason)
            new = iter(generation.answers(model, good, how, options.batch) if good else ())
            for number, item in zip(numbers, items):
                qids = [questions.questions[i].qid for i in groups[number]]
                if isinstance(item, Bad):
                    records = [{"qid": qid, "error": item} for qid in qids]
                else:
                    texts = model.base.tokenizer.batch_decode(next(new), skip_special_tokens=True)
                    records = [{"qid": qid, "text": text.strip()} for qid, text in zip(qids, texts)]
                handle.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
                bar.update(len(qids))
            handle.flush()


def _batches(groups: Sequence[Sequence[int]], length: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of groups that are answered together, of like length; at most `size` questions, or one group of more."""
    longest = [max(length[i] for i in group) for group in groups]
    batches: list[list[int]] = []
    room = 0
    # The longest first: what is too much for the memory shows at once.
    for number in sorted(range(len(groups)), key=lambda number: -longest[number]):
        if len(groups[number]) > room:
            batches.append([])
            room = size
        batches[-1].append(number)
        room -= len(groups[number])
    return batches
