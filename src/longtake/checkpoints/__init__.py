"""Named models, and how to load one. Loading this package does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline

_POCKET = Path(__file__).parent.parent / "pocket" / "weights"


@dataclass(frozen=True)
class ModelInfo:
    """A model known by name: one line on what it is, its source, its folder, and its size for planning.

    ``size`` is (height, width) in pixels; ``layers``, ``heads`` and ``head_dim`` are the transformer's.
    """

    description: str
    source: str
    folder: Path
    size: tuple[int, int]
    fps: int = 16
    chunk: int = 3


MODELS: dict[str, ModelInfo] = {
    "pocket": ModelInfo(
        "a tiny Wan in a toy world of 64x64 pixels, real time on a CPU; ships with the package",
        "trained by this project, Apache-2.0",
        _POCKET,
        (64, 64),
    ),
}


def find_model(name: str) -> Path:
    """The folder of a model: a name of :data:`MODELS`, or the path of a folder that diffusers can load.

    Raises:
        ValueError: if it is neither, in one sentence.
    """
    folder = MODELS[name].folder if name in MODELS else Path(name)
    if not (folder / "model_index.json").is_file():
        known = ", ".join(MODELS)
        raise ValueError(f"There is no model {name!r}; accepted are {known}, or a folder saved by diffusers.")
    return folder


def load(name: str = "pocket", dtype: Any = None, device: str = "cpu") -> LongTakePipeline:
    """Loads a model by name or folder.

    Args:
        name: see :func:`find_model`.
        dtype: a ``torch.dtype``; float32 by default.
        device: where to put it.

    Raises:
        ValueError: if there is no such model.
    """
    folder = find_model(name)
    import torch
    from diffusers.pipelines import pipeline_utils

    from longtake.pipeline import LongTakePipeline

    # Newer diffusers warn about `torch_dtype`, older ones do not know `dtype`.
    name_of_dtype = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"
    pipe = LongTakePipeline.from_pretrained(folder, **{name_of_dtype: dtype or torch.float32})
    pipe.to(device)
    return pipe
