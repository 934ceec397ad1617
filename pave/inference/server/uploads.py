"""Receiving requests: size limit, fields, and files stored under names of ours in a folder of ours."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pave.inference.limits import MEGABYTE, Limits, RequestRefused
from pave.inference.server.validation import Fields
from pave.utils.registry import nearest

VIDEO = "video"
"""Name of the field with the video; files of side-channels are named as the side-channels."""
BODY_FACTOR = 1.4
"""A body may have this many times the bytes of its files, since base64 needs a third more, plus one megabyte."""


class UploadedRequest(NamedTuple):
    """A request whose files are stored."""

    fields: Fields
    video: Path
    files: dict[str, Path]
    """Files of side-channels."""


class ErrorBody(TypedDict):
    """An error as OpenAI's clients expect it."""

    message: str
    type: str
    code: int


async def receive(request: Request, folder: Path, sides: Collection[str], limits: Limits) -> UploadedRequest:
    """Read a JSON or multipart request into a folder. Raises RequestRefused for anything that is not documented."""
    try:
        return await asyncio.wait_for(_receive(request, folder, sides, limits), limits.upload_seconds)
    except asyncio.TimeoutError as error:
        seconds = f"{limits.upload_seconds:g} s"
        raise RequestRefused(408, f"the request did not arrive in {seconds}; send a smaller file") from error


async def _receive(request: Request, folder: Path, sides: Collection[str], limits: Limits) -> UploadedRequest:
    try:
        return await _store(request, folder, sides, limits)
    finally:
        await request.close()


async def _store(request: Request, folder: Path, sides: Collection[str], limits: Limits) -> UploadedRequest:
    """Check the names of all files, and store them."""
    contents: Mapping[str, object]
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        fields, contents = await _read_form(request, len(sides))
    elif content_type == "application/json":
        fields = _parse_object(await request.body())
        contents = _take_urls(fields)
    else:
        raise RequestRefused(415, f"content type '{content_type}'; send application/json or multipart/form-data")

    files: dict[str, Path] = {}
    for name, content in contents.items():
        if name != VIDEO and name not in sides:
            hint = nearest(name, [VIDEO, *sides])
            raise RequestRefused(400, f"file '{name[:40]}': not a side-channel of this model; {hint}")
        files[name] = folder / name
        with files[name].open("xb") as file:
            if isinstance(content, UploadFile):
                await asyncio.to_thread(shutil.copyfileobj, content.file, file)
            else:
                file.write(_decode_url(content, name))

    if VIDEO not in files:
        raise RequestRefused(400, "no video; send one as the file 'video', or as a data: URL")
    size = sum(path.stat().st_size for path in files.values())
    if size > limits.max_megabytes * MEGABYTE:
        megabytes = f"{size / MEGABYTE:.1f} MB"
        raise RequestRefused(413, f"files of {megabytes}, at most {limits.max_megabytes} MB; send smaller ones")
    return UploadedRequest(fields, files.pop(VIDEO), files)


async def _read_form(request: Request, num_sides: int) -> tuple[Fields, dict[str, UploadFile]]:
    """Fields and files of a form; `question` is text, every other field is JSON."""
    try:
        form = await request.form(max_files=num_sides + 2, max_fields=32, max_part_size=MEGABYTE)
    except HTTPException as error:
        raise RequestRefused(400, f"not a readable form: {error.detail}") from error

    fields: Fields = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        if name in fields or name in files:
            raise RequestRefused(400, f"field '{name[:40]}' is given twice")
        if isinstance(value, UploadFile):
            files[name] = value
        else:
            fields[name] = value if name == "question" else _parse_json(value, f"field '{name[:40]}'")
    return fields, files


def _parse_json(text: str | bytes, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, f"{place}: not valid JSON: {error}") from error


def _parse_object(body: bytes) -> Fields:
    value = _parse_json(body, "the request")
    if not isinstance(value, dict):
        raise RequestRefused(400, "the request: expected a JSON object")
    return value


def _take_urls(fields: Fields) -> dict[str, object]:
    """Remove the data: URLs of a JSON request, by the names of their files."""
    sides = fields.pop("sides", {})
    if not isinstance(sides, dict):
        raise RequestRefused(400, "sides: expected an object with a data: URL for each side-channel")
    # In a chat the video may be part of a message.
    video = {VIDEO: fields.pop(VIDEO)} if VIDEO in fields else _video_of_messages(fields.get("messages"))
    return {**sides, **video}


def _video_of_messages(messages: object) -> dict[str, object]:
    """The URL in the one part of type `video_url` among all messages."""
    videos = []
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else ()
        videos += [part for part in parts if isinstance(part, dict) and part.get("type") == "video_url"]

    if len(videos) > 1:
        raise RequestRefused(400, f"{len(videos)} videos; send one")
    if not videos:
        return {}
    link = videos[0].get("video_url")
    return {VIDEO: link.get("url") if isinstance(link, dict) else link}


def _decode_url(url: object, name: str) -> bytes:
    """The bytes of a data: URL; nothing else is opened."""
    head, comma, body = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise RequestRefused(400, f"{name}: expected data:TYPE;base64,...; links and paths are not opened")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise RequestRefused(400, f"{name}: not valid base64: {error}") from error


class BodyLimit:
    """Middleware that refuses large bodies, by the size that they state and by the bytes that arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        refusal = RequestRefused(413, f"a request of over {self.max_bytes / MEGABYTE:.0f} MB; send a smaller file")
        stated_size = Headers(scope=scope).get("content-length", "0")
        if not stated_size.isdecimal() or int(stated_size) > self.max_bytes:
            return await error_response(refusal)(scope, receive, send)

        # The stated size may be a lie, or absent.
        num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise refusal
            return message

        return await self.app(scope, receive_counted, send)


def error_response(error: Exception) -> JSONResponse:
    """The response to a request that failed."""
    body = error_body(error)
    headers = None
    if isinstance(error, RequestRefused) and error.retry_after is not None:
        headers = {"Retry-After": str(error.retry_after)}
    return JSONResponse({"error": body}, body["code"], headers)


def error_body(error: Exception) -> ErrorBody:
    """Describe an error to a client; what failed inside the server only stands in its log."""
    if isinstance(error, RequestRefused):
        return {"message": error.text, "type": "invalid_request_error", "code": error.status}
    return {"message": "the server failed on this request; its log says why", "type": "server_error", "code": 500}
