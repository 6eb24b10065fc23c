"""What a picture shows, as one vector of length 1: a fixed feature that needs no download, or a learned one that does.

The fixed feature (693 numbers) knows where which colours and edges are, and nothing of what they mean: it tells a place
from another one and a faded picture from a fresh one, but not a person from somebody who looks much the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Extract = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB ``[height, width, 3]`` to a float32 vector of length 1."""

_SIZE = 64  # pixels; pictures are shrunk to a square of these
_FINE = 4  # cells of the finest grid, in each direction; coarser ones are put together of these
_COLOURS = 8  # bins per channel
_ANGLES = 8
_CHROMA = 0.6  # opponent channels beyond this, which are rare, count as this
_EDGE = 0.02  # gradient, of full scale per pixel, at which a cell has as much of edges as of none


def fixed_feature(frame: np.ndarray) -> np.ndarray:
    """Colours and edges of a picture in grids of 1x1, 2x2 and 4x4 cells.

    In each cell there are four histograms, each of sum 1: of luma and of two opponent colours (8 bins each, soft), and
    of the directions of edges by their strength (8 bins over 180 degrees, soft, and one for "no edge"). The vector
    holds the square roots, all grids with the same weight, so that the cosine of two vectors is the mean Bhattacharyya
    coefficient of their histograms: 1 for the same picture, 0 for two that have nothing in common.

    Sources: histograms of oriented gradients, Dalal and Triggs 2005; opponent colours, van de Sande et al. 2010;
    spatial pyramids, Lazebnik et al. 2006.

    Args:
        frame: uint8 RGB ``[height, width, 3]``.

    Returns:
        float32 ``[693]`` of length 1.
    """
    small = Image.fromarray(np.ascontiguousarray(frame)).resize((_SIZE, _SIZE), Image.Resampling.BOX)
    red, green, blue = np.asarray(small, np.float32).transpose(2, 0, 1) / 255
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    cell = np.repeat(np.arange(_FINE), _SIZE // _FINE)
    cells = cell[:, None] * _FINE + cell
    channels = [y, *((c / _CHROMA).clip(-1, 1) / 2 + 0.5 for c in (red - green, (red + green) / 2 - blue))]
    parts = [_soft(cells, c * (_COLOURS - 1), np.ones_like(c), _COLOURS, False) for c in channels]
    gy, gx = np.gradient(y)
    angle = np.arctan2(gy, gx) / np.pi % 1 * _ANGLES
    edges = _soft(cells, angle, np.hypot(gy, gx), _ANGLES, True)
    none = np.full((len(edges), 1), _EDGE * (_SIZE // _FINE) ** 2)
    parts.append(np.concatenate([none, edges], 1))
    vectors = []
    for grid in (1, 2, 4):
        for part in parts:
            span = _FINE // grid
            joined = part.reshape(grid, span, grid, span, -1).sum((1, 3)).reshape(grid * grid, -1)
            shares = joined / joined.sum(1, keepdims=True)
            vectors.append(np.sqrt(shares / (3 * len(parts) * grid * grid)).ravel())
    return np.concatenate(vectors).astype(np.float32)


def _soft(cells: np.ndarray, position: np.ndarray, weight: np.ndarray, bins: int, around: bool) -> np.ndarray:
    """Histograms per cell, ``[cells, bins]``, every value shared by the two bins next to it."""
    low = np.floor(position).astype(np.int64).clip(0, bins - 1)
    part = position - low
    high = (low + 1) % bins if around else np.minimum(low + 1, bins - 1)
    index = np.concatenate([(cells * bins + low).ravel(), (cells * bins + high).ravel()])
    shares = np.concatenate([(weight * (1 - part)).ravel(), (weight * part).ravel()])
    return np.bincount(index, shares, minlength=_FINE**2 * bins).reshape(_FINE**2, bins)


class Learned(NamedTuple):
    """A network whose features can be used, and how much of it is downloaded."""

    repository: str
    megabytes: int
    why: str


LEARNED = {
    "dino": Learned("facebook/dino-vitb16", 343, "the network of VBench's subject consistency"),
    "clip": Learned("openai/clip-vit-base-patch32", 605, "the network of VBench's background consistency"),
    "dinov2": Learned("facebook/dinov2-base", 346, "stronger than DINO"),
}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def check_features(name: str) -> None:
    """Whether there are such features, without loading them.

    Raises:
        ValueError: there are not.
    """
    if name != "fixed" and name not in LEARNED and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"--features takes fixed, {', '.join(LEARNED)}, or a folder of a vision transformer; not {name!r}."
        )


def load_features(name: str) -> Extract:
    """The features of that name.

    Args:
        name: ``fixed``; a name of `LEARNED`, downloaded on first use; or a folder with a vision transformer that
            transformers can load. Learned features are the class token (CLIP: the image embedding).

    Raises:
        ValueError: no such features, or they cannot be loaded or downloaded.
    """
    check_features(name)
    return fixed_feature if name == "fixed" else _learned(name)


def _learned(name: str) -> Extract:
    import torch
    from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

    known = LEARNED.get(name)
    where = known.repository if known else os.fspath(name)
    try:
        config = AutoConfig.from_pretrained(where)
        clip = config.model_type.startswith("clip")
        network: Any = (CLIPVisionModelWithProjection if clip else AutoModel).from_pretrained(where).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        if known is None:
            raise ValueError(f"The features in {name} cannot be loaded ({reason}).") from None
        raise ValueError(
            f"The features {name!r} are {where}, {known.megabytes} MB that must be downloaded once, and that did not "
            f"work ({reason}); --features fixed needs no download."
        ) from None
    vision = getattr(config, "vision_config", config)
    size = 224 if known else int(getattr(vision, "image_size", 224))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (_CLIP if clip else _IMAGENET))

    def extract(frame: np.ndarray) -> np.ndarray:
        # The whole picture, squeezed to a square: what leaves at the sides is seen, too.
        image = Image.fromarray(np.ascontiguousarray(frame)).resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            out = network(pixel_values=((pixels - mean) / deviation)[None])
            vector = (out.image_embeds if clip else out.last_hidden_state[:, 0])[0].float()
            return torch.nn.functional.normalize(vector, dim=0).numpy()

    return extract
