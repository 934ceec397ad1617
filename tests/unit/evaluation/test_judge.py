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

from pave.cli import main
from pave.evaluation import chat_client, run_folder, score
from pave.evaluation.judge_ledger import JUDGE, JUDGEMENTS, JudgementLog
from pave.tasks.metrics import judge_prompts
from pave.types import UserError

N = 6
KEY = "sk-very-secret"


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
        self.now = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


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
            server.now += 1
            server.most = max(server.most, server.now)
        answer = server.answer(question, before)
        time.sleep(answer.wait)
        with server.lock:
            server.now -= 1
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
    """A running server; who asks it again does so at once, but for what the server itself asks for."""
    monkeypatch.setattr(chat_client.random, "uniform", lambda low, high: 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Api()
    server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six answers to questions of MSVD-QA."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "test_q.json").write_text(
        json.dumps([{"video_name": f"v{i}", "question": f"what {i}?", "question_id": str(i)} for i in range(N)])
    )
    (data / "test_a.json").write_text(json.dumps([{"answer": f"a{i}", "question_id": str(i)} for i in range(N)]))
    out = tmp_path / "run"
    out.mkdir()
    answer(out, [f"it is a{i}" for i in range(N)])
    return out


def answer(out: Path, texts: list[str]) -> None:
    lines = [json.dumps({"qid": str(i), "text": text}) + "\n" for i, text in enumerate(texts)]
    (out / run_folder.PREDICTIONS).write_text("".join(lines))


def words(command: str, out: Path, *more: str, task: str = "msvd_qa") -> list[str]:
    data = str(out.parent / "data")
    return [command, str(out / run_folder.PREDICTIONS), "--task", task, "--data", data, *more]


def judge(out: Path, judge: str, *more: str) -> int:
    named = ("--model", "judge") if judge.startswith("http") else ()
    return main.main(words("judge", out, "--judge", judge, *named, *more))


def saved(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / JUDGEMENTS).read_text().splitlines()]


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / run_folder.METRICS).read_text())


