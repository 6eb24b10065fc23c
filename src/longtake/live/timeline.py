"""What was said when: a journal on the disk, from which a killed take is made again exactly as it was.

A snapshot is minutes old at worst, and prompts that came after it must take effect again at the very same chunks. So
whatever is said, and the chunk from which it holds, is on the disk before that chunk is made.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longtake.prompts import Script, Segment

WAITING, HOLDS, REPLACED, REFUSED = "waiting", "holds", "replaced", "refused"


@dataclass(frozen=True)
class Entry:
    """One prompt of a take.

    Attributes:
        id: from 0, the prompt that the take was created with.
        change: what becomes of the past; None for the take's own way.
        state: ``waiting`` (said, not in effect yet), ``holds``, ``replaced`` (by another before the next chunk), or
            ``refused``.
        asked: when it was said, in seconds since 1970; ``asked_frame``: how many frames had been made.
        chunk, frame, seconds: from where it holds.
        latency: seconds from when it was said to its first frame, ready to be sent.
        message: why it was refused.
    """

    id: int
    prompt: str
    change: str | None
    state: str
    asked: float
    asked_frame: int
    frame: int | None = None
    seconds: float | None = None
    chunk: int | None = None
    latency: float | None = None
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Timeline:
    """The entries of a take, in memory and in a file with a line of JSON for every change.

    Args:
        path: the file; read if it is there. A last line that was cut off by a crash is dropped.
        fps: frames per second.

    Raises:
        ValueError: if the file is damaged.
    """

    def __init__(self, path: Path, fps: int) -> None:
        self._path, self._fps = path, fps
        self.entries: list[Entry] = []
        if path.exists():
            self._read()

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            for line in whole.splitlines():
                entry = Entry(**json.loads(line))
                if not (isinstance(entry.id, int) and 0 <= entry.id <= len(self.entries)):
                    raise ValueError
                self.entries[entry.id : entry.id + 1] = [entry]
        except (ValueError, TypeError):
            raise ValueError(f"{self._path} is damaged.") from None

    def _keep(self, entries: Iterable[Entry], sync: bool = True) -> None:
        lines = b"".join(json.dumps(entry.to_dict()).encode() + b"\n" for entry in entries)
        with self._path.open("ab", buffering=0) as file:
            file.write(lines)
            if sync:
                os.fsync(file.fileno())
        for line in entries:
            self.entries[line.id : line.id + 1] = [line]

    def say(self, prompt: str, change: str | None, made: int) -> Entry:
        """Takes note of a prompt, which waits from now on.

        Args:
            prompt: one line.
            change: one of ``longtake.prompts.CHANGES`` or None.
            made: frames of the take so far.
        """
        entry = Entry(len(self.entries), " ".join(prompt.split()), change, WAITING, time.time(), made)
        self._keep([entry])
        return entry

    @property
    def waiting(self) -> list[Entry]:
        """Entries that are not in effect yet, the newest last."""
        return [entry for entry in self.entries if entry.state == WAITING]

    @property
    def held(self) -> list[Entry]:
        """Entries that took effect, in order."""
        return [entry for entry in self.entries if entry.state == HOLDS]

    def hold(self, chunk: int, frame: int) -> list[Entry]:
        """The newest waiting entry takes effect at a chunk, and what it overtakes is replaced.

        Returns:
            The entries that changed, the one that holds last; none if none waits.
        """
        waiting = self.waiting
        if not waiting:
            return []
        gone = [entry for entry in self.held if entry.chunk == chunk] + waiting[:-1]
        changed = [replace(e, state=REPLACED, frame=None, seconds=None, chunk=None, latency=None) for e in gone]
        now = replace(waiting[-1], state=HOLDS, chunk=chunk, frame=frame, seconds=frame / self._fps)
        self._keep([*changed, now])
        return [*changed, now]

    def refuse(self, entry: Entry, message: str) -> Entry:
        """The model cannot read an entry."""
        changed = replace(entry, state=REFUSED, message=message, frame=None, seconds=None, chunk=None)
        self._keep([changed])
        return changed

    def measured(self, id: int, latency: float) -> Entry:
        """Takes note of how long it took until an entry's first frame; the first time counts."""
        entry = self.entries[id]
        if entry.latency is None:
            entry = replace(entry, latency=latency)
            self._keep([entry], sync=False)
        return entry

    def holding_at(self, chunk: int) -> Entry | None:
        """The entry that took effect at a chunk, if one did."""
        return next((entry for entry in reversed(self.held) if entry.chunk == chunk), None)

    def at(self, frame: int) -> Entry:
        """The entry that holds at a frame."""
        held = [e for e in self.held if e.frame is not None and e.frame <= frame]
        return held[-1] if held else self.entries[0]

    def script(self, until: int | None = None) -> Script:
        """All that took effect before a frame, as a script that makes the same video.

        Raises:
            ValueError: if nothing has.
        """
        held = [e for e in self.held if until is None or e.frame == 0 or (e.frame is not None and e.frame < until)]
        starts = [e.seconds or 0.0 for e in held]
        ends: list[float | None] = [*starts[1:], None]
        return Script(
            tuple(
                # The first segment follows nothing, so it changes nothing.
                Segment(entry.prompt, start, end, entry.change if index else None)
                for index, (entry, start, end) in enumerate(zip(held, starts, ends, strict=True))
            )
        )
