"""From files to a pipeline: loads the parts of a model, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from longtake.checkpoints.layout import some, transformer_settings
from longtake.checkpoints.memory_weights import memory_of
from longtake.checkpoints.original import load_components
from longtake.checkpoints.published import load_transformer
from longtake.checkpoints.sources import Sources
from longtake.pipeline import LongTakePipeline


@torch.no_grad()
def check_finite(module: torch.nn.Module, source: str) -> None:
    """Refuses weights that are no numbers: one is enough to make every picture black.

    Args:
        module: with all its weights loaded.
        source: for messages.

    Raises:
        ValueError: names the first few.
    """
    # An extreme is infinite or not a number if any of them is; found in one pass that allocates nothing.
    broken = [
        name
        for name, x in module.named_parameters()
        if x.numel() and not all(bool(extreme.isfinite()) for extreme in torch.aminmax(x))
    ]
    if broken:
        raise ValueError(f"The weights in {source} are not all finite numbers: {some(broken)}.")


def assemble(sources: Sources, dtype: torch.dtype, settings: Mapping[str, Any], shift: float) -> LongTakePipeline:
    """The pipeline of a model, on the CPU.

    Args:
        sources: its files; LoRAs are fused. Weights of a learned memory that are among them are loaded too.
        dtype: of all weights that diffusers does not keep in float32.
        settings: of the pipeline: ``denoising_steps``, ``chunk_frames``, ``fps`` and ``default_size``.
        shift: of its scheduler.

    Raises:
        ValueError: if the weights are not exactly those that the model needs; names them.
    """
    like = transformer_settings(sources.components)
    transformer = load_transformer(sources.transformer, sources.key, dtype, like=like, loras=sources.loras)
    tokenizer, text_encoder, vae = load_components(sources.components, dtype)
    for part, where in (
        (transformer, sources.transformer),
        (text_encoder, sources.components),
        (vae, sources.components),
    ):
        check_finite(part, str(where))
    pipe = LongTakePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        **settings,
    )
    memory = memory_of(sources.memory, sources.transformer, sources.components, sources.loras)
    if memory is not None:
        pipe.load_memory(memory)
    return pipe
