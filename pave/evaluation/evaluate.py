"""`pave eval`: answer the questions of a split with any number of processes, each writing its own file."""

from __future__ import annotations

import dataclasses
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pave import __version__
from pave.checkpoints.load import fingerprint
from pave.config import Config
from pave.data import extraction, perturbations
from pave.data.collate import Sample, encode_conversation, expand_video_tokens
from pave.data.dataset import QuestionDataset, side_channels
from pave.data.perturbations import Perturbation
from pave.evaluation import run_folder, score
from pave.evaluation.run_folder import MANIFEST, METRICS, PARTS
from pave.inference import generation
from pave.inference.generation import PromptGroup
from pave.models.base import Base
from pave.models.patched_model import PatchedModel
from pave.types import Question, UserError
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate."""

    split: str | None = None
    """None takes the config's data.eval_split."""
    shuffle_sides: bool = False
    """Give every question the side-channels of another video, but for those that `perturb` names."""
    batch: int = 8
    """QuestionDataset at once."""
    workers: int = 2
    """Processes that decode videos."""
    max_new_tokens: int = 64
    keep_going: bool = False
    """Count unreadable questions as wrong instead of stopping at the first."""
    perturb: Sequence[str] = ()
    """Perturbations of side-channels, such as audio=drop (pave/data/perturbations.py)."""
    limit: int | None = None
    """Ask the first N questions only."""
    allow_missing: bool = False
    """Leave out questions whose files are missing, and score whatever has been answered."""
    part: tuple[int, int] = (0, 1)
    """This process's share of the videos, i of n."""


class UnreadableVideo(str):
    """The reason why the questions about a video could not be read."""


class VideoGroups(Dataset[PromptGroup | UnreadableVideo]):
    """Groups of questions about one video each; an unreadable one comes out as the reason."""

    def __init__(self, questions: QuestionDataset, groups: Sequence[Sequence[int]]) -> None:
        self.questions = questions
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> PromptGroup | UnreadableVideo:
        dataset = self.questions
        first, *following = self.groups[index]
        try:
            sample = dataset[first]
            questions = [dataset.questions[i] for i in following]
            texts = [(dataset.task.prompt(question), question.history) for question in questions]
            return make_prompt_group(dataset.base, sample, texts, dataset.config)
        except UserError as error:
            return UnreadableVideo(error)


def make_prompt_group(
    base: Base, sample: Sample, prompts: Sequence[tuple[str, Sequence[tuple[str, str]]]], config: Config
) -> PromptGroup:
    """Put the prompt of a sample and further prompts, each with its history, about the same video into a group."""
    assert sample.pixels is not None
    size = tuple(sample.pixels.shape[-2:])
    visual_ids = base.visual_token_ids(len(sample.pixels), size, sample.frame_seconds)

    all_ids = [sample.ids]
    for text, history in prompts:
        encoded = encode_conversation(base, text, history, None, config.data.labels)
        all_ids.append(expand_video_tokens(encoded.ids, encoded.labels, visual_ids, config.data.max_length)[0])
    return PromptGroup(sample, all_ids)


def main(model: PatchedModel, config: Config, out: Path, options: Options) -> str:
    """Answer the unanswered questions of folder `out`; the last process merges and scores. Returns the text to print.

    Raises UserError for a folder that holds answers of another run, and for an unreadable question.
    """
    split = options.split or config.data.eval_split
    perturbed = _perturbations(config, options)
    questions = load_questions(model, config, split, perturbed, complete=not options.allow_missing)
    decoding = generation.greedy_decoding(model, options.max_new_tokens)

    manifest = describe_run(model, config, split, questions, perturbed)
    # Version 0.1 rounded some rotary positions otherwise, so only runs of patches without them go on.
    has_rope = any(side.rope for side in config.sides.values())
    same_versions = () if has_rope else ("0.1.0",)
    run_folder.claim_run_folder(out / MANIFEST, {**manifest, "decoding": decoding._asdict()}, same_versions)

    selected = score.limit_questions(questions.questions, options.limit)
    groups = _unanswered_groups(model, questions, selected, out, options)
    _answer(model, VideoGroups(questions, groups), decoding, options, out)

    records = run_folder.gather(out)
    num_missing = sum(question.qid not in records for question in selected)
    if num_missing and not options.allow_missing:
        return (
            f"{sum(map(len, groups))} questions answered here; {num_missing} of {len(selected)} are still missing. "
            "The last process merges and scores, or the same command again"
        )

    result = score.score(out, config.data.task, split, questions.root, options.limit, options.allow_missing)
    log.info("%s", out / METRICS)
    return score.table(result)


def _perturbations(config: Config, options: Options) -> dict[str, Perturbation]:
    """The perturbation of each perturbed side-channel."""
    sides = list(side_channels(config))
    perturbed = dict.fromkeys(sides, Perturbation("shuffle")) if options.shuffle_sides else {}
    return {**perturbed, **perturbations.parse(options.perturb, sides)}


