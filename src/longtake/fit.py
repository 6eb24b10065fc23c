"""Does a model fit? What each device will hold, by arithmetic on configurations, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from longtake import sizes
from longtake.memory.policy import MemoryPolicy
from longtake.placement import ALLOWANCE, QUANTIZATIONS, check_offload, check_quantize, even, free_memory
from longtake.plan import format_bytes
from longtake.sizes import DTYPE_BYTES, TransformerSize

if TYPE_CHECKING:
    from longtake.facts import ModelFacts

_HOST = "cpu"
_SHRINK = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
_STREAMED = 2  # blocks on a GPU under group offloading: the one at work and the next


class Part(NamedTuple):
    """A group of consecutive blocks on one device; ``first`` has the embeddings with it, ``last`` head and decoder."""

    device: str
    layers: int
    first: bool
    last: bool


@dataclass
class Load:
    """Bytes on one device at one time.

    Attributes:
        weights: of the parts that are there; ``waiting``: of those that wait there (on the CPU only).
        memory: the take's memory and the prompt's keys and values; ``decoder``: what the decoder keeps.
        work: what computing takes at its peak beside all that.
    """

    weights: int = 0
    waiting: int = 0
    memory: int = 0
    decoder: int = 0
    work: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Fit:
    """What a model and a take will need, where, and what is free there.

    Weights, memory and caches are exact; what computing takes follows diffusers' code (within 15 % of real allocations
    for the published sizes, see ``tests/test_fit.py``). ``ALLOWANCE`` is asked for on top. Reading the weights, and
    encoding a given picture or video, are not counted.

    Args:
        transformer, vae, text_encoder: contents of their ``config.json``.
        policy: what is remembered.
        height, width: of the video, in pixels.
        chunk: latent frames per chunk.
        dtype: "float32" or "bfloat16".
        devices, offload: as in :func:`longtake.placement.place`.
        quantize: "fp8", "int8" or None.
        text_tokens: per prompt, padding included.
        free: bytes free per device before anything is loaded; None, or a device left out: unknown.

    Raises:
        ValueError: for an offload mode or a quantisation that does not exist, or not with these devices; if there are
            fewer blocks than devices; or if the memory has no room for a chunk.
    """

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    policy: MemoryPolicy
    height: int
    width: int
    chunk: int = 3
    dtype: str = "bfloat16"
    devices: tuple[str, ...] = (_HOST,)
    offload: str = "none"
    quantize: str | None = None
    text_tokens: int = 512
    free: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_offload(self.offload, self.devices)
        if self.quantize is not None:
            check_quantize(self.quantize)
        self.policy.capacity(self._chunk)
        if self.size.layers < len(self.devices):
            raise ValueError(
                f"The {self.size.layers} blocks of this model can be split between at most {self.size.layers} devices, "
                f"not {len(self.devices)}."
            )

    @classmethod
    def of(
        cls,
        model: ModelFacts,
        policy: MemoryPolicy,
        height: int,
        width: int,
        *,
        dtype: str,
        devices: Sequence[str],
        offload: str = "none",
        quantize: str | None = None,
        free: Mapping[str, int | None] | None = None,
    ) -> Fit:
        """From a model's facts. ``free`` is measured by default, which loads torch if a device is not the CPU."""
        if free is None:
            free = {name: free_memory(name) for name in {*devices, _HOST}}
        return cls(
            model.transformer,
            model.vae,
            model.text_encoder,
            policy,
            height,
            width,
            model.chunk,
            dtype,
            tuple(devices),
            offload,
            quantize,
            free=free,
        )

    # Sizes

    @cached_property
    def size(self) -> TransformerSize:
        """Of the transformer."""
        return TransformerSize.of(self.transformer)

    @property
    def _bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def _chunk(self) -> int:
        return max(1, self.chunk // self.size.patch[0])

    @cached_property
    def _tokens(self) -> int:
        return sizes.tokens_of(self.transformer, self.vae, self.height, self.width)

    @cached_property
    def transformer_bytes(self) -> int:
        """Of all the transformer's weights, as they are kept."""
        return self.size.weights(self._bytes, self.size.layers, quantize=self.quantize)

    @cached_property
    def text_bytes(self) -> int:
        """Of the text encoder's weights."""
        return sizes.text_numbers(self.text_encoder) * self._bytes

    @cached_property
    def vae_bytes(self) -> int:
        """Of the autoencoder's weights."""
        return sizes.vae_numbers(self.vae) * self._bytes

    @cached_property
    def encoder_bytes(self) -> int:
        """Of the weights of a learned memory, which are where the last block is."""
        shape = (self.size.heads, self.size.head_dim, self._tokens)
        return sizes.encoder_numbers(self.policy, *shape) * self._bytes

    def _memory(self, layers: int) -> int:
        held = sizes.memory_bytes(self.policy, layers, *self._shape)
        return held + self.size.prompt(self._bytes, layers, self.text_tokens)

    @property
    def _shape(self) -> tuple[int, int, int, int, int]:
        return self.size.heads, self.size.head_dim, self._tokens, self._chunk, self._bytes

    def _forward(self, layers: int) -> int:
        tokens = self._tokens * self._chunk
        forward = self.size.forward(self._bytes, tokens, self.text_tokens, self.quantize)
        return max(forward, sizes.begin_bytes(self.policy, layers, *self._shape))

    @cached_property
    def _decoding(self) -> int:
        return sizes.decoding_bytes(self.vae, self.height, self.width, self._bytes, self.chunk)

    @cached_property
    def _encoding(self) -> int:
        return sizes.encoding_bytes(self.text_encoder, self._bytes, self.text_tokens)

    @cached_property
    def _cache(self) -> int:
        return sizes.decoder_cache(self.vae, self.height, self.width) * self._bytes

    # Where everything is

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Blocks per device. Even, but no more than a device has room for as far as the others have; a CPU beside
        faster devices gets only what they have no room for, and at least one."""
        total, count = self.size.layers, len(self.devices)
        if len({*self.devices}) < count or count == 1:
            return even(total, count)
        room = [self._room(index) for index in range(count)]
        counts = [1] * count
        for _ in range(total - count):
            # Rather a device with room than one without, rather a fast one, rather one with few.
            keys = [(counts[i] >= room[i], self.devices[i] == _HOST, counts[i], i) for i in range(count)]
            counts[min(keys)[3]] += 1
        return tuple(counts)

    def _room(self, index: int) -> float:
        """Blocks that a device has room for, beside what else will be there."""
        free = self.free.get(self.devices[index])
        if free is None:
            return float("inf")
        first, last = index == 0, index == len(self.devices) - 1
        fixed = self.size.weights(self._bytes, 0, first, last)
        work = self._forward(self.size.layers // len(self.devices))
        if last:
            fixed += self.vae_bytes + self._cache + self.encoder_bytes
            work = max(work, self._decoding)
        if first and self.offload == "none":
            fixed += self.text_bytes
        if self.devices[index] == _HOST and self.offload != "none":
            fixed += self.text_bytes
        each = self.size.block.bytes(self._bytes, self.quantize) + self._memory(1)
        return (free / (1 + ALLOWANCE) - fixed - work) // each

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The groups of blocks, in order."""
        end = len(self.devices) - 1
        pairs = zip(self.devices, self.layers, strict=True)
        return tuple(Part(device, layers, i == 0, i == end) for i, (device, layers) in enumerate(pairs))

    @cached_property
    def generating(self) -> dict[str, Load]:
        """What is where while a take goes on, at the peak."""
        loads = {name: Load() for name in self.devices}
        for part in self.parts:
            load = loads[part.device]
            load.memory += self._memory(part.layers)
            load.work = max(load.work, self._forward(part.layers))
            load.weights += self._resident(part)
            if part.last:
                load.weights += self.vae_bytes + self.encoder_bytes
                load.decoder += self._cache
                # With model offloading the transformer makes room for the decoder, but not the other way round.
                gone = self.transformer_bytes if self._moves and self.offload == "model" else 0
                load.work = max(load.work, self._decoding - gone)
        if self.offload == "none" or not self._moves:
            loads[self.devices[0]].weights += self.text_bytes
            return loads
        host = loads.setdefault(_HOST, Load())
        host.waiting += self.text_bytes
        if self.offload in ("model", "group"):
            host.waiting += self.transformer_bytes
        if self.offload == "group" and self.devices[0].startswith("cuda"):
            # The originals go once all copies have been made.
            host.waiting += self.size.pinned(self._bytes, self.quantize)
        if self.offload == "model":
            host.waiting += self.vae_bytes
        return loads

    @property
    def _moves(self) -> bool:
        """Whether offloading moves anything: on a CPU there is nowhere to go."""
        return self.devices != (_HOST,)

    def _resident(self, part: Part) -> int:
        layers = part.layers
        if self.offload == "group" and self._moves:
            layers = min(layers, _STREAMED if part.device.startswith("cuda") else 1)
        return self.size.weights(self._bytes, layers, part.first, part.last, self.quantize)

    @cached_property
    def encodes_on(self) -> str:
        """Where prompts are encoded: on the first device that has room for the text encoder, else on the CPU."""
        if self.offload in ("none", "model") or not self._moves:
            return self.devices[0]
        for name in self.devices:
            free, load = self.free.get(name), self.generating[name]
            held = load.total - load.work
            if name != _HOST and free is not None and _with(held + self.text_bytes + self._encoding) <= free:
                return name
        return _HOST

    @cached_property
    def encoding(self) -> dict[str, Load]:
        """What is where while a new prompt is encoded in the middle of a take, at the peak."""
        loads = {name: replace(load, work=0) for name, load in self.generating.items()}
        load = loads[self.encodes_on]
        load.work = self._encoding
        if self.offload == "model" and self._moves:
            load.weights = self.text_bytes
        elif self.offload != "none" and self.encodes_on != _HOST:
            load.weights += self.text_bytes
        return loads

    # What is said of it

    def needed(self, device: str) -> Load:
        """The larger of what a device holds while generating and while encoding."""
        return max(self.generating[device], self.encoding[device], key=lambda load: load.total)

    @cached_property
    def fits(self) -> bool:
        """Whether all devices whose free bytes are known have room."""
        return not self.short()

    def short(self) -> list[str]:
        """The devices that have not enough room."""
        found = []
        for name in self.generating:
            free = self.free.get(name)
            if free is not None and _with(self.needed(name).total) > free:
                found.append(name)
        return found

    def lines(self) -> list[str]:
        """For people: a line per device, and one on the text encoder if it waits on the CPU."""
        lines = [self._line(name) for name in self.generating]
        if self.offload != "none" and self._moves:
            where = "the CPU" if self.encodes_on == _HOST else self.encodes_on
            lines.append(f"The text encoder ({format_bytes(self.text_bytes)}) waits on the CPU; it encodes on {where}")
        return lines

    def _line(self, name: str) -> str:
        load, free = self.needed(name), self.free.get(name)
        named = {
            "weights": load.weights,
            "waiting weights": load.waiting,
            "memory": load.memory,
            "decoder": load.decoder,
            "computing": load.work,
        }
        what = ", ".join(f"{title} {format_bytes(count)}" for title, count in named.items() if count)
        of = "" if free is None else f" of {format_bytes(free)} free"
        return f"{what} on {name}: {format_bytes(load.total)}{of}"

    def advice(self, others: Mapping[str, int | None] | None = None) -> str | None:
        """If it does not fit, one sentence that says why, and with what it would; None if it fits.

        Every remedy is computed. The first that is enough is named: offloading, bfloat16, quantising, offloading and
        quantising, another device, fewer frames of memory, a smaller picture, and these two with all before them.

        Args:
            others: free bytes of devices that are there but were not asked for.
        """
        if self.fits:
            return None
        name = self.short()[0]
        needed, free = self.needed(name).total, self.free[name] or 0
        why = f"This needs {format_bytes(needed)} and some to spare on {name}, where {format_bytes(free)} are free"
        for flags, other in self._remedies(others or {}):
            if other.fits:
                return f"{why}; it fits with {flags}."
        return f"{why}; neither offloading, quantising, other devices, less memory nor a smaller picture makes it fit."

    def _remedies(self, others: Mapping[str, int | None]) -> Iterator[tuple[str, Fit]]:
        offloads = list(self._offloads())
        same = [*offloads]
        if self._bytes > DTYPE_BYTES["bfloat16"]:
            same.append(("--dtype bfloat16", replace(self, dtype="bfloat16")))
        same += [both for remedy in (("", self), *same) for both in _quantized(*remedy)]
        yield from same
        yield from self._more_devices(others)
        for flags, fit in (("", self), *same):
            for policy in _shorter(fit.policy, fit._chunk):
                yield f"{flags} --memory {policy.spec()}".strip(), replace(fit, policy=policy)
        for flags, fit in (("", self), *same):
            for height, width in self._smaller():
                size = f"--height {height} --width {width}"
                yield f"{flags} {size}".strip(), replace(fit, height=height, width=width)

    def _offloads(self) -> Iterator[tuple[str, Fit]]:
        order = ("none", "text", "model", "group")
        for mode in order[order.index(self.offload) + 1 :]:
            if self._moves and (len(self.devices) == 1 or mode == "text"):
                yield f"--offload {mode}", replace(self, offload=mode)

    def _more_devices(self, others: Mapping[str, int | None]) -> Iterator[tuple[str, Fit]]:
        base = replace(self, free={**others, **self.free})
        offload = "text" if self._moves else "none"
        fast = [name for name in others if name not in (*self.devices, _HOST)]
        for more in ([name] for name in (*fast, _HOST) if name not in self.devices):
            devices = (*self.devices, *more)
            if self._moves and len(devices) <= self.size.layers:
                flags = f"--devices {','.join(devices)}" + (f" --offload {offload}" if offload != self.offload else "")
                yield flags, replace(base, devices=devices, offload=offload)

    def _smaller(self) -> Iterator[tuple[int, int]]:
        """Smaller and smaller pictures of about the same shape."""
        step = int(self.vae.get("scale_factor_spatial", 8)) * self.size.patch[1]
        for factor in _SHRINK:
            yield (
                max(step, int(self.height * factor) // step * step),
                max(step, int(self.width * factor) // step * step),
            )


def _quantized(flags: str, fit: Fit) -> Iterator[tuple[str, Fit]]:
    if fit.quantize is None:
        for kind in QUANTIZATIONS:
            yield f"{flags} --quantize {kind}".strip(), replace(fit, quantize=kind)


def _with(count: int) -> int:
    """With the allowance."""
    return int(count * (1 + ALLOWANCE))


def _shorter(policy: MemoryPolicy, chunk: int) -> Iterator[MemoryPolicy]:
    """The same memory with fewer and fewer recent frames."""
    for name in ("recent", "window", "past"):
        for value in range(getattr(policy, name, 0) - 1, -1, -1):
            try:
                shorter = replace(policy, **{name: value})  # type: ignore[type-var]
                shorter.capacity(chunk)
            except ValueError:
                return
            yield shorter
