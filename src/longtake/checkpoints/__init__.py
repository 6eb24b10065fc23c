"""Named models, and how to load one. Loading this package does not load torch."""

from __future__ import annotations

import os
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


def _strict(loader: Any, folder: Path, part: str, **options: Any) -> Any:
    """One part of a model, with every weight accounted for: diffusers itself only warns, or fails much later."""
    try:
        model, info = loader.from_pretrained(folder, subfolder=part, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"The {part} in {folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(n) for n in info.get(f"{kind}_keys") or ())
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ValueError(f"The {part} in {folder} has {kind} weights: {', '.join(names[:5])}{more}.")
    return model


def load(name: str = "pocket", dtype: Any = None, device: str = "cpu") -> LongTakePipeline:
    """Loads a model by name or folder, strictly.

    Args:
        name: see :func:`find_model`.
        dtype: a ``torch.dtype``; float32 by default.
        device: where to put it.

    Raises:
        ValueError: if there is no such model, or its weights are not exactly those it needs; names them.
    """
    folder = find_model(name)
    # Must be there before torch is loaded. Where anything else is running, threads that wait busily make every small
    # operation of a CPU take tens of times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from diffusers.pipelines import pipeline_utils
    from transformers import UMT5EncoderModel

    from longtake.pipeline import LongTakePipeline

    # Newer diffusers warn about `torch_dtype`, older ones do not know `dtype`.
    name_of_dtype = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"
    options = {name_of_dtype: dtype or torch.float32}
    parts = {
        "transformer": _strict(WanTransformer3DModel, folder, "transformer", **options),
        "vae": _strict(AutoencoderKLWan, folder, "vae", **options),
        "text_encoder": _strict(UMT5EncoderModel, folder, "text_encoder", dtype=dtype or torch.float32),
    }
    pipe = LongTakePipeline.from_pretrained(folder, **parts, **options)
    pipe.to(device)
    return pipe
