"""Replay a recorded run of a published pipeline and measure how far Longtake is from it.

A recording is one safetensors file: a small transformer's weights (``weights.*``, published Wan names), every input
(``noise`` [1, frames, channels, h, w], ``renoise`` [chunks * (steps - 1), frames per chunk, channels, h, w] in order
of use, ``text`` [1, tokens, dim], ``timesteps`` [steps]) and the latents that the pipeline made of them (``latents``,
like ``noise``), with the settings as JSON under ``spec`` in the metadata.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.checkpoints.wan import wan_to_diffusers
from longtake.memory.memrope import MemRoPE
from longtake.memory.policy import MemoryPolicy
from longtake.memory.sliding import Sliding
from longtake.sampling import FewStepSchedule

_COMMON = {"policy", "capacity", "sink", "rope", "chunk", "model"}
_KEYS = {"sliding": _COMMON, "memrope": _COMMON | {"pooling", "alpha_long", "alpha_short", "adaptive"}}
_INPUTS = ("noise", "renoise", "text", "timesteps", "latents")
_MODEL = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "patch_size": (1, 2, 2)}


@dataclass(frozen=True)
class Parity:
    """How a replay compares: the largest absolute difference of any latent (infinite if one is not a number)."""

    policy: str
    chunks: int
    max_abs_diff: float


def policy_of(spec: Mapping[str, Any]) -> MemoryPolicy:
    """The memory policy of a recording's settings, with the published code's behaviour where it has its own.

    Raises:
        ValueError: for a policy that is not supported, an unknown setting or a bad value.
    """
    name = spec.get("policy")
    if name not in _KEYS:
        raise ValueError(f"Recordings of policy {name!r} are not supported yet; supported are {', '.join(_KEYS)}.")
    unknown = set(spec) - _KEYS[name]
    if unknown:
        raise ValueError(f"Unknown settings for {name}: {', '.join(sorted(unknown))}.")
    for key in ("capacity", "sink", "chunk"):
        if not isinstance(spec.get(key, 3), int):
            raise ValueError(f"{key} must be a whole number of frames, not {spec[key]!r}.")
    if name == "sliding":
        return Sliding(spec.get("capacity", 21), spec.get("sink", 0), spec.get("rope", "absolute"))
    sink, capacity, chunk = spec.get("sink", 3), spec.get("capacity", 12), spec.get("chunk", 3)
    return MemRoPE(
        sink=sink,
        recent=capacity - sink - 2 - chunk,
        long=spec.get("alpha_long", 0.01),
        short=spec.get("alpha_short", 0.1),
        pooling=spec.get("pooling", "global"),
        adaptive=spec.get("adaptive", False),
        ids=spec.get("rope", "relative"),
        first_eviction="released",
    )


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no recording at {path}.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            spec = json.loads((file.metadata() or {}).get("spec", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} is not a recording in safetensors format: {error}.") from None
    if not isinstance(spec, dict):
        raise ValueError(f"{path.name} is not a recording: its metadata has no 'spec'.")
    missing = [name for name in _INPUTS if name not in tensors]
    if missing:
        raise ValueError(f"{path.name} is not a complete recording: it has no {', '.join(missing)}.")
    return spec, tensors


def _build(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WanTransformer3DModel:
    settings = {**_MODEL, **spec.get("model", {})}
    unknown = set(settings) - set(inspect.signature(WanTransformer3DModel.__init__).parameters)
    if unknown:
        raise ValueError(f"Unknown model settings: {', '.join(sorted(unknown))}.")
    transformer = WanTransformer3DModel(**settings)
    weights = {name[len("weights.") :]: x for name, x in tensors.items() if name.startswith("weights.")}
    try:
        transformer.load_state_dict(wan_to_diffusers(weights), strict=True)
    except RuntimeError as error:
        raise ValueError(f"The recorded weights do not fit the recorded model settings: {error}") from None
    return transformer.eval().requires_grad_(False).to(tensors["noise"].device)


@torch.no_grad()
def replay(path: str | Path, device: torch.device | str = "cpu") -> Parity:
    """Run a recording again, in float32.

    Args:
        path: the safetensors file.
        device: where to run.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not a recording, or one that is not supported, in one sentence.
    """
    spec, tensors = _read(Path(path), device)
    policy = policy_of(spec)
    noise, renoise, text, latents = (tensors[name].float() for name in ("noise", "renoise", "text", "latents"))
    chunk = spec.get("chunk", 3)
    if noise.shape[1] % chunk:
        raise ValueError(f"A recording of {noise.shape[1]} frames has no whole number of chunks of {chunk}.")
    schedule = FewStepSchedule(tensors["timesteps"].float().cpu())
    draws = (noise.shape[1] // chunk, len(schedule) - 1, chunk)
    if tuple(renoise.shape[:2]) != (draws[0] * draws[1], chunk):
        raise ValueError(f"renoise must be [{draws[0] * draws[1]}, {chunk}, ...], not {list(renoise.shape)}.")
    fresh = renoise.view(*draws, *renoise.shape[2:])
    transformer = _build(spec, tensors)
    memory = memory_for(transformer, policy, *noise.shape[-2:], batch=noise.shape[0], chunk=chunk)
    worst = 0.0
    for start in range(0, noise.shape[1], chunk):
        frames = slice(start, start + chunk)
        x = noise[:, frames].transpose(1, 2)
        memory.begin_chunk()
        with attending(transformer, memory):
            for index in range(len(schedule)):
                if index:
                    x = schedule.renoise(x, fresh[start // chunk, index - 1].transpose(0, 1)[None], index)
                timestep = schedule.timesteps[index].to(x.device).expand(x.shape[0])
                x = schedule.x0(x, transformer(x, timestep, text, return_dict=False)[0], index)
            with memory.recording():
                transformer(x, torch.zeros_like(timestep), text, return_dict=False)
        difference = (x - latents[:, frames].transpose(1, 2)).abs().max().item()
        worst = max(worst, difference if difference == difference else float("inf"))
    return Parity(str(spec["policy"]), noise.shape[1] // chunk, worst)