def test_every_answer_is_judged_and_saved(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = lambda question, before: Answer(
        "{'pred': 'yes', 'score': 5}" if int(question[5]) % 2 else "{'pred': 'no', 'score': 1}", wait=0.2
    )
    assert judge(run, api.url, "--parallel", "3", "--price", "0.5", "1.5") == 0
    assert api.asked == Counter({f"what {i}?": 1 for i in range(N)})
    assert 1 < api.most <= 3
    assert {request["path"] for request in api.requests} == {"/v1/chat/completions"}
    assert api.requests[0].items() >= {"model": "judge", "temperature": 0, "max_tokens": 64}.items()
    assert {headers["Authorization"] for headers in api.headers} == {f"Bearer {KEY}"}
    found = result(run)
    assert (found["metrics"]["accuracy"], found["metrics"]["score"]) == (0.5, 3)
    assert found["judge"].items() >= {"name": "judge", "judged": N, "cases": N, "models": ["judge-1106"]}.items()
    assert (found["judge"]["tokens_in"], found["judge"]["tokens_out"]) == (200 * N, 10 * N)
    assert found["judge"]["cost"] == pytest.approx(N * (200 * 0.5 + 10 * 1.5) / 1e6)
    lines = saved(run)
    assert sorted(line["qids"][0] for line in lines) == [str(i) for i in range(N)]
    assert {line["reply"][:15] for line in lines} == {"{'pred': 'yes',", "{'pred': 'no', "}
    assert all(line["verdict"]["score"] in (1, 5) for line in lines)
    out = capsys.readouterr().out
    assert "6 of 6 cases judged" in out
    assert "in words that are our own" in out
    samples = [json.loads(line) for line in (run / score.SAMPLES).read_text().splitlines()]
    assert samples[1]["judged"] == {"qa": {"score": 5, "yes": True}}
    # The key is nowhere.
    assert not any(KEY in file.read_text() for file in run.iterdir())


def test_scores_need_no_network_no_key_and_no_torch(api: Api, run: Path) -> None:
    assert judge(run, api.url) == 0
    first = result(run)
    api.shutdown()
    (run / run_folder.METRICS).unlink()
    code = "import sys, socket\n"
    code += "def no(*a, **k): raise AssertionError('network')\nsocket.socket.connect = no\nsocket.getaddrinfo = no\n"
    code += f"from pave.cli import main\nassert main.main({words('score', run)}) == 0\n"
    code += "assert not {'torch', 'transformers', 'urllib.request', 'pave.evaluation.chat_client'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert result(run) == first


def test_an_endpoint_needs_no_torch(api: Api, run: Path) -> None:
    line = words("judge", run, "--judge", api.url, "--model", "judge")
    code = f"import sys\nfrom pave.cli import main\nassert main.main({line}) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_before_any_judge_there_are_no_scores(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words("score", run)) == 0
    assert "NOT JUDGED: `pave judge` asks a judge" in capsys.readouterr().out
    assert result(run)["metrics"] == {"n": N, "missing": 0, "empty": 0}
    assert result(run)["judge"] is None


def test_what_passes_is_tried_again(api: Api, run: Path) -> None:
    """Too many requests, a busy server, a broken connection, no JSON, another form, a time-out: each costs nothing."""
    trouble = {
        "what 0?": Answer(status=429, raw=b'{"code": "rate_limit"}'),
        "what 1?": Answer(status=503, raw=b"busy"),
        "what 2?": Answer(None),
        "what 3?": Answer(raw=b'{"choices": [{"mess'),
        "what 4?": Answer(raw=b'{"choices": []}'),
        "what 5?": Answer(wait=4),
    }
    api.answer = lambda question, before: trouble[question] if before < 1 else Answer()
    assert judge(run, api.url, "--parallel", "6", "--timeout", "2") == 0
    assert min(api.asked.values()) >= 2
    assert len(saved(run)) == N
    assert result(run)["judge"]["judged"] == N


def test_the_endpoint_says_when_to_try_again(api: Api, run: Path) -> None:
    busy = Answer(status=429, raw=b"", headers=(("Retry-After", "0.4"),))
    api.answer = lambda question, before: busy if question == "what 0?" and before < 2 else Answer()
    start = time.perf_counter()
    assert judge(run, api.url) == 0
    assert time.perf_counter() - start >= 0.8


def test_retry_after_is_a_number_or_a_date() -> None:
    assert chat_client._retry_after("7") == 7
    assert 50 < chat_client._retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert chat_client._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert chat_client._retry_after(None) == chat_client._retry_after("soon") == chat_client._retry_after("-3") == 0


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


@pytest.mark.parametrize(("given", "message"), FATAL)
def test_what_no_request_can_mend_ends_it(
    given: Answer, message: str, api: Api, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer = lambda question, before: given
    assert judge(run, api.url, "--parallel", "1", "--retries", "2") == 1
    error = capsys.readouterr().err
    assert re.search(message, error.splitlines()[-1]), error
    assert KEY not in error
    assert api.asked.total() <= 3
    assert not any("reply" in line for line in saved(run))


def test_replies_under_way_when_all_ends_are_saved(api: Api, run: Path) -> None:
    """They are paid, so they are waited for."""
    gone = threading.Event()

    def late(question: str, before: int) -> Answer:
        if question == "what 2?":
            gone.set()
            return Answer(status=401, raw=b"")
        gone.wait(60)
        return Answer(wait=1)

    api.answer = late
    assert judge(run, api.url, "--parallel", "3") == 1
    assert sorted(line["qids"][0] for line in saved(run)) == ["0", "1"]
    api.answer = lambda question, before: Answer()
    assert judge(run, api.url) == 0
    assert max(api.paid.values()) == 1
    assert result(run)["judge"]["judged"] == N


def test_a_killed_run_goes_on_and_pays_nothing_twice(api: Api, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()

    def hold(question: str, before: int) -> Answer:
        if question == "what 3?" and before == 0:
            held.set()
            return Answer(None, wait=60)
        return Answer()

    api.answer = hold
    line = words("judge", run, "--judge", api.url, "--model", "judge", "--parallel", "1")
    process = subprocess.Popen([sys.executable, "-m", "pave", *line], stderr=subprocess.DEVNULL)
    assert held.wait(60)
    # While it is at work nobody else writes there.
    assert judge(run, api.url) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(saved(run)) == 3
    with (run / JUDGEMENTS).open("a") as handle:
        handle.write('{"kind": "qa", "qids": ["3"], "prom')
    assert judge(run, api.url, "--parallel", "1") == 0
    assert api.paid == Counter({f"what {i}?": 1 for i in range(N)})
    assert [line["qids"][0] for line in saved(run)] == [str(i) for i in range(N)]
    assert judge(run, api.url) == 0
    assert api.paid.total() == N


def test_replies_that_cannot_be_read_are_counted_and_named(
    api: Api, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"what 1?": "I think it is right.", "what 4?": ""}
    api.answer = lambda question, before: Answer(bad.get(question, "{'pred': 'yes', 'score': 4}"))
    assert judge(run, api.url) == 0
    found = result(run)
    assert (found["judge"]["judged"], found["judge"]["unparsed"]) == (4, 2)
    assert found["judge"]["names"] == {"unparsed": ["1 (qa)", "4 (qa)"]}
    assert found["metrics"]["accuracy"] == pytest.approx(4 / 6)
    assert found["metrics"]["accuracy_judged"] == 1
    assert "counted as wrong: 2 replies that cannot be read, as 1 (qa)" in capsys.readouterr().out
    # They are not asked again, unless it is said how often.
    assert judge(run, api.url) == 0
    assert api.asked.total() == N
    bad.pop("what 4?")
    assert judge(run, api.url, "--tries", "3") == 0
    assert (api.asked["what 1?"], api.asked["what 4?"], api.asked.total()) == (3, 2, N + 3)
    assert result(run)["judge"]["names"] == {"unparsed": ["1 (qa)"]}


def test_a_refused_question_does_not_stop_the_others(api: Api, run: Path) -> None:
    api.answer = lambda question, before: (
        Answer(status=400, raw=b"content\nfilter") if question in ("what 2?", "what 3?", "what 5?") else Answer()
    )
    assert judge(run, api.url, "--parallel", "1") == 0
    found = result(run)["judge"]
    assert (found["judged"], found["refused"]) == (3, 3)
    assert [line["error"] for line in saved(run) if "error" in line] == ["HTTP 400 (content filter)"] * 3
    # Asked again, once a run, and still refused: no reason to end, since the judge has replied to others.
    assert judge(run, api.url, "--parallel", "1", "--tries", "3") == 0
    assert api.asked["what 2?"] == 2
    assert result(run)["metrics"]["accuracy"] == 0.5
    api.answer = lambda question, before: Answer()
    assert judge(run, api.url) == 0
    assert result(run)["judge"]["refused"] == 0


def test_the_money_is_kept_to(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A request costs 0.00021 here."""
    price = ("--price", "1", "1", "--parallel", "1")
    assert judge(run, api.url, *price, "--max-cost", "0.0005") == 1
    assert api.paid.total() == 3
    out = capsys.readouterr().out
    assert "STOPPED with 3 to go: --max-cost 0.0005 is spent" in out
    assert "counted as wrong: 3 NOT JUDGED YET (`pave judge` goes on), as 3 (qa)" in out
    assert result(run)["metrics"]["accuracy"] == 0.5
    # What was spent before counts.
    assert judge(run, api.url, *price, "--max-cost", "0.0006") == 1
    assert api.paid.total() == 3
    assert judge(run, api.url, *price, "--max-cost", "1") == 0
    assert api.paid.total() == N
    assert result(run)["judge"]["cost"] == pytest.approx(N * 0.00021)
    assert judge(run, api.url, *price, "--max-cost", "0.0001") == 0


def test_a_limit_that_cannot_be_kept_is_said(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(run, api.url, "--max-cost", "1") == 1
    assert "--max-cost needs --price" in capsys.readouterr().err
    api.answer = lambda question, before: Answer(usage=False)
    assert judge(run, api.url, "--max-cost", "1", "--price", "1", "1", "--parallel", "2") == 1
    assert "tells no numbers of tokens" in capsys.readouterr().err
    assert len(saved(run)) == api.paid.total() <= 2
    assert judge(run, api.url) == 0
    assert result(run)["judge"]["cost"] is None


def test_another_answer_is_judged_anew(api: Api, run: Path) -> None:
    assert judge(run, api.url) == 0
    answer(run, ["something else", *(f"it is a{i}" for i in range(1, N))])
    assert main.main(words("score", run)) == 0
    assert (result(run)["judge"]["judged"], result(run)["judge"]["unjudged"]) == (N - 1, 1)
    assert result(run)["metrics"]["accuracy"] == pytest.approx(5 / 6)
    assert judge(run, api.url) == 0
    assert (api.asked["what 0?"], api.asked.total()) == (2, N + 1)
    assert result(run)["metrics"]["accuracy"] == 1


def test_missing_answers_are_wrong_and_not_asked(api: Api, run: Path) -> None:
    file = run / run_folder.PREDICTIONS
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    assert judge(run, api.url) == 1
    assert judge(run, api.url, "--allow-missing") == 0
    assert api.asked.total() == N - 1
    assert result(run)["metrics"]["accuracy"] == pytest.approx(5 / 6)
    assert result(run)["judge"]["unanswered"] == 1
    assert judge(run, api.url, "--allow-missing", "--limit", "2") == 0
    assert result(run)["metrics"]["accuracy"] == 0.5


def test_one_folder_holds_one_judge(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(run, api.url) == 0
    assert main.main(words("judge", run, "--judge", api.url, "--model", "another")) == 1
    assert "judge.json: judged otherwise: judge.name was 'judge', is now 'another'" in capsys.readouterr().err
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
    bad = {"what 1?": "hm", "what 2?": "hm"}
    api.answer = lambda question, before: Answer(
        bad[question] if question in bad and before < 1 else "{'pred': 'yes', 'score': 4}"
    )
    assert judge(run, api.url, "--tries", "2") == 0
    other = run.parent / "other"
    other.mkdir()
    texts = [f"it is a{i}" for i in range(N)]
    answer(other, [*texts[:-1], "never judged"])
    asked = api.asked.total()
    assert judge(other, str(run / JUDGEMENTS)) == 0
    assert api.asked.total() == asked
    found = result(other)
    assert (found["judge"]["kind"], found["judge"]["judged"], found["judge"]["unjudged"]) == ("recorded", N - 1, 1)
    assert found["metrics"]["score"] == pytest.approx(5 * 4 / 6)
    # A recorded file next to its judge.json is all that scoring needs.
    bare = run.parent / "bare"
    bare.mkdir()
    for name in (run_folder.PREDICTIONS, JUDGEMENTS, JUDGE):
        shutil.copy(run / name, bare / name)
    assert main.main(words("score", bare)) == 0
    assert result(bare)["metrics"] == result(run)["metrics"]
    assert judge(run, str(run.parent / "nothing")) == 1
    assert "expected a URL, a folder with a model or a file" in capsys.readouterr().err


def test_a_broken_line_is_named(api: Api, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(run, api.url) == 0
    file = run / JUDGEMENTS
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    qid = json.loads(lines[1])["qids"][0]
    for broken, message in (
        ("{\n", "judgements.jsonl:2: cannot be read"),
        (lines[1].replace('"qa"', '"taste"'), "judgements.jsonl:2: cannot be read"),
        (lines[1].replace('"reply": "', '"said": "'), "judgements.jsonl:2: cannot be read"),
        (lines[1].replace(f'"qids": ["{qid}"]', '"qids": ["77"]'), "question '77' is not one"),
    ):
        file.write_text("".join([lines[0], broken, *lines[2:]]))
        assert main.main(words("score", run)) == 1
        assert message in capsys.readouterr().err


def test_only_one_process_writes(run: Path) -> None:
    message = "another `pave judge` writes it"
    with (
        JudgementLog.open(run / JUDGEMENTS, None),
        pytest.raises(UserError, match=message),
        JudgementLog.open(run / JUDGEMENTS, None),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--judge", "https://u:p@host/v1", "--model", "m"), "without a name or password in it"),
        (("--judge", "https:///v1", "--model", "m"), "expected a URL as in"),
        (("--judge", "https://host/v1"), "--model says which model a URL is asked for"),
        (("--judge", "file:///etc/passwd"), "expected a URL, a folder with a model or a file"),
        (("--judge", "https://host/v1", "--model", "m", "--parallel", "0"), "expected more than 0"),
        (("--judge", "https://host/v1", "--model", "m", "--words", "/nowhere"), "0 files are named"),
    ],
)
def test_what_cannot_be_a_judge(
    more: tuple[str, ...], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words("judge", run, *more)) == 1
    assert message in capsys.readouterr().err
    assert not (run / JUDGEMENTS).exists()


def test_a_task_with_rules_needs_no_judge(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words("judge", run, "--judge", "https://host/v1", "--model", "m", task="mlvu")) == 1
    assert "mlvu is scored by rules" in capsys.readouterr().err


def test_words_of_published_scripts_are_asked_and_kept(api: Api, run: Path) -> None:
    scripts = run.parent / "scripts"
    scripts.mkdir()
    (scripts / "evaluate_activitynet_qa.py").write_text(
        'm = [{"role": "system", "content": "Be fair."}, {"role": "user", "content":\n'
        "    f\"Question: {question}\\n\" f\"{answer} or {pred}? {{'pred': 'yes', 'score': 5}}\"}]\n"
    )
    assert judge(run, api.url, "--words", str(scripts)) == 0
    turns = api.requests[0]["messages"]
    assert turns[0] == {"role": "system", "content": "Be fair."}
    number = turns[1]["content"][15]
    assert (
        turns[1]["content"] == f"Question: what {number}?\na{number} or it is a{number}? {{'pred': 'yes', 'score': 5}}"
    )
    shutil.rmtree(scripts)
    assert main.main(words("score", run)) == 0
    assert result(run)["judge"]["judged"] == N
    assert result(run)["judge"]["words"]["whose"] == "given"
    # Our own words are another judge.
    assert judge(run, api.url) == 1


def test_vcgbench_from_answers_to_scores(api: Api, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "generic_qa.json").write_text(json.dumps([{"video_name": "v1", "Q": "What?", "A": "A cat."}]))
    (data / "temporal_qa.json").write_text(json.dumps([{"video_name": "v1", "Q": "When?", "A": "Late."}]))
    two = [{"video_name": "v1", "Q1": "Who sleeps?", "Q2": "Who naps?", "A": "A cat."}]
    (data / "consistency_qa.json").write_text(json.dumps(two))
    out = tmp_path / "run"
    out.mkdir()
    qids = ["generic/v1", "temporal/v1", "consistency/v1/1", "consistency/v1/2"]
    (out / run_folder.PREDICTIONS).write_text("".join(json.dumps({"qid": q, "text": f"to {q}"}) + "\n" for q in qids))
    scores = iter([5, 4, 3, 2, 1])
    api.answer = lambda question, before: Answer(f"{{'score': {next(scores)}}}")
    line = words("judge", out, "--judge", api.url, "--model", "judge", "--parallel", "1", task="vcgbench")
    assert main.main(line) == 0
    assert [json.loads(x)["kind"] for x in (out / JUDGEMENTS).open()] == list(judge_prompts.JUDGE_PROMPTS)[1:]
    both = api.requests[-1]["messages"][1]["content"]
    assert "Question 1: Who sleeps?\nQuestion 2: Who naps?\nCorrect Answer: A cat.\n" in both
    assert "Question 1: to consistency/v1/1\nPredicted Answer to Question 2: to consistency/v1/2\n" in both
    metrics = result(out)["metrics"]
    assert [metrics[kind] for kind in list(judge_prompts.JUDGE_PROMPTS)[1:]] == [5, 4, 3, 2, 1]
    assert metrics["mean"] == 3
    # With the second answer gone, nothing can be said about consistency.
    (out / run_folder.PREDICTIONS).write_text(
        "".join(json.dumps({"qid": q, "text": f"to {q}"}) + "\n" for q in qids[:3])
    )
    assert main.main([*words("score", out, task="vcgbench"), "--allow-missing"]) == 0
    assert result(out)["metrics"]["consistency"] == 0
    assert result(out)["judge"]["names"] == {"unanswered": ["consistency/v1/1 (consistency)"]}


@pytest.mark.parametrize("template", [True, False])
def test_a_local_model_judges(template: bool, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights say nothing that can be read, which is counted; the same model says the same again."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    from pave.training.tiny_models.llava_onevision import make_tokenizer

    set_seed(0)
    tokenizer = make_tokenizer(["Reply with a Python dictionary"])
    if template:
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        )
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    lm = Qwen2ForCausalLM(Qwen2Config(**size, num_hidden_layers=1, vocab_size=len(tokenizer)))
    folder = run.parent / "lm"
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert judge(run, str(folder), "--body", '{"max_tokens": 5}') == 0
    found = result(run)
    assert found["judge"].items() >= {"kind": "local", "name": "lm", "unparsed": N, "tokens_out": 5 * N}.items()
    assert (found["metrics"]["accuracy"], found["metrics"]["score"]) == (0, 0)
    assert "accuracy_judged" not in found["metrics"]
    first = {line["prompt"]: line["reply"] for line in saved(run)}
    assert judge(run, str(folder), "--body", '{"max_tokens": 5}', "--tries", "2") == 0
    assert len(saved(run)) == 2 * N
    assert all(line["reply"] == first[line["prompt"]] for line in saved(run))
    assert judge(run, str(folder), "--body", '{"temperature": 1}') == 1
    assert "a local model judges greedily" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert judge(run, str(folder)) == 1
    assert "expected a causal language model in the layout of transformers" in capsys.readouterr().err
