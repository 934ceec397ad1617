"""The web page of `pave serve`: what its buttons do, and how it is laid out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import gradio as gr

from pave.inference import provenance
from pave.inference.limits import Limits, RequestRefused
from pave.inference.provenance import Provenance
from pave.inference.server.endpoints import answer_requests
from pave.inference.server.job_queue import Emit, Event, IsStopped, JobQueue, Work
from pave.inference.server.validation import DEFAULT_NEW_TOKENS, check_text
from pave.inference.session import AnswerRequest, LoadedVideo, Session

Turns = tuple[tuple[str, str], ...]
"""(question, answer) pairs of a conversation."""
Messages = list[dict[str, str]]
"""A conversation as gradio shows it."""
MAX_FILE_AGE = 3600
"""Seconds after which a file is removed even if its page stays open."""


def accept_only(component: gr.components.Component, folders: Sequence[Path]) -> gr.components.Component:
    """Make a gradio component accept files of these folders and nothing else; returns it."""
    accept = component.async_move_resource_to_block_cache

    async def accept_checked(path: str | Path | None) -> str | None:
        # A mounted page does not check this by itself; a browser may name any path, or a link to fetch.
        if path and not any(Path(path).resolve().is_relative_to(folder) for folder in folders):
            raise gr.Error("neither links nor paths are opened; upload the file", print_exception=False)
        return await accept(path)

    component.async_move_resource_to_block_cache = accept_checked
    return component


@dataclass(frozen=True)
class ChatState:
    """Two conversations about one video: `answer` with the patches and `base` without."""

    turns: dict[str, Turns] = field(default_factory=lambda: {"answer": (), "base": ()})

    def add_turn(self, question: str, answers: Mapping[str, str]) -> ChatState:
        """Both conversations with a further turn, where there is an answer."""
        turns = {
            name: (*turns, (question, answers[name])) if name in answers else turns
            for name, turns in self.turns.items()
        }
        return ChatState(turns)

    def messages(self) -> tuple[Messages, Messages]:
        """Both conversations for gradio."""
        return _messages(self.turns["answer"]), _messages(self.turns["base"])


def _messages(turns: Turns) -> Messages:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn)]


class Page:
    """The actions of the page."""

    def __init__(self, session: Session, queue: JobQueue, limits: Limits) -> None:
        self.session, self.queue, self.limits = session, queue, limits
        self.sides = list(session.config.sides)
        self.example_files: set[str] = set()
        self.files_by_page: dict[str, set[Path]] = {}
        """Uploaded files of each open page."""
        self._last_video: tuple[tuple[object, ...], LoadedVideo] | None = None

    def load_video(
        self, request: gr.Request, video: str | None, *files: str | None
    ) -> Iterator[tuple[ChatState, Messages, Messages, str]]:
        """Read a new video and show what is in it; the conversations about another one end."""
        yield ChatState(), [], [], "reading ..." if video else ""
        if not video:
            return

        uploads = {Path(file) for file in (video, *files) if file and file not in self.example_files}
        self.files_by_page.setdefault(str(request.session_hash), set()).update(uploads)

        def load(emit: Emit, is_stopped: IsStopped) -> None:
            emit(("facts", self._load(video, files).provenance))

        try:
            for _, facts in self._run(load):
                assert isinstance(facts, Provenance)
                yield ChatState(), [], [], provenance.as_text(facts)
        except gr.Error as error:
            yield ChatState(), [], [], str(error.message)
            raise

    def answer(
        self,
        state: ChatState,
        question: str,
        with_base: bool,
        patches: list[str],
        video: str | None,
        *files: str | None,
    ) -> Iterator[tuple[ChatState, Messages, Messages, str, str]]:
        """Answer a question, `with_base` also as the base does; the last output empties the question."""
        if not video:
            raise gr.Error("drop a video first", print_exception=False)

        max_new_tokens = min(DEFAULT_NEW_TOKENS, self.limits.max_new_tokens)
        requests = {"answer": AnswerRequest(question, state.turns["answer"], tuple(patches), max_new_tokens)}
        if with_base:
            requests["base"] = AnswerRequest(question, state.turns["base"], (), max_new_tokens)

        def work(emit: Emit, is_stopped: IsStopped) -> None:
            for request in requests.values():
                check_text(request, self.limits)
            answer_requests(self.session, partial(self._load, video, files), requests, emit, is_stopped)

        used, answers = "", dict.fromkeys(requests, "")
        for name, value in self._run(work):
            if isinstance(value, Provenance):
                used = provenance.as_text(value, patches)
            else:
                answers[name] = answers[name] + value if isinstance(value, str) else value.text
            yield state, *state.add_turn(question, answers).messages(), used, ""

        # Only now, so that an answer that was interrupted does not count.
        state = state.add_turn(question, answers)
        yield state, *state.messages(), used, ""

    def close(self, request: gr.Request) -> None:
        """Delete the files of a page that was closed, except those that another page has too."""
        files = self.files_by_page.pop(str(request.session_hash), set())
        for file in files.difference(*self.files_by_page.values()):
            shutil.rmtree(file.parent, ignore_errors=True)

    def _load(self, video: str, files: Sequence[str | None]) -> LoadedVideo:
        """Load a video, which is kept for the next question; runs in the thread of the queue."""
        key = (video, *files)
        if self._last_video is None or self._last_video[0] != key:
            # The old video's memory is free before the new one is read.
            self._last_video = None
            side_files = {name: Path(file) for name, file in zip(self.sides, files) if file}
            self._last_video = key, self.session.load_video(Path(video), side_files)
        return self._last_video[1]

    def _run(self, work: Work) -> Iterator[Event]:
        """Let the queue do some work; every error becomes a message on the page."""
        try:
            job = self.queue.start(self.queue.slot(), work)
            try:
                yield from job
            finally:
                job.stop.set()
        except RequestRefused as error:
            raise gr.Error(error.text, print_exception=False) from error


def build(page: Page, examples: Sequence[tuple[str, str]], folders: Sequence[Path]) -> gr.Blocks:
    """Lay out the page; examples are (video file, question), and only files of `folders` are accepted."""
    with gr.Blocks(title="pave", analytics_enabled=False, delete_cache=(600, MAX_FILE_AGE)) as blocks:
        state = gr.State(ChatState())
        gr.Markdown("## pave\nA video language model, and the same with patches for what the picture does not show.")
        with gr.Row():
            with gr.Column(scale=2):
                video = accept_only(gr.Video(label="Video", sources=["upload"], height=240), folders)
                with gr.Accordion("Side-channels from other files", open=False):
                    files = [_file_input(page, name, folders) for name in page.sides]
                patches = gr.CheckboxGroup(page.sides, value=page.sides, label="Patches that are on")
                with_base = gr.Checkbox(True, label="Answer of the base model beside it")
            with gr.Column(scale=3):
                with gr.Row():
                    chat, base = (
                        gr.Chatbot(label=label, height=290, render_markdown=False, buttons=["copy"])
                        for label in ("With the patches", "Base model alone")
                    )
                question = gr.Textbox(label="Question", submit_btn=True, max_length=page.limits.max_characters)
                new_chat = gr.Button("New conversation", size="sm")
        used = gr.Code(label="What was used", interactive=False, show_line_numbers=False, max_lines=24)
        if examples:
            gr.Examples([list(example) for example in examples], [video, question], cache_examples=False)
            page.example_files |= video.keep_in_cache

        # Only the page's own buttons call these; the queue limits how many run.
        on = partial(gr.on, api_visibility="private", concurrency_limit=None)
        chats = [state, chat, base]
        on([video.change, *(file.change for file in files)], page.load_video, [video, *files], [*chats, used])
        inputs = [state, question, with_base, patches, video, *files]
        on([question.submit], page.answer, inputs, [*chats, used, question])
        on([new_chat.click, chat.clear, base.clear], lambda: (ChatState(), [], []), None, chats)
        blocks.unload(page.close)
    return blocks


def _file_input(page: Page, name: str, folders: Sequence[Path]) -> gr.components.Component:
    """The field for the file of a side-channel."""
    default = "taken from the video" if page.session.is_in_video(name) else "left out"
    label = f"{name}: media, features (.safetensors), or a zipped folder; else it is {default}"
    return accept_only(gr.File(label=label, height=120), folders)
