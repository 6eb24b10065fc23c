"""LoRA adapters to be trained (arXiv 2106.09685), with PEFT, and saved as ``longtake.checkpoints.lora`` reads them."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import WanLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict

ADAPTER = "default"
"""The adapter's name in the model; PEFT's own choice."""


def block_linears(transformer: Any) -> list[str]:
    """Names of all linear layers of a transformer's blocks, ``blocks.0.attn1.to_q``: what LongLive adapts (arXiv
    2509.22622, released configuration)."""
    return [
        name
        for name, module in transformer.named_modules()
        if name.startswith("blocks.") and isinstance(module, torch.nn.Linear)
    ]


def add_lora(transformer: Any, rank: int, alpha: float | None = None, *, name: str = ADAPTER, seed: int = 0) -> int:
    """Adds adapters to every linear layer of the blocks and freezes everything else. The model computes what it did
    before, until they are trained.

    Args:
        transformer: a ``WanTransformer3DModel``.
        rank: of the adapters.
        alpha: their strength: ``alpha / rank`` times what they compute is added. The rank by default, as in LongLive
            (both 256).
        name: of the adapter; several may be added, and the last is trained.
        seed: of the weights they start with.

    Returns:
        How many layers have one.

    Raises:
        ValueError: if the rank or the alpha is not positive, or the name cannot be had or is taken.
    """
    alpha = rank if alpha is None else alpha
    if rank < 1 or not alpha > 0:
        raise ValueError(f"A LoRA's rank is 1 or more and its alpha above 0, not {rank} and {alpha}.")
    # PEFT makes the name that of a module within a ModuleDict.
    if not name.isidentifier() or hasattr(torch.nn.ModuleDict, name):
        raise ValueError(f"An adapter cannot be called {name!r}; choose another name, such as {ADAPTER!r}.")
    if name in getattr(transformer, "peft_config", {}):
        raise ValueError(f"There is an adapter {name!r} already; choose another name.")
    layers = block_linears(transformer)
    # PEFT keeps the original layer, also a linear one, inside its own: a second adapter goes on the outer.
    layers = [x.removesuffix(".base_layer") for x in layers if ".lora_" not in x]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=layers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant to be possible
        transformer.add_adapter(config, name)
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in transformer.named_parameters():
        parameter.requires_grad_(f".{name}." in parameter_name)
        if f".lora_A.{name}." in parameter_name:
            # PEFT's own distribution, from a seed that is ours: uniform within 1 / sqrt(inputs).
            start = (2 * torch.rand(parameter.shape, generator=generator) - 1) / parameter.shape[1] ** 0.5
            parameter.data.copy_(start)
    return len(layers)


def lora_parameters(transformer: Any, name: str = ADAPTER) -> list[torch.nn.Parameter]:
    """The weights of one adapter, for an optimizer.

    Raises:
        ValueError: if there is no such adapter.
    """
    _config(transformer, name)
    return [p for n, p in transformer.named_parameters() if f".{name}." in n and ".lora_" in n]


def save_lora(transformer: Any, path: str | os.PathLike[str], name: str = ADAPTER) -> None:
    """Writes an adapter as diffusers does: a safetensors file with its alpha in the metadata, which diffusers'
    ``load_lora_weights``, ``longtake.checkpoints.lora`` and ``--lora`` read. Written under a temporary name, flushed,
    then renamed: an older file is replaced only when the new one is whole.

    Raises:
        ValueError: if the path does not end in .safetensors, or there is no such adapter.
        OSError: if the disk does not take it.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"A LoRA is written to a .safetensors file, not to {target.name!r}.")
    config = _config(transformer, name).to_dict()
    # A set has another order in every process.
    config["target_modules"] = sorted(config["target_modules"])
    layers = get_peft_model_state_dict(transformer, adapter_name=name)
    layers = {key: x.detach().to("cpu").contiguous() for key, x in layers.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.safetensors")
    try:
        WanLoraLoaderMixin.save_lora_weights(
            str(target.parent),
            transformer_lora_layers=layers,
            weight_name=temporary.name,
            transformer_lora_adapter_metadata=config,
        )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _config(transformer: Any, name: str) -> LoraConfig:
    configs = getattr(transformer, "peft_config", {})
    if name not in configs:
        raise ValueError(f"The model has no adapter {name!r}; it has {', '.join(configs) or 'none'}.")
    return configs[name]
