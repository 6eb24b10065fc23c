"""Where the parts of a model live: on one device, split between several, or waiting on the CPU until they are needed.

The transformer stays diffusers' own. A split is forward hooks on it and its blocks; waiting is diffusers' own model and
group offloading. Loading this module does not load torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from longtake.pipeline import LongTakePipeline

OFFLOADS = ("none", "text", "model", "group")
"""What waits on the CPU: nothing; the text encoder, but for encoding; every part but the one at work; the transformer's
blocks, but for the one at work and the next (and the text encoder)."""

QUANTIZATIONS = ("fp8", "int8")
"""How the weights of the transformer's blocks can be kept in one byte each; see ``longtake.quantize``."""

ALLOWANCE = 0.05
"""Of what is needed, that much more must be free: allocators and libraries take what no arithmetic here counts."""

_DEVICE = re.compile(r"(cpu|mps|cuda(:\d{1,3})?)")
_SPLIT = "_longtake_split"
_PLACED = "_longtake_placement"
_Result = TypeVar("_Result")


def parse_devices(text: str) -> tuple[str, ...]:
    """``"cuda:0,cuda:1"`` as ``("cuda:0", "cuda:1")``. Whether they exist is another question: :func:`check_devices`.

    Raises:
        ValueError: if a name is not one of a device.
    """
    names = tuple(part.strip().lower() for part in text.split(","))
    for name in names:
        if not _DEVICE.fullmatch(name):
            what = repr(name) if name else f"What a comma parts from nothing in {text!r}"
            raise ValueError(f"{what} is not a device; accepted are cpu, mps, cuda and cuda:N, separated by commas.")
    return names


def present_devices() -> list[str]:
    """The devices of this computer that this PyTorch can use, the fastest first."""
    import torch

    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def check_devices(devices: Sequence[str]) -> None:
    """Refuses devices that are not there.

    Raises:
        ValueError: if there are none, or one is missing; says what is there.
    """
    there = present_devices()
    known = {*there, *(name.split(":")[0] for name in there)}
    if not devices:
        raise ValueError(f"At least one device is needed; there are {', '.join(there)}.")
    for name in devices:
        if name not in known:
            raise ValueError(f"There is no device {name} here that this PyTorch can use; there are {', '.join(there)}.")


def check_offload(offload: str, devices: Sequence[str]) -> None:
    """Refuses an offload mode that does not exist, or not with these devices.

    Raises:
        ValueError: in one sentence.
    """
    if offload not in OFFLOADS:
        raise ValueError(f"What can be offloaded is {', '.join(OFFLOADS)}, not {offload!r}.")
    if offload in ("model", "group") and len(devices) > 1:
        raise ValueError(f"Offload {offload} works with one device, not with {', '.join(devices)}; accepted is text.")


def check_quantize(kind: str) -> None:
    """Refuses a kind of quantisation that does not exist.

    Raises:
        ValueError: in one sentence.
    """
    if kind not in QUANTIZATIONS:
        raise ValueError(f"Weights can be quantised to {' or '.join(QUANTIZATIONS)}, not to {kind!r}.")


