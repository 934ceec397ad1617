"""The endpoints: POST /v1/answer, and POST /v1/chat/completions as OpenAI's clients know it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pave.inference.limits import MEGABYTE, Limits, RequestRefused
from pave.inference.server import answer_api, openai_api
from pave.inference.server.job_queue import Emit, IsStopped, Job, JobQueue
from pave.inference.server.uploads import WRAPPING, BodyLimit, UploadedRequest, describe, failure, receive
from pave.inference.session import AnswerRequest, LoadedVideo, Session

Event = tuple[str, Any]
"""`facts` Facts; then for `answer` and `base`: pieces of text, and a Reply at the end."""


def make(session: Session, desk: JobQueue, limits: Limits, hosts: list[str]) -> FastAPI:
    """The application; `hosts` are the names it may be called by, so that no foreign page reaches it by another."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, most=int(limits.max_megabytes * MEGABYTE * WRAPPING) + MEGABYTE)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.exception_handler(RequestRefused)
    async def refuse(request: Request, error: RequestRefused) -> Response:
        return failure(error)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return openai_api.models()

    @app.post("/v1/answer")
    async def answer(request: Request) -> Response:
        return await _serve(request, answer_api)

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        return await _serve(request, openai_api)

    async def _serve(request: Request, style: Any) -> Response:
        slot = desk.slot()
        try:
            upload = await receive(request, slot.folder, session.config.sides, limits)
            asks, stream = style.parse(upload.fields, limits)
            job = desk.start(slot, partial(work, session, upload, asks))
        except BaseException:
            slot.close()
            raise
        events = iter(job)
        # Most of what can go wrong does so before the first event, while there still is a status to say it with.
        try:
            first = await run_in_threadpool(next, events)
            if stream:
                lines = _lines(job, first, events, style.Stream(asks))
                return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            return JSONResponse(style.whole([first, *await run_in_threadpool(list, events)]))
        except RequestRefused:
            raise
        except Exception as error:
            return failure(error)

    return app


def work(session: Session, upload: UploadedRequest, asks: dict[str, AnswerRequest], put: Emit, stopped: IsStopped) -> None:
    """Look at the files, then answer each question, which are named `answer` and `base`."""
    converse(session, partial(session.load_video, upload.video, upload.files), asks, put, stopped)


def converse(session: Session, see: Callable[[], LoadedVideo], asks: dict[str, AnswerRequest], put: Emit, stopped: IsStopped) -> None:
    """Puts the facts of a scene, and for each named question the pieces of its answer and the Reply."""
    scene = see()
    put(("facts", scene.provenance))
    for name, ask in asks.items():
        if not stopped():
            put((name, session.ask(scene, ask, partial(_put_piece, put, name), stopped)))


def _put_piece(put: Emit, name: str, piece: str) -> None:
    put((name, piece))


async def _lines(job: Job, first: Event, events: Iterator[Event], stream: Any) -> AsyncIterator[str]:
    """Server-sent events; who hangs up stops the work."""
    try:
        event: Event | None = first
        while event is not None:
            for line in stream.lines(event):
                yield f"data: {line if isinstance(line, str) else json.dumps(line)}\n\n"
            event = await run_in_threadpool(next, events, None)
        for line in stream.end():
            yield f"data: {line if isinstance(line, str) else json.dumps(line)}\n\n"
    except Exception as error:
        yield f"data: {json.dumps({'error': describe(error)})}\n\n"
    finally:
        job.stop.set()
