"""Frames on their way to a viewer: the binary message of the live protocol, and a few seconds of them."""

from __future__ import annotations

import io
import struct
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

HEADER = struct.Struct(">2sBB8sIIIdd")
VERSION = 1
FORMATS = {"jpeg": 1, "webp": 2}
MEDIA_TYPES = {"jpeg": "image/jpeg", "webp": "image/webp"}
_SMALL = 256 * 256  # pixels; below, blurred colours cost more than they save


class Header(NamedTuple):
    """What stands before every picture, see ``docs/live-protocol.md``.

    ``picture`` is one of ``FORMATS``; ``time`` in seconds of video; ``made`` in seconds since 1970, 0 if unknown.
    """

    picture: str
    take: str
    frame: int
    chunk: int
    prompt: int
    time: float
    made: float

    def pack(self) -> bytes:
        """The 40 bytes."""
        number = bytes.fromhex(self.take)
        return HEADER.pack(
            b"LT", VERSION, FORMATS[self.picture], number, self.frame, self.chunk, self.prompt, self.time, self.made
        )

    @classmethod
    def unpack(cls, message: bytes) -> Header:
        """The header of a message.

        Raises:
            ValueError: if there is none, or of another version.
        """
        if len(message) < HEADER.size or message[:3] != b"LT" + bytes([VERSION]):
            raise ValueError("This is not a frame of the live protocol, version 1.")
        _, _, code, take, *numbers = HEADER.unpack_from(message)
        names = {number: name for name, number in FORMATS.items()}
        if code not in names:
            raise ValueError(f"A picture of kind {code} is not known.")
        return cls(names[code], take.hex(), *numbers)


def encode(frame: np.ndarray, picture: str = "jpeg", quality: int = 85, width: int | None = None) -> bytes:
    """A picture of a frame.

    Args:
        frame: uint8 RGB ``[height, width, 3]``.
        picture: one of ``FORMATS``.
        quality: 1 to 100.
        width: in pixels, at most; the height follows.
    """
    image = Image.fromarray(frame)
    if width is not None and width < image.width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.BOX)
    out = io.BytesIO()
    if picture == "webp":
        image.save(out, "WEBP", quality=quality, method=0)  # the fastest
    else:
        image.save(out, "JPEG", quality=quality, subsampling=0 if image.width * image.height <= _SMALL else 2)
    return out.getvalue()


class Ring:
    """The newest frames of a take as messages: a fixed number, whatever the length of the take.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._messages: deque[bytes] = deque(maxlen=size)
        self.end = 0  # the frame that comes next

    @property
    def start(self) -> int:
        """The oldest frame that is here; ``end`` if there is none."""
        return self.end - len(self._messages)

    def add(self, first: int, messages: Sequence[bytes]) -> None:
        """Takes a chunk's frames, of which ``first`` is the index of the first. If it does not follow what is here (a
        take that was continued from its snapshot), that is forgotten."""
        if first != self.end:
            self.clear(first)
        self._messages.extend(messages)
        self.end = first + len(messages)

    def clear(self, end: int) -> None:
        """Forgets everything; ``end`` is the frame that comes next."""
        self._messages.clear()
        self.end = end

    def get(self, frame: int) -> bytes | None:
        """The message of a frame; None if it is not here."""
        return self._messages[frame - self.start] if self.start <= frame < self.end else None
