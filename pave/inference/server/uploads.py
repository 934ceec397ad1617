"""What came over the wire: fields, and files under names of ours in a folder of ours."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pave.inference.limits import MEGABYTE, Limits, RequestRefused
from pave.utils.registry import nearest

VIDEO = "video"
"""Name of the field with the video; those of side-channels are named as they are."""
WRAPPING = 1.4
"""A request's bytes may be this many times those of its files, which base64 needs, and MEGABYTE more."""


class UploadedRequest(NamedTuple):
    """A request."""

    fields: dict[str, Any]
    video: Path
    files: dict[str, Path]
    """Of side-channels."""


async def receive(request: Request, folder: Path, sides: Mapping[str, Any], limits: Limits) -> UploadedRequest:
    """Fields and files of a JSON or multipart request. Refused: anything that is not as documented."""
    try:
        return await asyncio.wait_for(_receive(request, folder, sides, limits), limits.upload_seconds)
    except asyncio.TimeoutError as error:
        raise RequestRefused(408, f"the request did not arrive in {limits.upload_seconds:g} s; send a smaller file") from error


async def _receive(request: Request, folder: Path, sides: Mapping[str, Any], limits: Limits) -> UploadedRequest:
    try:
        return await _store(request, folder, sides, limits)
    finally:
        await request.close()


async def _store(request: Request, folder: Path, sides: Mapping[str, Any], limits: Limits) -> UploadedRequest:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        fields, given = await _form(request, len(sides))
    elif kind == "application/json":
        fields = _json(await request.body(), "the request")
        given = _take_files(fields)
    else:
        raise RequestRefused(415, f"content type '{kind}'; send application/json or multipart/form-data")
    files: dict[str, Path] = {}
    for name, content in given.items():
        if name != VIDEO and name not in sides:
            raise RequestRefused(
                400, f"file '{name[:40]}': not a side-channel of this model; {nearest(name, [VIDEO, *sides])}"
            )
        files[name] = folder / name
        with files[name].open("xb") as file:
            if isinstance(content, UploadFile):
                await asyncio.to_thread(shutil.copyfileobj, content.file, file)
            else:
                file.write(_decode(content, name))
    if VIDEO not in files:
        raise RequestRefused(400, "no video; send one as the file 'video', or as a data: URL")
    size = sum(path.stat().st_size for path in files.values())
    if size > limits.max_megabytes * MEGABYTE:
        raise RequestRefused(413, f"files of {size / MEGABYTE:.1f} MB, at most {limits.max_megabytes} MB; send smaller ones")
    return UploadedRequest(fields, files.pop(VIDEO), files)


async def _form(request: Request, sides: int) -> tuple[dict[str, Any], dict[str, UploadFile]]:
    """`question` is text, every other field is JSON."""
    try:
        form = await request.form(max_files=sides + 2, max_fields=32, max_part_size=MEGABYTE)
    except HTTPException as error:
        raise RequestRefused(400, f"not a readable form: {error.detail}") from error
    fields: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        if name in fields or name in files:
            raise RequestRefused(400, f"field '{name[:40]}' is given twice")
        if isinstance(value, UploadFile):
            files[name] = value
        else:
            fields[name] = value if name == "question" else _json(value, f"field '{name[:40]}'", object)
    return fields, files


def _json(text: str | bytes, what: str, kind: type = dict) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, f"{what}: not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise RequestRefused(400, f"{what}: expected a JSON object")
    return value


def _take_files(fields: dict[str, Any]) -> dict[str, Any]:
    """The data: URLs of a JSON request, taken out of it."""
    sides = fields.pop("sides", {})
    if not isinstance(sides, dict):
        raise RequestRefused(400, "sides: expected an object with a data: URL for each side-channel")
    # The chat endpoint has the video in a message.
    given = {VIDEO: fields.pop(VIDEO)} if VIDEO in fields else _from_messages(fields.get("messages"))
    return {**sides, **given}


def _from_messages(messages: Any) -> dict[str, Any]:
    """The one part of kind `video_url` among all messages."""
    parts = [
        part
        for message in (messages if isinstance(messages, list) else ())
        for part in (message.get("content") if isinstance(message, dict) else None) or ()
        if isinstance(part, dict) and part.get("type") == "video_url"
    ]
    if len(parts) > 1:
        raise RequestRefused(400, f"{len(parts)} videos; send one")
    if not parts:
        return {}
    link = parts[0].get("video_url")
    return {VIDEO: link.get("url") if isinstance(link, dict) else link}


def _decode(url: Any, name: str) -> bytes:
    """The bytes of a data: URL; nothing else is opened."""
    head, found, body = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:") or not head.endswith(";base64") or not found:
        raise RequestRefused(400, f"{name}: expected data:TYPE;base64,...; links and paths are not opened")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise RequestRefused(400, f"{name}: not valid base64: {error}") from error


class BodyLimit:
    """Refuses larger requests, by what they state, and by what then comes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = RequestRefused(413, f"a request of over {self.most / MEGABYTE:.0f} MB; send a smaller file")
        stated = Headers(scope=scope).get("content-length", "0")
        if not stated.isdecimal() or int(stated) > self.most:
            return await failure(refusal)(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise refusal
            return message

        return await self.app(scope, counted, send)


def failure(error: Exception) -> JSONResponse:
    """The answer to a request that is not served, as OpenAI's clients expect it."""
    if isinstance(error, RequestRefused):
        headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse({"error": describe(error)}, error.status, headers)
    return JSONResponse({"error": describe(error)}, 500)


def describe(error: Exception) -> dict[str, Any]:
    """What went wrong, without our insides."""
    if isinstance(error, RequestRefused):
        return {"message": error.text, "type": "invalid_request_error", "code": error.status}
    return {"message": "the server failed on this request; its log says why", "type": "server_error", "code": 500}
