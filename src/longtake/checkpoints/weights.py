"""Tensors out of files that nobody vouches for: never runs code, and says in one sentence what is wrong."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.checkpoints.layout import file_kind, some

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}  # FSDP, activation checkpoints, compile
_OUTER = {"module", "model", "generator", "diffusion_model", "transformer", "base_model"}


def bare_name(key: str) -> str:
    """A weight's name without what trainers wrap around a model: ``blocks.0.self_attn.q.weight`` for
    ``model._fsdp_wrapped_module.blocks.0._orig_mod.self_attn.q.weight``."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _OUTER:
        parts = parts[1:]
    return ".".join(parts)


def bare(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same tensors under their bare names.

    Raises:
        ValueError: if two have the same; names both.
    """
    names: dict[str, str] = {}
    for key in tensors:
        name = bare_name(key)
        if name in names:
            raise ValueError(f"{source} holds {name} twice, as {names[name]} and as {key}.")
        names[name] = key
    return {name: tensors[key] for name, key in names.items()}


def _read_pickle(path: Path, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # PyTorch's restricted unpickler says which class or function it was asked for. It also meets odd bytes.
        if re.search(r"error:\s.*(GLOBAL|reduce for|got <class)", str(error), re.DOTALL):
            raise ValueError(
                f"{path} holds more than tensors and could run code when it is opened, so it was not; accepted are "
                "checkpoints of tensors alone."
            ) from None
    except Exception as error:  # a damaged pickle fails in any way there is
        if isinstance(error, MemoryError) or "annot allocate memory" in str(error):
            raise ValueError(f"{path} does not fit into memory.") from None
    raise ValueError(f"{path} is damaged or cut short, or not a checkpoint of tensors.")


def read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """What a checkpoint holds, tensors mapped from the file where that is possible, and the metadata of safetensors.

    Pickles are read with ``weights_only=True``: tensors and plain values, no code.

    Raises:
        ValueError: if it cannot be read, or must not be.
    """
    kind = file_kind(path)
    if kind != "safetensors":
        return _read_pickle(path, zipped=kind == "zip"), {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, KeyError):
        raise ValueError(f"{path} is damaged or cut short.") from None


def choose(content: Any, key: str | None, preferred: Sequence[str], source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which may hold several sets of them.

    Args:
        content: what :func:`read_file` gave.
        key: of the set that is wanted; None: the first of ``preferred`` that is there, else what lies at the top.
        preferred: keys, best first.
        source: for messages.

    Raises:
        ValueError: if there is no such set, or something in it is not a dense tensor.
    """
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{source} is not a checkpoint: it holds no weights by name.")
    sets = [name for name, value in content.items() if isinstance(value, Mapping)]
    has = f"it has {some(sets, 8)}" if sets else "its weights lie at the top, so leave the key out"
    if key is not None and key not in sets:
        raise ValueError(f"{source} has no weights under {key!r}; {has}.")
    if key is None:
        key = next((name for name in preferred if name in sets), None)
    chosen = content if key is None else content[key]
    if key is None and not any(isinstance(value, Tensor) for value in content.values()):
        model = not any("lora" in name for name in preferred)
        if model and any("lora_" in str(name) for found in sets for name in content[found]):
            raise ValueError(f"{source} is a LoRA and not a model; it can be added to one with --lora.")
        known = f", or say which key ({some(sets, 8)})" if sets else ""
        raise ValueError(
            f"{source} holds no weights; accepted are {', '.join(preferred)} or weights at the top{known}."
        )
    wrong = [str(name) for name, value in chosen.items() if not isinstance(name, str) or not _is_dense(value)]
    if wrong:
        raise ValueError(f"{source} holds things that are no weights: {some(wrong)}.")
    if not chosen:
        raise ValueError(f"{source} holds no weights under {key!r}.")
    return dict(chosen)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def check_dtypes(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuses numbers that are no weights: whole ones, and those of 8 bits, which need scales of their own.

    Raises:
        ValueError: names the first few.
    """
    wrong = [f"{name} ({str(x.dtype).removeprefix('torch.')})" for name, x in tensors.items() if x.dtype not in DTYPES]
    if wrong:
        raise ValueError(f"{source} holds numbers other than float32, float16 and bfloat16: {some(wrong)}.")


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The smallest dtype that holds all of them without rounding."""
    found = torch.bfloat16 if all(x.dtype is torch.bfloat16 for x in tensors.values()) else torch.float16
    return found if all(x.dtype is found for x in tensors.values()) else torch.float32


def metadata_settings(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A JSON object out of safetensors metadata; empty if there is none."""
    try:
        data = json.loads(metadata.get(name, "{}"))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
