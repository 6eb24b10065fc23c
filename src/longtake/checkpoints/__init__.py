"""Models: those known by name, published checkpoints, and how to load one. Loading this package does not load torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.checkpoints.choice import Choice
from longtake.checkpoints.registry import ModelInfo, load_registry
from longtake.checkpoints.sources import LoraFile, Sources
from longtake.process import wait_passively

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline

__all__ = ["Choice", "LoraFile", "ModelInfo", "Sources", "load", "load_registry"]


def load(
    name: str | Choice = "pocket",
    dtype: Any = None,
    device: str | None = None,
    *,
    components: str | os.PathLike[str] | None = None,
    loras: Sequence[str | LoraFile] = (),
    memory_weights: str | os.PathLike[str] | None = None,
    devices: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    offload: str | None = None,
    quantize: str | None = None,
) -> LongTakePipeline:
    """Loads a model, strictly: every weight is accounted for. A named one that is not here yet is downloaded first.

    Args:
        name: a name of ``longtake models``; a folder saved by diffusers; an original Wan folder; or a published
            checkpoint (.pt, .pth, .safetensors), which may be followed by ``#`` and the key of its weights.
        dtype: a ``torch.dtype``; float32 by default on a CPU, bfloat16 on a GPU.
        device: where to put it; the CPU by default.
        components: a diffusers or original Wan folder for everything but the transformer. By default a bare
            transformer gets that of the Wan of its size, which may be downloaded.
        loras: files of LoRA weights, as "PATH" or "PATH:SCALE", to be fused into the weights in this order.
        memory_weights: of a learned memory, a file or folder, in place of the model's own; see
            :meth:`LongTakePipeline.load_memory`.
        devices: two or more instead of one: the blocks are split between them, see :func:`longtake.placement.place`.
        layers: blocks per device; as even as can be by default.
        offload: what waits on the CPU, see :data:`longtake.placement.OFFLOADS`; by default the text encoder if the
            device is a GPU.
        quantize: "fp8" or "int8": how the blocks' weights are kept, see :func:`longtake.quantize.quantize`.

    Raises:
        ValueError: if there is no such model, a download fails, or the weights are not exactly those it needs; one
            sentence.
    """
    from longtake.checkpoints.assemble import assemble
    from longtake.checkpoints.hub import download
    from longtake.checkpoints.sources import parse_lora
    from longtake.facts import ModelFacts

    choice = name if isinstance(name, Choice) else Choice(name)
    more = tuple(parse_lora(x) if isinstance(x, str) else x for x in loras)
    folder = choice.components if components is None else Path(components)
    memory = choice.memory if memory_weights is None else Path(memory_weights)
    choice = replace(choice, components=folder, loras=(*choice.loras, *more), memory=memory)
    facts = ModelFacts.read(choice)
    sources = download(facts.info)
    wait_passively()  # before torch is loaded
    import torch

    from longtake.placement import check_devices, check_offload, place
    from longtake.quantize import quantize as quantized

    wanted = tuple(devices) or (device or "cpu",)
    on_gpu = any(x.startswith("cuda") for x in wanted)
    offload = offload or ("text" if on_gpu else "none")
    check_devices(wanted)
    check_offload(offload, wanted)
    dtype = dtype or (torch.bfloat16 if on_gpu else torch.float32)
    settings = {
        "denoising_steps": facts.denoising_steps,
        "chunk_frames": facts.chunk,
        "fps": facts.fps,
        "default_size": facts.size,
    }
    pipe = assemble(sources, dtype, settings, facts.shift)
    if quantize is not None:
        quantized(pipe.transformer, quantize)
    place(pipe, wanted, offload, layers)
    return pipe
