"""The file format under `video`: fragmented MP4, read and changed byte by byte.

An MP4 file is a tree of boxes: 32-bit size, four-letter name, body. A fragmented one is a header (``ftyp`` + ``moov``)
and then fragments (``moof`` + ``mdat``), each with its own times. Here is what must be known about that to cut such
a file, to append to it and to say in its header how long it is. Nothing here encodes or decodes pictures.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, NamedTuple

# --- boxes -------------------------------------------------------------------------------------------------------


def _boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, body start and end of each box in data[start:end]."""
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            return
        yield name, start + 8, start + size
        start += size


def _find(data: bytes | bytearray, path: str) -> tuple[int, int]:
    """Body start and end of the first box at `path` ("moov/trak/tkhd"); KeyError if there is none."""
    start, end = 0, len(data)
    for part in path.encode().split(b"/"):
        for name, body, stop in _boxes(data, start, end):
            if name == part:
                start, end = body, stop
                break
        else:
            raise KeyError(path)
    return start, end


def _walk(file: BinaryIO, size: int, start: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each whole top-level box in the first `size` bytes of a file, from `start` on."""
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, name = struct.unpack_from(">I4s", head)
        if length == 1 and len(head) == 16:  # a 64-bit size follows the name
            (length,) = struct.unpack_from(">Q", head, 8)
        if length < 8 or start + length > size:
            return
        yield name, start, start + length
        start += length


def _read_at(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def write_all(file: io.FileIO | io.BytesIO, data: bytes) -> None:
    """Writes all of `data`; an unbuffered file may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


# --- the header --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What a file's ftyp + moov says, and where the fields are that hold its duration."""

    entry: bytes  # b"avc1" or b"mp4v"
    width: int
    height: int
    timescale: int
    config: bytes  # decoder configuration: parameter sets and the like
    movie_timescale: int
    fields: tuple[tuple[int, str, int], ...]  # offset, struct format, timescale of each duration
    extends: int  # offset of the name of the box that is `mehd` in a finished file, `free` before

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Raises KeyError or struct.error for anything that Longtake did not write."""
        movie, _ = _find(data, "moov/mvhd")
        track, _ = _find(data, "moov/trak/tkhd")
        media, _ = _find(data, "moov/trak/mdia/mdhd")
        table, end = _find(data, "moov/trak/mdia/minf/stbl/stsd")
        extends, stop = _find(data, "moov/mvex")

        def at(body: int, short: int, long: int) -> tuple[int, str]:
            # Version 1 of these boxes has 64-bit times.
            return (body + long, ">Q") if data[body] else (body + short, ">I")

        def scale(body: int) -> int:
            return int(struct.unpack_from(">I", data, body + (20 if data[body] else 12))[0])

        name, entry, entry_end = next(_boxes(data, table + 8, end), (b"", 0, 0))
        width, height = struct.unpack_from(">HH", data, entry + 24)
        children = {child: data[a:b] for child, a, b in _boxes(data, entry + 78, entry_end)}
        place = next(a for child, a, b in _boxes(data, extends, stop) if child in (b"free", b"mehd") and b - a == 12)
        fields = (
            (*at(movie, 16, 24), scale(movie)),
            (*at(track, 20, 28), scale(movie)),
            (*at(media, 16, 24), scale(media)),
            (place + 4, ">Q", scale(movie)),
        )
        config = children.get(b"avcC", children.get(b"esds", b""))
        return cls(name, width, height, scale(media), config, scale(movie), fields, place - 4)

    def write_duration(self, file: io.FileIO | io.BytesIO, frames: int, fps: Fraction) -> None:
        """Writes the length into the header of a file, in place; 0 frames for one that is not known yet."""
        for offset, layout, scale in self.fields:
            ticks = round(frames * scale / fps)
            if layout == ">I" and ticks >= 1 << 32:
                ticks = 0  # unknown: too long for this field, `mehd` has it
            file.seek(offset)
            write_all(file, struct.pack(layout, ticks))
        file.seek(self.extends)
        write_all(file, b"mehd" if frames else b"free")


def _reserve_duration(header: bytes) -> bytes:
    """The header with room for a `mehd` box, which tells players how long a finished fragmented file is.

    It goes in as a `free` box: a `mehd` that says 0 would be believed. Nothing points past the header by absolute
    offset (default-base-is-moof), so it may grow.
    """
    box = struct.pack(">I4sBxxxQ", 20, b"free", 1, 0)
    grown = bytearray(header)
    moov, _ = _find(header, "moov")
    mvex, _ = _find(header, "moov/mvex")
    for body in (moov, mvex):
        (size,) = struct.unpack_from(">I", grown, body - 8)
        struct.pack_into(">I", grown, body - 8, size + len(box))
    grown[mvex:mvex] = box
    return bytes(grown)


# --- fragments ---------------------------------------------------------------------------------------------------


def split_fragment(data: bytes, number: int, time: int) -> tuple[bytes, bytes]:
    """Header and fragment of a file that has one fragment.

    Args:
        data: the file, as FFmpeg writes it.
        number: sequence number for the fragment.
        time: where it begins, in units of the track's timescale.
    """
    start = _find(data, "moof")[0] - 8
    fragment = bytearray(data[start : _find(data, "mdat")[1]])
    struct.pack_into(">I", fragment, _find(fragment, "moof/mfhd")[0] + 4, number % (1 << 32))
    times, _ = _find(fragment, "moof/traf/tfdt")
    if fragment[times] != 1:
        raise RuntimeError("This FFmpeg writes 32-bit fragment times, which Longtake does not know.")
    struct.pack_into(">Q", fragment, times + 4, time)
    return _reserve_duration(data[:start]), bytes(fragment)


def read_header(file: io.FileIO, size: int, frames: int) -> Header:
    """The header of a file that has `frames` frames in its first `size` bytes.

    Raises:
        ValueError: it does not, or is not one of ours.
    """
    there = os.fstat(file.fileno()).st_size
    if there < size:
        raise ValueError(f"{file.name} has {there} bytes, fewer than the {size} written when it was recorded.")
    header_end, fragment, end = 0, (0, 0), 0
    for name, start, stop in _walk(file, size):
        if name == b"moof":
            header_end = header_end or start
            fragment = (start, stop)
        end = stop
    try:
        header = Header.parse(_read_at(file, 0, header_end))
        moof = _read_at(file, *fragment)
        first, duration, count = _timing(moof)
    except (KeyError, StopIteration, struct.error):
        raise ValueError(f"{file.name} is not a video that Longtake wrote, so it cannot be continued.") from None
    if end != size or duration == 0 or first + count * duration != frames * duration:
        raise ValueError(f"{file.name} does not have {frames} frames in its first {size} bytes as recorded.")
    return header


class Fragment(NamedTuple):
    """Where a fragment is in its file: its first frame and how many, its first byte and the one after its last."""

    first: int
    frames: int
    start: int
    end: int

    @property
    def last(self) -> int:
        """Its last frame."""
        return self.first + self.frames - 1


def fragments(file: BinaryIO, start: int = 0) -> Iterator[Fragment]:
    """The whole fragments of a file of ours in order, also of one that is growing. Reads a few bytes of each.

    Args:
        file: opened for reading.
        start: where to begin, the end of an earlier fragment; 0 for the first.

    Raises:
        ValueError: the file is not one of ours.
    """
    moof: tuple[int, int] | None = None
    for name, begin, end in _walk(file, os.fstat(file.fileno()).st_size, start):
        if name == b"moof":
            moof = (begin, end)
        elif name == b"mdat" and moof is not None:
            try:
                first, duration, count = _timing(_read_at(file, *moof))
                yield Fragment(first // duration, count, moof[0], end)
            except (KeyError, struct.error, ZeroDivisionError):
                raise ValueError("The video is damaged, or not one that Longtake wrote.") from None
            moof = None


def _timing(moof: bytes) -> tuple[int, int, int]:
    """Of a fragment: its time and the duration of a frame in units of the timescale, and its frames."""
    (first,) = struct.unpack_from(">Q", moof, _find(moof, "moof/traf/tfdt")[0] + 4)
    (duration,) = struct.unpack_from(">I", moof, _find(moof, "moof/traf/tfhd")[0] + 8)
    (count,) = struct.unpack_from(">I", moof, _find(moof, "moof/traf/trun")[0] + 4)
    return first, duration, count


def _whole_length(file: BinaryIO) -> int | None:
    """Bytes up to the end of the last whole fragment; None for a file without fragments."""
    end, before = None, b""
    for name, _, stop in _walk(file, os.fstat(file.fileno()).st_size):
        if name == b"mdat" and before == b"moof":
            end = stop
        before = name
    return end


class _Head(io.RawIOBase):
    """The first `size` bytes of a file, for a reader that would stumble over the rest."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset, whence = self._size + offset, os.SEEK_SET
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if size < 0 else min(size, left))


def without_torn_end(file: BinaryIO) -> io.RawIOBase | None:
    """The file up to the end of its last whole fragment; None if it ends there anyway or has no fragments."""
    size = _whole_length(file)
    torn = size is not None and size < os.fstat(file.fileno()).st_size
    file.seek(0)
    return _Head(file, size) if size is not None and torn else None
