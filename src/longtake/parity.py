"""Replay a recorded run of a published pipeline and measure how far Longtake is from it.

A recording is one safetensors file: a small transformer's weights (``weights.*``, published Wan names), every input
(``noise`` [1, frames, channels, h, w], ``renoise`` [chunks * (steps - 1), frames per chunk, channels, h, w] in order
of use, ``text`` [1, tokens, dim], ``timesteps`` [steps]) and the latents that the pipeline made of them (``latents``,
like ``noise``), with the settings as JSON under ``spec`` in the metadata. One of Echo-Infinity has its memory encoder's
weights too (``memory.*``, published names) and may have the state after every update (``memory_states`` [updates,
batch, tokens, width]).
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

from longtake.attention import memory_for
from longtake.checkpoints.memory_weights import build_encoder, encoder_config
from longtake.checkpoints.wan import wan_to_diffusers
from longtake.forward import forwards
from longtake.memory.echo import Echo
from longtake.memory.echo_encoder import MemoryEncoder
from longtake.memory.memrope import MemRoPE
from longtake.memory.policy import MAX_ID, MemoryPolicy
from longtake.memory.sliding import Sliding
from longtake.sampling import FewStepSchedule

_COMMON = {"policy", "capacity", "sink", "rope", "chunk", "model"}
_KEYS = {
    "sliding": _COMMON | {"max_id"},
    "memrope": _COMMON | {"pooling", "alpha_long", "alpha_short", "adaptive"},
    "echo": _COMMON | {"memory_frames", "max_id", "normalize_memory_k", "update"},
}
_INPUTS = ("noise", "renoise", "text", "timesteps", "latents")
_UPDATES = {"begin_chunk": "chunk_start"}  # how recordings may call what has another name here
_MODEL = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "patch_size": (1, 2, 2)}


@dataclass(frozen=True)
class Parity:
    """How a replay compares: the largest absolute difference of any latent (infinite if one is not a number).

    Where a learned memory's states were recorded, ``state_diff`` is theirs. Every update starts from the one before,
    so that differences of rounding grow: from 1e-5 after one to a few 1e-4 after ten, with latents still at 1e-5.
    """

    policy: str
    chunks: int
    max_abs_diff: float
    state_diff: float | None = None


def policy_of(spec: Mapping[str, Any]) -> MemoryPolicy:
    """The memory policy of a recording's settings, with the published code's behaviour where it has its own.

    Raises:
        ValueError: for a policy that is not supported, an unknown setting or a bad value.
    """
    name = spec.get("policy")
    if not isinstance(name, str) or name not in _KEYS:
        raise ValueError(f"Recordings of policy {name!r} are not supported yet; supported are {', '.join(_KEYS)}.")
    unknown = set(spec) - _KEYS[name]
    if unknown:
        raise ValueError(f"Unknown settings for {name}: {', '.join(sorted(unknown))}.")
    for key in ("capacity", "sink", "chunk"):
        if not _whole(spec.get(key, 3), 0 if key == "sink" else 1):
            raise ValueError(f"{key} must be a whole number of frames, not {spec[key]!r}.")
    if name == "sliding":
        return Sliding(
            spec.get("capacity", 21), spec.get("sink", 0), spec.get("rope", "absolute"), spec.get("max_id", MAX_ID)
        )
    sink, capacity, chunk = spec.get("sink", 3), spec.get("capacity", 12), spec.get("chunk", 3)
    if name == "echo":
        if spec.get("rope", "relative") not in ("relative", "unified"):
            raise ValueError(f"Recordings of echo must have relative ids, not {spec['rope']!r}.")
        if not isinstance(spec.get("normalize_memory_k", False), bool):
            raise ValueError(f"normalize_memory_k must be true or false, not {spec['normalize_memory_k']!r}.")
        update = spec.get("update", "after_first_forward")
        if not isinstance(update, str):
            raise ValueError(f"update must be a word, not {update!r}.")
        return Echo(
            frames=spec.get("memory_frames", 3),
            past=capacity - sink - chunk,
            sink=sink,
            max_id=spec.get("max_id", MAX_ID),
            update=_UPDATES.get(update, update),
        )
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


def _whole(value: object, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no recording at {path}.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            spec = json.loads((file.metadata() or {}).get("spec", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a recording in safetensors format: {error}.") from None
    if not isinstance(spec, dict):
        raise ValueError(f"{path.name} is not a recording: its metadata has no 'spec'.")
    missing = [name for name in _INPUTS if name not in tensors]
    if missing:
        raise ValueError(f"{path.name} is not a complete recording: it has no {', '.join(missing)}.")
    return spec, tensors


def _build(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WanTransformer3DModel:
    settings = _model_settings(spec)
    found = wan_to_diffusers({k[len("weights.") :]: x for k, x in tensors.items() if k.startswith("weights.")})
    if not all(x.is_floating_point() for x in found.values()):
        raise ValueError("The recorded weights must be floating-point numbers.")
    layers, recorded = settings.get("num_layers", 40), {k.split(".")[1] for k in found if k.startswith("blocks.")}
    if layers != len(recorded):
        raise ValueError(f"The recording has the weights of {len(recorded)} layers, its model settings say {layers}.")
    try:
        with torch.device("meta"):  # sizes alone, however large they are said to be
            expected = WanTransformer3DModel(**settings).state_dict()
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError):
        raise ValueError(f"No transformer can be made with the recorded model settings {settings}.") from None
    wrong = [k for k in sorted({*expected, *found}) if k not in found or k not in expected]
    wrong += [k for k in expected if k in found and expected[k].shape != found[k].shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"The recorded weights do not fit the model settings: {', '.join(wrong[:3])}{more}.")
    transformer = WanTransformer3DModel(**settings)
    transformer.load_state_dict(found, strict=True)
    return transformer.eval().requires_grad_(False).to(tensors["noise"].device)


def _encoder(spec: Mapping[str, Any], tensors: Mapping[str, Tensor], policy: Echo) -> MemoryEncoder:
    """The recorded memory encoder."""
    heads = _model_settings(spec).get("num_attention_heads", 40)
    weights = {name[len("memory.") :]: x for name, x in tensors.items() if name.startswith("memory.")}
    if not spec.get("normalize_memory_k", False):  # a norm that is not used may be there, as in the released weights
        weights = {name: x for name, x in weights.items() if not name.startswith("norm_k_out")}
    config = encoder_config(weights, heads, None, policy.frames, "The recording")
    wanted = {**config, "normalize_keys": spec.get("normalize_memory_k", False)}
    return build_encoder(weights, wanted, "The recording").float()


def _model_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the recorded transformer."""
    recorded = spec.get("model", {})
    if not isinstance(recorded, dict):
        raise ValueError(f"model must be an object of settings, not {recorded!r}.")
    known = inspect.signature(WanTransformer3DModel.__init__).parameters
    unknown = set(recorded) - (set(known) - {"self"})
    if unknown:
        raise ValueError(f"Unknown model settings: {', '.join(sorted(unknown))}.")
    settings = {**_MODEL, **recorded}
    for key, value in settings.items():
        usual = known[key].default
        if key == "patch_size":
            fits, wanted = isinstance(value, (list, tuple)) and [*map(_whole, value)] == [True] * 3, "three sizes"
        elif key == "eps":
            fits, wanted = type(value) in (int, float) and 0 <= value < 1, "a small number"
        elif isinstance(usual, bool):
            fits, wanted = isinstance(value, bool), "true or false"
        elif isinstance(usual, int):
            fits, wanted = _whole(value), "a whole number above 0"
        elif key == "qk_norm":
            fits, wanted = value == usual, f"{usual!r}"
        else:
            fits, wanted = value is None, "left out: recordings are of text-to-video models"
        if not fits:
            raise ValueError(f"The model's {key} must be {wanted}, not {value!r}.")
    return {**settings, "patch_size": tuple(settings["patch_size"])}


