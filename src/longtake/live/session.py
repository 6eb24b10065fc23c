"""One run of a take on a device: from where it stands until it is paused, finished, or something goes wrong."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from longtake.live import livetake
from longtake.live.folder import write_whole
from longtake.live.pictures import Header, encode
from longtake.live.remembered import Remembered
from longtake.plan import format_bytes
from longtake.prompts import Script, Segment
from longtake.record import Progress, Recorded, Recording

if TYPE_CHECKING:
    import numpy as np

    from longtake.live.engine import Engine
    from longtake.live.livetake import LiveTake
    from longtake.live.studio import Studio
    from longtake.pipeline import LongTakePipeline

LOG = logging.getLogger("longtake.live")
_SPEED_OVER = 16  # chunks
_JOBS = 2  # chunks that may wait to be made into pictures
_THUMBNAIL_WIDTH = 160
_THUMBNAIL_QUALITY = 80


class Session:
    """Runs a take.

    Args:
        studio: whose take it is; asked for settings, told what happens.
        engine: whose thread calls :meth:`run`.
        take: in state "starting".
        pipe: the model.
        pool: one thread that makes pictures, so that the device need not wait for it.
    """

    def __init__(
        self, studio: Studio, engine: Engine, take: LiveTake, pipe: LongTakePipeline, pool: ThreadPoolExecutor
    ) -> None:
        self._studio, self._engine, self._take, self._pipe, self._pool = studio, engine, take, pipe, pool
        self._settings = studio.settings
        self._lock = studio.changed
        self._why: tuple[str, str] = (livetake.PAUSED, "user")  # what the take will be when it has stopped
        self._speeds: deque[tuple[int, float]] = deque(maxlen=_SPEED_OVER)
        self._jobs: deque[Future[None]] = deque()
        self._prompt = 0  # entry of the timeline that the current chunk is made under
        self._started = time.time()
        self._recording: Recording

    def run(self) -> tuple[str, str]:
        """Makes chunks until somebody wants it to stop.

        Returns:
            State and reason from now on.

        Raises:
            ValueError: if the take cannot be begun or continued.
            OSError: if its files cannot be written.
        """
        take = self._take
        # Also what was made, seen, and cut off when it was continued before.
        take.catch_up = max(take.catch_up, take.frames, *(entry.frame or 0 for entry in take.timeline.held))
        self._open()
        generation = self._recording.take
        self._remembered = Remembered(take.id, generation)
        now = time.monotonic()
        with self._lock:
            take.idle_since = max(take.idle_since, now)
            take.frames = self._recording.frames
            self._studio.move(take, livetake.RUNNING)
        self._turn_ends = now + self._settings.turn
        self._base = (now, take.frames)  # real time runs from here
        try:
            finished = self._recording.run(take.asked.max_seconds, on_chunk=self._made, should_stop=self._should_stop)
        finally:
            while self._jobs:
                self._jobs.popleft().result()
        with self._lock:
            take.snapshot_frame = self._recording.snapshot_frames
            take.bytes = self._recording.writer.position["bytes"]
        return (livetake.FINISHED, "") if finished else self._why

    def _open(self) -> None:
        take, asked, served = self._take, self._take.asked, self._studio.served
        every = self._settings.snapshot_every
        kept: dict[str, Any] = {
            "model": served.facts.place,
            "choice": served.facts.choice.to_dict(),
            "signature": asked.signature,
            "device": self._engine.device,
            "seconds": asked.max_seconds,
            "every": every,
        }
        if Recorded.look(take.folder.video) is None:
            script = Script((Segment(take.timeline.entries[0].prompt, 0),))
            generation = self._pipe.start(script, asked.memory, asked.seed, asked.height, asked.width, asked.on_change)
            self._recording = Recording.start(generation, take.folder.video, snapshot_every=every, settings=kept)
        else:
            self._recording = Recording.resume(self._pipe, take.folder.video, snapshot_every=every, settings=kept)
            self._prompt = take.timeline.at(self._recording.frames).id
        kind = self._engine.device.split(":")[0]
        if kind not in take.devices:
            take.devices.append(kind)
            take.keep()

    # Before every chunk

    def _should_stop(self) -> bool:
        """Waits until the next chunk is due, and sees to what is asked for meanwhile."""
        take = self._take
        while True:
            self._snapshots()
            with self._lock:
                now = time.monotonic()
                why = self._why_stop(now)
                if why is not None:
                    self._why = why
                    return True
                due = self._due(now)
                if due > now and not take.snapshots:
                    # Woken when something is asked for; by itself for what depends on the time.
                    self._lock.wait(min(due - now, 1.0))
                    continue
                if take.snapshots:
                    continue
            self._say()
            self._began = time.perf_counter()
            return False

    def _why_stop(self, now: float) -> tuple[str, str] | None:
        take, studio = self._take, self._studio
        if studio.closing:
            return livetake.PAUSED, "restart"
        if take.wanted != "run":
            return livetake.PAUSED, "user"
        if not take.viewers and now - take.idle_since > self._settings.idle_pause:
            return livetake.PAUSED, "idle"
        if now > self._turn_ends and studio.others_wait(self._engine):
            return livetake.QUEUED, "turn"
        if studio.folder.free() < self._settings.min_free:
            take.message = f"Less than {format_bytes(self._settings.min_free)} are free on the disk."
            return livetake.PAUSED, "disk"
        return None

    def _due(self, now: float) -> float:
        """When the next chunk may be made, on the monotonic clock."""
        take = self._take
        if take.frames < take.catch_up:
            self._base = (now, take.frames)
            return now
        start, frames = self._base
        shown = start + (take.frames - frames) / take.asked.fps  # when the next chunk should be seen
        if shown < now:  # slower than real time: what is late already is no debt
            self._base = (now, take.frames)
            return now
        return shown - self._settings.ahead

    def _snapshots(self) -> None:
        take = self._take
        with self._lock:
            wanted, take.snapshots = take.snapshots, []
        if not wanted:
            return
        try:
            self._recording.snapshot()
        except OSError as error:
            for future in wanted:
                future.set_exception(error)
            raise
        with self._lock:
            take.snapshot_frame = self._recording.snapshot_frames
        for future in wanted:
            future.set_result(None)

    def _say(self) -> None:
        """Lets the prompt take effect that holds from the next chunk on, if one does."""
        take, generation = self._take, self._recording.take
        chunk, frame = generation.index, generation.frames_done
        with self._lock:
            again = take.timeline.holding_at(chunk)
            waiting = take.timeline.waiting
        if again is not None:
            self._prompt = again.id
            if again.id:  # the take was begun with the first one
                generation.say(again.prompt, again.change)
        if frame < take.catch_up:
            return  # somebody has seen the frames that come, under the prompts that held then
        for entry in reversed(waiting):
            try:
                generation.say(entry.prompt, entry.change)
            except ValueError as error:
                with self._lock:
                    self._studio.tell(take, "timeline", take.timeline.refuse(entry, str(error)))
                continue
            with self._lock:
                for changed in take.timeline.hold(chunk, frame):
                    self._studio.tell(take, "timeline", changed)
            self._prompt = entry.id
            return

    # After every chunk

    def _made(self, progress: Progress) -> None:
        made, took = time.time(), time.perf_counter() - self._began
        take, recording, chunk = self._take, self._recording, progress.chunk
        self._speeds.append((len(progress.video), took))
        remembered = self._remembered.after(chunk.index, chunk.first_frame, chunk.first_frame + len(progress.video))
        self._look_back(progress.video, chunk.first_frame)
        with self._lock:
            take.frames = progress.frames
            take.bytes = recording.writer.position["bytes"]
            take.snapshot_frame = recording.snapshot_frames
            take.frames_per_second = sum(n for n, _ in self._speeds) / max(sum(t for _, t in self._speeds), 1e-9)
            take.memory = remembered
            take.newest = progress.video[-1].copy()
        self._studio.metrics.chunk(len(progress.video), took)
        # At most so many wait: pictures are made faster than video, and if not, nothing may pile up.
        while len(self._jobs) >= _JOBS:
            self._jobs.popleft().result()
        header = Header(self._settings.picture, take.id, 0, chunk.index, self._prompt, 0.0, made)
        job = self._pool.submit(self._show, progress.video, chunk.first_frame, header, remembered)
        self._jobs.append(job)

    def _look_back(self, video: np.ndarray, first: int) -> None:
        """Writes the thumbnails of a chunk: they are there before anybody is told of its frames."""
        every = max(1, round(self._settings.thumbnail_every * self._take.asked.fps))
        for frame in range(first + -first % every, first + len(video), every):
            small = encode(video[frame - first], "jpeg", _THUMBNAIL_QUALITY, _THUMBNAIL_WIDTH)
            try:
                write_whole(self._take.folder.thumbnail(frame // every), small)
            except OSError:
                LOG.exception("A thumbnail of the take %s could not be written.", self._take.id)

    def _show(self, video: np.ndarray, first: int, header: Header, remembered: dict[str, Any]) -> None:
        """Makes pictures of a chunk and hands them on."""
        take, settings, fps = self._take, self._settings, self._take.asked.fps
        messages = []
        for frame, picture in enumerate(video, first):
            head = header._replace(frame=frame, time=frame / fps)
            messages.append(head.pack() + encode(picture, settings.picture, settings.quality))
        with self._lock:
            self._measure(header.prompt, header.chunk)
            self._studio.tell(take, "frames", (first, messages))
            self._studio.tell(take, "memory", remembered)

    def _measure(self, prompt: int, chunk: int) -> None:
        """Takes note of how long it took from a prompt to its first frame, if this is it."""
        take = self._take
        entry = take.timeline.entries[prompt]
        # What was said while the take did not run waited for other things than the device.
        if entry.chunk != chunk or entry.latency is not None or entry.asked < self._started or not entry.id:
            return
        entry = take.timeline.measured(prompt, time.time() - entry.asked)
        take.latency = entry.latency
        self._studio.metrics.latency.observe(entry.latency or 0.0)
        self._studio.tell(take, "timeline", entry)
