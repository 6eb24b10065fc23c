"""A device and the thread that makes video on it, one take at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from longtake.live import livetake
from longtake.live.session import LOG, Session

if TYPE_CHECKING:
    from longtake.live.livetake import LiveTake
    from longtake.live.studio import Studio
    from longtake.pipeline import LongTakePipeline

LOADING, READY, BROKEN = "loading", "ready", "failed"


class Engine(threading.Thread):
    """Loads the model on a device and runs the takes that are queued for it.

    Whatever goes wrong in a take ends that take only. If the device itself no longer works (a GPU whose context is
    lost), the engine says so and stops.

    Args:
        studio: whose takes it runs.
        device: its name.
        load: gives the model there; called in the thread.

    Attributes:
        state: "loading", "ready" or "failed"; guarded by the studio's lock, as is everything here.
        error: why it failed.
        queue: takes that wait, the next one first.
        current: the take that is being made.
    """

    def __init__(self, studio: Studio, device: str, load: Callable[[], LongTakePipeline]) -> None:
        super().__init__(name=f"longtake-{device}", daemon=True)
        self._studio, self.device, self._load = studio, device, load
        self.state, self.error = LOADING, ""
        self.queue: deque[LiveTake] = deque()
        self.current: LiveTake | None = None

    @property
    def load_now(self) -> int:
        """Takes that run or wait."""
        return len(self.queue) + (self.current is not None)

    def run(self) -> None:
        """The thread."""
        try:
            self._pipe = self._load()
        except Exception as error:
            if not isinstance(error, ValueError):
                LOG.exception("The model could not be loaded on %s.", self.device)
            self._fail(str(error) or type(error).__name__)
            return
        with self._studio.changed:
            self.state = READY
            self._studio.changed.notify_all()
        with ThreadPoolExecutor(1, f"longtake-pictures-{self.device}") as pool:
            while (take := self._next()) is not None:
                self._play(take, pool)
                if not self._works():
                    self._fail(f"The device {self.device} does not work any more: start the server again.")
                    return

    def _next(self) -> LiveTake | None:
        studio = self._studio
        with studio.changed:
            while not self.queue and not studio.closing:
                studio.changed.wait()
            if studio.closing:
                return None
            self.current = take = self.queue.popleft()
            studio.move(take, livetake.STARTING)
            studio.places(self)
            return take

    def _play(self, take: LiveTake, pool: ThreadPoolExecutor) -> None:
        studio = self._studio
        state, reason, message = livetake.FAILED, "", ""
        try:
            state, reason = Session(studio, self, take, self._pipe, pool).run()
        except ValueError as error:
            message = str(error)
        except OSError as error:
            message = f"The take's files could not be written ({error.strerror or error})."
        except Exception as error:
            import torch

            if isinstance(error, torch.OutOfMemoryError):
                message = f"{self.device} ran out of memory."
            else:
                LOG.exception("The take %s failed.", take.id)
                message = f"Something went wrong in this take ({type(error).__name__}); the server's log says more."
        with studio.changed:
            if state == livetake.FAILED:
                studio.metrics.failed.inc()
                take.measure()
            for future in take.snapshots:
                future.set_exception(ValueError("The take stopped before a snapshot was made."))
            take.snapshots = []
            self.current = take.newest = None
            take.idle_since = time.monotonic()
            if state == livetake.QUEUED:
                self.queue.append(take)
            else:
                take.engine = None
            take.message = message or take.message
            studio.move(take, state, reason)
            studio.places(self)

    def _works(self) -> bool:
        """Whether the device still computes."""
        if self.device.startswith("cpu"):
            return True
        import torch

        try:
            return float(torch.ones(2, device=self.device).sum()) == 2
        except Exception:
            LOG.exception("The device %s does not work any more.", self.device)
            return False

    def _fail(self, error: str) -> None:
        studio = self._studio
        with studio.changed:
            self.state, self.error = BROKEN, error
            for take in self.queue:
                take.engine, take.message = None, error
                studio.move(take, livetake.PAUSED, "restart")
            self.queue.clear()
            studio.changed.notify_all()
            studio.broken(self)
