"""Recording a take: a video file that plays at any moment, and beside it a snapshot to continue it from.

    recording = Recording.start(pipe.start("a red ball rolls over a meadow"), "take.mp4")
    recording.run(seconds=30)

    recording = Recording.resume(pipe, "take.mp4")  # later, in another process, after whatever happened
    recording.run(seconds=60)

The file is then, byte for byte, the one that an uninterrupted run of 60 seconds writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.lock import Lock
from longtake.plan import frames_in
from longtake.snapshot import read_snapshot, read_snapshot_data, write_snapshot

if TYPE_CHECKING:
    import numpy as np

    from longtake.pipeline import LongTakePipeline
    from longtake.take import Chunk, Take
    from longtake.video import VideoWriter

SNAPSHOT_EVERY = 10.0  # seconds of video


def snapshot_path(video: str | os.PathLike[str]) -> Path:
    """Where the snapshot of a video lies: ``take.mp4.snapshot`` beside ``take.mp4``."""
    video = Path(video)
    return video.with_name(video.name + ".snapshot")


@dataclass(frozen=True)
class Recorded:
    """What is known of a recording from its snapshot and file, without model or torch.

    Attributes:
        data: the snapshot's JSON part.
        frames: frames that the snapshot continues after.
        finished: frames of the whole file, if it was finished and has not been touched since.
    """

    data: Mapping[str, Any]
    frames: int
    finished: int | None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was given to :meth:`Recording.start` as settings."""
        settings: Mapping[str, Any] = self.data["extra"].get("settings", {})
        return settings

    @classmethod
    def look(cls, video: str | os.PathLike[str]) -> Recorded | None:
        """What there is to continue at ``video``; None if there is neither video nor snapshot.

        Raises:
            ValueError: in one sentence, if it cannot be continued: a video without a snapshot, a snapshot that is
                damaged, not ours or of no recording, or a video that is missing or shorter than the snapshot says.
        """
        video, snapshot = Path(video), snapshot_path(video)
        if not snapshot.exists():
            if video.exists():
                raise ValueError(f"{video} has no snapshot {snapshot.name} beside it, so it cannot be continued.")
            return None
        data = read_snapshot_data(snapshot)
        extra: Any = data.get("extra")
        if not isinstance(extra, dict) or "video" not in extra:
            raise ValueError(f"{snapshot} is a snapshot of a take that was not recorded to a file.")
        settings: Any = extra.get("settings", {})
        finished: Any = extra.get("finished")
        for what, value, kinds, all_of_them in (
            ("position in the video", extra["video"], _POSITION, True),
            ("settings", settings, _SETTINGS, False),
            ("end", {"bytes": 0, "frames": 0} if finished is None else finished, _POSITION, True),
        ):
            if not _fits(value, kinds, all_of_them):
                raise ValueError(f"{snapshot} is damaged: its {what} cannot be {json.dumps(value)[:60]}.")
        size, frames = (extra["video"][key] for key in ("bytes", "frames"))
        there: int = video.stat().st_size if video.exists() else 0
        if frames and not there:
            raise ValueError(f"The snapshot {snapshot.name} continues {video}, but that file is not there.")
        if frames and there < size:
            raise ValueError(f"{video} has {there} bytes, fewer than the {size} that its snapshot continues after.")
        whole = finished is not None and finished["bytes"] == there
        return cls(data, frames, finished["frames"] if whole else None)


# What those who read snapshots again rely on; other settings may be anything.
_SETTINGS = {"model": str, "signature": str, "device": str, "seconds": float, "every": float}
_POSITION = {"bytes": int, "frames": int}


def _fits(values: Any, kinds: Mapping[str, type], all_of_them: bool) -> bool:
    """Whether a part of a snapshot is what was once written there."""
    if not isinstance(values, dict) or (all_of_them and not {*kinds} <= {*values}):
        return False
    for key, kind in kinds.items():
        value = values.get(key, kind())
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not (isinstance(value, str) if kind is str else number and (kind is float or isinstance(value, int))):
            return False
    return True


@dataclass(frozen=True)
class Progress:
    """How far a recording is: frames in the file, and frames asked for; and what was added to it just now.

    Attributes:
        chunk: the newest chunk.
        video: what of it was written, uint8 RGB ``[frames, height, width, 3]``.
    """

    frames: int
    total: int
    fps: float
    chunk: Chunk
    video: np.ndarray


