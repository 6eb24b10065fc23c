"""A take as the server knows it, whether it runs or lies on the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from longtake.live.folder import TakeFolder
from longtake.live.replay import Replay, measure
from longtake.live.timeline import Timeline
from longtake.record import Recorded

if TYPE_CHECKING:
    import numpy as np

    from longtake.live.engine import Engine

QUEUED, STARTING, RUNNING, PAUSED, FINISHED, FAILED = "queued", "starting", "running", "paused", "finished", "failed"
STATES = (QUEUED, STARTING, RUNNING, PAUSED, FINISHED, FAILED)
BUSY = (STARTING, RUNNING)
_SHOWN = (
    *("created", "model", "memory", "seed", "on_change", "width", "height", "fps"),
    *("first_chunk_frames", "chunk_frames", "max_seconds"),
)


@dataclass(frozen=True)
class Asked:
    """What a take was created with.

    Attributes:
        model: its name.
        signature: of the model's files; a take is continued with the same ones only.
        memory: a policy as text, with all that differs from its defaults.
        first_chunk_frames, chunk_frames: frames of video in the first chunk, and in every other.
        dtype: that the model computes in.
        created: seconds since 1970.
    """

    prompt: str
    seed: int
    memory: str
    on_change: str
    width: int
    height: int
    fps: int
    first_chunk_frames: int
    chunk_frames: int
    max_seconds: float
    model: str
    signature: str | None
    dtype: str
    created: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Asked:
        """What :meth:`to_dict` made this of; what it has beyond that is passed over.

        Raises:
            ValueError: if it did not.
        """
        kinds: dict[str, tuple[type, ...]]
        kinds = {"str": (str,), "int": (int,), "float": (int, float), "str | None": (str, type(None))}
        for field in fields(cls):
            value = data.get(field.name)
            if not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool):
                raise ValueError(f"its {field.name} cannot be {value!r:.40}")
        return cls(**{field.name: data[field.name] for field in fields(cls)})


class LiveTake:
    """State of a take. What changes is guarded by the studio's lock.

    Attributes:
        asked: what it was created with.
        replay: reads the recording, for everybody; guards itself.
        state, reason, message: see ``docs/live-protocol.md``.
        frames, bytes: of the recording; ``snapshot_frame``: what its snapshot continues after.
        catch_up: frames that had been made before it was continued. Up to there it is made again as it was.
        wanted: what the engine is asked to do with it: "run", "pause" or "delete".
        viewers: how many watch; ``idle_since``: on the monotonic clock, when the last one left.
        frames_per_second: how fast it is made; ``latency`` of the newest prompt change in seconds.
        memory: the ``Memory`` of the live protocol, of the newest chunk.
        newest: the newest frame, uint8 RGB.
        snapshots: of those who wait for one.
        devices: kinds of devices that made it.
    """

    def __init__(self, folder: TakeFolder, asked: Asked) -> None:
        self.folder, self.id, self.asked = folder, folder.id, asked
        self.timeline = Timeline(folder.timeline, asked.fps)
        self.replay = Replay(folder.video)
        self.state, self.reason, self.message = PAUSED, "restart", ""
        self.frames = self.bytes = self.catch_up = 0
        self.snapshot_frame: int | None = None
        self.engine: Engine | None = None
        self.wanted = "run"
        self.viewers = 0
        self.idle_since = time.monotonic()
        self.frames_per_second: float | None = None
        self.latency: float | None = None
        self.memory: dict[str, Any] | None = None
        self.newest: np.ndarray | None = None
        self.snapshots: list[Future[None]] = []
        self.devices: list[str] = []

    @classmethod
    def create(cls, folder: TakeFolder, asked: Asked) -> LiveTake:
        """A new one, on the disk."""
        take = cls(folder, asked)
        take.timeline.say(asked.prompt, None, 0)
        take.timeline.hold(0, 0)
        take.snapshot_frame = 0
        take.keep()
        return take

    @classmethod
    def found(cls, folder: TakeFolder) -> LiveTake:
        """One that an earlier server left.

        Raises:
            ValueError: if its files are damaged beyond use.
        """
        data = folder.read()
        try:
            take = cls(folder, Asked.from_dict(data))
        except ValueError as error:
            raise ValueError(f"{folder.path} is damaged: {error}.") from None
        if not take.timeline.entries:
            raise ValueError(f"{folder.path} is damaged: nothing was said.")
        take.devices = [str(name) for name in data.get("devices", ())]
        take.measure()
        if take.frames >= round(take.asked.max_seconds * take.asked.fps):
            take.state, take.reason = FINISHED, ""
        return take

    def keep(self) -> None:
        """Writes what must outlive the server, but for the timeline, which is always on the disk."""
        self.folder.write({**self.asked.to_dict(), "devices": self.devices})

    def measure(self) -> None:
        """Reads from the files how far it is. What cannot be read, cannot be continued."""
        try:
            found = Recorded.look(self.folder.video)
            self.snapshot_frame = 0 if found is None else found.frames
        except ValueError as error:
            self.state, self.message, self.snapshot_frame = FAILED, str(error), None
        try:
            self.frames, self.bytes = measure(self.folder.video)
        except (ValueError, OSError) as error:
            self.state, self.message, self.frames, self.bytes = FAILED, str(error), 0, 0

    @property
    def can_continue(self) -> bool:
        """Whether it can be made longer."""
        return self.state in (PAUSED, FAILED) and self.snapshot_frame is not None

    def chunk_of(self, frame: int) -> int:
        """The chunk that a frame belongs to."""
        first = self.asked.first_chunk_frames
        return 0 if frame < first else 1 + (frame - first) // self.asked.chunk_frames

    def thumbnails(self, every: float) -> int:
        """How many pictures there are to look back on."""
        return 0 if not self.frames else 1 + (self.frames - 1) // max(1, round(every * self.asked.fps))

    def to_dict(self, place: int | None, every: float) -> dict[str, Any]:
        """The ``Take`` of the live protocol.

        Args:
            place: in the queue, from 1.
            every: seconds of video between thumbnails.
        """
        asked, speed = self.asked, self.frames_per_second
        said = self.timeline.at(self.frames)
        return {
            "id": self.id,
            "state": self.state,
            "reason": self.reason or None,
            "message": self.message or None,
            "place": place,
            "can_continue": self.can_continue,
            **{name: getattr(asked, name) for name in _SHOWN},
            "frames": self.frames,
            "seconds": self.frames / asked.fps,
            "chunks": self.chunk_of(self.frames - 1) + 1 if self.frames else 0,
            "prompt": {"id": said.id, "prompt": said.prompt},
            "prompts": len(self.timeline.entries),
            "viewers": self.viewers,
            "speed": None if speed is None else {"frames_per_second": speed, "real_time": speed / asked.fps},
            "latency": self.latency,
            "bytes": self.bytes,
            "snapshot_frame": self.snapshot_frame,
            "thumbnails": self.thumbnails(every),
            "device": self.engine.device if self.engine is not None else (self.devices[-1] if self.devices else None),
        }
