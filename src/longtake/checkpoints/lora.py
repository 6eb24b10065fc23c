"""LoRA weights (arXiv 2106.09685) in the styles they are published in: read, fused into a model, or attached to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.checkpoints.layout import read_json, some
from longtake.checkpoints.sources import MOST_SCALE, LoraFile
from longtake.checkpoints.wan import flat_to_diffusers, module_to_diffusers, to_diffusers
from longtake.checkpoints.weights import bare_name, check_dtypes, choose, metadata_settings, read_file

KEYS = ("generator_lora", "lora", "model", "state_dict")
_DOWN, _UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")
_PAIR = re.compile(r"(.+)\.(" + "|".join(map(re.escape, (*_DOWN, *_UP))) + r")(?:\.(\w+))?\.weight")
_FLAT = ("lora_unet_", "lora_transformer_")  # prefixes of names with _ for every dot


class LoraError(ValueError):
    """A LoRA that cannot be used: none, damaged, or of another model."""


class Layer(NamedTuple):
    """What is added to one weight: ``alpha / rank * up @ down``, with ``down`` [rank, in] and ``up`` [out, rank]; of a
    convolution, with its kernel at the end."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it can be added to a weight of this shape."""
        return (
            len(shape) >= 2
            and self.down.ndim >= 2
            and self.up.shape[1:].numel() == self.rank
            and self.up.shape[0] == shape[0]
            and self.down.shape[1:].numel() == math.prod(shape[1:])
        )


@dataclass(frozen=True)
class Lora:
    """A LoRA under diffusers' names.

    Attributes:
        source: for messages.
        layers: by module, ``blocks.0.attn1.to_q``.
        differences: by weight, ``blocks.0.attn1.to_q.bias``: added as they are (``diff`` and ``diff_b``).
    """

    source: str
    layers: dict[str, Layer]
    differences: dict[str, Tensor]

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuses a model that this LoRA was not made for.

        Args:
            shapes: of the model's weights, by name.

        Raises:
            ValueError: names what the model does not have, or has in another shape.
        """
        targets = {f"{name}.weight": layer.fits for name, layer in self.layers.items()}
        unknown = [name for name in {**targets, **self.differences} if name not in shapes]
        if unknown:
            raise ValueError(f"{self.source} is a LoRA of another model: this one has no {some(unknown)}.")
        wrong = [name for name, fits in targets.items() if not fits(shapes[name])]
        wrong += [name for name, x in self.differences.items() if tuple(x.shape) != tuple(shapes[name])]
        if wrong:
            raise ValueError(
                f"{self.source} is a LoRA of another model: in this one, {some(wrong)} are of other sizes."
            )

    def add_to(self, name: str, weight: Tensor, scale: float) -> None:
        """Adds this LoRA's share to a float32 weight, in place."""
        layer = self.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if layer is not None:
            down, up = (x.to(weight.device, torch.float32).flatten(1) for x in (layer.down, layer.up))
            weight.view(weight.shape[0], -1).addmm_(up, down, alpha=scale * layer.alpha / layer.rank)
        if name in self.differences:
            weight.add_(self.differences[name].to(weight.device, torch.float32), alpha=scale)

    def changes(self, name: str) -> bool:
        """Whether it has a share of this weight."""
        return name in self.differences or (name.endswith(".weight") and name.removesuffix(".weight") in self.layers)


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's configuration: from the metadata that diffusers writes, or the file that PEFT writes beside its own."""
    found = metadata_settings(metadata, "lora_adapter_metadata")
    beside = path.with_name("adapter_config.json")
    if not found and path.stem == "adapter_model" and beside.is_file():
        found = read_json(beside)
    return {key.removeprefix("transformer."): value for key, value in found.items()}


def _alpha(settings: Mapping[str, Any], module: str, rank: int, source: str) -> float:
    """The alpha of a layer, called as in the file, that does not bring its own: as configured, else its rank."""
    value = settings.get("lora_alpha", rank)
    pattern = settings.get("alpha_pattern")
    for name, special in pattern.items() if isinstance(pattern, Mapping) else ():
        if module == name or module.endswith(f".{name}"):
            value = special
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"The alpha of {module} in {source} must be a number, not {value!r}.")
    return value * math.sqrt(rank) if settings.get("use_rslora") else value  # rank-stabilised: alpha / sqrt(rank)


