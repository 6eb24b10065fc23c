"""The slot store that all memory policies share, for all layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.memory.chosen import Chosen
from longtake.memory.learned import Learned
from longtake.memory.policy import CUT_GAP, FREE, PROMPT_CHANGES, MemoryPolicy, Place, Update
from longtake.memory.pooled import Collapsed, Pooled
from longtake.memory.state import restore, saved_state
from longtake.memory.turning import runs, turn_anew, turned_past
from longtake.rope import Rope, rotate

if TYPE_CHECKING:
    from longtake.kernels import Kernel

_DIRTY = -(1 << 62)  # no id: those of sinks may be negative


class Memory:
    """What one take remembers: keys and values of past frames, in slots of one latent frame each.

    Keys are stored un-rotated with an id per slot, so that every published layout is a matter of ids (MemRoPE,
    arXiv 2603.12513; Infinity-RoPE, arXiv 2511.20649). A slot never moves: when a frame is evicted its slot
    is used again, because attention depends on ids and not on order. Cached slots are rotated when a chunk begins,
    and only those whose id or content changed.

    A chunk is ``begin_chunk()``, any number of forwards under ``longtake.attention.attending``, and one forward at
    t = 0 of the clean latents inside ``with memory.recording():``.

    Args:
        policy: which frames stay.
        num_layers, heads, head_dim: of the transformer.
        grid: tokens per latent frame as (height, width), after patching.
        batch: takes generated side by side.
        chunk: latent frames (after patching) per chunk.
        device, dtype: of keys and values; the model's.
        theta: base of the rotary frequencies.
        functional: replace tensors instead of writing into preallocated ones, so that forwards and commits can run
            under autograd. Slower; for training. Nothing that a forward was given is written to later, so backward can
            run when many more chunks have been made, with gradient checkpointing too (``longtake.memory.frozen``).

    Attributes:
        frame: global index of the first frame of the current chunk, or of the next one between chunks.
        open: whether a chunk has begun and is not committed.
        cut: whether the current chunk, or the next one between chunks, stands behind a cut: ``CUT_GAP`` ids further.
        tags: what each slot holds: a frame index, or FREE, LONG, SHORT.
        keys, values: [layers, batch, slots, tokens, heads, head_dim], keys un-rotated; slots and tokens of a head are
            side by side in memory.
        learned: the state of a memory that is learned (``Echo``), else None.
        kernel: what computes attention to it, a ``longtake.kernels.Kernel``; None for whatever diffusers uses.
        collapse: whether frames of one key and one value are left out of what :meth:`update` gives, and are in
            :meth:`pooled` instead, and whether the padding of the text is attended to as one token. To be changed
            between chunks; not for functional memories.
        padding: how many tokens at the end of the text are known to be zero, for ``collapse``.
        chosen: what a memory that chooses by looking (``DeepForcing``) has seen, else None.
        averages: by tag, float32 keys and values [layers, batch, tokens or 1, heads, head_dim].

    Raises:
        ValueError: if the policy has no room for a chunk, or a size is not positive.
    """

    def __init__(
        self,
        policy: MemoryPolicy,
        *,
        num_layers: int,
        heads: int,
        head_dim: int,
        grid: tuple[int, int],
        batch: int = 1,
        chunk: int = 3,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        theta: float = 10000.0,
        functional: bool = False,
    ) -> None:
        if min(num_layers, heads, head_dim, *grid, batch, chunk) < 1:
            raise ValueError("A memory needs at least one layer, head, channel, token, take and frame per chunk.")
        self.policy = policy
        self.chunk = chunk
        self.capacity = policy.capacity(chunk)
        self.functional = functional
        self.tokens = grid[0] * grid[1]
        self.rope = Rope(head_dim, grid, theta, device)
        self._shape = (num_layers, batch, self.capacity, self.tokens, heads, head_dim)
        # Tensors born in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            # Head by head: so the keys of a full memory lie as kernels and products of matrices want them.
            shape = (num_layers, batch, heads, self.capacity, self.tokens, head_dim)
            self.keys = torch.zeros(shape, device=device, dtype=dtype).permute(0, 1, 3, 4, 2, 5)
            self.values = torch.zeros_like(self.keys)
            self._turned = torch.empty(0) if functional else torch.zeros_like(self.keys)
        self._make_views()
        self.averages: dict[int, tuple[Tensor, Tensor]] = {}
        self.learned: Learned | None = None
        self.kernel: Kernel | None = None
        self.collapse = False
        self.padding = 0
        self.chosen = Chosen(self) if policy.chooses else None
        self.reset()

    def _make_views(self) -> None:
        """Per layer, [batch, slots * tokens, heads, head_dim]: what attention reads, without a copy."""
        self._views = [
            tuple(buffer[layer].flatten(1, 2) for buffer in (self._turned, self.keys, self.values))
            for layer in range(0 if self.functional else self._shape[0])
        ]

    def reset(self) -> None:
        """Forget everything, the prompt included. Keeps the allocation."""
        self.frame = 0
        self.open = False
        self.cut = False
        self.tags = [FREE] * self.capacity
        self._turned_by: list[int | None] = [_DIRTY] * self.capacity
        self.prompt: list[tuple[Tensor, Tensor] | None] = [None] * self._shape[0]
        self._recording = False
        self._recorded: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._collapsed = Collapsed()
        if self.learned is not None:
            self.learned.reset()
        if self.chosen is not None:
            self.chosen.reset()

    @property
    def device(self) -> torch.device:
        """Where keys and values are."""
        return self.keys.device

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.keys.dtype

    @property
    def is_recording(self) -> bool:
        """Whether forwards are remembered: inside of :meth:`recording`."""
        return self._recording

    @property
    def used(self) -> int:
        """Slots in use, the current chunk's included while one is open."""
        return self.capacity - self.tags.count(FREE)

    @property
    def nbytes(self) -> int:
        """Bytes held in tensors; constant once the memory is full."""
        pairs = [*self.averages.values(), *(pair for pair in self.prompt if pair is not None)]
        tensors = [self.keys, self.values, self._turned, *(x for pair in pairs for x in pair)]
        learned = 0 if self.learned is None or self.learned.parts[0] is not self else self.learned.nbytes
        chosen = 0 if self.chosen is None else self.chosen.nbytes
        return sum(x.numel() * x.element_size() for x in tensors) + learned + chosen

    def layout(self) -> list[Place]:
        """Every slot in use as (role, id, frame, slot), in order of position: ``MemoryPolicy.layout``, with the ids of
        a chunk behind a cut moved on."""
        places = self.policy.layout(self)
        if not self.cut:
            return places
        return [
            place._replace(id=place.id + CUT_GAP) if place.role == "current" and place.id is not None else place
            for place in places
        ]

    # One chunk

    def begin_chunk(self) -> None:
        """Make room for the next chunk: evict, fold what is evicted, give every slot its id, rotate what changed.

        Raises:
            RuntimeError: if the last chunk has not been committed, or a learned memory has no weights.
        """
        if self.open:
            raise RuntimeError("The current chunk must be committed (memory.recording()) before the next begins.")
        if self.policy.learned and self.learned is None:
            raise RuntimeError(f"The memory {self.policy.name} is learned: give it an encoder (Learned(encoder, ...)).")
        update = self.policy.begin_chunk(self)
        if self.learned is not None:
            self.learned.begin(self, update.learn)
        if self.chosen is not None:
            self.chosen.begin(update.choose, update.move)
        self._apply(update)
        if self.learned is not None:
            self.learned.show(self)
        if self.chosen is not None:
            self.chosen.show()
        free = [slot for slot, tag in enumerate(self.tags) if tag == FREE][: self.chunk]
        for index, slot in enumerate(free):
            self.tags[slot] = self.frame + index
        self._compact()  # memory frames may have gone that nothing replaces
        self.open = True
        self._prepare()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The forward inside (clean latents, t = 0) is remembered, and the chunk is over.

        Raises:
            RuntimeError: if no chunk is open, or not every layer was run inside.
        """
        self._require_open()
        self._recording, self._recorded = True, {}
        try:
            yield
        finally:
            self._recording = False
        if len(self._recorded) != self._shape[0]:
            raise RuntimeError("Nothing was recorded: run the transformer once, attending to this memory, inside.")
        if self.chosen is not None:
            self.chosen.settle()
        if self.functional:
            pairs = [pair for _, pair in sorted(self._recorded.items()) if pair is not None]
            keys, values = (torch.stack([p[i].unflatten(1, (self.chunk, -1)) for p in pairs]) for i in (0, 1))
            self._replace([place.slot for place in self._current], keys, values)
        if self.learned is not None:
            self.learned.settle()
        self._recorded = {}
        for place in self._current:
            self._turned_by[place.slot] = place.id
        self.frame += self.chunk
        self.open = self.cut = False

    def query(self, query: Tensor) -> Tensor:
        """Rotate the current chunk's queries [batch, chunk * tokens, heads, head_dim] by its ids."""
        self._require_open()
        return rotate(query.to(self.values.dtype), *self._angles)

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the current chunk beside the past, for one layer of one forward.

        Args:
            layer: index of the layer.
            key, value: un-rotated, of the current chunk, [batch, chunk * tokens, heads, head_dim].

        Returns:
            Rotated keys, and values, of all slots in use: [batch, used * tokens, heads, head_dim], in order of slots.
            Views of the store (overwritten by the next forward), unless the memory is functional. Without those that
            :meth:`pooled` gives.

        Raises:
            RuntimeError: if no chunk is open, or gradients would be recorded through writes in place.
            ValueError: if the number of tokens or the batch is not the memory's.
        """
        self._require_open()
        expected = (self._shape[1], self.chunk * self.tokens, *self._shape[4:])
        if tuple(key.shape) != expected:
            raise ValueError(f"This memory takes keys [batch, tokens, heads, head_dim] = {expected}, not {key.shape}.")
        if self.learned is not None and layer == 0:
            self.learned.before_forward(self)
        chosen = None if self.chosen is None else self.chosen.past(layer)
        key, value = key.to(self.keys.dtype), value.to(self.values.dtype)
        cos, sin = self._angles
        if self.learned is not None and layer == self._shape[0] - 1:
            self.learned.after_forward(self)
        if self.functional:
            if self._recording:
                self._recorded[layer] = (key, value)
            past = (self._past[0][layer], self._past[1][layer])
            if chosen is not None:
                past = (torch.cat([past[0], chosen[0]], 1), torch.cat([past[1], chosen[1]], 1))
            return torch.cat([past[0], rotate(key, cos, sin)], 1), torch.cat([past[1], value], 1)
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise RuntimeError("This memory writes in place: run it under torch.no_grad(), or make it functional.")
        turned, keys, values = self._views[layer]
        for source, target in self._runs:
            rotate(key[:, source], cos[source], sin[source], out=turned[:, target])
            values[:, target].copy_(value[:, source])
            if self._recording:
                keys[:, target].copy_(key[:, source])
        if self._recording:
            self._recorded[layer] = None
        end = (self.used - self._collapsed.count) * self.tokens
        return turned[:, :end], values[:, :end]

    def pooled(self, layer: int) -> Pooled | None:
        """The frames of a layer that are attended to in closed form; None if there are none."""
        return self._collapsed.at(layer)

    def catch_up(self) -> None:
        """What is due after a chunk's first forward; called between forwards, and best outside of them: gradient
        checkpointing runs what is inside again."""
        if self.learned is not None:
            self.learned.catch_up()
        if self.chosen is not None:
            self.chosen.settle()

    def rotated(self, keys: Tensor, frame_id: int) -> Tensor:
        """Rotate one frame's keys [..., tokens, heads, head_dim] as time id ``frame_id``."""
        cos, sin = self.rope.frames([frame_id])
        return rotate(keys, cos[0], sin[0])

    def _require_open(self) -> None:
        if not self.open:
            raise RuntimeError("No chunk is open: call begin_chunk() first.")

    # Between chunks

    def change_prompt(self, mode: str = "keep") -> None:
        """The text is about to change: forget the cached prompt, and of the past what ``mode`` says.

        Args:
            mode: one of ``PROMPT_CHANGES``; see ``MemoryPolicy.on_prompt_change``.

        Raises:
            ValueError: for an unknown mode.
            RuntimeError: if the past would change while a chunk is open.
        """
        if mode not in PROMPT_CHANGES:
            raise ValueError(f"A prompt change is one of {', '.join(PROMPT_CHANGES)}, not {mode!r}.")
        if mode != "keep" and self.open:
            raise RuntimeError("Finish the open chunk before the past is changed.")
        self.prompt = [None] * self._shape[0]
        update = self.policy.on_prompt_change(self, mode)
        self._apply(update)
        if self.learned is not None and update.forget:
            self.learned.reset()
        self.cut = self.cut or mode == "cut"
        if not self.open:
            self._compact()

    def rewind(self, frames: int) -> None:
        """Forget the newest ``frames`` frames, so that the caller can commit them anew: the first half of LongLive's
        "KV recache" (arXiv 2509.22622), whose second half is a commit of each clean chunk under the new prompt.

        Raises:
            ValueError: if that is not a number of whole chunks that are all still remembered.
            RuntimeError: if a chunk is open.
        """
        if self.open:
            raise RuntimeError("Finish the open chunk before the past is changed.")
        lost = range(self.frame - frames, self.frame)
        if frames < 0 or frames % self.chunk or not set(lost) <= set(self.tags):
            raise ValueError(f"Only whole chunks of {self.chunk} that are still remembered can be rewound.")
        self._apply(Update(evict=[slot for slot, tag in enumerate(self.tags) if tag in lost]))
        self.frame -= frames
        self._compact()

    def detach(self) -> None:
        """Cut the graph behind everything remembered (functional memories)."""
        self.keys, self.values = self.keys.detach(), self.values.detach()
        self.averages = {tag: (k.detach(), v.detach()) for tag, (k, v) in self.averages.items()}
        if self.learned is not None:
            self.learned.detach()
        if not self.functional:
            self._make_views()

    # State

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """A complete copy on the CPU (a GPU may have no room for it): tensors and counters. Restored, it continues bit
        for bit. The cached prompt is left out: it is computed again from the text."""
        return saved_state(self)

    def load_state_dict(self, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
        """Continue from ``state_dict()`` of a memory with the same policy and sizes.

        Raises:
            ValueError: if the state is not one of such a memory; nothing is changed then.
        """
        restore(self, tensors, counters)

    # How it is done

    def _prepare(self) -> None:
        """Rotate what changed since the last chunk, and find where the current one goes."""
        self._collapsed.gather(self)
        places = self.layout()
        self._current = [place for place in places if place.role == "current"]
        self._collapsed.prepare(self, places)
        end = self.used - self._collapsed.count
        waiting = () if self.chosen is None else self.chosen.wait(places)
        past = sorted((p.slot, p.id) for p in places if p.role != "current" and p.slot < end and p.slot not in waiting)
        cos, sin = self.rope.frames([place.id for place in self._current])
        self._angles = (cos.flatten(0, 1), sin.flatten(0, 1))
        # Slots in use are always a prefix: they fill up in order, and once full an eviction is refilled at once.
        self._runs = []
        for begin, end in runs([place.slot for place in self._current]):
            slot, tokens = self._current[begin].slot, self.tokens
            self._runs.append(
                (slice(begin * tokens, end * tokens), slice(slot * tokens, (slot + end - begin) * tokens))
            )
        if self.functional:
            self._past = turned_past(self, past)
        else:
            turn_anew(self, [(slot, index) for slot, index in past if self._turned_by[slot] != index])

    def _apply(self, update: Update) -> None:
        self._free(update.evict)
        for tag, (key, value) in update.tokens.items():
            if tag not in self.tags:
                self.tags[self.tags.index(FREE)] = tag
            slot = self.tags.index(tag)
            self._keep_average(tag, key, value)
            self._write(slot, key, value)

    def _free(self, slots: Sequence[int]) -> None:
        """Forget what is in these slots."""
        for slot in slots:
            self.tags[slot] = FREE
            self._turned_by[slot] = _DIRTY

    def _write_frames(self, slots: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Put frames of all layers into slots: ``[layers, batch, frames, tokens, heads, head_dim]``, un-rotated."""
        if self.functional:
            self._turned_by = [_DIRTY if slot in slots else by for slot, by in enumerate(self._turned_by)]
            self._replace(slots, keys, values)
            return
        for index, slot in enumerate(slots):
            self._write(slot, keys[:, :, index], values[:, :, index])

    def _write(self, slot: int, key: Tensor, value: Tensor) -> None:
        """The one place where slots are written outside of a forward."""
        self._turned_by[slot] = _DIRTY
        if self.functional:
            shape = self.keys[:, :, slot].shape
            pair = [x.expand(shape).to(self.keys.dtype).unsqueeze(2) for x in (key, value)]
            self._replace([slot], *pair)
        else:
            self.keys[:, :, slot].copy_(key)
            self.values[:, :, slot].copy_(value)

    def _replace(self, slots: Sequence[int], key: Tensor, value: Tensor) -> None:
        index = torch.tensor(slots, device=self.device)
        self.keys, self.values = self.keys.index_copy(2, index, key), self.values.index_copy(2, index, value)

    def _keep_average(self, tag: int, key: Tensor, value: Tensor) -> None:
        held = self.averages.get(tag)
        if self.functional:
            self.averages[tag] = (key, value)
        elif held is None or held[0].shape != key.shape:
            with torch.inference_mode(False), torch.no_grad():
                self.averages[tag] = (torch.clone(key), torch.clone(value))
        else:
            held[0].copy_(key)
            held[1].copy_(value)

    def _compact(self) -> None:
        """Move the slots in use to the front after something was forgotten without being replaced."""
        for target in range(self.used):
            if self.tags[target] != FREE:
                continue
            source = next(slot for slot in range(target, self.capacity) if self.tags[slot] != FREE)
            self._write(target, self.keys[:, :, source], self.values[:, :, source])
            self.tags[target], self.tags[source] = self.tags[source], FREE
