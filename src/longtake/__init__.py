"""Longtake: video models that never have to stop.

from longtake import LongTakePipeline, load
pipe = load("pocket")
frames = pipe("a red ball rolls over a meadow", seconds=10).frames[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from longtake.batch import Batch
    from longtake.checkpoints import load
    from longtake.pipeline import LongTakePipeline, LongTakePipelineOutput
    from longtake.take import Chunk, Take

__all__ = ["Batch", "Chunk", "LongTakePipeline", "LongTakePipelineOutput", "Take", "__version__", "load"]

_WHERE = {
    "Batch": "longtake.batch",
    "load": "longtake.checkpoints",
    "LongTakePipeline": "longtake.pipeline",
    "LongTakePipelineOutput": "longtake.pipeline",
    "Chunk": "longtake.take",
    "Take": "longtake.take",
}


def __getattr__(name: str) -> object:
    # torch and diffusers take seconds to import: only who asks for them pays
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
