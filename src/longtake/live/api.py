"""The HTTP API. It parses and answers; what is done is done by the ``Studio``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path as File
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from longtake.live import schemas
from longtake.live.info import describe, repeat
from longtake.live.livetake import LiveTake
from longtake.live.metrics import CONTENT_TYPE
from longtake.live.pictures import encode
from longtake.live.replay import Download
from longtake.live.studio import Studio
from longtake.live.trouble import STATUSES, Trouble

router = APIRouter(prefix="/api")
health = APIRouter()
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # frames never change
_PICTURES = 512  # of those asked for last that are kept
_REASONS = {
    "bad_request": "The body is no JSON.",
    "unauthorized": "No token, or another one.",
    "forbidden": "Another site asks.",
    "not_found": "There is no such thing.",
    "conflict": "The take is in no state for that.",
    "too_large": "The body is too large.",
    "not_json": "The body is of another type.",
    "bad_range": "The video has no such bytes.",
    "wrong_host": "The Host header names another server.",
    "invalid": "A field is missing, of the wrong kind, or cannot be.",
    "too_many": "Too many requests.",
    "busy": "No device, or no place in the queue.",
    "no_space": "Too many takes, or too little space.",
}


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Descriptions of the errors that a request may end with, beside those that any may."""
    usual = ("unauthorized", "forbidden", "wrong_host", "too_many")
    return {
        STATUSES[code]: {"model": schemas.Error, "description": _REASONS[code]} for code in sorted({*codes, *usual})
    }


def files(kind: str, what: str, *codes: str) -> dict[int | str, dict[str, Any]]:
    """Descriptions of the answers of a request for a file."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"description": what, "content": content}, **problems("not_found", "invalid", *codes)}


def the_studio(request: Request) -> Studio:
    """The server's."""
    studio: Studio = request.app.state.studio
    return studio


Here = Annotated[Studio, Depends(the_studio)]


def the_take(
    studio: Here, id: Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="16 hexadecimal digits.")]
) -> LiveTake:
    """That the path names."""
    return studio.get(id)


This = Annotated[LiveTake, Depends(the_take)]
Frame = Annotated[int | None, Query(ge=0, le=2**32 - 1)]


@router.get("/info", response_model=schemas.Info, responses=problems(), tags=["server"])
def info(studio: Here) -> dict[str, Any]:
    """What there is: models and what they know, memories, limits, devices."""
    return describe(studio)


@router.get("/takes", response_model=schemas.Takes, responses=problems(), tags=["takes"])
def list_takes(studio: Here) -> dict[str, Any]:
    """All takes, the newest first."""
    return {"takes": [studio.describe(take) for take in studio.takes()]}


_CREATING = problems("bad_request", "too_large", "not_json", "invalid", "busy", "no_space")


@router.post("/takes", response_model=schemas.Take, status_code=201, responses=_CREATING, tags=["takes"])
def create_take(studio: Here, wanted: schemas.CreateTake, response: Response) -> dict[str, Any]:
    """Creates a take and queues it for the device that has least to do."""
    if wanted.max_seconds is not None and wanted.max_seconds > studio.settings.max_seconds:
        raise Trouble("invalid", f"max_seconds may be {studio.settings.max_seconds:g} at most.")
    take = studio.create(**wanted.model_dump())
    response.headers["Location"] = f"/api/takes/{take.id}"
    return studio.describe(take)


_ONE = problems("not_found", "invalid")


@router.get("/takes/{id}", response_model=schemas.WholeTake, responses=_ONE, tags=["takes"])
def get_take(studio: Here, take: This) -> dict[str, Any]:
    """A take, all that was said, and what it remembers at the moment."""
    entries = [entry.to_dict() for entry in take.timeline.entries]
    return {**studio.describe(take), "timeline": entries, "memory_state": take.memory}


@router.delete("/takes/{id}", status_code=204, responses={**_ONE, **problems("busy")}, tags=["takes"])
def delete_take(studio: Here, take: This) -> None:
    """Stops a take, sends its viewers home and deletes all its files."""
    studio.delete(take)


_STEERING = problems("bad_request", "not_found", "conflict", "too_large", "not_json", "invalid")


@router.post("/takes/{id}/steer", response_model=schemas.Entry, status_code=202, responses=_STEERING, tags=["takes"])
def steer_take(studio: Here, take: This, said: schemas.SteerTake) -> dict[str, Any]:
    """Says a prompt, which takes effect with the next chunk (of a paused take: when it goes on)."""
    return studio.steer(take, said.prompt, said.change).to_dict()


_MOVING = problems("not_found", "conflict", "invalid", "busy")


@router.post("/takes/{id}/pause", response_model=schemas.Take, responses=_MOVING, tags=["takes"])
def pause_take(studio: Here, take: This) -> dict[str, Any]:
    """Stops generating after the current chunk, with a snapshot, and gives the device to who waits."""
    studio.pause(take)
    return studio.describe(take)


@router.post("/takes/{id}/resume", response_model=schemas.Take, responses=_MOVING, tags=["takes"])
def resume_take(studio: Here, take: This) -> dict[str, Any]:
    """Goes on with a take that was paused, failed, or was interrupted with its server: bit for bit as if it had not."""
    studio.resume(take)
    return studio.describe(take)


@router.post(
    "/takes/{id}/snapshot",
    response_model=schemas.Snapshot,
    responses={**_MOVING, **problems("no_space")},
    tags=["takes"],
)
def snapshot_take(studio: Here, take: This) -> dict[str, Any]:
    """Makes a snapshot that is safe on the disk."""
    frame = studio.snapshot(take)
    return {
        "frame": frame,
        "seconds": frame / take.asked.fps,
        "bytes": take.folder.snapshot.stat().st_size,
        "url": f"/api/takes/{take.id}/snapshot",
    }


