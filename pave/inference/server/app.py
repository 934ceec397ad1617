"""`pave serve`: a page and endpoints around one model."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pave.config import Config
from pave.inference.session import Session, load_with_patches
from pave.models.patched_model import PatchedModel
from pave.types import UserError

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRADIO = "GRADIO_TEMP_DIR"
UPLOADS, EXAMPLES = "gradio", "examples"
"""Folders of the page's files."""
MOST_EXAMPLES = 8
QUESTION = "Which sound is heard? Answer with one word."


@dataclass(frozen=True)
class Options:
    """Where to listen, and how much to allow."""

    host: str = "127.0.0.1"
    port: int = 7860
    megabytes: int = 100
    seconds: float = 600
    new_tokens: int = 512
    waiting: int = 8
    """Requests that may wait beside the one that is served."""
    patches: Sequence[tuple[str, str]] = field(default=())
    """Further (name, folder) to add."""
    examples: Path | None = None
    """Folder of videos to show as examples."""
    trust_plugins: bool = False
    """Whether what the folders name may be anybody's code."""


def main(ckpt: Path, base: str | None, overrides: Sequence[str], device: str | None, options: Options) -> None:
    """Serve a trained folder until interrupted. UserError: no gradio, a patch that does not fit, no encoder weights."""
    # Not imported before `uploads_in`: it keeps where to put files, and makes a folder there.
    if importlib.util.find_spec("gradio") is None:
        raise UserError("pave serve needs gradio; install pave with its extra: pip install -e '.[demo]'")
    import uvicorn

    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.create_server((options.host, options.port), family=family) as listening:
        model, config = load_with_patches(ckpt, base, overrides, device, options.patches, options.trust_plugins)
        # As an interrupt, so that everything is cleaned up.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt), application(model, config, options) as app:
            if options.host not in LOOPBACK:
                log.warning("listening on %s: whoever reaches it can use it, there is no password", options.host)
            log.info("http://%s:%d", options.host, listening.getsockname()[1])
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])


@contextmanager
def application(model: PatchedModel, config: Config, options: Options) -> Iterator[Any]:
    """Yields the ASGI application; its files and processes are gone afterwards. UserError: no patch, no encoder."""
    from pave.inference.limits import Limits
    from pave.inference.server import endpoints
    from pave.inference.server.job_queue import JobQueue
    from pave.inference.untrusted_media import guarded_reader

    if not config.sides:
        raise UserError("this model has no patch; train one, or add one with --patch NAME=DIR")
    limits = Limits(options.megabytes, options.seconds, max_new_tokens=options.new_tokens)
    hosts = [*LOOPBACK, options.host] if options.host in LOOPBACK else ["*"]
    with tempfile.TemporaryDirectory(prefix="pave-serve-") as name, guarded_reader(limits) as read:
        folder = Path(name).resolve()
        desk = JobQueue(folder, options.waiting)
        session = Session(model, config, read)
        session.load_encoders()
        app = endpoints.make(session, desk, limits, hosts)
        with uploads_in(folder / UPLOADS):
            mount(app, session, desk, limits, options)
            try:
                yield app
            finally:
                desk.close()


@contextmanager
def uploads_in(folder: Path) -> Iterator[None]:
    """Has gradio put uploads there; it has no other setting for it."""
    before = os.environ.get(GRADIO)
    os.environ[GRADIO] = str(folder)
    try:
        yield
    finally:
        del os.environ[GRADIO]
        if before is not None:
            os.environ[GRADIO] = before


def mount(app: Any, session: Any, desk: Any, limits: Any, options: Options) -> None:
    """Put the page at the root of the application."""
    import gradio as gr

    from pave.inference.server import web_page

    shown = examples(desk.folder / EXAMPLES, options.examples)
    folders = [desk.folder / UPLOADS, desk.folder / EXAMPLES]
    blocks = web_page.build(web_page.Page(session, desk, limits), shown, folders)
    blocks.queue(max_size=4 * (options.waiting + 1))
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        show_error=False,
        max_file_size=options.megabytes << 20,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        # System fonts: the page asks no other host for anything.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )


def examples(folder: Path, given: Path | None) -> list[tuple[str, str]]:
    """(file, question): copies of a folder's videos if given, else clips of the small world and the tests' sample."""
    from pave.sideworld import files
    from pave.sideworld.scene import clip_seed, scene

    folder.mkdir()
    if given is not None:
        found = sorted(given.glob("*.mp4"))[:MOST_EXAMPLES]
        if not found:
            raise UserError(f"{given}: no .mp4 in it to show as examples")
    else:
        for number in (0, 1):
            files.write(scene(clip_seed("test", 0, number)), folder / f"sideworld{number}.mp4")
        # Beside a checkout of the source; an installed package comes without the tests.
        found = [f for f in [Path(__file__).parents[3] / "tests/fixtures/media/bigbuckbunny.mp4"] if f.is_file()]
    for file in found:
        shutil.copy(file, folder)
    question = QUESTION if given is None else "What happens here?"
    return [(str(file), question) for file in sorted(folder.iterdir(), key=lambda f: f.name, reverse=given is None)]