def free_memory(device: str) -> int | None:
    """Bytes that can still be taken on a device, or on the computer for ``cpu``; None where that cannot be known.

    What PyTorch holds of a GPU without using it counts as free.
    """
    if device == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        except (OSError, StopIteration, ValueError, IndexError):
            return None
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device == "mps" and hasattr(torch.mps, "recommended_max_memory") and torch.backends.mps.is_available():
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def even(layers: int, devices: int) -> tuple[int, ...]:
    """Layers per device, as even as can be, the first devices taking one more."""
    return tuple(layers // devices + (index < layers % devices) for index in range(devices))


# A transformer in several groups of blocks


class _Split:
    """Moves what a forward needs to the devices of its blocks.

    Blocks are called by diffusers' own loop with the hidden states of the block before and with tensors that all of
    them share (text, time, rotary tables). The former are moved where the device changes; the latter once per forward
    and device, and are kept for as long as the forward lasts.
    """

    def __init__(self, transformer: Any, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._moved: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
        self._handles = [
            transformer.register_forward_pre_hook(self._begin),
            transformer.register_forward_hook(self._end, always_call=True),
        ]
        # The last group's device is the head's too.
        for module in (*transformer.blocks[self.layers[0] :], transformer.norm_out, transformer.proj_out):
            self._handles.append(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, transformer: Any, args: Any) -> None:
        self._moved.clear()

    def _end(self, transformer: Any, args: Any, output: Any) -> Any:
        self._moved.clear()
        home = _device(transformer.blocks[0])
        if isinstance(output, tuple):
            return tuple(_to(x, home) for x in output)
        if output is not None:  # it is where the forward failed
            output.sample = _to(output.sample, home)
        return output

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # Asked of the module each time: `pipe.to(...)` may have moved everything.
        device = _device(module)
        if device is None:
            return args, kwargs
        first, *shared = args if args else (None,)
        named = {name: (_to if name == "hidden_states" else self._once)(x, device) for name, x in kwargs.items()}
        return ((_to(first, device), *(self._once(x, device) for x in shared)) if args else ()), named

    def _once(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._once(x, device) for x in value)
        if not hasattr(value, "untyped_storage") or value.device == device:
            return value
        key = (id(value), device)
        if key not in self._moved:
            self._moved[key] = (value, _to(value, device))  # holds on to the original, or its id could be reused
        return self._moved[key][1]


def _to(value: Any, device: torch.device | None) -> Any:
    from longtake.transfer import send

    if device is None or not hasattr(value, "untyped_storage") or value.device == device:
        return value
    return send(value, device)


def _device(module: Any) -> torch.device | None:
    """Where a module's weights are; None if it has none."""
    weight = next(module.parameters(), None)
    return None if weight is None else weight.device


def split_transformer(transformer: Any, devices: Sequence[Any], layers: Sequence[int] | None = None) -> None:
    """Spreads a transformer over devices: consecutive blocks on each, embeddings on the first, the head on the last.

    Its output comes back to the first device. ``scale_shift_table`` stays on the first device, as diffusers adds it to
    the time embedding there. Splitting again replaces the split; one device undoes it.

    Args:
        transformer: a ``WanTransformer3DModel``.
        devices: one or more; the same one may be named several times.
        layers: blocks per device; as even as can be by default.

    Raises:
        ValueError: if there are fewer blocks than devices, or ``layers`` does not add up.
    """
    total = len(transformer.blocks)
    layers = even(total, len(devices)) if layers is None else tuple(layers)
    if len(layers) != len(devices) or sum(layers) != total or min(layers) < 1:
        raise ValueError(
            f"The {total} blocks of this transformer can be split between 1 to {total} devices with at least one block "
            f"each, not as {', '.join(map(str, layers))} between {len(devices)}."
        )
    held = getattr(transformer, _SPLIT, None)
    if held is not None:
        held.remove()
        setattr(transformer, _SPLIT, None)
    last = 0
    for count, device in zip(layers, devices, strict=True):
        for block in transformer.blocks[last : last + count]:
            block.to(device)
        last += count
    for module in (transformer.rope, transformer.patch_embedding, transformer.condition_embedder):
        module.to(devices[0])
    transformer.scale_shift_table.data = transformer.scale_shift_table.data.to(devices[0])
    transformer.norm_out.to(devices[-1])
    transformer.proj_out.to(devices[-1])
    if len(devices) > 1:
        setattr(transformer, _SPLIT, _Split(transformer, layers))


def groups_of(transformer: Any) -> list[tuple[int, torch.device]]:
    """Of a split transformer: how many consecutive blocks are on which device, in order; empty if it is not split."""
    split = getattr(transformer, _SPLIT, None)
    if split is None:
        return []
    firsts = [sum(split.layers[:index]) for index in range(len(split.layers))]
    return [
        (count, next(transformer.blocks[first].parameters()).device)
        for count, first in zip(split.layers, firsts, strict=True)
    ]


# A pipeline's parts


@dataclass(frozen=True)
class Placement:
    """Where the parts of a pipeline have been put: ``devices`` in order, ``offload`` one of ``OFFLOADS``."""

    devices: tuple[str, ...]
    offload: str


def place(
    pipe: LongTakePipeline, devices: Sequence[str], offload: str = "none", layers: Sequence[int] | None = None
) -> None:
    """Puts the parts of a pipeline where they belong. Once, after loading, fusing and quantising.

    The transformer's blocks are split between the devices, see :func:`split_transformer`, and the memory of a take
    lives where its layers do; the autoencoder goes to the last device. The text encoder stays on the first, or
    waits on the CPU with any ``offload`` but ``none``.

    Args:
        pipe: with all its parts on the CPU.
        devices: names; see :func:`parse_devices`.
        offload: one of ``OFFLOADS``. ``model`` is diffusers' ``enable_model_cpu_offload``, ``group`` its group
            offloading by blocks.
        layers: blocks per device; as even as can be by default.

    Raises:
        ValueError: if a device is not there, the mode does not exist or does not go with several devices, or there are
            fewer blocks than devices.
    """
    check_offload(offload, devices)
    check_devices(devices)
    _place(pipe, devices, offload, layers)


def _place(pipe: LongTakePipeline, devices: Sequence[str], offload: str, layers: Sequence[int] | None) -> None:
    import torch

    first, last = torch.device(devices[0]), torch.device(devices[-1])
    if first.type == "cuda":
        torch.cuda.set_device(first)  # diffusers makes its streams on the current one
    if offload == "model":
        pipe.enable_model_cpu_offload(device=first)
    elif offload == "group" and first.type != "cpu":  # on a CPU there is nowhere to go
        # With streams the next block arrives while this one computes. The host then waits for every block, instead of
        # recording the stream: a host that runs ahead would send blocks faster than they are freed again.
        pipe.transformer.enable_group_offload(
            onload_device=first,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=first.type == "cuda",
        )
    else:
        split_transformer(pipe.transformer, [torch.device(name) for name in devices], layers)
    if offload != "model":
        pipe.vae.to(last)
    if offload == "none":
        pipe.text_encoder.to(first)
    setattr(pipe, _PLACED, Placement(tuple(devices), offload))


def placement_of(pipe: LongTakePipeline) -> Placement | None:
    """What :func:`place` was last asked for; None for a pipeline that diffusers' own means have placed."""
    placed: Placement | None = getattr(pipe, _PLACED, None)
    return placed


def device_of(module: Any) -> torch.device:
    """Where a model takes its input: its own device, the first one if it is split, or where group offloading brings
    its blocks."""
    from diffusers.hooks import group_offloading

    try:
        device: torch.device = group_offloading._get_group_onload_device(module)
    except ValueError:  # there is no such hook
        return next(module.parameters()).device
    return device


def with_text_encoder(pipe: LongTakePipeline, run: Callable[[torch.device], _Result]) -> _Result:
    """Calls ``run`` with the device where the text encoder is, for as long as that takes.

    A text encoder that waits on the CPU goes to the first of the pipeline's devices that has room for it, and leaves it
    afterwards; if none has, it works on the CPU. With model offloading, the other parts leave the device first.
    """
    import torch

    placed = placement_of(pipe)
    encoder = pipe.text_encoder
    if getattr(encoder, "_hf_hook", None) is not None:
        for hook in getattr(pipe, "_all_hooks", ()):
            # Of the chain of offloaded parts, the first one sends nobody away when it comes.
            if hook.model is not encoder and _device(hook.model) != torch.device("cpu"):
                hook.offload()
    elif placed is not None and placed.offload in ("text", "group"):
        for name in dict.fromkeys(placed.devices):
            if name != "cpu" and _has_room(encoder, name):
                try:
                    return _visiting(encoder, torch.device(name), run)
                except torch.OutOfMemoryError:  # somebody else was faster
                    continue
    return run(pipe.device_of("text_encoder"))


def _has_room(encoder: Any, device: str) -> bool:
    from longtake.sizes import encoding_bytes

    free = free_memory(device)
    weights = sum(x.nbytes for x in (*encoder.parameters(), *encoder.buffers()))
    needed = weights + encoding_bytes(encoder.config.to_dict(), width=encoder.dtype.itemsize)
    return free is not None and needed * (1 + ALLOWANCE) <= free


def _visiting(encoder: Any, device: torch.device, run: Callable[[torch.device], _Result]) -> _Result:
    """Runs with copies of the encoder's weights on a device. The originals stay, so that nothing is copied back."""
    import torch

    held: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    copies: dict[int, torch.Tensor] = {}  # a tensor that has several names keeps them
    try:
        for module in encoder.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in copies:
                        copy = tensor.detach().to(device)
                        is_weight = isinstance(tensor, torch.nn.Parameter)
                        copies[id(tensor)] = torch.nn.Parameter(copy, requires_grad=False) if is_weight else copy
                    held.append((tensors, name, tensor))
                    tensors[name] = copies[id(tensor)]
        return run(device)
    finally:
        for tensors, name, tensor in held:
            tensors[name] = tensor
        copies.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the room is for others too
