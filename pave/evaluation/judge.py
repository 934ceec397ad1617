"""`pave judge`: a judge decides on free answers; every reply is saved as it comes, and none is paid for twice."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pave.evaluation import judge_ledger, run_folder, score
from pave.evaluation.chat_client import ChatEndpoint
from pave.evaluation.judge_ledger import (
    JUDGE,
    JUDGEMENTS,
    JudgementLog,
    JudgeReply,
    JudgeRequest,
    Record,
    RequestBuilder,
    RequestRefused,
)
from pave.tasks.base import get_task
from pave.tasks.metrics import judge_prompts
from pave.tasks.metrics.judge_prompts import JUDGE_PROMPTS, JudgePrompt
from pave.types import Question, UserError
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)
Ask = Callable[[JudgeRequest], JudgeReply | None]
"""A judge: its reply, or None where there is none to be had. Raises Refused, or UserError where none can succeed."""
DEFAULT_BODY: dict[str, Any] = {"temperature": 0, "max_tokens": 64}
"""Of a request, besides model and messages."""
MAX_INITIAL_REFUSALS = 3
"""Refusals before any reply, after which no further request is sent."""


@dataclass(frozen=True)
class Options:
    """Who judges, how, and for how much."""

    judge: str
    """A URL, the folder of a local model, or a file of recorded judgements."""
    model: str | None = None
    """That an endpoint is asked for."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    body: str = "{}"
    """JSON, which replaces members of PLAIN or adds to them; null takes one away."""
    words: Path | None = None
    """A folder of the published scripts, whose words are used instead of ours."""
    parallel: int = 8
    """Requests under way at once."""
    tries: int = 1
    """Replies to ask for, until one can be read."""
    timeout: float = 60.0
    retries: int = 6
    """Of a request that fails."""
    price: tuple[float, float] | None = None
    """Of a million tokens in, and out."""
    max_cost: float | None = None
    """No request is sent once this much is spent in this folder."""
    device: str = "cpu"
    """Of a local model."""
    limit: int | None = None
    allow_missing: bool = False


class RecordedJudge:
    """Replies of an earlier run, by what was asked."""

    def __init__(self, file: Path) -> None:
        self.replies: dict[str, JudgeReply] = {}
        records = [record for record in judge_ledger.read_judgements(file) if "reply" in record]
        # Of several the first that can be read, as in scoring.
        for record in sorted(records, key=lambda record: record["verdict"] is None):
            reply = JudgeReply(record["reply"], record["model"], record["tokens_in"], record["tokens_out"])
            self.replies.setdefault(record["prompt"], reply)

    def ask(self, prompt: JudgeRequest) -> JudgeReply | None:
        """None where nothing was asked in these words about this answer."""
        return self.replies.get(prompt.version)