def _module(key: str) -> str:
    """diffusers' name of a module; as it is where it is none of Wan's, for :meth:`Lora.check` to judge."""
    for prefix in _FLAT:
        if key.startswith(prefix):
            return flat_to_diffusers(key.removeprefix(prefix)) or key
    name = bare_name(key)
    return module_to_diffusers(name) or name


def _difference(key: str) -> str | None:
    """diffusers' name of the weight that a key like ``blocks.0.ffn.0.diff_b`` changes."""
    stem, _, kind = key.rpartition(".")
    if kind not in ("diff", "diff_b"):
        return None
    if stem.endswith("modulation"):
        return to_diffusers(bare_name(stem))
    return f"{_module(stem)}.{'weight' if kind == 'diff' else 'bias'}"


def read_lora(path: Path, key: str | None = None) -> Lora:
    """Reads a LoRA for a Wan transformer.

    Read are: PEFT's names (``base_model.model.blocks.0.self_attn.q.lora_A.weight``, with or without the adapter's
    name), Wan's and diffusers' own with or without ``diffusion_model.`` or ``transformer.`` before them,
    ``lora_down``/``lora_up``, kohya's ``lora_unet_blocks_0_self_attn_q``, and ``diff``/``diff_b``, which are added
    whole. Without ``alpha`` in the file, the alpha is the rank.

    Args:
        path: a .pt, .pth or .safetensors file.
        key: under which the weights lie (``generator_lora``); None: the best there is.

    Raises:
        ValueError: if the file is none such, or a key cannot be understood; names the first few.
    """
    content, metadata = read_file(path)
    tensors = choose(content, key, KEYS, str(path))
    if not any("lora" in name or name.endswith((".diff", ".diff_b")) for name in tensors):
        raise ValueError(f"{path} is not a LoRA: it has no lora_A and lora_B, but {some(tensors)}.")
    settings = _settings(path, metadata)
    if settings.get("use_dora") or any("magnitude_vector" in name or "dora_scale" in name for name in tensors):
        raise ValueError(f"{path} is a DoRA, which is not supported; accepted are LoRAs.")
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    differences: dict[str, Tensor] = {}
    called: dict[str, str] = {}
    adapters, unknown = set(), []
    for name, x in tensors.items():
        pair, changed = _PAIR.fullmatch(name), _difference(name)
        module = _module(name.removesuffix(".alpha") if pair is None else pair[1])
        if pair is not None:
            adapters.add(pair[3])
            called[module] = bare_name(pair[1])
            table = downs if pair[2] in _DOWN else ups
            if table.setdefault(module, x) is not x:
                many = f"of the adapters {some(str(a) for a in adapters)}" if len(adapters) > 1 else "under two names"
                raise ValueError(f"{path} holds {module} twice, {many}.")
        elif name.endswith(".alpha") and x.numel() == 1 and math.isfinite(x.item()):
            alphas[module] = float(x.item())
        elif changed is not None:
            differences[changed] = x
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{path} holds what is not of a LoRA of Wan: {some(unknown)}.")
    halves = sorted(set(downs) ^ set(ups)) + sorted(set(alphas) - set(downs) - set(ups))
    if halves:
        raise ValueError(f"{path} is incomplete: it has only a part of {some(halves)}.")
    check_dtypes({**downs, **{f"{n} (up)": x for n, x in ups.items()}, **differences}, str(path))
    empty = [name for name, x in downs.items() if 0 in x.shape or x.ndim < 2 or ups[name].ndim < 2]
    if empty:
        raise ValueError(f"{path} has matrices of no size for {some(empty)}.")
    layers = {}
    for name, down in downs.items():
        rank = down.shape[0]
        alpha = alphas[name] if name in alphas else _alpha(settings, called[name], rank, str(path))
        layers[name] = Layer(down, ups[name], alpha)
    return Lora(path.name, layers, differences)


