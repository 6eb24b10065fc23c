"""Video files that survive anything: a crash-safe writer that can stop and go on, and a reader.

A file is a fragmented MP4. Each ``write`` encodes its frames as one closed group of pictures, packs them into one
fragment (``moof`` + ``mdat``) and appends that with a single unbuffered write. Whatever stops the process, all that
was written before plays, and because no fragment refers to another, a later process can append to the file as if
nothing had happened. Nothing is kept in memory but the position, so the cost does not grow with the length.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import av
import numpy as np
from av.codec import Codec
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from longtake.mp4 import Header, read_header, split_fragment, without_torn_end, write_all

CODECS = ("libx264", "libopenh264", "mpeg4")

_NOTES = {
    "libx264": "Video is written as H.264 (libx264).",
    "libopenh264": "Video is written as H.264 (libopenh264), because this PyAV has no libx264; quality may be lower.",
    "mpeg4": "Video is written as MPEG-4 Part 2, because this PyAV has no H.264 encoder; browsers will not play it.",
}

_TICKS = 1000  # timescale units per frame, before a fractional rate's denominator
_BT709 = 1  # the code point of BT.709 for matrix, primaries and transfer alike (ISO/IEC 23091-2)
_LIMITED = 1  # AVCOL_RANGE_MPEG


def pick_codec(order: Sequence[str] = CODECS) -> tuple[str, str]:
    """The first encoder of `order` that the installed PyAV has.

    Returns:
        The encoder's name and a sentence about it to show to the user.

    Raises:
        ValueError: none of them is there.
    """
    for name in order:
        # PyAV's UnknownCodecError is a ValueError.
        with contextlib.suppress(ValueError):
            Codec(name, "w")
            return name, _NOTES.get(name, f"Video is written with the encoder {name}.")
    raise ValueError(f"The installed PyAV has none of the video encoders {', '.join(order)}.")


# --- writing -----------------------------------------------------------------------------------------------------


def _encoder_options(codec: str, quality: float) -> dict[str, str]:
    if codec == "libx264":
        # One thread, so that the same frames give the same file on any machine. No mbtree: it looks ahead for nothing
        # where a fragment ends, and its assembler is not deterministic (on a busy AVX-512 machine, 1 run in 100
        # differed). `stitchable` keeps the parameter sets independent of content and quality: all fragments share
        # those in the header.
        params = "stitchable=1:bframes=0:keyint=infinite:scenecut=0:threads=1:mbtree=0"
        return {"preset": "fast", "crf": str(quality), "x264-params": params}
    if codec == "mpeg4":
        scale = min(max(round(quality / 8), 1), 31)  # its quantiser runs from 1 to 31
        return {"flags": "+qscale+bitexact", "global_quality": str(118 * scale)}  # 118 = FF_QP2LAMBDA
    return {}


class VideoWriter:
    """Writes RGB frames to an MP4 file that plays at any moment, whatever happens to the process.

    The file appears at `path` with the first frames (an older file there is replaced then, not before) and always
    ends with a whole fragment. Frames must be given in the same portions for two files to be identical.

    Args:
        path: the file, an MP4 whatever its name; its directory must exist.
        width, height: in pixels, even (4:2:0 chroma).
        fps: frames per second, at most 1000; fractions are kept (``Fraction(30000, 1001)``).
        codec: name of the encoder; `pick_codec()` chooses by default.
        quality: constant rate factor as x264 understands it, 0 (best) to 51. 16 is visually lossless.

    Raises:
        ValueError: a size, rate, quality, codec or directory that cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        fps: int | float | Fraction = 16,
        codec: str | None = None,
        quality: float = 16,
    ) -> None:
        self.path = Path(path)
        self.width, self.height, self.fps = operator.index(width), operator.index(height), _as_rate(fps)
        for length in (self.width, self.height):
            if length < 2 or length % 2 or length > 16384:
                raise ValueError(f"Video needs an even width and height from 2 to 16384, not {width}x{height}.")
        if not 0 <= quality <= 51:
            raise ValueError(f"Video quality goes from 0 (best) to 51 (worst), not {quality}.")
        if not self.path.parent.is_dir():
            raise ValueError(f"There is no directory {self.path.parent} to write {self.path.name} to.")
        self.codec = pick_codec(CODECS if codec is None else (codec,))[0]
        self.quality = quality
        self._file: io.FileIO | None = None
        self._header: Header | None = None
        self._position = (0, 0)  # bytes, frames; one attribute, so that an interrupt cannot come between the two
        self._closed = False

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        position: Mapping[str, int],
        *,
        width: int,
        height: int,
        fps: int | float | Fraction = 16,
        codec: str | None = None,
        quality: float = 16,
    ) -> VideoWriter:
        """Goes on with a file from a recorded `position`; what follows that position is cut off.

        The file may have been left by a killed process or finished by `close`. The other arguments are those of the
        constructor; without `codec`, the file's own is used. A position of 0 frames starts a new file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not one of ours, is shorter than the position, or has another size, rate or
                codec. It has not been touched then.
        """
        settings: dict[str, Any] = {"width": width, "height": height, "fps": fps, "quality": quality}
        size, frames = position["bytes"], position["frames"]
        if not frames:
            return cls(path, codec=codec, **settings)
        file = open(path, "r+b", buffering=0)  # noqa: SIM115
        try:
            header = read_header(file, size, frames)
            if codec is None:
                codec = pick_codec(CODECS[:2] if header.entry == b"avc1" else CODECS[2:])[0]
            writer = cls(path, codec=codec, **settings)
            writer._check_matches(header)
            file.truncate(size)
            writer._file, writer._header, writer._position = file, header, (size, frames)
            writer._set_duration(0)  # a stale length would hide what comes, should this process be killed
        except BaseException:
            file.close()
            raise
        return writer

    def _check_matches(self, header: Header) -> None:
        # What this machine's encoder would put in a header; nothing else tells whether its frames would decode.
        mine = Header.parse(self._encode(np.zeros((1, self.height, self.width, 3), np.uint8))[0])
        if (header.width, header.height) != (self.width, self.height):
            raise ValueError(
                f"{self.path} is {header.width}x{header.height} and cannot be continued at {self.width}x{self.height}."
            )
        if header.timescale != mine.timescale:
            raise ValueError(f"{self.path} has another frame rate than {float(self.fps):g} frames per second.")
        if header.entry != mine.entry or header.config != mine.config:
            raise ValueError(f"{self.path} was written by another video encoder than this {self.codec}.")

    @property
    def position(self) -> dict[str, int]:
        """What is on disk: ``{"bytes": ..., "frames": ...}``, for `resume`."""
        return {"bytes": self._position[0], "frames": self._position[1]}

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 RGB of shape [n, height, width, 3]; they are with the system when this returns.

        Raises:
            ValueError: wrong shape or type, or the writer is closed.
            OSError: the system could not take them (a full disk). The file ends where it ended before the call.
        """
        if self._closed:
            raise ValueError(f"The video {self.path} is closed.")
        want = (self.height, self.width, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != want:
            raise ValueError(
                f"Frames must be uint8 of shape [n, {want[0]}, {want[1]}, 3], "
                f"not {frames.dtype} of shape {list(frames.shape)}."
            )
        if not len(frames):
            return
        header, fragment = self._encode(frames)
        if self._file is None:
            self._begin(header, fragment, len(frames))
        else:
            self._append(self._file, fragment, len(frames))

    def _begin(self, header: bytes, fragment: bytes, count: int) -> None:
        # Written aside and renamed: a file that exists has a frame to show, and an older one is there until then.
        aside = self.path.with_name(self.path.name + ".part")
        try:
            with open(aside, "wb", buffering=0) as file:
                write_all(file, header + fragment)
            os.replace(aside, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self._header = Header.parse(header)
        self._position = (len(header) + len(fragment), count)

    def _append(self, file: io.FileIO, fragment: bytes, count: int) -> None:
        size, before = self._position
        try:
            file.seek(size)
            write_all(file, fragment)
            self._position = (size + len(fragment), before + count)
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(self._position[0])
            raise

    def _encode(self, frames: np.ndarray) -> tuple[bytes, bytes]:
        """Header and fragment that show these frames from the current position on."""
        memory = io.BytesIO()
        container = av.open(
            memory,
            "w",
            format="mp4",
            options={
                # Nothing flushes a fragment but the end, so there is exactly one. No index follows it.
                "movflags": "empty_moov+default_base_moof+frag_custom+skip_trailer",
                "video_track_timescale": str(self.fps.numerator * _TICKS),
                "fflags": "+bitexact",  # no library versions in the file
            },
        )
        with container:
            stream: Any = container.add_stream(
                self.codec, rate=self.fps, options=_encoder_options(self.codec, self.quality)
            )
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            context = stream.codec_context
            context.gop_size = 1 << 20
            context.max_b_frames = 0
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
            if self.codec == "libopenh264":  # it knows no constant quality: be generous instead
                context.bit_rate = int(self.width * self.height * self.fps * Fraction(1, 4))
            # The converter assumes BT.601 where it is not told, and PyAV versions differ in what they tell it.
            convert = VideoReformatter()
            for index, rgb in enumerate(frames):
                frame = convert.reformat(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"),
                    format="yuv420p",
                    src_colorspace=Colorspace.ITU709,
                    dst_colorspace=Colorspace.ITU709,
                    src_color_range=ColorRange.JPEG,
                    dst_color_range=ColorRange.MPEG,
                    interpolation="AREA",
                )
                frame.pts, frame.time_base = index, 1 / self.fps
                self._mux(container, stream.encode(frame))
            self._mux(container, stream.encode(None))
        before = self._position[1]
        # Sequence numbers must grow, not be consecutive: the frame count is one that resuming need not look up.
        return split_fragment(memory.getvalue(), before + 1, before * self.fps.denominator * _TICKS)

    def _mux(self, container: Any, packets: list[Any]) -> None:
        for packet in packets:
            # Encoders leave it out; the last frame of a fragment would have to be guessed.
            packet.duration = round(1 / (self.fps * packet.time_base))
            container.mux(packet)

    def _set_duration(self, frames: int) -> None:
        """Writes the length into the header, in place; 0 for a file that is still growing."""
        if self._file is not None and self._header is not None:
            self._header.write_duration(self._file, frames, self.fps)

    def sync(self) -> None:
        """Waits until everything written is on the disk itself, so that it outlives a power cut too."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes the length into the header, syncs and closes. A closed file can still be resumed.

        Without a single frame written there is no file.
        """
        if self._closed:
            return
        self._closed = True
        if self._file is None:
            return
        with self._file:
            # A convenience for players: not worth an error when all frames are there.
            with contextlib.suppress(OSError):
                self._set_duration(self._position[1])
            self.sync()
        self._file = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_rate(fps: int | float | Fraction) -> Fraction:
    if not 0.1 <= fps <= 1000:  # also refuses NaN
        raise ValueError(f"The frame rate must be from 0.1 to 1000 frames per second, not {fps}.")
    return Fraction(fps).limit_denominator(1001)


# --- reading -----------------------------------------------------------------------------------------------------

Source: TypeAlias = str | os.PathLike[str] | io.BytesIO


@dataclass(frozen=True)
class VideoInfo:
    """What is in a video file: frames that can be played, frames per second, size in pixels, name of the format."""

    frames: int
    fps: float
    width: int
    height: int
    codec: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.fps


@contextlib.contextmanager
def _opened(path: Source) -> Iterator[tuple[Any, Any]]:
    """Container and first video stream of a file, without what is left of a fragment cut off by a crash."""
    with contextlib.ExitStack() as stack:
        whole: Any = path
        if not isinstance(path, io.BytesIO):
            whole = without_torn_end(stack.enter_context(open(path, "rb"))) or os.fspath(path)
        try:
            container = av.open(whole)
        except av.error.FFmpegError:
            raise ValueError(f"{_called(path)} cannot be read as a video.") from None
        with container:
            if not container.streams.video:
                raise ValueError(f"{_called(path)} has no video in it.")
            yield container, container.streams.video[0]


def _called(path: Source) -> str:
    return "The video" if isinstance(path, io.BytesIO) else os.fspath(path)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Looks at a video file without decoding it; frames are counted, not taken from its header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a video.
    """
    with _opened(path) as (container, stream):
        # The demuxer ends with an empty packet.
        frames = sum(1 for packet in container.demux(stream) if packet.size)
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        return VideoInfo(frames, float(rate), context.width, context.height, context.name)


