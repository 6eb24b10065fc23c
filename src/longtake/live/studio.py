"""All takes of a server and the devices they are made on: what the API does, without HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from longtake.live import livetake
from longtake.live.engine import BROKEN, READY, Engine
from longtake.live.folder import Folder
from longtake.live.livetake import LiveTake
from longtake.live.metrics import Metrics
from longtake.live.session import LOG
from longtake.live.timeline import Entry
from longtake.live.trouble import Trouble
from longtake.lock import Lock
from longtake.plan import format_bytes

if TYPE_CHECKING:
    from longtake.live.served import Served
    from longtake.live.settings import Settings
    from longtake.pipeline import LongTakePipeline

_PATIENCE = 60.0  # seconds to wait for the end of a chunk


class Studio:
    """Makes, keeps and steers takes. All methods may be called from any thread.

    Args:
        settings: of the server.
        served: the model.
        devices: by name, what loads the model there.
        listener: told what happens: the take, "take", "timeline", "frames", "memory" or "gone", and what belongs to it.
            Called in any thread, with the lock held: it must be quick.

    Attributes:
        changed: the lock that guards all state, notified when anything is asked for.

    Raises:
        ValueError: if another server uses the folder.
        OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        served: Served,
        devices: Mapping[str, Callable[[], LongTakePipeline]],
        listener: Callable[[LiveTake, str, Any], None] | None = None,
    ) -> None:
        self.settings, self.served = settings, served
        self.listener = listener
        self.changed = threading.Condition()
        self.closing = False
        self.on_broken: Callable[[str], None] | None = None
        self.folder = Folder(settings.folder)
        try:
            self._lock = Lock(settings.folder / "server")
        except ValueError:
            raise ValueError(f"Another server uses the folder {settings.folder}: choose another one.") from None
        self.metrics = Metrics(self._gauges)
        self._takes: dict[str, LiveTake] = {}
        for folder in self.folder.takes():
            try:
                self._takes[folder.id] = LiveTake.found(folder)
            except (ValueError, OSError) as error:
                LOG.warning("A take is left alone: %s", error)
        self.engines = [Engine(self, device, load) for device, load in devices.items()]

    def start(self) -> None:
        """Begins to load the model on every device."""
        for engine in self.engines:
            engine.start()

    def close(self, timeout: float = _PATIENCE) -> None:
        """Ends all takes after their current chunk, with a snapshot."""
        with self.changed:
            self.closing = True
            for engine in self.engines:
                for take in engine.queue:
                    take.engine = None
                    self.move(take, livetake.PAUSED, "restart")
                engine.queue.clear()
            self.changed.notify_all()
        for engine in self.engines:
            if engine.is_alive() and engine.state == READY:  # one that loads has nothing to lose
                engine.join(timeout)
        self._lock.release()

    # What engines say; the lock is held

    def move(self, take: LiveTake, state: str, reason: str = "") -> None:
        """A take is in another state from now on."""
        take.state, take.reason = state, reason
        self.changed.notify_all()
        self.tell(take, "take", None)

    def tell(self, take: LiveTake, kind: str, what: Any) -> None:
        """Something happened."""
        if self.listener is not None:
            self.listener(take, kind, what)

    def places(self, engine: Engine) -> None:
        """Those who wait for a device have moved up."""
        for take in engine.queue:
            self.tell(take, "take", None)

    def others_wait(self, engine: Engine) -> bool:
        """Whether a take waits for this device."""
        return bool(engine.queue)

    def broken(self, engine: Engine) -> None:
        """A device does not work (any more)."""
        if self.on_broken is not None and all(e.state == BROKEN for e in self.engines):
            self.on_broken(engine.error)

    # What clients ask for

    @property
    def state(self) -> str:
        """ "ready" if takes can be made, "loading", or "failed" if no device works."""
        with self.changed:
            states = {engine.state for engine in self.engines}
        return READY if READY in states else "loading" if states - {BROKEN} else BROKEN

    def takes(self) -> list[LiveTake]:
        """All, the newest first."""
        with self.changed:
            return sorted(self._takes.values(), key=lambda take: take.asked.created, reverse=True)

    def get(self, id: str) -> LiveTake:
        """A take.

        Raises:
            Trouble: if there is none with this id.
        """
        with self.changed:
            take = self._takes.get(id)
        if take is None:
            raise Trouble("not_found", "There is no such take.")
        return take

    def describe(self, take: LiveTake) -> dict[str, Any]:
        """The ``Take`` of the live protocol."""
        with self.changed:
            place = None
            if take.state == livetake.QUEUED and take.engine is not None and take in take.engine.queue:
                place = take.engine.queue.index(take) + 1
            return take.to_dict(place, self.settings.thumbnail_every)

    def create(
        self,
        prompt: str,
        *,
        memory: str | None = None,
        seed: int | None = None,
        on_change: str = "keep",
        width: int | None = None,
        height: int | None = None,
        max_seconds: float | None = None,
    ) -> LiveTake:
        """A new take, queued.

        Raises:
            Trouble: if it cannot be made, or there is no room for it.
        """
        settings = self.settings
        length = settings.max_seconds if max_seconds is None else max_seconds
        asked = self.served.ask(
            prompt,
            memory=memory,
            seed=seed,
            on_change=on_change,
            width=width,
            height=height,
            max_seconds=float(length),
        )
        with self.changed:
            if len(self._takes) >= settings.takes:
                raise Trouble("no_space", f"This server keeps {settings.takes} takes at most: delete one first.")
            engine = self._engine_with_room()
            if self.folder.free() < settings.min_free:
                raise Trouble("no_space", f"Less than {format_bytes(settings.min_free)} are free on the disk.")
            take = LiveTake.create(self.folder.create(), asked)
            self._takes[take.id] = take
            self._queue(take, engine)
        return take

    def _engine_with_room(self) -> Engine:
        working = [engine for engine in self.engines if engine.state != BROKEN]
        if not working or self.closing:
            raise Trouble("busy", "No device works at the moment.")
        engine = min(working, key=lambda engine: engine.load_now)
        # One more than may wait: the first of them is about to run.
        if engine.load_now > self.settings.queue:
            raise Trouble("busy", f"All devices are busy and {len(engine.queue)} takes wait already: try again later.")
        return engine

    def _queue(self, take: LiveTake, engine: Engine) -> None:
        take.engine, take.wanted, take.message = engine, "run", ""
        engine.queue.append(take)
        self.move(take, livetake.QUEUED)

    def steer(self, take: LiveTake, prompt: str, change: str | None) -> Entry:
        """Says a prompt, which takes effect with the next chunk.

        Raises:
            Trouble: if the model knows nothing of it, or the take is over.
        """
        self.served.check_prompt(prompt)
        with self.changed:
            if take.state == livetake.FINISHED or take.wanted == "delete":
                raise Trouble("conflict", "The take is finished: nothing more can be said.")
            if len(take.timeline.entries) >= self.settings.limits.prompt_changes:
                most = self.settings.limits.prompt_changes
                raise Trouble("too_many", f"A take has {most} prompts at most, and this one has them.")
            entry = take.timeline.say(prompt, change, take.frames)
            self.tell(take, "timeline", entry)
            self.tell(take, "take", None)
        return entry

    def pause(self, take: LiveTake) -> None:
        """Stops a take after its current chunk, with a snapshot; returns when that is done.

        Raises:
            Trouble: if it does not run or wait.
        """
        with self.changed:
            if take.state == livetake.QUEUED:
                self._unqueue(take)
                self.move(take, livetake.PAUSED, "user")
                return
            if take.state not in livetake.BUSY:
                raise Trouble("conflict", f"The take is {take.state}: it cannot be paused.")
            take.wanted = "pause"
            self.changed.notify_all()
            self.changed.wait_for(lambda: take.state not in livetake.BUSY, _PATIENCE)

    def _unqueue(self, take: LiveTake) -> None:
        engine = take.engine
        if engine is not None and take in engine.queue:
            engine.queue.remove(take)
            take.engine = None
            self.places(engine)

    def resume(self, take: LiveTake) -> None:
        """Queues a take to be continued.

        Raises:
            Trouble: if it runs, is over, is of another model, or there is no room.
        """
        with self.changed:
            if not take.can_continue or take.wanted == "delete":
                what = f"The take is {take.state}: it cannot be continued."
                raise Trouble("conflict", f"{what} {take.message}".strip())
            self.served.check_same(take.asked)
            self._queue(take, self._engine_with_room())

    def snapshot(self, take: LiveTake) -> int:
        """Makes sure that all frames so far are in a snapshot.

        Returns:
            Frames that it continues after.

        Raises:
            Trouble: if the take has none and does not run, or the disk does not take it.
        """
        waiting: Future[None] = Future()
        with self.changed:
            if take.state in livetake.BUSY:
                take.snapshots.append(waiting)
                self.changed.notify_all()
            elif take.snapshot_frame is not None and take.folder.snapshot.exists():
                return take.snapshot_frame
            else:
                raise Trouble("conflict", "The take has not begun: there is nothing to keep.")
        try:
            waiting.result(_PATIENCE)
        except OSError as error:
            raise Trouble("no_space", f"The snapshot could not be written ({error.strerror or error}).") from None
        except FutureTimeout:
            raise Trouble("busy", "The take's current chunk takes too long: try again later.") from None
        except ValueError:  # stopped meanwhile, and so left a snapshot
            pass
        return take.snapshot_frame or 0

    def delete(self, take: LiveTake) -> None:
        """Stops a take and removes all its files.

        Raises:
            Trouble: if its current chunk does not end.
        """
        with self.changed:
            take.wanted = "delete"
            self._unqueue(take)
            self.changed.notify_all()
            if not self.changed.wait_for(lambda: take.state not in livetake.BUSY, _PATIENCE):
                raise Trouble("busy", "The take's current chunk takes too long: try again later.")
            if self._takes.pop(take.id, None) is None:
                raise Trouble("not_found", "There is no such take.")
            self.tell(take, "gone", "The take was deleted.")
        take.folder.delete()

    # Viewers

    def join(self, take: LiveTake) -> None:
        """Somebody watches from now on. A take that was paused for want of viewers goes on.

        Raises:
            Trouble: if too many do.
        """
        with self.changed:
            if take.viewers >= self.settings.limits.viewers_per_take:
                raise Trouble("too_many", f"{take.viewers} viewers watch this take already.")
            take.viewers += 1
            if take.state == livetake.PAUSED and take.reason == "idle":
                try:
                    self.resume(take)
                except Trouble as trouble:
                    take.message = trouble.message
            self.tell(take, "take", None)

    def leave(self, take: LiveTake) -> None:
        """Somebody does not watch any more."""
        with self.changed:
            take.viewers -= 1
            take.idle_since = time.monotonic()
            self.tell(take, "take", None)

    def _gauges(self) -> Mapping[str, tuple[str, str, Mapping[str, float]]]:
        with self.changed:
            takes = [*self._takes.values()]
            return {
                "takes": ("Takes by state.", "state", {s: sum(t.state == s for t in takes) for s in livetake.STATES}),
                "viewers": ("Viewers.", "scope", {"all": sum(t.viewers for t in takes)}),
                "queue": ("Takes that wait for a device.", "device", {e.device: len(e.queue) for e in self.engines}),
                "device_ready": (
                    "Whether a device can make takes.",
                    "device",
                    {e.device: float(e.state == READY) for e in self.engines},
                ),
                "disk_free_bytes": ("Bytes free on the disk of the takes.", "scope", {"data": self.folder.free()}),
            }
