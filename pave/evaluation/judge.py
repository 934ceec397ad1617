"""`pave judge`: a judge decides on free answers; every reply is saved as it comes, and none is paid for twice."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from tqdm import tqdm

from pave.evaluation import judge_ledger, run_folder, score
from pave.evaluation.chat_client import ChatEndpoint
from pave.evaluation.judge_ledger import (
    JUDGE,
    JUDGEMENTS,
    JudgeDescription,
    JudgeManifest,
    Judgement,
    JudgementLog,
    JudgeReply,
    JudgeRequest,
    Prompts,
    RequestBuilder,
    RequestRefused,
)
from pave.tasks.base import get_task
from pave.tasks.metrics import judge_prompts
from pave.tasks.metrics.judge_prompts import JUDGE_PROMPTS, JudgePrompt
from pave.types import UserError
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)
DEFAULT_BODY: dict[str, object] = {"temperature": 0, "max_tokens": 64}
"""Members of a request besides model and messages."""
MAX_INITIAL_REFUSALS = 3
"""Refusals before any reply, after which no further request is sent."""


@dataclass(frozen=True)
class Options:
    """Who judges, how, and for how much."""

    judge: str
    """A URL, the folder of a local model, or a file of recorded judgements."""
    model: str | None = None
    """Model that an endpoint is asked for."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    body: str = "{}"
    """JSON members that replace those of DEFAULT_BODY or add to them; null takes one away."""
    words: Path | None = None
    """A folder of published scripts, whose prompts are used instead of ours."""
    parallel: int = 8
    """Requests under way at once."""
    tries: int = 1
    """Replies to ask for, until one can be read."""
    timeout: float = 60.0
    """Seconds without a byte."""
    retries: int = 6
    """Retries of a request that fails."""
    price: tuple[float, float] | None = None
    """Price of a million tokens in, and out."""
    max_cost: float | None = None
    """No request is sent once this much is spent in this folder."""
    device: str = "cpu"
    """Device of a local model."""
    limit: int | None = None
    allow_missing: bool = False


class Judge(Protocol):
    """Replies to requests."""

    def ask(self, request: JudgeRequest) -> JudgeReply | None:
        """Reply; None where there is no reply to be had. Raises RequestRefused, or UserError if none can succeed."""


class RecordedJudge:
    """Repeats the replies of an earlier run."""

    def __init__(self, file: Path) -> None:
        self.replies: dict[str, JudgeReply] = {}
        judgements = [judgement for judgement in judge_ledger.read_judgements(file) if "reply" in judgement]
        # Of several replies the first readable one, as in scoring.
        for line in sorted(judgements, key=lambda judgement: judgement["verdict"] is None):
            reply = JudgeReply(line["reply"], line["model"], line["tokens_in"], line["tokens_out"])
            self.replies.setdefault(line["prompt"], reply)

    def ask(self, request: JudgeRequest) -> JudgeReply | None:
        """Find the reply; None where this answer was not judged by this prompt."""
        return self.replies.get(request.version)


class LocalJudge:
    """A causal language model in a folder of transformers, greedy, one question at a time."""

    def __init__(self, folder: Path, device: str, max_new_tokens: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from pave.models.bases import _loading

        expected = "a causal language model in the layout of transformers"
        read_json(folder / "config.json", expected)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        llm = _loading.load_pretrained(AutoModelForCausalLM, folder, expected, dtype="auto", local_files_only=True)
        self.llm = llm.to(device)
        self.name = folder.name
        self.max_new_tokens = max_new_tokens

    def ask(self, request: JudgeRequest) -> JudgeReply:
        """Generate a reply, in the model's chat template or, where it has none, from the plain turns."""
        has_template = bool(self.tokenizer.chat_template)
        if has_template:
            text = self.tokenizer.apply_chat_template(request.turns, add_generation_prompt=True, tokenize=False)
        else:
            text = "\n\n".join(turn["content"] for turn in request.turns) + "\n"

        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=not has_template).to(self.llm.device)
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        length = inputs["input_ids"].shape[1]
        new_ids = self.llm.generate(**inputs, **greedy, max_new_tokens=self.max_new_tokens)[0, length:]
        return JudgeReply(self.tokenizer.decode(new_ids, skip_special_tokens=True), self.name, length, len(new_ids))


def main(predictions: Path, task: str, split: str, root: Path, options: Options) -> tuple[str, int]:
    """Ask for every missing verdict, then score. Returns the text to print, and 1 if the money ran out.

    Raises UserError for a judge that cannot be used, another judge than before, or another process at work.
    """
    plugin = get_task(task)
    if not plugin.needs_judge:
        raise UserError(f"{task} is scored by rules, without a judge: `pave score`")
    questions = plugin.load(split, root)
    selected = score.limit_questions(questions, options.limit)
    file = run_folder.merge(predictions, selected) if predictions.is_dir() else predictions
    answers = score.read_answers(file, questions, selected, options.allow_missing).by_qid

    kinds = sorted({case.kind for case in plugin.judge_cases(questions)})
    prompts = {kind: JUDGE_PROMPTS[kind] for kind in kinds}
    if options.words:
        prompts = judge_prompts.read_scripts(options.words, kinds)
    builder = RequestBuilder(prompts, questions, answers)
    requests = [request for case in plugin.judge_cases(selected) if (request := builder.build(case))]

    stop = threading.Event()
    opened = _open_judge(options, stop)
    manifest: JudgeManifest = {
        "task": task,
        "split": split,
        "judge": opened.description,
        "words": _describe_prompts(prompts),
    }
    judge_ledger.claim_judge_file(file.with_name(JUDGE), manifest)

    with JudgementLog.open(file.with_name(JUDGEMENTS), options.price) as ledger:
        _ask_all(opened, requests, ledger, options, stop)
        is_spent = options.max_cost is not None and ledger.spent >= options.max_cost

    result = score.score(file, task, split, root, options.limit, options.allow_missing)
    summary = result["judge"]
    assert summary is not None
    num_unjudged = summary["unjudged"]
    if is_spent and num_unjudged:
        text = f"STOPPED with {num_unjudged} to go: --max-cost {options.max_cost} is spent"
        return f"{score.table(result)}\n{text}", 1
    return score.table(result), 0