@router.get(
    "/takes/{id}/snapshot",
    response_class=FileResponse,
    responses=files("application/octet-stream", "A snapshot, for LongTakePipeline.resume."),
    tags=["files"],
)
def get_snapshot(take: This) -> FileResponse:
    """The newest snapshot."""
    return _file(take.folder.snapshot, "application/octet-stream", {}, f"{take.id}.snapshot")


@router.get("/takes/{id}/timeline", response_model=schemas.Entries, responses=_ONE, tags=["takes"])
def get_timeline(take: This) -> dict[str, Any]:
    """All that was said, and when it took effect."""
    return {"entries": [entry.to_dict() for entry in take.timeline.entries]}


@router.get(
    "/takes/{id}/frame.jpg",
    response_class=Response,
    responses=files("image/jpeg", "A frame."),
    tags=["files"],
)
def get_frame(take: This, frame: Frame = None, width: Annotated[int | None, Query(ge=16, le=16384)] = None) -> Response:
    """A frame as a JPEG: the newest one, or any by its index; as wide as it is, or smaller."""
    if frame is None:
        newest = take.newest
        if newest is None:
            newest = _recorded(take, take.frames - 1)
        return Response(encode(newest, quality=90, width=width), media_type="image/jpeg")
    return Response(_picture(take, frame, width), media_type="image/jpeg", headers=_FOREVER)


@lru_cache(maxsize=_PICTURES)
def _picture(take: LiveTake, frame: int, width: int | None) -> bytes:
    return encode(_recorded(take, frame), quality=85, width=width)


def _recorded(take: LiveTake, frame: int) -> np.ndarray:
    try:
        part = take.replay.read(frame) if frame >= 0 else None
    except (OSError, ValueError):
        part = None
    if part is None:
        raise Trouble("not_found", "The take has no such frame.")
    return part.frames[frame - part.first]


@router.get(
    "/takes/{id}/thumbnails/{number}.jpg",
    response_class=FileResponse,
    responses=files("image/jpeg", "A small picture."),
    tags=["files"],
)
def get_thumbnail(take: This, number: Annotated[int, Path(ge=0, le=2**31 - 1)]) -> FileResponse:
    """The picture at ``number * thumbnail_every`` seconds."""
    return _file(take.folder.thumbnail(number), "image/jpeg", _FOREVER)


def _file(path: File, kind: str, headers: dict[str, str], name: str | None = None) -> FileResponse:
    if not path.is_file():
        raise Trouble("not_found", "There is no such file (yet).")
    return FileResponse(path, media_type=kind, headers=headers, filename=name)


_PARTIAL: dict[int | str, dict[str, Any]] = {
    206: {"description": "A part of it.", "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get(
    "/takes/{id}/video.mp4",
    response_class=StreamingResponse,
    responses={**files("video/mp4", "The recording.", "bad_range"), **_PARTIAL},
    tags=["files"],
)
def get_video(take: This, request: Request, until: Frame = None) -> Response:
    """What has been recorded, in whole chunks, or its beginning up to a frame. Takes ranges, one at a time."""
    try:
        video = Download(take.folder.video, take.asked.fps, until)
    except (OSError, ValueError):
        raise Trouble("not_found", "The take has no video yet.") from None
    tag = f'"{take.id}-{video.size}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Content-Disposition": f'attachment; filename="longtake-{take.id}.mp4"',
    }
    start, end, status = 0, video.size, 200
    asked, condition = request.headers.get("range"), request.headers.get("if-range")
    if asked is not None and condition in (None, tag):
        span = parse_range(asked, video.size)
        if span is not None:
            start, end = span
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{video.size}"
    headers["Content-Length"] = str(end - start)
    return StreamingResponse(video.read(start, end), status, headers, "video/mp4")


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """First byte, and the one after the last, of a Range header (RFC 9110, 14.1.2).

    Returns:
        None for what is to be ignored: another unit, several ranges, or no range at all.

    Raises:
        Trouble: if there are no such bytes.
    """
    unit, equals, span = text.strip().partition("=")
    first, dash, last = (part.strip() for part in span.partition("-"))
    numbers = all(not part or (part.isascii() and part.isdecimal() and len(part) < 20) for part in (first, last))
    if unit.strip().lower() != "bytes" or not equals or not dash or not numbers or not (first or last):
        return None
    if not first:  # the last so many
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise Trouble("bad_range", f"The video has {size} bytes.")
    return start, end


@router.get(
    "/takes/{id}/repeat", response_model=schemas.Repeat, responses={**_ONE, **problems("conflict")}, tags=["takes"]
)
def repeat_take(studio: Here, take: This, until: Frame = None) -> dict[str, Any]:
    """The command that makes the take again, or its beginning up to a frame."""
    return repeat(studio, take, until)


@health.get("/healthz", response_model=schemas.Status, tags=["server"])
def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@health.get(
    "/readyz",
    response_model=schemas.Status,
    responses={503: {"model": schemas.Status, "description": "Not yet, or not any more."}},
    tags=["server"],
)
def readyz(studio: Here) -> Response:
    """Whether takes can be made."""
    state = studio.state
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@health.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems()},
    tags=["server"],
)
def metrics(studio: Here) -> Response:
    """Counters, for Prometheus."""
    return Response(studio.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
