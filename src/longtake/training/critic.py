"""The two score networks beside a generator: the frozen teacher, and the critic that starts as its copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor


def freeze(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, in evaluation mode and without gradients: a real score."""
    return module.eval().requires_grad_(False)


def critic_from(teacher: Any, dtype: torch.dtype | None = None) -> Any:
    """A critic: a copy of the teacher's weights with gradients, on the same device (DMD, arXiv 2311.18828, section
    3.2: the fake score starts as the real one).

    It is a plain bidirectional ``WanTransformer3DModel`` that sees a clip ``[batch, channels, frames, height, width]``
    whole, at one level: attention processors of a memory, should the teacher have any, are left behind.

    Args:
        teacher: a ``WanTransformer3DModel`` without adapters.
        dtype: of the copy; the teacher's own by default. Train in float32, under autocast if need be: at the
            published learning rate of 4e-7 an update is lost in bfloat16.

    Raises:
        ValueError: if the teacher carries adapters.
    """
    if getattr(teacher, "peft_config", None):
        raise ValueError("A critic is copied from a model without adapters: fuse or unload them first.")
    critic = copy.deepcopy(teacher)
    critic.set_attn_processor(WanAttnProcessor())
    if dtype is not None:
        critic = critic.to(dtype)
    return critic.train().requires_grad_(True)