def read_all(files: Sequence[LoraFile], shapes: Mapping[str, Sequence[int]]) -> list[tuple[Lora, float]]:
    """Reads LoRAs, each with its scale, and checks them against a model's shapes.

    Raises:
        LoraError: if one cannot be read, or is of another model.
    """
    loras = []
    for file in files:
        try:
            lora = read_lora(file.path, file.key)
            lora.check(shapes)
            loras.append((lora, check_scale(file.scale)))
        except ValueError as error:
            raise LoraError(str(error)) from None
    return loras


def check_scale(scale: float) -> float:
    """Refuses what is not a number, or far too large a one."""
    if not isinstance(scale, (int, float)) or not abs(scale) <= MOST_SCALE:
        raise ValueError(f"The scale of a LoRA must be a number from -{MOST_SCALE:g} to {MOST_SCALE:g}, not {scale!r}.")
    return float(scale)


def merged(name: str, weight: Tensor, loras: Sequence[tuple[Lora, float]]) -> Tensor:
    """A weight with LoRAs added in float32: the weight itself if they have no share of it."""
    sharing = [(lora, scale) for lora, scale in loras if lora.changes(name)]
    if not sharing:
        return weight
    total = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for lora, scale in sharing:
        lora.add_to(name, total, scale)
    return total


def _weights(transformer: WanTransformer3DModel) -> dict[str, torch.nn.Parameter]:
    if getattr(transformer, "peft_config", None):
        raise ValueError("A LoRA must be fused before adapters are attached: unload them first.")
    return dict(transformer.named_parameters())


@torch.no_grad()
def fuse(transformer: WanTransformer3DModel, path: Path, scale: float = 1.0, key: str | None = None) -> int:
    """Adds a LoRA to a model's weights: computed in float32 and rounded once to the weights' dtype. A fused LoRA costs
    nothing when the model runs.

    Args:
        transformer: the model, on any device.
        path, key: see :func:`read_lora`.
        scale: how strongly it acts; negative values are fine.

    Returns:
        How many weights changed.

    Raises:
        ValueError: if the file is no LoRA, or of another model; no weight has changed then.
    """
    weights = _weights(transformer)
    loras = read_all([LoraFile(path, scale, key)], {name: weight.shape for name, weight in weights.items()})
    changed = [name for name in weights if loras[0][0].changes(name)]
    for name in changed:
        weight = weights[name]
        weight.data = merged(name, weight.data, loras).to(weight.dtype)  # not in place: it may be mapped from a file
    return len(changed)


def attach(
    transformer: WanTransformer3DModel,
    path: Path,
    scale: float = 1.0,
    key: str | None = None,
    name: str = "lora",
) -> int:
    """Puts a LoRA beside a model's weights with PEFT: it can be switched off and scaled, but every step takes longer.

    Args:
        transformer, path, scale, key: as in :func:`fuse`.
        name: of the adapter.

    Returns:
        How many layers it has.

    Raises:
        ValueError: as in :func:`fuse`, and if the LoRA also changes weights whole, which PEFT has no way to switch.
    """
    lora = read_lora(path, key)
    if lora.differences:
        raise ValueError(f"{path} changes weights whole ({some(lora.differences)}); such a LoRA can only be fused.")
    plain = {n.replace(".base_layer.", "."): tuple(x.shape) for n, x in transformer.named_parameters()}
    lora.check(plain)
    state = {}
    for module, layer in lora.layers.items():
        state[f"transformer.{module}.lora_A.weight"] = layer.down
        state[f"transformer.{module}.lora_B.weight"] = layer.up
    alphas = {f"transformer.{module}.alpha": layer.alpha for module, layer in lora.layers.items()}
    before = list(getattr(transformer, "peft_config", {}))
    if name in before:
        raise ValueError(f"There is an adapter {name!r} already; choose another name.")
    strength = check_scale(scale)
    transformer.load_lora_adapter(state, prefix="transformer", network_alphas=alphas, adapter_name=name)
    for module in lora.layers:
        transformer.get_submodule(module).set_scale(name, strength)
    transformer.set_adapter([*before, name])
    return len(lora.layers)
