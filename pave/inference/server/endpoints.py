"""The HTTP endpoints: POST /v1/answer, and POST /v1/chat/completions as OpenAI's clients know it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pave.inference.limits import MEGABYTE, Limits, RequestRefused
from pave.inference.server import answer_api, openai_api
from pave.inference.server.job_queue import Emit, Event, IsStopped, Job, JobQueue
from pave.inference.server.uploads import BODY_FACTOR, BodyLimit, error_body, error_response, receive
from pave.inference.server.validation import Fields
from pave.inference.session import AnswerRequest, LoadedVideo, Session


class ResponseStream(Protocol):
    """A response that is sent event by event."""

    def data(self, event: Event) -> dict[str, object]:
        """The data of one event."""

    def end(self) -> str:
        """The data that ends the stream."""


class ApiFormat(NamedTuple):
    """The format of an endpoint: functions of `answer_api` or `openai_api`."""

    parse: Callable[[Fields, Limits], tuple[dict[str, AnswerRequest], bool]]
    """The questions by name, and whether to stream. Raises RequestRefused."""
    response: Callable[[Sequence[Event]], dict[str, object]]
    stream: Callable[[dict[str, AnswerRequest]], ResponseStream]


ANSWER_FORMAT = ApiFormat(answer_api.parse, answer_api.response, answer_api.AnswerStream)
OPENAI_FORMAT = ApiFormat(openai_api.parse, openai_api.response, openai_api.ChunkStream)


def make_app(session: Session, queue: JobQueue, limits: Limits, hosts: list[str]) -> FastAPI:
    """Build the application; `hosts` are its allowed names, so that no foreign page reaches it by another name."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, max_bytes=int(limits.max_megabytes * MEGABYTE * BODY_FACTOR) + MEGABYTE)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.exception_handler(RequestRefused)
    async def refuse(request: Request, error: RequestRefused) -> Response:
        return error_response(error)

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return openai_api.models()

    @app.post("/v1/answer")
    async def answer(request: Request) -> Response:
        return await _serve(request, ANSWER_FORMAT, session, queue, limits)

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        return await _serve(request, OPENAI_FORMAT, session, queue, limits)

    return app


async def _serve(request: Request, api: ApiFormat, session: Session, queue: JobQueue, limits: Limits) -> Response:
    """Receive a request, do its work when its turn comes, and respond in the format of `api`."""
    slot = queue.slot()
    try:
        upload = await receive(request, slot.folder, session.config.sides, limits)
        requests, is_stream = api.parse(upload.fields, limits)
        load_video = partial(session.load_video, upload.video, upload.files)
        job = queue.start(slot, partial(answer_requests, session, load_video, requests))
    except BaseException:
        slot.close()
        raise

    events = iter(job)
    try:
        # Most failures come before the first event, while the status can still be chosen.
        first = await run_in_threadpool(next, events)
        if is_stream:
            lines = _sse_lines(job, first, events, api.stream(requests))
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return JSONResponse(api.response([first, *await run_in_threadpool(list, events)]))
    except RequestRefused:
        raise
    except Exception as error:
        return error_response(error)


def answer_requests(
    session: Session,
    load_video: Callable[[], LoadedVideo],
    requests: dict[str, AnswerRequest],
    emit: Emit,
    is_stopped: IsStopped,
) -> None:
    """Load a video, then answer each question; emits the events that `job_queue.Event` lists."""
    video = load_video()
    emit(("facts", video.provenance))
    for name, request in requests.items():
        if not is_stopped():
            emit((name, session.ask(video, request, partial(_emit_piece, emit, name), is_stopped)))


def _emit_piece(emit: Emit, name: str, piece: str) -> None:
    emit((name, piece))


async def _sse_lines(job: Job, first: Event, events: Iterator[Event], stream: ResponseStream) -> AsyncIterator[str]:
    """Server-sent events; a client that hangs up stops the work."""
    try:
        event: Event | None = first
        while event is not None:
            yield f"data: {json.dumps(stream.data(event))}\n\n"
            event = await run_in_threadpool(next, events, None)
        yield f"data: {stream.end()}\n\n"
    except Exception as error:
        yield f"data: {json.dumps({'error': error_body(error)})}\n\n"
    finally:
        job.stop.set()
