"""Pictures and videos from elsewhere, as the frames a take can start from. Imports no torch.

Everything comes out as uint8 RGB of the take's size: resized to cover it, and cropped in the middle. Pictures are
turned as their camera says (EXIF), and laid on white where they are transparent; colour profiles are ignored.
"""

from __future__ import annotations

import itertools
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MOST_PIXELS = 1 << 28
"""A picture of more is refused before it is decoded: a file of a few kB can claim any size."""

_PAPER = (255, 255, 255, 255)
_ARRAYS = (
    "an array of [height, width, 3] that is uint8, or of numbers from 0 to 1 (one video: [frames, height, width, 3])"
)


def read_picture(path: str | os.PathLike[str], height: int, width: int) -> np.ndarray:
    """A picture file as one frame, uint8 ``[height, width, 3]``. Of an animation, the first picture.

    Raises:
        ValueError: in one sentence, if there is no such file, or it is no picture, damaged or too large.
    """
    path = Path(path)
    _check_file(path, "picture")
    try:
        with warnings.catch_warnings():
            # Pillow's own guard; ours is below, and says what is accepted.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                return _fitted(image, height, width)
    except Image.DecompressionBombError:
        raise ValueError(f"{path} is too large a picture: at most {MOST_PIXELS / 1e6:.0f} megapixels.") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read, such as PNG, JPEG or WebP.") from None
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, struct.error):
        raise ValueError(f"{path} is damaged and cannot be read as a picture.") from None


def to_picture(picture: str | os.PathLike[str] | Image.Image | np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in whatever form as one frame, uint8 ``[height, width, 3]``.

    Args:
        picture: a file, a PIL image, or an array ``[height, width, 3]`` (uint8, or numbers from 0 to 1); any size.
        height, width: wanted, in pixels.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(picture, (str, os.PathLike)):
        return read_picture(picture, height, width)
    if isinstance(picture, Image.Image):
        return _fitted(picture, height, width)
    array = np.asarray(picture) if isinstance(picture, np.ndarray) else None
    if array is None or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        shown = type(picture).__name__ if array is None else f"an array of shape {list(array.shape)}"
        raise ValueError(f"A picture must be a file, a PIL image, or {_ARRAYS}, not {shown}.")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"A picture must be a file, a PIL image, or {_ARRAYS}, not other {array.dtype} numbers.")
        array = np.round(array * 255).astype(np.uint8)
    if array.shape[:2] == (height, width):
        return array
    return _fitted(Image.fromarray(np.ascontiguousarray(array)), height, width)


def _fitted(image: Image.Image, height: int, width: int) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, _PAPER), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _check_file(path: Path, what: str) -> None:
    if not path.exists():
        raise ValueError(f"There is no {what} {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file, and so no {what}.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ValueError(f"The {what} {path} cannot be read ({error.strerror or error}).") from None
    if empty:
        raise ValueError(f"{path} is empty, and so no {what}.")


@dataclass(frozen=True)
class Clip:
    """A video file as frames of one size and rate: ``len(clip)`` of them, decoded anew by every ``iter(clip)`` and
    never more than one in memory. Made by :func:`read_clip`.

    A frame shows what the file shows in the middle of its time; where the file is silent, what was shown last.
    """

    path: Path
    height: int
    width: int
    fps: int
    start: Fraction
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        from longtake.video import read_timed_frames

        source = ((time - self.start, frame) for time, frame in read_timed_frames(self.path))
        now = next(source, None)
        if now is None:
            raise ValueError(f"{self.path} has no frames in it.")
        following = next(source, None)
        shown = to_picture(now[1], self.height, self.width)
        for index in range(self.count):
            middle, newer = Fraction(2 * index + 1, 2 * self.fps), None
            while following is not None and following[0] <= middle:
                newer, following = following[1], next(source, None)
            if newer is not None:  # resized only if it is shown
                shown = to_picture(newer, self.height, self.width)
            yield shown


def read_clip(path: str | os.PathLike[str], height: int, width: int, fps: int) -> Clip:
    """A video file as frames of a take's size, at its rate by the file's time stamps.

    The length is read from the time stamps of the whole file, and the first frame is decoded, so that a file that is no
    video is refused here; damage further on shows when it is read.

    Raises:
        ValueError: in one sentence, if there is no such file, or it is no video or has no frames.
    """
    from longtake.video import read_timed_frames, shown_until

    path = Path(path)
    _check_file(path, "video")
    try:
        end = shown_until(path)
        first = next(read_timed_frames(path), None)
    except OSError as error:
        raise ValueError(f"The video {path} cannot be read ({error.strerror or error}).") from None
    if first is None:
        raise ValueError(f"{path} has no frames that can be decoded.")
    return Clip(path, height, width, fps, first[0], max(1, round((end - first[0]) * fps)))


def to_clip(video: Any, height: int, width: int, fps: int) -> Clip | Sequence[np.ndarray]:
    """A video in whatever form as frames uint8 ``[height, width, 3]``; it has a length.

    Args:
        video: a file; a :class:`Clip`; or frames at the rate ``fps``, each as :func:`to_picture` takes them, in a list,
            an array ``[frames, height, width, 3]`` or anything else that can be run through (and is, at once).
        height, width: wanted, in pixels.
        fps: frames per second wanted of a file.

    Raises:
        ValueError: if it is none of these, or has no frames.
    """
    if isinstance(video, (str, os.PathLike)):
        return read_clip(video, height, width, fps)
    if isinstance(video, Clip):
        if (video.height, video.width, video.fps) != (height, width, fps):
            return read_clip(video.path, height, width, fps)
        return video
    if not isinstance(video, Iterable):
        raise ValueError(f"A video must be a file, or frames in a list or array, not {type(video).__name__}.")
    frames = [to_picture(frame, height, width) for frame in video]
    if not frames:
        raise ValueError("A video to continue needs at least one frame.")
    return frames


def portions(
    frames: Iterable[np.ndarray], sizes: Sequence[int], height: int, width: int, drop: int = 0
) -> Iterator[np.ndarray]:
    """Cuts frames into portions, holding one portion at a time.

    Args:
        frames: uint8 ``[height, width, 3]``; more than asked for are not looked at.
        sizes: frames per portion.
        height, width: what every frame must have.
        drop: how many frames to leave out first; below zero, how often to give the first one more than once.

    Yields:
        uint8 ``[size, height, width, 3]``.

    Raises:
        ValueError: if a frame is something else, or they end too early.
    """
    source = iter(frames)
    given = 0
    if drop < 0 and (first := next(source, None)) is not None:
        source = itertools.chain([first] * (1 - drop), source)
    for _ in range(drop):
        given += next(source, None) is not None
    for size in sizes:
        part = list(itertools.islice(source, size))
        given += len(part)
        if len(part) < size:
            raise ValueError(f"The given video ended after {given} of {sum(sizes) + max(drop, 0)} frames.")
        for frame in part:
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape != (height, width, 3):
                shown = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
                raise ValueError(f"Given frames must be arrays of uint8 [{height}, {width}, 3], not {shown}.")
        yield np.stack(part)
