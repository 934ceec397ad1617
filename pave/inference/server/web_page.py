"""The page in the browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from pave.inference import provenance
from pave.inference.limits import Limits, RequestRefused
from pave.inference.server.endpoints import converse
from pave.inference.server.job_queue import Emit, IsStopped, JobQueue
from pave.inference.server.validation import checked
from pave.inference.session import AnswerRequest, LoadedVideo, Session

Turns = list[tuple[str, str]]
FILE_AGE = 3600
"""Seconds after which a file is removed even if its page stays open."""


def uploads_only(component: Any, folders: Sequence[Path]) -> Any:
    """The same gradio component, which then takes files of these folders and nothing else."""
    take = component.async_move_resource_to_block_cache

    async def take_file(named: Any) -> Any:
        # A mounted page does not check this by itself; a browser may name any path, or a link to fetch.
        if named and not any(Path(named).resolve().is_relative_to(folder) for folder in folders):
            raise gr.Error("neither links nor paths are opened; upload the file", print_exception=False)
        return await take(named)

    component.async_move_resource_to_block_cache = take_file
    return component


@dataclass
class ChatState:
    """Two conversations about one video, one with patches and one with the base."""

    answer: Turns = field(default_factory=list)
    base: Turns = field(default_factory=list)


class Page:
    """What the page's buttons do."""

    def __init__(self, session: Session, desk: JobQueue, limits: Limits) -> None:
        self.session, self.desk, self.limits = session, desk, limits
        self.sides = list(session.config.sides)
        self.files: dict[str, set[Path]] = {}
        """Of each open page."""
        self.kept: set[str] = set()
        """Files of the examples."""
        self._last: tuple[Any, LoadedVideo] | None = None

    def look(self, request: gr.Request, video: str | None, *files: str | None) -> Iterator[tuple[Any, ...]]:
        """Read a new video and say what is in it; the conversations about another one end."""
        yield ChatState(), [], [], "reading ..." if video else ""
        if video:
            given = dict(zip(self.sides, files))
            mine = self.files.setdefault(str(request.session_hash), set())
            mine |= {Path(f) for f in (video, *files) if f and f not in self.kept}
            try:
                for seen in self._do(lambda put, stopped: put(self._see(video, given).provenance)):
                    yield ChatState(), [], [], provenance.as_text(seen)
            except gr.Error as error:
                yield ChatState(), [], [], str(error.message)
                raise

    def ask(
        self, talk: ChatState, question: str, beside: bool, patches: list[str], video: str | None, *files: str | None
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a question, and beside it as the base does."""
        if not video:
            raise gr.Error("drop a video first", print_exception=False)
        count = min(128, self.limits.max_new_tokens)
        ask = AnswerRequest(question, tuple(talk.answer), tuple(patches), count)
        asks = {"answer": ask} | ({"base": AnswerRequest(question, tuple(talk.base), (), count)} if beside else {})
        said = dict.fromkeys(asks, "")
        text = ""
        given = dict(zip(self.sides, files))
        for name, value in self._do(partial(self._converse, video, given, asks)):
            if isinstance(value, provenance.Provenance):
                text = provenance.as_text(value, patches)
            else:
                said[name] = said[name] + value if isinstance(value, str) else value.text
            now = [
                _messages(getattr(talk, n) + ([(question, said[n])] if n in said else [])) for n in ("answer", "base")
            ]
            yield talk, *now, text, ""
        new = ChatState(*([*getattr(talk, n), *([(question, said[n])] if n in said else [])] for n in ("answer", "base")))
        yield new, _messages(new.answer), _messages(new.base), text, ""

    def forget(self, request: gr.Request) -> None:
        """Delete the files of a page that was closed, but for those that another page has too."""
        mine = self.files.pop(str(request.session_hash), set())
        for file in mine.difference(*self.files.values()):
            shutil.rmtree(file.parent, ignore_errors=True)

    def _converse(
        self, video: str, files: dict[str, str | None], asks: dict[str, AnswerRequest], put: Emit, stopped: IsStopped
    ) -> None:
        for ask in asks.values():
            checked(ask, self.limits)
        converse(self.session, partial(self._see, video, files), asks, put, stopped)

    def _see(self, video: str, files: dict[str, str | None]) -> LoadedVideo:
        """The scene, which is kept for the next question; runs in the desk's thread."""
        key = (video, *files.items())
        if self._last is None or self._last[0] != key:
            self._last = None
            given = {name: Path(file) for name, file in files.items() if file}
            self._last = key, self.session.load_video(Path(video), given)
        return self._last[1]

    def _do(self, work: Any) -> Iterator[Any]:
        """Have the desk do it; every error becomes a message on the page."""
        try:
            job = self.desk.start(self.desk.slot(), work)
            try:
                yield from job
            finally:
                job.stop.set()
        except RequestRefused as error:
            raise gr.Error(error.text, print_exception=False) from error


def _messages(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]


def build(page: Page, examples: Sequence[tuple[str, str]], folders: Sequence[Path]) -> gr.Blocks:
    """The page; examples are (video file, question), and only files of `folders` are opened."""
    with gr.Blocks(title="pave", analytics_enabled=False, delete_cache=(600, FILE_AGE)) as blocks:
        talk = gr.State(ChatState())
        gr.Markdown("## pave\nA video language model, and the same with patches for what the picture does not show.")
        with gr.Row():
            with gr.Column(scale=2):
                video = uploads_only(gr.Video(label="Video", sources=["upload"], height=240), folders)
                with gr.Accordion("Side-channels from other files", open=False):
                    other = {True: "taken from the video", False: "left out"}
                    labels = [
                        f"{name}: media, features (.safetensors), or a zipped folder; "
                        f"else it is {other[page.session.is_in_video(name)]}"
                        for name in page.sides
                    ]
                    files = [uploads_only(gr.File(label=label, height=120), folders) for label in labels]
                patches = gr.CheckboxGroup(page.sides, value=page.sides, label="Patches that are on")
                beside = gr.Checkbox(True, label="Answer of the base model beside it")
            with gr.Column(scale=3):
                look: dict[str, Any] = {"height": 290, "render_markdown": False, "buttons": ["copy"]}
                with gr.Row():
                    chat = gr.Chatbot(label="With the patches", **look)
                    base = gr.Chatbot(label="Base model alone", **look)
                question = gr.Textbox(label="Question", submit_btn=True, max_length=page.limits.max_characters)
                new = gr.Button("New conversation", size="sm")
        used = gr.Code(label="What was used", interactive=False, show_line_numbers=False, max_lines=24)
        if examples:
            gr.Examples([list(example) for example in examples], [video, question], cache_examples=False)
            page.kept |= video.keep_in_cache
        outputs = [talk, chat, base, used]
        hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        gr.on([video.change, *(f.change for f in files)], page.look, [video, *files], outputs, **hidden)
        question.submit(page.ask, [talk, question, beside, patches, video, *files], [*outputs, question], **hidden)
        gr.on([new.click, chat.clear, base.clear], lambda: (ChatState(), [], []), None, [talk, chat, base], **hidden)
        blocks.unload(page.forget)
    return blocks