def load_questions(
    model: PatchedModel, config: Config, split: str, perturbed: Mapping[str, Perturbation], complete: bool
) -> QuestionDataset:
    """Load the questions of a split, with perturbed side-channels."""
    sides = [name for name in side_channels(config) if name not in perturbed or perturbed[name].kind != "drop"]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sides=sides))
    questions = QuestionDataset(config, model.base, split, with_answers=False, check_files=complete)

    present = {name: perturbed[name] for name in sides if name in perturbed}
    shuffled = [name for name, perturbation in present.items() if perturbation.kind == "shuffle"]
    if shuffled:
        questions.shuffle_sides(shuffled)
    questions.perturbations = {
        name: partial(perturbations.perturb, perturbation)
        for name, perturbation in present.items()
        if name not in shuffled
    }
    return questions


def _unanswered_groups(
    model: PatchedModel, questions: QuestionDataset, selected: Sequence[Question], out: Path, options: Options
) -> list[list[int]]:
    """Indices of the questions that this process has to answer, by video."""
    videos: dict[tuple[str, ...], list[int]] = {}
    for i, question in enumerate(selected):
        if options.allow_missing and not _has_files(questions, question):
            continue
        # A base that encodes a video for each question can share nothing between questions.
        qid = question.qid if model.base.prompt_conditioned else ""
        videos.setdefault((question.video, question.features, qid), []).append(i)

    # Parts are of all videos, answered or not: a restarted process has the same share.
    index, count = options.part
    answered = {qid for qid, record in run_folder.gather(out).items() if "text" in record}
    groups = []
    for video in list(videos.values())[index::count]:
        unanswered = [i for i in video if selected[i].qid not in answered]
        if unanswered:
            groups.append(unanswered)
    return groups


def _has_files(questions: QuestionDataset, question: Question) -> bool:
    """Whether the files of a question exist."""
    sides = questions.side_channels if questions.config.data.missing == "error" else ()
    files = [*questions.visual_files(question), *(questions.feature_file(name, question) for name in sides)]
    return all(file.exists() for file in files)


def describe_run(
    model: PatchedModel, config: Config, split: str, questions: QuestionDataset, perturbed: Mapping[str, Perturbation]
) -> dict[str, object]:
    """Describe all that decides the answers, but for the files of the data set."""
    data = config.data
    sides = {}
    for name in side_channels(config):
        folder = config.sides[name].features
        store = questions.root / folder / extraction.MANIFEST
        sides[name] = {
            "probe": str(perturbed[name]) if name in perturbed else "",
            "weight": model.patch_weights[name],
            "features": read_json(store, "what `pave extract` wrote") if store.is_file() else folder,
        }

    return {
        "pave": __version__,
        "task": data.task,
        "split": split,
        "questions": len(questions),
        "prompts": score.prompts_hash(questions.task, questions.questions),
        "base": dataclasses.asdict(config.base),
        "weights": fingerprint(model),
        "sides": sides,
        "data": {"missing": data.missing, "max_length": data.max_length, "video_tokens": data.video_tokens},
    }


def _answer(
    model: PatchedModel, videos: VideoGroups, decoding: generation.Decoding, options: Options, out: Path
) -> None:
    """Answer the questions about videos into a new file among the parts, a batch at a time."""
    (out / PARTS).mkdir(exist_ok=True)
    if not videos.groups:
        return

    questions = videos.questions
    lengths = [
        len(questions.task.prompt(q)) + sum(len(text) for turn in q.history for text in turn)
        for q in questions.questions
    ]
    batches = make_batches(videos.groups, lengths, options.batch)
    loader = DataLoader(videos, batch_sampler=batches, num_workers=options.workers, collate_fn=list)

    # A name of its own for each start: no process appends to a file that a kill may have cut in a line.
    index, count = options.part
    file = out / PARTS / f"{index}-of-{count}-{uuid.uuid4().hex}.jsonl"
    bar = tqdm(total=sum(map(len, videos.groups)), desc="answer", unit="question", disable=index > 0)
    with file.open("x", encoding="utf-8") as handle, bar:
        for batch, items in zip(batches, loader):
            texts = _answer_batch(model, items, decoding, options)
            for number, item in zip(batch, items):
                qids = [questions.questions[i].qid for i in videos.groups[number]]
                if isinstance(item, UnreadableVideo):
                    records = [{"qid": qid, "error": item} for qid in qids]
                else:
                    records = [{"qid": qid, "text": text.strip()} for qid, text in zip(qids, next(texts))]
                handle.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
                bar.update(len(qids))
            handle.flush()


def _answer_batch(
    model: PatchedModel,
    items: Sequence[PromptGroup | UnreadableVideo],
    decoding: generation.Decoding,
    options: Options,
) -> Iterator[list[str]]:
    """The answers to each readable group of a batch. Raises UserError for an unreadable one, unless it may be wrong."""
    groups = []
    for item in items:
        if not isinstance(item, UnreadableVideo):
            groups.append(item)
        elif options.keep_going:
            log.warning("counted as wrong: %s", item)
        else:
            raise UserError(f"{item} (--keep-going counts such questions as wrong instead)")

    answers = generation.answers(model, groups, decoding, options.batch) if groups else ()
    return (model.base.tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in answers)


def make_batches(groups: Sequence[Sequence[int]], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put groups of like length into batches of at most `size` questions, or of one group that is larger."""
    longest = [max(lengths[i] for i in group) for group in groups]
    batches: list[list[int]] = []
    room = 0
    # The longest first: a lack of memory shows at once.
    for number in sorted(range(len(groups)), key=lambda number: -longest[number]):
        if len(groups[number]) > room:
            batches.append([])
            room = size
        batches[-1].append(number)
        room -= len(groups[number])
    return batches
