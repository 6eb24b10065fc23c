"""Frames as pictures: a grid with captions, and short animations for a page that cannot show video."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

_GAP = 4  # pixels between pictures
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(
    frames: Iterable[np.ndarray], columns: int, labels: Sequence[str] | None = None, label_size: int = 12
) -> Image.Image:
    """Pictures in rows of `columns`, each with a caption below it if there are `labels`.

    Args:
        frames: uint8 RGB, each [height, width, 3] and all of one size.
        columns: pictures per row, at least 1.
        labels: one caption per picture.
        label_size: height of the letters in pixels.

    Raises:
        ValueError: no frames, frames of different sizes or types, or a wrong number of labels or columns.
    """
    pictures = _pictures(frames)
    if columns < 1:
        raise ValueError(f"A sheet needs at least 1 column, not {columns}.")
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures need as many labels, not {len(labels)}.")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    caption = label_size + _GAP if labels is not None else 0
    step_x, step_y = width + _GAP, height + caption + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(label_size)
    for index, picture in enumerate(pictures):
        x, y = _GAP + index % columns * step_x, _GAP + index // columns * step_y
        sheet.paste(picture, (x, y))
        if labels is not None:
            draw.text((x, y + height + _GAP // 2), _fitted(labels[index], width, font), fill=_INK, font=font)
    return sheet


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, shortened so that it does not run into its neighbour's."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def save_animation(frames: Iterable[np.ndarray], path: str | os.PathLike[str], fps: float, quality: int = 80) -> None:
    """Writes frames, each uint8 RGB [height, width, 3], as an endlessly repeating WebP or GIF, chosen by the suffix.

    Frames are held in memory: this is for seconds, not minutes. `quality` (0 to 100) is for WebP only.

    Raises:
        ValueError: another suffix, no frames, frames of different sizes, or a rate that is not positive.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".webp", ".gif"):
        raise ValueError(f"An animation is saved as .webp or .gif, not as {os.fspath(path)}.")
    if kind == ".webp" and not features.check("webp"):
        raise ValueError("The installed Pillow cannot write WebP, save the animation as .gif.")
    if not 0 < fps <= 1000:
        raise ValueError(f"The frame rate must be above 0 and at most 1000 frames per second, not {fps}.")
    pictures = _pictures(frames)
    # The formats count whole milliseconds and hundredths: rounding the moments, not the durations, keeps the pace.
    unit = 1 if kind == ".webp" else 10
    moments = [round(index * 1000 / fps / unit) * unit for index in range(len(pictures) + 1)]
    durations = [after - before for before, after in itertools.pairwise(moments)]
    options: dict[str, Any] = {"quality": quality, "method": 4} if kind == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)


def _pictures(frames: Iterable[np.ndarray]) -> list[Image.Image]:
    arrays = [np.asarray(frame) for frame in frames]
    if not arrays:
        raise ValueError("There are no frames to show.")
    for array in arrays:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.shape != arrays[0].shape:
            raise ValueError("Frames must be uint8 of shape [height, width, 3], all of the same size.")
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
