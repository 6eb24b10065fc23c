"""Where the parts of a model lie on this computer. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

MOST_SCALE = 100.0  # of a LoRA: far beyond what leaves a picture, and far from what float32 cannot hold


@dataclass(frozen=True)
class LoraFile:
    """A file of LoRA weights, how strongly it acts, and under which top-level key its weights lie (None: find out)."""

    path: Path
    scale: float = 1.0
    key: str | None = None


@dataclass(frozen=True)
class Sources:
    """Everything that is loaded for a model.

    Attributes:
        transformer: a diffusers folder (with ``transformer/``), a checkpoint file (``.pt``, ``.pth``,
            ``.safetensors``), or an original Wan folder.
        components: a diffusers folder with ``vae/``, ``text_encoder/`` and ``tokenizer/``, or an original Wan folder;
            may be the same as ``transformer``.
        key: of the transformer's weights in a checkpoint file with several (``generator_ema``); None: the best there
            is.
        loras: fused in this order.
        memory: weights of a learned memory; None where they are found beside, or in, one of the others, if at all.
    """

    transformer: Path
    components: Path
    key: str | None = None
    loras: tuple[LoraFile, ...] = ()
    memory: Path | None = None


def parse_lora(text: str) -> LoraFile:
    """A LoRA as the command line takes it, ``PATH[:scale]``: ``style.safetensors:0.5``.

    A colon that is part of the path (``C:/loras/style.safetensors``) is none of a scale.

    Raises:
        ValueError: if there is no such file, or the scale is not a number.
    """
    if text and (whole := Path(text).expanduser()).is_file():
        return LoraFile(whole)
    path, colon, after = text.rpartition(":")
    if colon and path and Path(path).expanduser().is_file():
        try:
            scale = float(after)
        except ValueError:
            scale = math.nan
        if not abs(scale) <= MOST_SCALE:
            raise ValueError(
                f"The scale of a LoRA must be a number from -{MOST_SCALE:g} to {MOST_SCALE:g}, as in {path}:0.5, "
                f"not {after!r}."
            )
        return LoraFile(Path(path).expanduser(), scale)
    raise ValueError(f"There is no LoRA at {text!r}; accepted is a file, or FILE:SCALE.")