class LocalJudge:
    """A causal language model in a folder of transformers, greedy, one question at a time."""

    def __init__(self, folder: Path, device: str, max_new_tokens: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from pave.models.bases import _loading

        what = "a causal language model in the layout of transformers"
        read_json(folder / "config.json", what)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        lm = _loading.load_pretrained(AutoModelForCausalLM, folder, what, dtype="auto", local_files_only=True)
        self.lm, self.name, self.max_new_tokens = lm.to(device), folder.name, max_new_tokens

    def ask(self, prompt: JudgeRequest) -> JudgeReply:
        """In its own chat template, or the turns as they stand where it has none."""
        text, template = "\n\n".join(turn["content"] for turn in prompt.turns) + "\n", self.tokenizer.chat_template
        if template:
            text = self.tokenizer.apply_chat_template(prompt.turns, add_generation_prompt=True, tokenize=False)
        given = self.tokenizer(text, return_tensors="pt", add_special_tokens=not template).to(self.lm.device)
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        length = given["input_ids"].shape[1]
        new = self.lm.generate(**given, **greedy, max_new_tokens=self.max_new_tokens)[0, length:]
        return JudgeReply(self.tokenizer.decode(new, skip_special_tokens=True), self.name, length, len(new))


def main(predictions: Path, task: str, split: str, root: Path, options: Options) -> tuple[str, int]:
    """Ask for every verdict that is missing, then score. Returns what to say, and 1 where the money ran out.

    Raises UserError for a judge that cannot be used, another judge than before, or another process at work.
    """
    benchmark = get_task(task)
    if not benchmark.needs_judge:
        raise UserError(f"{task} is scored by rules, without a judge: `pave score`")
    gold: list[Question] = benchmark.load(split, root)
    asked = score.limit_questions(gold, options.limit)
    file = run_folder.merge(predictions, asked) if predictions.is_dir() else predictions
    answers, _ = score.read_answers(file, gold, asked, options.allow_missing)
    kinds = sorted({case.kind for case in benchmark.judge_cases(gold)})
    words = (
        judge_prompts.read_scripts(options.words, kinds)
        if options.words
        else {kind: JUDGE_PROMPTS[kind] for kind in kinds}
    )
    about = RequestBuilder(words, gold, answers)
    prompts = [prompt for case in benchmark.judge_cases(asked) if (prompt := about.prompt(case))]
    stop = threading.Event()
    ask, told = _open(options, stop)
    _claim(file.with_name(JUDGE), {"task": task, "split": split, "judge": told, "words": _describe(words)})
    with JudgementLog.open(file.with_name(JUDGEMENTS), options.price) as ledger:
        # A model on this machine is one.
        parallel = options.parallel if told["kind"] == "endpoint" else 1
        _ask_all(ask, prompts, parallel, ledger, options, stop)
        stopped = options.max_cost is not None and ledger.spent >= options.max_cost
    result = score.score(file, task, split, root, options.limit, options.allow_missing)
    if stopped and (left := result["judge"]["unjudged"]):
        return f"{score.table(result)}\nSTOPPED with {left} to go: --max-cost {options.max_cost} is spent", 1
    return score.table(result), 0


def _open(options: Options, stop: threading.Event) -> tuple[Ask, dict[str, Any]]:
    """The judge, and what judge.json says of it. Raises UserError for what is neither URL, folder nor file."""
    body, given = {**DEFAULT_BODY, **_object(options.body)}, Path(options.judge)
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
        return endpoint.ask, {"kind": "endpoint", "name": options.model, "body": body}
    if given.is_dir():
        if body.keys() != DEFAULT_BODY.keys() or body["temperature"] or not body["max_tokens"]:
            raise UserError(f"{given}: a local model judges greedily; --body may set max_tokens and nothing else")
        local = LocalJudge(given, options.device, body["max_tokens"])
        return local.ask, {"kind": "local", "name": given.name, "body": body}
    if given.is_file():
        return RecordedJudge(given).ask, {"kind": "recorded", "name": given.name}
    raise UserError(f"--judge {options.judge}: expected a URL, a folder with a model or a file of recorded judgements")


def _object(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UserError(f"--body {text}: not JSON ({error})") from error
    if not isinstance(given, dict):
        raise UserError(f'--body {text}: expected a JSON object, such as {{"temperature": 1}}')
    return given


def _claim(file: Path, told: dict[str, Any]) -> None:
    """One folder holds the judgements of one judge in one wording. Raises UserError naming what differs."""
    if not file.exists():
        if file.with_name(JUDGEMENTS).exists():
            raise UserError(f"{file}: missing, though there is {JUDGEMENTS}; put it back, or move {JUDGEMENTS} away")
        write_text(file, json.dumps(told, indent=1, ensure_ascii=False))
    differ = run_folder.changed_entries(read_json(file, "what `pave judge` wrote"), told)
    if differ:
        changes = "; ".join(f"{name} was {one!r:.60}, is now {other!r:.60}" for name, one, other in differ)
        raise UserError(f"{file}: judged otherwise: {changes}; copy the predictions to another folder")


def _describe(words: Mapping[str, JudgePrompt]) -> dict[str, Any]:
    """Whose words, in full."""
    versions = {kind: judge_prompts.version(one) for kind, one in words.items()}
    text = {kind: one._asdict() for kind, one in words.items()}
    return {"whose": judge_prompts.prompt_source(words), "versions": versions, "text": text}


def _ask_all(
    ask: Ask,
    prompts: Sequence[JudgeRequest],
    parallel: int,
    ledger: JudgementLog,
    options: Options,
    stop: threading.Event,
) -> None:
    """Ask what has no readable reply yet, and again as often as is allowed, while there is money."""
    refused: set[str] = set()

    def lacking() -> Iterator[JudgeRequest]:
        for prompt in prompts:
            if options.max_cost is not None and ledger.spent >= options.max_cost:
                return
            replies = ledger.replies.get(prompt.version, [])
            if not any(replies) and len(replies) < options.tries and prompt.version not in refused:
                yield prompt

    for attempt in range(1, options.tries + 1):
        total = sum(1 for _ in lacking())
        bar = tqdm(total=total, desc=f"judge, try {attempt}", unit="reply", disable=not total)
        with bar, closing(_replies(ask, lacking(), parallel, ledger, stop)) as records:
            for record in records:
                bar.update()
                if "error" in record:
                    log.warning("refused: %s (%s): %s", record["qids"][0], record["kind"], record["error"])
                    refused.add(record["prompt"])
                    if len(refused) >= MAX_INITIAL_REFUSALS and not ledger.replies:
                        why = f"refused the first {MAX_INITIAL_REFUSALS} requests: {record['error']}"
                        raise UserError(f"{options.judge}: {why}; --body changes what is sent")
                elif options.max_cost is not None and record["cost"] is None:
                    raise UserError(f"{options.judge}: tells no numbers of tokens, so that --max-cost cannot be kept")


def _replies(
    ask: Ask, prompts: Iterator[JudgeRequest], parallel: int, ledger: JudgementLog, stop: threading.Event
) -> Generator[Record, None, None]:
    """Lines as replies come and are saved. What is under way when something fails is waited for: it is paid."""
    running: dict[Future[JudgeReply | RequestRefused | None], JudgeRequest] = {}
    with ThreadPoolExecutor(parallel) as pool:
        try:
            while True:
                while len(running) < parallel and (prompt := next(prompts, None)):
                    running[pool.submit(_or_refused, ask, prompt)] = prompt
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    prompt = running.pop(future)
                    if reply := future.result():
                        yield ledger.write(prompt, reply)
        finally:
            if running:
                stop.set()
            for future, prompt in running.items():
                if future.exception() is None and (reply := future.result()):
                    ledger.write(prompt, reply)


def _or_refused(ask: Ask, prompt: JudgeRequest) -> JudgeReply | RequestRefused | None:
    try:
        return ask(prompt)
    except RequestRefused as error:
        return error
