"""`pave serve`: a web page and HTTP endpoints around one model."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pave.config import Config
from pave.inference.limits import MEGABYTE, Limits
from pave.inference.server.job_queue import JobQueue
from pave.inference.session import Session, load_with_patches
from pave.inference.untrusted_media import guarded_reader
from pave.models.patched_model import PatchedModel
from pave.sideworld import files as sideworld_files
from pave.sideworld.scene import clip_seed, draw_scene
from pave.types import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
UPLOAD_VARIABLE = "GRADIO_TEMP_DIR"
UPLOADS, EXAMPLES = "gradio", "examples"
"""Folders of the page's files."""
MAX_EXAMPLES = 8


@dataclass(frozen=True)
class Options:
    """Settings of the server; limits on a request are explained in `Limits`."""

    host: str = "127.0.0.1"
    port: int = 7860
    max_megabytes: int = 100
    max_seconds: float = 600
    max_new_tokens: int = 512
    max_waiting: int = 8
    """Requests that may wait while one is served."""
    patches: Sequence[tuple[str, str]] = ()
    """Further (name, folder) to add."""
    examples: Path | None = None
    """Folder of videos to show as examples."""
    trust_plugins: bool = False
    """Whether plugins that the folders name may run, whoever wrote them."""


def main(ckpt: Path, base: str | None, overrides: Sequence[str], device: str | None, options: Options) -> None:
    """Serve a trained folder until interrupted.

    Raises UserError for a missing gradio, a patch that does not fit, and encoder weights that do not load.
    """
    # Not imported yet: gradio reads the folder for uploads from the environment at import.
    if importlib.util.find_spec("gradio") is None:
        raise UserError("pave serve needs gradio; install pave with its extra: pip install -e '.[demo]'")
    import uvicorn

    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.create_server((options.host, options.port), family=family) as server_socket:
        model, config = load_with_patches(ckpt, base, overrides, device, options.patches, options.trust_plugins)
        # SIGTERM becomes an interrupt, so that all files and processes are cleaned up.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt), application(model, config, options) as app:
            if options.host not in LOOPBACK_HOSTS:
                log.warning("listening on %s: whoever reaches it can use it, there is no password", options.host)
            log.info("http://%s:%d", options.host, server_socket.getsockname()[1])
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([server_socket])


@contextmanager
def application(model: PatchedModel, config: Config, options: Options) -> Iterator[FastAPI]:
    """Yield the ASGI application; its files and processes are gone afterwards.

    Raises UserError for a model without patches, and encoder weights that do not load.
    """
    from pave.inference.server import endpoints

    if not config.sides:
        raise UserError("this model has no patch; train one, or add one with --patch NAME=DIR")

    limits = Limits(options.max_megabytes, options.max_seconds, max_new_tokens=options.max_new_tokens)
    hosts = [*LOOPBACK_HOSTS, options.host] if options.host in LOOPBACK_HOSTS else ["*"]
    with tempfile.TemporaryDirectory(prefix="pave-serve-") as name, guarded_reader(limits) as read:
        folder = Path(name).resolve()
        queue = JobQueue(folder, options.max_waiting)
        session = Session(model, config, read)
        session.load_encoders()
        app = endpoints.make_app(session, queue, limits, hosts)
        with gradio_uploads_in(folder / UPLOADS):
            mount_page(app, session, queue, limits, options)
            try:
                yield app
            finally:
                queue.close()


@contextmanager
def gradio_uploads_in(folder: Path) -> Iterator[None]:
    """Make gradio store uploads in a folder; the environment is its only setting for that."""
    before = os.environ.get(UPLOAD_VARIABLE)
    os.environ[UPLOAD_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[UPLOAD_VARIABLE]
        if before is not None:
            os.environ[UPLOAD_VARIABLE] = before


def mount_page(app: FastAPI, session: Session, queue: JobQueue, limits: Limits, options: Options) -> None:
    """Put the web page at the root of the application."""
    import gradio as gr

    from pave.inference.server import web_page

    examples = copy_examples(queue.folder / EXAMPLES, options.examples)
    folders = [queue.folder / UPLOADS, queue.folder / EXAMPLES]
    blocks = web_page.build(web_page.Page(session, queue, limits), examples, folders)
    blocks.queue(max_size=4 * (options.max_waiting + 1))
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        show_error=False,
        max_file_size=options.max_megabytes * MEGABYTE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        # System fonts: the page asks no other host for anything.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )


def copy_examples(folder: Path, source: Path | None) -> list[tuple[str, str]]:
    """Fill a new folder with the videos of `source` -> (file, question); None: clips of the small world, and a sample.

    Raises UserError where `source` has no video.
    """
    folder.mkdir()
    if source is not None:
        videos = sorted(source.glob("*.mp4"))[:MAX_EXAMPLES]
        if not videos:
            raise UserError(f"{source}: no .mp4 in it to show as examples")
        return [(str(shutil.copy(video, folder)), "What happens here?") for video in videos]

    # The sample is in a checkout of the source; an installed package comes without the tests.
    sample = Path(__file__).parents[3] / "tests/fixtures/media/bigbuckbunny.mp4"
    examples = [folder / "sideworld1.mp4", folder / "sideworld0.mp4"]
    for number, video in zip((1, 0), examples):
        sideworld_files.write_clip(draw_scene(clip_seed("test", 0, number)), video)
    if sample.is_file():
        examples.append(Path(shutil.copy(sample, folder)))
    return [(str(video), "Which sound is heard? Answer with one word.") for video in examples]
