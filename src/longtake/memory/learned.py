"""The state of a learned memory in one take, and when it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.memory.echo import Echo
from longtake.memory.echo_encoder import MemoryEncoder
from longtake.memory.policy import FREE, LEARNED

if TYPE_CHECKING:
    from longtake.memory.store import Memory

_NOTHING, _WAITING, _DUE = 0, 1, 2


class Learned:
    """What an :class:`~longtake.memory.echo.Echo` memory has learned of its take: one state for all layers.

    It belongs to a ``Memory``, or to all parts of a split one: they have the layers' keys and values, and the slots
    that the memory frames are shown in. The state is computed where the encoder is, from keys and values of the last
    layer, once per chunk, without waiting for the device.

    Args:
        encoder: the weights; it is not copied, so that a trainer may change it between clips.
        parts: memories of consecutive layers, in order; told of this.

    Attributes:
        state: ``[groups, batch, frames * tokens, width]``, at least float32; None before the first update.
        evicted: keys and values ``[batch, evicted tokens, heads, head_dim]`` that wait for the first forward to end.
        due: 0 if nothing waits, 1 while the first forward has not ended, 2 when it has.

    Raises:
        ValueError: if there is no encoder, or it was made for another model, size or number of memory frames.
    """

    def __init__(self, encoder: MemoryEncoder | None, parts: Sequence[Memory]) -> None:
        first = parts[0]
        assert isinstance(first.policy, Echo)
        self.policy = first.policy
        layers = sum(len(part.prompt) for part in parts)
        if encoder is None:
            raise ValueError(
                "The memory echo is learned and needs trained weights: load some (load_memory, --memory-weights)."
            )
        heads, head_dim = first.keys.shape[-2:]
        self.policy.check_weights(encoder.config, heads, head_dim, first.rope.grid, layers)
        self.encoder, self.parts = encoder, tuple(parts)
        self._groups: list[list[int]] = []
        begin = 0
        for part in self.parts:
            end = begin + len(part.prompt)
            self._groups.append([encoder.group_of(layer, layers) for layer in range(begin, end)])
            begin = end
            part.learned = self
        self.reset()

    def reset(self) -> None:
        """Nothing has been taken in yet."""
        self.state: Tensor | None = None
        self.evicted: tuple[Tensor, Tensor] | None = None
        self.due = _NOTHING
        self._seen: tuple[Tensor, Tensor] | None = None  # keys and values of the state
        self._shown: list[object] = [None] * len(self.parts)  # which of them the slots hold
        self._grad = (False, False)  # whether gradients were on when the chunk began, and in its first forward

    @property
    def nbytes(self) -> int:
        """Bytes held in tensors, those in slots and the weights not counted."""
        tensors = [x for x in (self.state, *(self.evicted or ())) if x is not None]
        return sum(x.numel() * x.element_size() for x in tensors)

    # What the memory tells

    def begin(self, part: Memory, slots: Sequence[int]) -> None:
        """A chunk begins in a part, and the frames in these slots are about to leave."""
        if part is not self.parts[0]:  # the first one does it for all, while every part still has the frames
            return
        if part.functional:
            self._seen = None  # the weights may have changed since
        if not slots:
            return
        pair = self._read(slots)
        if self.policy.update == "chunk_start":
            self._take_in(*pair)
        else:
            self.evicted, self.due = pair, _WAITING
            self._grad = (torch.is_grad_enabled(), False)

    def show(self, part: Memory) -> None:
        """Puts the memory frames into slots of a part, or takes them out while there is nothing to see, or no ids."""
        tags = [LEARNED - i for i in range(self.policy.frames)]
        prior = self.policy.static or self.policy.prior
        if not ((self.state is not None or prior) and self.policy.fits(part)):
            part._free([slot for slot, tag in enumerate(part.tags) if tag in tags])
            return
        number = self.parts.index(part)
        there = all(tag in part.tags for tag in tags)
        if there and self._seen is not None and self._shown[number] is self._seen and not part.functional:
            return
        for tag in tags:
            if tag not in part.tags:
                part.tags[part.tags.index(FREE)] = tag
        with torch.set_grad_enabled(part.functional and torch.is_grad_enabled()):
            if self._seen is None:
                state = self.encoder.initial(part.keys.shape[1]) if self.state is None else self.state
                self._seen = self.encoder.keys_values(state)
            keys, values = (self._per_layer(x, number, part) for x in self._seen)
            part._write_frames([part.tags.index(tag) for tag in tags], keys, values)
        self._shown[number] = self._seen

    def before_forward(self, part: Memory) -> None:
        """The first layer of a part is about to be asked for."""
        if part is self.parts[0]:
            self.catch_up()

    def after_forward(self, part: Memory) -> None:
        """The last layer of a part was asked for."""
        if part is self.parts[-1] and self.due == _WAITING:
            self.due, self._grad = _DUE, (self._grad[0], torch.is_grad_enabled())

    def catch_up(self) -> None:
        """After the first forward of a chunk, with ``update="after_first_forward"``: takes in what left.

        Called between forwards, and best outside of them: gradient checkpointing runs what is inside again.
        """
        if self.due != _DUE:
            return
        self.settle()
        with torch.set_grad_enabled(self._grad[0]):
            for part in self.parts:
                self.show(part)
                part._prepare()

    def settle(self) -> None:
        """Takes in what is due, without showing it: the chunk is over."""
        if self.due != _DUE:
            return
        assert self.evicted is not None
        pair, self.evicted, self.due = self.evicted, None, _NOTHING
        # As in the released code, where the update is a part of the first forward.
        with torch.set_grad_enabled(self._grad[1]):
            self._take_in(*pair)

    # Prompt changes

    def forget(self) -> None:
        """Starts afresh; between chunks."""
        self.reset()
        for part in self.parts:
            part._free([slot for slot, tag in enumerate(part.tags) if tag <= LEARNED])
            part._compact()

    def relearn(self) -> None:
        """Starts afresh from one update with all that is in the window (released code, ``memory_recache``)."""
        self.forget()
        slots = self.policy.relearn(self.parts[0])
        if slots:
            self._take_in(*self._read(slots))

    def detach(self) -> None:
        """Cuts the graph behind the state."""
        self.state = None if self.state is None else self.state.detach()
        if self.evicted is not None:
            self.evicted = (self.evicted[0].detach(), self.evicted[1].detach())
        self._seen = None

    # How it is done

    def _read(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of the last layer in these slots, where the encoder is: copies, as slots are used again."""
        last = self.parts[-1]
        keys, values = (torch.cat([x[-1][:, slot] for slot in slots], 1) for x in (last.keys, last.values))
        return keys.to(self.encoder.device), values.to(self.encoder.device)

    def _take_in(self, keys: Tensor, values: Tensor) -> None:
        with torch.set_grad_enabled(self.parts[0].functional and torch.is_grad_enabled()):
            state = self.encoder.initial(keys.shape[0]) if self.state is None else self.state
            self.state = self.encoder(state, keys, values)
        self._seen = None

    def _per_layer(self, pair: Tensor, number: int, part: Memory) -> Tensor:
        """Of all groups to the layers of a part: ``[layers, batch, frames, tokens, heads, head_dim]``, no copies if
        there is one group."""
        whole = pair.to(part.device, part.dtype).unflatten(2, (self.policy.frames, -1))
        groups = self._groups[number]
        if len(set(groups)) == 1:
            return whole[groups[0]].expand(len(groups), *whole.shape[1:])
        return torch.stack([whole[group] for group in groups])

    # State

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What a snapshot needs: tensors and counters."""
        named = {"state": self.state, "keys": None, "values": None}
        if self.evicted is not None:
            named |= {"keys": self.evicted[0], "values": self.evicted[1]}
        tensors = {f"learned.{name}": x for name, x in named.items() if x is not None}
        return tensors, {"due": self.due}

    def check(self, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> bool:
        """Whether these are of such a state."""
        first, encoder = self.parts[0], self.encoder
        batch, width = first.keys.shape[1], (encoder.heads, encoder.head_dim)
        expected = (encoder.groups, batch, encoder.frames * encoder.tokens, encoder.width)
        state, waiting = tensors.get("learned.state"), counters.get("due", 0)
        pair = [tensors[name] for name in ("learned.keys", "learned.values") if name in tensors]
        fits = all(
            x.ndim == 4 and x.shape[0] == batch and x.shape[1] % encoder.tokens == 0 and tuple(x.shape[2:]) == width
            for x in pair
        )
        return (
            (state is None or tuple(state.shape) == expected)
            and fits
            and len(pair) == (2 if waiting else 0)
            and (waiting == 0 or (self.policy.update != "chunk_start" and bool(counters["open"])))
        )

    def load(self, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
        """Goes on from what :meth:`check` has seen."""
        self.reset()
        device = self.encoder.device
        if "learned.state" in tensors:
            self.state = tensors["learned.state"].to(device, copy=True)
        if counters.get("due", 0):
            self.evicted = (tensors["learned.keys"].to(device), tensors["learned.values"].to(device))
            self.due = counters["due"]
