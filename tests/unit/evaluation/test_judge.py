"""`pave judge` against an endpoint of our own, a tiny local model and recordings; then scores without any of them."""

from __future__ import annotations

import email.utils
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.eval_runs import run_without

from pave.cli import main
from pave.evaluation import chat_client, run_folder, score
from pave.evaluation.judge_ledger import JUDGE, JUDGEMENTS, JudgementLog
from pave.tasks.metrics import judge_prompts
from pave.types import UserError

N = 6
QIDS = [str(i) for i in range(N)]
QUESTIONS = [f"what {i}?" for i in range(N)]
KEY = "sk-very-secret"
PRICE = ("--price", "1", "1", "--parallel", "1")
"""A request costs 0.00021."""


class Answer(NamedTuple):
    """What the server does; a text of None breaks the connection off."""

    text: str | None = "{'pred': 'yes', 'score': 4}"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    usage: bool = True
    wait: float = 0.0


class Api(ThreadingHTTPServer):
    """An endpoint whose answers a test decides, by the question and how often it was asked before."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[str, int], Answer] = lambda question, before: Answer()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.asked: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *arguments: object) -> None:
        """Nothing: clients break connections off."""


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][1]["content"]
        question = text.split("Question: ")[1].split("\n")[0] if "Question: " in text else text
        server = self.server
        with server.lock:
            server.requests.append({**body, "path": self.path})
            server.headers.append(dict(self.headers))
            before = server.asked[question]
            server.asked[question] += 1
        answer = server.answer(question, before)
        time.sleep(answer.wait)
        with server.lock:
            server.paid[question] += answer.status == 200 and answer.raw is None and answer.text is not None
        if answer.text is None:
            self.connection.close()
            return

        reply = {"model": "judge-1106", "choices": [{"message": {"role": "assistant", "content": answer.text}}]}
        if answer.usage:
            reply["usage"] = {"prompt_tokens": 200, "completion_tokens": 10}
        data = json.dumps(reply).encode() if answer.raw is None else answer.raw
        self.send_response(answer.status)
        for name, value in (*answer.headers, ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        raise AssertionError("a redirect was followed")

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def finish(self) -> None:
        try:
            super().finish()
        except (ConnectionError, ValueError):
            """The client did not wait."""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A running server; retries follow at once, but for what the server itself asks for."""
    monkeypatch.setattr(chat_client.random, "uniform", lambda low, high: 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Api()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six answers to questions of MSVD-QA."""
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    questions = [{"video_name": f"v{i}", "question": QUESTIONS[int(i)], "question_id": i} for i in QIDS]
    (data / "test_q.json").write_text(json.dumps(questions))
    (data / "test_a.json").write_text(json.dumps([{"answer": f"a{i}", "question_id": i} for i in QIDS]))
    write_answers(out, {i: f"it is a{i}" for i in QIDS})
    return out


def write_answers(out: Path, texts: dict[str, str]) -> None:
    out.mkdir(exist_ok=True)
    lines = [json.dumps({"qid": qid, "text": text}) + "\n" for qid, text in texts.items()]
    (out / run_folder.PREDICTIONS).write_text("".join(lines))


def make_argv(command: str, out: Path, *options: str, task: str = "msvd_qa") -> list[str]:
    data = str(out.parent / "data")
    return [command, str(out / run_folder.PREDICTIONS), "--task", task, "--data", data, *options]


def judge(out: Path, judge: str, *options: str) -> int:
    model = ("--model", "judge") if judge.startswith("http") else ()
    return main.main(make_argv("judge", out, "--judge", judge, *model, *options))


def read_judgements(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / JUDGEMENTS).read_text().splitlines()]


def read_result(out: Path) -> dict[str, Any]:
    return json.loads((out / run_folder.METRICS).read_text())


def test_every_answer_is_judged_and_saved(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Each of three requests waits for the two others: they are under way at once.
    together = threading.Barrier(3, timeout=60)

    def answer(question: str, before: int) -> Answer:
        together.wait()
        return Answer("{'pred': 'yes', 'score': 5}" if int(question[5]) % 2 else "{'pred': 'no', 'score': 1}")

    api.answer = answer
    assert judge(run, api.url, "--parallel", "3", "--price", "0.5", "1.5") == 0
    assert api.asked == Counter(QUESTIONS)
    assert {request["path"] for request in api.requests} == {"/v1/chat/completions"}
    assert api.requests[0].items() >= {"model": "judge", "temperature": 0, "max_tokens": 64}.items()
    assert {headers["Authorization"] for headers in api.headers} == {f"Bearer {KEY}"}
    result = read_result(run)
    assert (result["metrics"]["accuracy"], result["metrics"]["score"]) == (0.5, 3)
    expected = {"name": "judge", "judged": N, "cases": N, "models": ["judge-1106"]}
    assert result["judge"].items() >= {**expected, "tokens_in": 200 * N, "tokens_out": 10 * N}.items()
    assert result["judge"]["cost"] == pytest.approx(N * (200 * 0.5 + 10 * 1.5) / 1e6)
    judgements = read_judgements(run)
    assert sorted(line["qids"][0] for line in judgements) == QIDS
    assert {line["reply"][:15] for line in judgements} == {"{'pred': 'yes',", "{'pred': 'no', "}
    assert all(line["verdict"]["score"] in (1, 5) for line in judgements)
    out = capsys.readouterr().out
    assert "6 of 6 cases judged" in out
    assert "in words that are our own" in out
    samples = [json.loads(line) for line in (run / score.SAMPLES).read_text().splitlines()]
    assert samples[1]["judged"] == {"qa": {"score": 5, "yes": True}}
    assert not any(KEY in file.read_text() for file in run.iterdir())


def test_neither_scores_nor_an_endpoint_need_torch(api: Api, run: Path) -> None:
    run_without(["torch"], make_argv("judge", run, "--judge", api.url, "--model", "judge"))
    result = read_result(run)
    assert result["judge"]["judged"] == N
    api.shutdown()
    (run / run_folder.METRICS).unlink()
    no_network = "import socket\ndef no(*a, **k): raise AssertionError('network')\n"
    no_network += "socket.socket.connect = socket.getaddrinfo = no"
    modules = ["torch", "transformers", "urllib.request", "pave.evaluation.chat_client"]
    run_without(modules, make_argv("score", run), no_network)
    assert read_result(run) == result


def test_before_any_judge_there_are_no_scores(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(make_argv("score", run)) == 0
    assert "NOT JUDGED: `pave judge` asks a judge" in capsys.readouterr().out
    assert read_result(run)["metrics"] == {"n": N, "missing": 0, "empty": 0}
    assert read_result(run)["judge"] is None


def test_passing_failures_are_tried_again(api: Api, run: Path) -> None:
    """Too many requests, a busy server, a broken connection, no JSON, another form, a time-out: each costs nothing."""
    failures = [
        Answer(status=429, raw=b'{"code": "rate_limit"}'),
        Answer(status=503, raw=b"busy"),
        Answer(None),
        Answer(raw=b'{"choices": [{"mess'),
        Answer(raw=b'{"choices": []}'),
        Answer(wait=1.5),
    ]
    api.answer = lambda question, before: failures[int(question[5])] if before < 1 else Answer()
    assert judge(run, api.url, "--parallel", "6", "--timeout", "0.5", "--retries", "50") == 0
    assert min(api.asked.values()) >= 2
    assert len(read_judgements(run)) == N
    assert read_result(run)["judge"]["judged"] == N


def test_the_endpoint_says_when_to_try_again(api: Api, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waits.append(timeout))
    busy = Answer(status=429, raw=b"", headers=(("Retry-After", "40"),))
    api.answer = lambda question, before: busy if question == "what 0?" and before < 2 else Answer()
    endpoint = chat_client.ChatEndpoint(api.url, "judge", KEY, {})
    request = chat_client.JudgeRequest(None, [{}, {"content": "what 0?"}], "")  # type: ignore[arg-type]
    assert endpoint.ask(request).model == "judge-1106"
    assert [wait for wait in waits if wait == 40] == [40, 40]


def test_retry_after_is_a_number_or_a_date() -> None:
    parse = chat_client.parse_retry_after
    assert parse("7") == 7
    assert 0 < parse(email.utils.formatdate(time.time() + 600, usegmt=True)) <= 600
    assert [parse(text) for text in ("Wed, 21 Oct 2015 07:28:00 GMT", None, "soon", "-3")] == [0] * 4


FATAL = [
    (Answer(status=401, raw=f"wrong key: {KEY}".encode()), r"HTTP 401 \(wrong key: \*\*\*\); check the address"),
    (Answer(status=404, raw=b"no such model"), r"HTTP 404 \(no such model\)"),
    (Answer(status=307, raw=b"", headers=(("Location", "http://127.0.0.1:9/"),)), "HTTP 307; check the address"),
    (Answer(status=302, raw=b"", headers=(("Location", "/other"),)), "HTTP 302; check the address"),
    (Answer(status=429, raw=b'{"error": {"code": "insufficient_quota"}}'), "HTTP 429.*pay or raise the limit"),
    (Answer(status=429, raw=b"", headers=(("Retry-After", "86400"),)), "asks to wait 86400 s"),
    (Answer(status=500, raw=b"broken"), r"gave up after 3 tries, the last: HTTP 500 \(broken\)"),
    (Answer(status=400, raw=b"unknown parameter"), r"refused the first 3 requests: HTTP 400 \(unknown parameter\)"),
]


@pytest.mark.parametrize(("answer", "message"), FATAL)
def test_final_failures_end_it(
    answer: Answer, message: str, api: Api, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer = lambda question, before: answer
    assert judge(run, api.url, "--parallel", "1", "--retries", "2") == 1
    error = capsys.readouterr().err
    assert re.search(message, error.splitlines()[-1]), error
    assert KEY not in error
    assert api.asked.total() <= 3
    assert not any("reply" in line for line in read_judgements(run))


def test_replies_under_way_when_all_ends_are_saved(api: Api, run: Path) -> None:
    """They are paid, so they are waited for."""
    has_failed = threading.Event()

    def answer(question: str, before: int) -> Answer:
        if question == "what 2?":
            has_failed.set()
            return Answer(status=401, raw=b"")
        has_failed.wait(60)
        return Answer(wait=0.3)

    api.answer = answer
    assert judge(run, api.url, "--parallel", "3") == 1
    assert sorted(line["qids"][0] for line in read_judgements(run)) == ["0", "1"]
    api.answer = lambda question, before: Answer()
    assert judge(run, api.url) == 0
    assert max(api.paid.values()) == 1
    assert read_result(run)["judge"]["judged"] == N


def test_a_killed_run_goes_on_and_pays_nothing_twice(api: Api, run: Path) -> None:
    is_waiting = threading.Event()

    def answer(question: str, before: int) -> Answer:
        if question == "what 3?" and before == 0:
            is_waiting.set()
            return Answer(None, wait=60)
        return Answer()

    api.answer = answer
    argv = make_argv("judge", run, "--judge", api.url, "--model", "judge", "--parallel", "1")
    process = subprocess.Popen([sys.executable, "-m", "pave", *argv], stderr=subprocess.DEVNULL)
    assert is_waiting.wait(60)
    # While it is at work nobody else writes there.
    assert judge(run, api.url) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read_judgements(run)) == 3
    with (run / JUDGEMENTS).open("a") as handle:
        handle.write('{"kind": "qa", "qids": ["3"], "prom')
    assert judge(run, api.url, "--parallel", "1") == 0
    assert api.paid == Counter(QUESTIONS)
    assert [line["qids"][0] for line in read_judgements(run)] == QIDS
    assert judge(run, api.url) == 0
    assert api.paid.total() == N


def test_replies_that_cannot_be_read_are_counted_and_named(
    api: Api, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable = {"what 1?": "I think it is right.", "what 4?": ""}
    api.answer = lambda question, before: Answer(unreadable.get(question, Answer().text))
    assert judge(run, api.url) == 0
    result = read_result(run)
    assert (result["judge"]["judged"], result["judge"]["unparsed"]) == (4, 2)
    assert result["judge"]["names"] == {"unparsed": ["1 (qa)", "4 (qa)"]}
    assert (result["metrics"]["accuracy"], result["metrics"]["accuracy_judged"]) == (pytest.approx(4 / 6), 1)
    assert "counted as wrong: 2 replies that cannot be read, as 1 (qa)" in capsys.readouterr().out
    # They are asked again only by --tries.
    assert judge(run, api.url) == 0
    assert api.asked.total() == N
    unreadable.pop("what 4?")
    assert judge(run, api.url, "--tries", "3") == 0
    assert (api.asked["what 1?"], api.asked["what 4?"], api.asked.total()) == (3, 2, N + 3)
    assert read_result(run)["judge"]["names"] == {"unparsed": ["1 (qa)"]}


def test_a_refused_question_does_not_stop_the_others(api: Api, run: Path) -> None:
    refused = ("what 2?", "what 3?", "what 5?")
    refusal = Answer(status=400, raw=b"content\nfilter")
    api.answer = lambda question, before: refusal if question in refused else Answer()
    assert judge(run, api.url, "--parallel", "1") == 0
    summary = read_result(run)["judge"]
    assert (summary["judged"], summary["refused"]) == (3, 3)
    assert [line["error"] for line in read_judgements(run) if "error" in line] == ["HTTP 400 (content filter)"] * 3
    # Asked again, once a run, and still refused: no reason to end, since the judge has replied to others.
    assert judge(run, api.url, "--parallel", "1", "--tries", "3") == 0
    assert api.asked["what 2?"] == 2
    assert read_result(run)["metrics"]["accuracy"] == 0.5
    api.answer = lambda question, before: Answer()
    assert judge(run, api.url) == 0
    assert read_result(run)["judge"]["refused"] == 0


def test_the_budget_is_kept(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(run, api.url, *PRICE, "--max-cost", "0.0005") == 1
    assert api.paid.total() == 3
    out = capsys.readouterr().out
    assert "STOPPED with 3 to go: --max-cost 0.0005 is spent" in out
    assert "counted as wrong: 3 NOT JUDGED YET (`pave judge` goes on), as 3 (qa)" in out
    assert read_result(run)["metrics"]["accuracy"] == 0.5
    # What was spent before counts.
    assert judge(run, api.url, *PRICE, "--max-cost", "0.0006") == 1
    assert api.paid.total() == 3
    assert judge(run, api.url, *PRICE, "--max-cost", "1") == 0
    assert api.paid.total() == N
    assert read_result(run)["judge"]["cost"] == pytest.approx(N * 0.00021)
    assert judge(run, api.url, *PRICE, "--max-cost", "0.0001") == 0


def test_a_budget_that_cannot_be_kept_is_refused(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(run, api.url, "--max-cost", "1") == 1
    assert "--max-cost needs --price" in capsys.readouterr().err
    api.answer = lambda question, before: Answer(usage=False)
    assert judge(run, api.url, "--max-cost", "1", "--price", "1", "1", "--parallel", "2") == 1
    assert "tells no numbers of tokens" in capsys.readouterr().err
    assert len(read_judgements(run)) == api.paid.total() <= 2
    assert judge(run, api.url) == 0
    assert read_result(run)["judge"]["cost"] is None


def test_another_answer_is_judged_anew(api: Api, run: Path) -> None:
    assert judge(run, api.url) == 0
    write_answers(run, {**{i: f"it is a{i}" for i in QIDS}, "0": "something else"})
    assert main.main(make_argv("score", run)) == 0
    result = read_result(run)
    assert (result["judge"]["judged"], result["judge"]["unjudged"]) == (N - 1, 1)
    assert result["metrics"]["accuracy"] == pytest.approx(5 / 6)
    assert judge(run, api.url) == 0
    assert (api.asked["what 0?"], api.asked.total()) == (2, N + 1)
    assert read_result(run)["metrics"]["accuracy"] == 1


def test_missing_answers_are_wrong_and_not_asked(api: Api, run: Path) -> None:
    write_answers(run, {i: f"it is a{i}" for i in QIDS[1:]})
    assert judge(run, api.url) == 1
    assert judge(run, api.url, "--allow-missing") == 0
    assert api.asked.total() == N - 1
    assert read_result(run)["metrics"]["accuracy"] == pytest.approx(5 / 6)
    assert read_result(run)["judge"]["unanswered"] == 1
    assert judge(run, api.url, "--allow-missing", "--limit", "2") == 0
    assert read_result(run)["metrics"]["accuracy"] == 0.5


def test_one_folder_holds_one_judge(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(run, api.url) == 0
    assert main.main(make_argv("judge", run, "--judge", api.url, "--model", "another")) == 1
    assert "judge.json: another judge: judge.name was 'judge', is now 'another'" in capsys.readouterr().err
    assert judge(run, api.url, "--body", '{"temperature": 1}') == 1
    (run / JUDGE).unlink()
    assert judge(run, api.url) == 1
    assert "judge.json: missing, though there is judgements.jsonl" in capsys.readouterr().err
    assert api.asked.total() == N


def test_the_body_can_be_changed(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = '{"temperature": null, "max_tokens": null, "max_completion_tokens": 9}'
    assert judge(run, f"{api.url}/chat/completions/", "--body", body) == 0
    assert set(api.requests[0]) == {"model", "messages", "max_completion_tokens", "path"}
    assert api.requests[0]["path"] == "/v1/chat/completions"
    for text in ("{", "3"):
        assert judge(run, api.url, "--body", text) == 1
        assert f"--body {text}: " in capsys.readouterr().err


def test_recorded_judgements_are_a_judge(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unreadable_once = ("what 1?", "what 2?")
    api.answer = lambda question, before: Answer("hm") if question in unreadable_once and before < 1 else Answer()
    assert judge(run, api.url, "--tries", "2") == 0
    other = run.parent / "other"
    write_answers(other, {**{i: f"it is a{i}" for i in QIDS}, "5": "never judged"})
    num_asked = api.asked.total()
    assert judge(other, str(run / JUDGEMENTS)) == 0
    assert api.asked.total() == num_asked
    result = read_result(other)
    assert result["judge"].items() >= {"kind": "recorded", "judged": N - 1, "unjudged": 1}.items()
    assert result["metrics"]["score"] == pytest.approx(5 * 4 / 6)
    # Judgements and judge.json are all that scoring needs.
    copy = run.parent / "copy"
    copy.mkdir()
    for name in (run_folder.PREDICTIONS, JUDGEMENTS, JUDGE):
        shutil.copy(run / name, copy / name)
    assert main.main(make_argv("score", copy)) == 0
    assert read_result(copy)["metrics"] == read_result(run)["metrics"]
    assert judge(run, str(run.parent / "nothing")) == 1
    assert "expected a URL, a folder with a model or a file" in capsys.readouterr().err


def test_a_broken_line_is_named(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(run, api.url) == 0
    lines = (run / JUDGEMENTS).read_text().splitlines(keepends=True)
    qid = json.loads(lines[1])["qids"][0]
    for broken, message in (
        ("{\n", "judgements.jsonl:2: cannot be read"),
        (lines[1].replace('"qa"', '"taste"'), "judgements.jsonl:2: cannot be read"),
        (lines[1].replace('"reply": "', '"said": "'), "judgements.jsonl:2: cannot be read"),
        (lines[1].replace(f'"qids": ["{qid}"]', '"qids": ["77"]'), "question '77' is not one"),
    ):
        (run / JUDGEMENTS).write_text("".join([lines[0], broken, *lines[2:]]))
        assert main.main(make_argv("score", run)) == 1
        assert message in capsys.readouterr().err


def test_only_one_process_writes(run: Path) -> None:
    file = run / JUDGEMENTS
    with (
        JudgementLog.open(file, None),
        pytest.raises(UserError, match="another `pave judge` writes it"),
        JudgementLog.open(file, None),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ("https://u:p@host/v1 --model m", "msvd_qa", "without a name or password in it"),
        ("https:///v1 --model m", "msvd_qa", "expected a URL as in"),
        ("https://host/v1", "msvd_qa", "--model says which model a URL is asked for"),
        ("file:///etc/passwd", "msvd_qa", "expected a URL, a folder with a model or a file"),
        ("https://host/v1 --model m --parallel 0", "msvd_qa", "expected more than 0"),
        ("https://host/v1 --model m --words /nowhere", "msvd_qa", "0 files are named"),
        ("https://host/v1 --model m", "mlvu", "mlvu is scored by rules"),
    ],
)
def test_refused_judges(options: str, task: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(make_argv("judge", run, "--judge", *options.split(), task=task)) == 1
    assert message in capsys.readouterr().err
    assert not (run / JUDGEMENTS).exists()


def test_prompts_of_published_scripts_are_asked_and_kept(api: Api, run: Path) -> None:
    scripts = run.parent / "scripts"
    scripts.mkdir()
    (scripts / "evaluate_activitynet_qa.py").write_text(
        'm = [{"role": "system", "content": "Be fair."}, {"role": "user", "content":\n'
        "    f\"Question: {question}\\n\" f\"{answer} or {pred}? {{'pred': 'yes', 'score': 5}}\"}]\n"
    )
    assert judge(run, api.url, "--words", str(scripts)) == 0
    system, user = api.requests[0]["messages"]
    assert system == {"role": "system", "content": "Be fair."}
    i = user["content"][15]
    assert user["content"] == f"Question: what {i}?\na{i} or it is a{i}? {{'pred': 'yes', 'score': 5}}"
    shutil.rmtree(scripts)
    assert main.main(make_argv("score", run)) == 0
    assert read_result(run)["judge"]["judged"] == N
    assert read_result(run)["judge"]["words"]["whose"] == "given"
    # Our own prompts are another judge.
    assert judge(run, api.url) == 1


def test_vcgbench_from_answers_to_scores(api: Api, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name, questions in {
        "generic": {"Q": "What?", "A": "A cat."},
        "temporal": {"Q": "When?", "A": "Late."},
        "consistency": {"Q1": "Who sleeps?", "Q2": "Who naps?", "A": "A cat."},
    }.items():
        (data / f"{name}_qa.json").write_text(json.dumps([{"video_name": "v1", **questions}]))
    qids = ["generic/v1", "temporal/v1", "consistency/v1/1", "consistency/v1/2"]
    write_answers(out, {qid: f"to {qid}" for qid in qids})
    scores = iter([5, 4, 3, 2, 1])
    api.answer = lambda question, before: Answer(f"{{'score': {next(scores)}}}")
    options = ("--judge", api.url, "--model", "judge", "--parallel", "1")
    assert main.main(make_argv("judge", out, *options, task="vcgbench")) == 0
    kinds = list(judge_prompts.JUDGE_PROMPTS)[1:]
    assert [line["kind"] for line in read_judgements(out)] == kinds
    both = api.requests[-1]["messages"][1]["content"]
    assert "Question 1: Who sleeps?\nQuestion 2: Who naps?\nCorrect Answer: A cat.\n" in both
    assert "Question 1: to consistency/v1/1\nPredicted Answer to Question 2: to consistency/v1/2\n" in both
    metrics = read_result(out)["metrics"]
    assert [metrics[kind] for kind in kinds] == [5, 4, 3, 2, 1]
    assert metrics["mean"] == 3
    # Without the second answer, nothing can be said about consistency.
    write_answers(out, {qid: f"to {qid}" for qid in qids[:3]})
    assert main.main([*make_argv("score", out, task="vcgbench"), "--allow-missing"]) == 0
    assert read_result(out)["metrics"]["consistency"] == 0
    assert read_result(out)["judge"]["names"] == {"unanswered": ["consistency/v1/1 (consistency)"]}


@pytest.mark.parametrize("has_template", [True, False])
def test_a_local_model_judges(has_template: bool, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights say nothing that can be read, which is counted; the same model says the same again."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    from pave.training.tiny_models.llava_onevision import make_tokenizer

    set_seed(0)
    tokenizer = make_tokenizer(["Reply with a Python dictionary"])
    if has_template:
        turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
        tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = run.parent / "llm"
    config = Qwen2Config(**size, num_hidden_layers=1, vocab_size=len(tokenizer))
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    short = ("--body", '{"max_tokens": 5}')
    assert judge(run, str(folder), *short) == 0
    result = read_result(run)
    expected = {"kind": "local", "name": "llm", "unparsed": N, "tokens_out": 5 * N}
    assert result["judge"].items() >= expected.items()
    assert (result["metrics"]["accuracy"], result["metrics"]["score"]) == (0, 0)
    assert "accuracy_judged" not in result["metrics"]
    first = {line["prompt"]: line["reply"] for line in read_judgements(run)}
    assert judge(run, str(folder), *short, "--tries", "2") == 0
    assert len(read_judgements(run)) == 2 * N
    assert all(line["reply"] == first[line["prompt"]] for line in read_judgements(run))
    assert judge(run, str(folder), "--body", '{"temperature": 1}') == 1
    assert "a local model judges greedily" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert judge(run, str(folder)) == 1
    assert "expected a causal language model in the layout of transformers" in capsys.readouterr().err