def _check_inputs(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuses inputs that do not fit together, or not the model."""
    model, chunk = _model_settings(spec), spec.get("chunk", 3)
    for name in _INPUTS:
        if not tensors[name].is_floating_point():
            raise ValueError(f"{name} must be floating-point numbers, not {tensors[name].dtype}.")
    states = tensors.get("memory_states")
    if states is not None and (not states.is_floating_point() or states.ndim != 4):
        raise ValueError(f"memory_states must be numbers [updates, batch, tokens, width], not {list(states.shape)}.")
    noise, text = tensors["noise"], tensors["text"]
    channels, width = model.get("in_channels", 16), model.get("text_dim", 4096)
    if noise.ndim != 5 or noise.shape[0] != 1 or noise.shape[2] != channels or 0 in noise.shape:
        raise ValueError(f"noise must be [1, frames, {channels}, height, width], not {list(noise.shape)}.")
    if model.get("out_channels", 16) != channels:
        raise ValueError("The model's out_channels must equal its in_channels.")
    if tensors["latents"].shape != noise.shape:
        raise ValueError(f"latents must be like noise, {list(noise.shape)}, not {list(tensors['latents'].shape)}.")
    if text.ndim != 3 or text.shape[0] != 1 or text.shape[1] < 1 or text.shape[2] != width:
        raise ValueError(f"text must be [1, tokens, {width}], not {list(text.shape)}.")
    if noise.shape[1] % chunk:
        raise ValueError(f"A recording of {noise.shape[1]} frames has no whole number of chunks of {chunk}.")
    sides = zip((chunk, *noise.shape[-2:]), model["patch_size"], strict=True)
    if any(side > size * model.get("rope_max_seq_len", 1024) for side, size in sides):
        raise ValueError("The recorded latents are larger than the model's rope_max_seq_len.")
    steps = len(FewStepSchedule(tensors["timesteps"].float().cpu()))
    expected = [noise.shape[1] // chunk * (steps - 1), chunk, *noise.shape[2:]]
    if list(tensors["renoise"].shape) != expected:
        raise ValueError(f"renoise must be {expected}, not {list(tensors['renoise'].shape)}.")


def _worse(worst: float, x: Tensor, expected: Tensor) -> float:
    if x.shape != expected.shape:
        raise ValueError(f"A recorded memory state must be {list(x.shape)}, not {list(expected.shape)}.")
    difference = (x - expected).abs().max().item()
    return max(worst, difference if difference == difference else float("inf"))


@torch.no_grad()
def replay(path: str | Path, device: torch.device | str = "cpu", forward_path: str = "auto") -> Parity:
    """Run a recording again, in float32.

    Args:
        path: the safetensors file.
        device: where to run.
        forward_path: how the transformer is run, one of ``longtake.speed.FORWARD_PATHS``.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not a recording, or one that is not supported, in one sentence.
    """
    spec, tensors = _read(Path(path), device)
    policy = policy_of(spec)
    _check_inputs(spec, tensors)
    noise, renoise, text, latents = (tensors[name].float() for name in ("noise", "renoise", "text", "latents"))
    chunk = spec.get("chunk", 3)
    schedule = FewStepSchedule(tensors["timesteps"].float().cpu())
    fresh = renoise.view(noise.shape[1] // chunk, len(schedule) - 1, *renoise.shape[1:])
    transformer = _build(spec, tensors)
    encoder = _encoder(spec, tensors, policy) if isinstance(policy, Echo) else None
    memory = memory_for(transformer, policy, *noise.shape[-2:], batch=noise.shape[0], chunk=chunk, encoder=encoder)
    times = [t.to(device).expand(noise.shape[0]) for t in (*schedule.timesteps, torch.zeros(()))]
    forward = forwards(transformer, memory, times, forward_path)
    worst, worst_state, states = 0.0, None, list(tensors.get("memory_states", torch.empty(0)))
    for start in range(0, noise.shape[1], chunk):
        frames = slice(start, start + chunk)
        x = noise[:, frames].transpose(1, 2)
        before = None if memory.learned is None else memory.learned.state
        memory.begin_chunk()
        for index in range(len(schedule)):
            if index:
                x = schedule.renoise(x, fresh[start // chunk, index - 1].transpose(0, 1)[None], index)
            x = schedule.x0(x, forward.flow(x, index, text), index)
        forward.commit(x, text)
        worst = _worse(worst, x, latents[:, frames].transpose(1, 2))
        state = None if memory.learned is None else memory.learned.state
        if states and state is not None and state is not before:
            worst_state = _worse(worst_state or 0.0, state[0], states.pop(0).float())
    if states and encoder is not None:
        worst_state = float("inf")  # more states were recorded than there were updates here
    return Parity(str(spec["policy"]), noise.shape[1] // chunk, worst, worst_state)