class Recording:
    """A take on its way into a file; made by :meth:`start` or :meth:`resume`.

    Args:
        take: a take between chunks.
        writer: of the video, with exactly the frames the take has made.
        every: seconds of video between snapshots.
        settings: anything JSON can hold, kept in the snapshots.
        lock: of the file, given back at the end.

    Raises:
        ValueError: if the file and the take do not have the same number of frames.
    """

    def __init__(self, take: Take, writer: VideoWriter, every: float, settings: Mapping[str, Any], lock: Lock) -> None:
        if not (math.isfinite(every) and every > 0):
            raise ValueError(f"Snapshots need a positive number of seconds between them, not {every}.")
        if take.frames_done != writer.position["frames"]:
            raise ValueError(
                f"The take has made {take.frames_done} frames, but the file has {writer.position['frames']}."
            )
        self.take, self.writer, self.settings = take, writer, settings
        self.path = writer.path
        self._lock = lock
        self.fps: int = take.pipe.config.fps
        self._every = every * self.fps
        self._snapshot_at = 0  # frames of the newest snapshot written here
        self._over = False

    @classmethod
    def start(
        cls,
        take: Take,
        path: str | os.PathLike[str],
        *,
        snapshot_every: float = SNAPSHOT_EVERY,
        settings: Mapping[str, Any] | None = None,
        **video: Any,
    ) -> Recording:
        """Records a new take; a file that is there is replaced with the first frames.

        Args:
            take: fresh from ``pipe.start``; with a given past, too.
            path: of the video (MP4). The snapshot lies beside it, see :func:`snapshot_path`.
            snapshot_every: seconds of video.
            settings: anything JSON can hold, to be found in :class:`Recorded` later.
            video: ``codec`` and ``quality`` of :class:`longtake.video.VideoWriter`.

        Raises:
            ValueError: if the file cannot be made so, or another process is writing it.
        """
        from longtake.video import VideoWriter

        writer = VideoWriter(path, width=take.width, height=take.height, fps=take.pipe.config.fps, **video)
        return cls(take, writer, snapshot_every, settings or {}, Lock(path))

    @classmethod
    def resume(
        cls,
        pipe: LongTakePipeline,
        path: str | os.PathLike[str],
        *,
        snapshot_every: float = SNAPSHOT_EVERY,
        settings: Mapping[str, Any] | None = None,
        **video: Any,
    ) -> Recording:
        """Continues a recording from its snapshot; what the file has beyond that is cut off, and made again.

        Raises:
            FileNotFoundError: if there is no snapshot.
            ValueError: if snapshot, video and model do not belong together, or another process is writing the video;
                nothing has been touched then.
        """
        from longtake.take import Take
        from longtake.video import VideoWriter

        lock = Lock(path)
        found = Recorded.look(path)
        if found is None:
            raise FileNotFoundError(f"There is no snapshot {snapshot_path(path)}.")
        tensors, data = read_snapshot(snapshot_path(path))
        take = Take.from_state(pipe, tensors, data)
        if take.frames_done != found.frames:
            raise ValueError(f"The snapshot of {path} contradicts itself: {take.frames_done} or {found.frames} frames.")
        writer = VideoWriter.resume(
            path, data["extra"]["video"], width=take.width, height=take.height, fps=pipe.config.fps, **video
        )
        return cls(take, writer, snapshot_every, found.settings if settings is None else settings, lock)

    @property
    def frames(self) -> int:
        """Frames in the file."""
        return self.writer.position["frames"]

    @property
    def snapshot_frames(self) -> int:
        """Frames that the newest snapshot written here continues after."""
        return self._snapshot_at

    def run(
        self,
        seconds: float,
        *,
        on_chunk: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Makes chunks until the file is as long as asked, then closes it. A recording runs once.

        Snapshots are taken before the first frames (also of a resumed take: it may have been given another script or
        length), then every so often, and at the end; always of a moment whose frames are all in the file, so
        a killed process leaves something to continue at any time.

        Args:
            seconds: length of the whole video, to the nearest frame.
            on_chunk: called after every chunk.
            should_stop: asked before every chunk; a true answer ends the recording early, with a snapshot.

        Returns:
            Whether the file is as long as asked.

        Raises:
            ValueError: if the length is no positive number, or the recording is over.
            OSError: if the disk does not take a frame or a snapshot. The file is closed and plays up to the frames it
                has, and the last snapshot is untouched.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds must be a positive number, not {seconds}.")
        if self._over:
            raise ValueError(f"The recording {self.path} is over; resume it to make it longer.")
        self._over = True
        total = frames_in(seconds, self.fps)
        take = self.take
        held = None
        try:
            try:
                self.snapshot()
                while (left := total - self.frames) > 0 and not (should_stop is not None and should_stop()):
                    if self.frames - self._snapshot_at >= self._every:
                        self.snapshot()
                    if take.frames_in(take.index + 1) - take.frames_done > left:
                        # The last chunk will be cut. A longer take needs all of it, so it continues from before.
                        held = (*take.state(), self.writer.position)
                    chunk = take.next_chunk()
                    video = chunk.to_uint8()[:left]
                    self.writer.write(video)
                    if on_chunk is not None:
                        on_chunk(Progress(self.frames, total, self.fps, chunk, video))
            finally:
                self.writer.close()
            finished = self.frames >= total
            tensors, data, position = held or (*take.state(), self.writer.position)
            end = {"finished": self.writer.position} if finished else {}
            self._write(tensors, data, position, end)
            self._snapshot_at = position["frames"]
            return finished
        finally:
            self._lock.release()

    def snapshot(self) -> None:
        """Writes a snapshot now; :meth:`run` does so by itself. Only between chunks, e.g. when asked whether to stop.

        Raises:
            OSError: if the disk does not take it; the last one is untouched.
        """
        # The snapshot must never speak of frames that a power cut could still take.
        self.writer.sync()
        self._write(*self.take.state(), self.writer.position, {})
        self._snapshot_at = self.frames

    def _write(
        self, tensors: Mapping[str, Any], data: Mapping[str, Any], position: Mapping[str, int], end: Mapping[str, Any]
    ) -> None:
        extra = {"video": position, "settings": self.settings, **end}
        write_snapshot(snapshot_path(self.path), tensors, {**data, "extra": extra})
