"""What the world's readers see in takes of a model, held against what their prompts named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from longtake.pocket.world import names, read
from longtake.pocket.world.words import understand
from longtake.training.stage import Figure

_NAMES: dict[str, tuple[str, ...]] = {
    "place": names.PLACES,
    "light": names.LIGHTS,
    "color": names.COLORS,
    "shape": names.SHAPES,
    "pattern": names.PATTERNS,
}
_OF_SUBJECT = ("color", "shape", "pattern")


@torch.no_grad()
def read_takes(pictures: Tensor | None, prompts: Sequence[str], bar: float = 0.9) -> Mapping[str, Figure]:
    """How often what a prompt names is what the readers see, by attribute.

    Of a subject's attributes, frames count in which the readers see a subject whole; ``seen`` is the share of frames
    with any. Light that turns is right whatever it is.

    Args:
        pictures: uint8 ``[takes, frames, height, width, 3]``, or None for none.
        prompts: one per take.
        bar: that all but the pattern are held against.
    """
    if pictures is None:
        return {}
    right: dict[str, list[float]] = {name: [] for name in _NAMES}
    visible: list[float] = []
    for frames, prompt in zip(pictures, prompts, strict=True):
        said = understand(prompt)
        reading = read(frames.permute(0, 3, 1, 2).float() / 255)
        whole = reading.visible & ~reading.edge
        visible.append(float(reading.visible.float().mean()))
        for name, values in _NAMES.items():
            if name not in said or said[name] == "turning":
                continue
            found = getattr(reading, name) == values.index(said[name])
            if name in _OF_SUBJECT:
                found = found[whole]
            if len(found):
                right[name].append(float(found.float().mean()))
    figures = {
        name: Figure(
            sum(shares) / len(shares), None if name == "pattern" else bar, "higher", f"share of {name} read right"
        )
        for name, shares in right.items()
        if shares
    }
    return {**figures, "seen": Figure(sum(visible) / max(1, len(visible)), None, "higher", "frames with a subject")}
