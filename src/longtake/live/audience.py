"""Those who watch a take. All of them share one generation and one ring of pictures; each has a position in it and
credit, and nothing else that grows, so one who is slow costs nothing and slows nobody.

Everything here runs in the server's event loop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from longtake.live import livetake
from longtake.live.pictures import Header, Ring, encode
from longtake.live.replay import Part

if TYPE_CHECKING:
    from longtake.live.livetake import LiveTake
    from longtake.live.studio import Studio

GONE, TOO_MANY, LEAVING, REFUSED = 4404, 4429, 1001, 1008
_RING_SECONDS = 8.0
_CLOSING = 5.0  # seconds that a viewer who does not read gets to be told why


class Audience:
    """The viewers of one take.

    Args:
        studio: whose take it is.
        take: what they watch.
        pool: threads that read recordings.
    """

    def __init__(self, studio: Studio, take: LiveTake, pool: ThreadPoolExecutor) -> None:
        self.studio, self.take, self.pool = studio, take, pool
        self.viewers: set[Viewer] = set()
        self.ring = Ring(round(_RING_SECONDS * take.asked.fps))
        self.ring.clear(take.frames)

    @property
    def needed(self) -> bool:
        """Whether anybody would miss it."""
        return bool(self.viewers) or self.take.state in livetake.BUSY

    def show(self, first: int, messages: list[bytes]) -> None:
        """A chunk was made."""
        self.ring.add(first, messages)
        for viewer in self.viewers:
            viewer.wake.set()

    def say(self, key: str, message: Mapping[str, Any]) -> None:
        """Tells all viewers; of several messages with the same key only the newest reaches one who is slow."""
        if self.viewers:
            text = json.dumps(message)
            for viewer in self.viewers:
                viewer.post(key, text)

    def close(self, code: int, message: str) -> None:
        """Sends everybody home."""
        for viewer in self.viewers:
            viewer.close(code, message)


class Viewer:
    """One connection.

    Args:
        audience: that it belongs to.
        send_text, send_bytes: of the connection; wait while it does not take more.
        start: the frame to begin with, or "live".
        credit: frames that may be sent.
    """

    def __init__(
        self,
        audience: Audience,
        send_text: Callable[[str], Awaitable[None]],
        send_bytes: Callable[[bytes], Awaitable[None]],
        start: int | str,
        credit: int,
    ) -> None:
        self._audience, self._send_text, self._send_bytes = audience, send_text, send_bytes
        self.credit = credit
        self.wake = asyncio.Event()
        self.closed: tuple[int, str] | None = None
        self._pending: dict[str, str] = {}
        self._replay = audience.take.replay
        self._part: tuple[int, list[bytes]] = (0, [])
        self._moves = 0
        self._task: asyncio.Task[None] | None = None
        self.next, self.live = self._place(start)

    def _place(self, start: int | str) -> tuple[int, bool]:
        take, ring = self._audience.take, self._audience.ring
        if isinstance(start, int):
            start = min(start, max(take.frames, take.catch_up, ring.end))
            return start, ring.end - start <= self._behind
        # What has been made ahead of time is shown, so that there is a buffer from the beginning.
        ahead = round(self._audience.studio.settings.ahead * take.asked.fps)
        return max(ring.end - ahead, 0), True

    @property
    def _behind(self) -> float:
        return self._audience.studio.settings.limits.behind * self._audience.take.asked.fps

    # What others do to it

    def post(self, key: str, text: str) -> None:
        """A message to be sent when there is time."""
        self._pending[key] = text
        self.wake.set()

    def grant(self, frames: int) -> None:
        """The viewer allows more frames."""
        self.credit = min(self.credit + frames, self._audience.studio.settings.limits.credit)
        self.wake.set()

    def play(self, start: int | str) -> None:
        """The viewer wants to go on elsewhere."""
        before = self.next
        self.next, self.live = self._place(start)
        self._moves += 1
        self._skip(before, "seek")

    def _skip(self, before: int, reason: str) -> None:
        self.post("skip", json.dumps({"type": "skip", "from": before, "to": self.next, "reason": reason}))

    def close(self, code: int, message: str) -> None:
        """Ends the connection when what is pending has been sent."""
        if self.closed is None:
            self.closed = (code, message)
            self.post("gone", json.dumps({"type": "gone", "message": message}))
            if self._task is not None:
                asyncio.get_running_loop().call_later(_CLOSING, self._task.cancel)

    # What it does itself

    async def serve(self) -> None:
        """Sends until the connection is to be closed."""
        self._task = asyncio.current_task()
        while True:
            self.wake.clear()
            moves = self._moves
            message = None if self.closed else await self._picture()
            # After the picture was looked for: a skip is told before the frame that it leads to.
            while self._pending:
                key = next(iter(self._pending))
                await self._send_text(self._pending.pop(key))
            if message is not None and moves != self._moves:
                self.credit += 1  # the viewer went elsewhere before it could be sent
            elif message is not None:
                await self._send_bytes(message)
                self._audience.studio.metrics.sent.inc()
            elif self.closed:
                return
            else:
                await self.wake.wait()

    async def _picture(self) -> bytes | None:
        """The next frame if there is one and it may be sent; then it counts as sent."""
        if self.credit < 1:
            return None
        ring = self._audience.ring
        late = ring.end - self.next
        if self.live and late > self._behind:
            before, first = self.next, ring.end - self._audience.take.asked.chunk_frames
            self.next = max(ring.start, first)
            self._audience.studio.metrics.skipped.inc(self.next - before)
            self._skip(before, "slow")
        message = ring.get(self.next)
        if message is None and self.next < ring.end:
            message = await self._recorded(self.next)
        elif not self.live and late <= self._behind:
            self.live = True
        if message is not None:
            self.credit -= 1
            self.next += 1
        return message

    async def _recorded(self, frame: int) -> bytes | None:
        first, messages = self._part
        if not first <= frame < first + len(messages):
            loop = asyncio.get_running_loop()
            try:
                self._part = await loop.run_in_executor(self._audience.pool, self._read, frame)
            except (OSError, ValueError):
                self._part = (0, [])
            first, messages = self._part
        if self.next != frame:  # it was sent elsewhere meanwhile
            return None
        if not messages:
            take = self._audience.take
            if take.state == livetake.STARTING or (take.state == livetake.RUNNING and frame >= take.frames):
                return None  # cut off behind the snapshot; it is being made again
            before, self.next, self.live = frame, self._audience.ring.end, True
            self._skip(before, "missing")
            return None
        return messages[frame - first]

    def _read(self, frame: int) -> tuple[int, list[bytes]]:
        part: Part | None = self._replay.read(frame)
        if part is None:
            return 0, []
        take, settings = self._audience.take, self._audience.studio.settings
        fps = take.asked.fps
        messages = []
        for index, picture in enumerate(part.frames, part.first):
            prompt = take.timeline.at(index).id
            head = Header(settings.picture, take.id, index, take.chunk_of(index), prompt, index / fps, 0.0)
            messages.append(head.pack() + encode(picture, settings.picture, settings.quality))
        return part.first, messages


class Hall:
    """The audiences of all takes, and the way from the studio's threads to them.

    Args:
        studio: whose takes they watch.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._audiences: dict[str, Audience] = {}
        self.pool = ThreadPoolExecutor(2, "longtake-replay")

    async def run(self) -> None:
        """Listens to the studio, and says once a second how far takes are, until it is cancelled."""
        loop = asyncio.get_running_loop()

        def listener(take: LiveTake, kind: str, what: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._hear, take, kind, what)

        self._studio.listener = listener
        try:
            while True:
                await asyncio.sleep(1)
                for audience in [*self._audiences.values()]:
                    if audience.take.state in livetake.BUSY:
                        self._tell_take(audience)
        finally:
            self._studio.listener = None
            for audience in self._audiences.values():
                audience.close(LEAVING, "The server is shutting down.")
            self.pool.shutdown(wait=False)

    def audience(self, take: LiveTake) -> Audience:
        """The audience of a take, which may be empty."""
        if take.id not in self._audiences:
            self._audiences[take.id] = Audience(self._studio, take, self.pool)
        return self._audiences[take.id]

    def leave(self, viewer: Viewer, audience: Audience) -> None:
        """A viewer is gone."""
        audience.viewers.discard(viewer)
        self._tidy(audience)

    def _tidy(self, audience: Audience) -> None:
        if not audience.needed and self._audiences.get(audience.take.id) is audience:
            del self._audiences[audience.take.id]

    def _hear(self, take: LiveTake, kind: str, what: Any) -> None:
        audience = self.audience(take)
        if kind == "frames":
            audience.show(*what)
        elif kind == "memory":
            audience.say("memory", {"type": "memory", "memory": what})
        elif kind == "timeline":
            audience.say(f"timeline {what.id}", {"type": "timeline", "entry": what.to_dict()})
        elif kind == "gone":
            audience.close(GONE, what)
        elif kind == "take":
            self._tell_take(audience)
        self._tidy(audience)

    def _tell_take(self, audience: Audience) -> None:
        if audience.viewers:
            audience.say("take", take_message(self._studio, audience.take))


def take_message(studio: Studio, take: LiveTake) -> dict[str, Any]:
    """The message that says how a take is."""
    return {"type": "take", "now": time.time(), "take": studio.describe(take)}