class OpenedJudge(NamedTuple):
    """A judge, how many requests it takes at once, and its entry in judge.json."""

    judge: Judge
    parallel: int
    description: JudgeDescription


def _open_judge(options: Options, stop: threading.Event) -> OpenedJudge:
    """Open a URL, a folder or a file as a judge. Raises UserError for anything else, and for bad options."""
    body, path = {**DEFAULT_BODY, **_parse_object(options.body)}, Path(options.judge)
    if min(options.parallel, options.tries, options.retries + 1) < 1 or options.timeout <= 0:
        raise UserError("--parallel, --tries and --timeout: expected more than 0; --retries: 0 or more")
    if options.max_cost is not None and options.price is None:
        raise UserError("--max-cost needs --price: what a million tokens cost, in and out")
    is_url = options.judge.startswith(("http://", "https://"))
    if is_url != bool(options.model):
        raise UserError(f"{options.judge}: --model says which model a URL is asked for, and belongs to a URL alone")

    if is_url:
        assert options.model
        key = os.environ.get(options.key_env)
        endpoint = ChatEndpoint(options.judge, options.model, key, body, options.timeout, options.retries, stop)
        return OpenedJudge(endpoint, options.parallel, {"kind": "endpoint", "name": options.model, "body": body})
    if path.is_dir():
        max_tokens = body.get("max_tokens")
        if (
            body.keys() != DEFAULT_BODY.keys()
            or body["temperature"]
            or not isinstance(max_tokens, int)
            or max_tokens < 1
        ):
            raise UserError(f"{path}: a local model judges greedily; --body may set max_tokens and nothing else")
        local = LocalJudge(path, options.device, max_tokens)
        return OpenedJudge(local, 1, {"kind": "local", "name": path.name, "body": body})
    if path.is_file():
        return OpenedJudge(RecordedJudge(path), 1, {"kind": "recorded", "name": path.name})
    raise UserError(f"--judge {options.judge}: expected a URL, a folder with a model or a file of recorded judgements")


def _parse_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--body {text}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f'--body {text}: expected a JSON object, such as {{"temperature": 1}}')
    return value


def _describe_prompts(prompts: Mapping[str, JudgePrompt]) -> Prompts:
    """The judge's prompts and where they come from, for judge.json."""
    versions = {kind: judge_prompts.version(prompt) for kind, prompt in prompts.items()}
    text = {kind: prompt._asdict() for kind, prompt in prompts.items()}
    return {"whose": judge_prompts.prompt_source(prompts), "versions": versions, "text": text}


def _ask_all(
    opened: OpenedJudge,
    requests: Sequence[JudgeRequest],
    ledger: JudgementLog,
    options: Options,
    stop: threading.Event,
) -> None:
    """Send the requests without a readable reply, and again as often as is allowed, while there is money."""
    refused: set[str] = set()

    def unanswered() -> Iterator[JudgeRequest]:
        for request in requests:
            if options.max_cost is not None and ledger.spent >= options.max_cost:
                return
            replies = ledger.replies.get(request.version, [])
            if not any(replies) and len(replies) < options.tries and request.version not in refused:
                yield request

    for attempt in range(1, options.tries + 1):
        total = sum(1 for _ in unanswered())
        bar = tqdm(total=total, desc=f"judge, try {attempt}", unit="reply", disable=not total)
        replies = _send(opened, unanswered(), ledger, stop)
        with bar, closing(replies):
            for judgement in replies:
                bar.update()
                if "error" in judgement:
                    log.warning("refused: %s (%s): %s", judgement["qids"][0], judgement["kind"], judgement["error"])
                    refused.add(judgement["prompt"])
                    # The fault is in all requests, not in this one.
                    if len(refused) >= MAX_INITIAL_REFUSALS and not ledger.replies:
                        text = f"refused the first {MAX_INITIAL_REFUSALS} requests: {judgement['error']}"
                        raise UserError(f"{options.judge}: {text}; --body changes what is sent")
                elif options.max_cost is not None and judgement["cost"] is None:
                    raise UserError(f"{options.judge}: tells no numbers of tokens, so that --max-cost cannot be kept")


def _send(
    opened: OpenedJudge, requests: Iterator[JudgeRequest], ledger: JudgementLog, stop: threading.Event
) -> Generator[Judgement, None, None]:
    """Send requests and yield replies once they are saved. After a failure those under way are saved: they are paid."""
    running: dict[Future[JudgeReply | RequestRefused | None], JudgeRequest] = {}
    with ThreadPoolExecutor(opened.parallel) as pool:
        # Whoever stops reading replies, as after an error, closes this generator, which runs `finally`.
        try:
            while True:
                while len(running) < opened.parallel and (request := next(requests, None)):
                    running[pool.submit(_ask_or_refusal, opened.judge, request)] = request
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    request = running.pop(future)
                    if reply := future.result():
                        yield ledger.write(request, reply)
        finally:
            if running:
                stop.set()
            for future, request in running.items():
                if future.exception() is None and (reply := future.result()):
                    ledger.write(request, reply)


def _ask_or_refusal(judge: Judge, request: JudgeRequest) -> JudgeReply | RequestRefused | None:
    try:
        return judge.ask(request)
    except RequestRefused as error:
        return error
