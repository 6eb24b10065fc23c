"""The WebSocket of the live protocol: one viewer of one take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from longtake.live.audience import GONE, REFUSED, TOO_MANY, Hall, Viewer
from longtake.live.folder import is_id
from longtake.live.guard import Bucket
from longtake.live.settings import PROTOCOL
from longtake.live.studio import Studio
from longtake.live.trouble import Trouble

_LARGEST_FRAME = 2**32 - 1


class Hangup(Exception):
    """The viewer did what it must not."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


async def watch(socket: WebSocket, id: str) -> None:
    """Serves one connection until either side ends it."""
    studio: Studio = socket.app.state.studio
    hall: Hall = socket.app.state.hall
    await socket.accept()
    try:
        start = _start(socket.query_params.get("from", "live"))
        credit = _credit(socket.query_params.get("credit", "0"), 0, studio.settings.limits.credit)
        try:
            take = studio.get(id if is_id(id) else "")
            await asyncio.to_thread(studio.join, take)
        except Trouble as trouble:
            raise Hangup(GONE if trouble.code == "not_found" else TOO_MANY, trouble.message) from None
    except Hangup as hangup:
        await socket.close(hangup.code, hangup.reason)
        return
    audience = hall.audience(take)
    viewer = Viewer(audience, socket.send_text, socket.send_bytes, start, credit)
    try:
        hello = {
            "type": "hello",
            "protocol": PROTOCOL,
            "now": time.time(),
            "from": viewer.next,
            "live": viewer.live,
            "take": studio.describe(take),
            "timeline": [entry.to_dict() for entry in take.timeline.entries],
            "memory": take.memory,
        }
        audience.viewers.add(viewer)
        await _together(socket, viewer, studio, json.dumps(hello))
    finally:
        hall.leave(viewer, audience)
        # In a thread of its own, so that it happens even if this task is being cancelled.
        asyncio.get_running_loop().run_in_executor(None, studio.leave, take)


async def _together(socket: WebSocket, viewer: Viewer, studio: Studio, hello: str) -> None:
    """Sends and listens at the same time, until one of the two ends."""

    async def send() -> None:
        await socket.send_text(hello)
        await viewer.serve()
        if viewer.closed is not None:
            raise Hangup(*viewer.closed)

    tasks = [asyncio.create_task(send()), asyncio.create_task(_listen(socket, viewer, studio))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Hangup):
            with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
                await socket.close(error.code, error.reason)
        elif error is not None and not isinstance(error, (WebSocketDisconnect, OSError, RuntimeError)):
            raise error


async def _listen(socket: WebSocket, viewer: Viewer, studio: Studio) -> None:
    bucket = Bucket(studio.settings.limits.messages)
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if not bucket.take():
            raise Hangup(TOO_MANY, "Too many messages.")
        text = message.get("text")
        if text is None:
            raise Hangup(REFUSED, "Messages must be text.")
        _act(viewer, text, studio.settings.limits.credit)


def _act(viewer: Viewer, text: str, most: int) -> None:
    """Does what a message asks for.

    Raises:
        Hangup: if it is none of the protocol.
    """
    try:
        message: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise Hangup(REFUSED, "Messages must be JSON.") from None
    kind = message.get("type") if isinstance(message, dict) else None
    if kind == "credit":
        viewer.grant(_credit(message.get("frames"), 1, most))
    elif kind == "play":
        viewer.play(_start(message.get("from")))
    else:
        raise Hangup(REFUSED, "A message must be an object with the type credit or play.")


def _credit(given: Any, least: int, most: int) -> int:
    number = _whole(given)
    if number is None or not least <= number <= most:
        raise Hangup(REFUSED, f"Credit must be {least} to {most} frames.")
    return number


def _start(given: Any) -> int | str:
    number = _whole(given)
    if given == "live":
        return "live"
    if number is None or not 0 <= number <= _LARGEST_FRAME:
        raise Hangup(REFUSED, "A place to begin is 'live' or the index of a frame.")
    return number


def _whole(given: Any) -> int | None:
    """A whole number, from JSON or from the text of a query."""
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) <= 10:
        return int(given)
    return given if isinstance(given, int) and not isinstance(given, bool) else None