# AVColorSpace to the converter's constants; these differ.
_MATRICES = {1: Colorspace.ITU709, 5: Colorspace.ITU601, 6: Colorspace.SMPTE170M, 7: Colorspace.SMPTE240M}


def shown_until(path: str | os.PathLike[str]) -> Fraction:
    """When the last frame of a video file ends, in seconds by its time stamps. Decodes nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a video, or has no frames.
    """
    with _opened(path) as (container, stream):
        frame = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
        end, count = Fraction(0), 0
        for packet in container.demux(stream):
            if packet.size:
                count += 1
                # Raw streams have no time stamps, and some formats no durations.
                length = packet.duration * packet.time_base if packet.duration else frame
                end = max(
                    end, length + (count * frame - frame if packet.pts is None else packet.pts * packet.time_base)
                )
    if not count:
        raise ValueError(f"{os.fspath(path)} has no frames in it.")
    return end


def read_timed_frames(path: Source) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The frames of a video file, or of one in memory, in order, decoded as they are asked for.

    Yields:
        When a frame is first shown, in seconds by its time stamp, and the frame as its camera meant it to be held up:
        uint8 RGB of shape [height, width, 3].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a video, or is damaged where it is read.
    """
    convert = VideoReformatter()
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        frames = container.decode(stream)
        for index in itertools.count():
            try:
                frame = next(frames)
            except StopIteration:
                return
            except av.error.FFmpegError:
                raise ValueError(f"{_called(path)} is damaged after {index} frames.") from None
            # Untagged video follows the custom of players: BT.709 from 720 lines on.
            guess = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
            full = int(frame.color_range) == int(ColorRange.JPEG) or frame.format.is_rgb
            rgb = convert.reformat(
                frame,
                format="rgb24",
                src_colorspace=_MATRICES.get(int(frame.colorspace), guess),
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            )
            turns = round(getattr(frame, "rotation", 0) / 90)
            time = index / rate if frame.pts is None else frame.pts * frame.time_base
            yield time, np.rot90(rgb.to_ndarray(), turns)


def read_frames(path: Source) -> Iterator[np.ndarray]:
    """The frames of :func:`read_timed_frames` without their times."""
    for _, frame in read_timed_frames(path):
        yield frame
