"""Self-forcing: a generator's own rollouts, under autograd, through the memory that it will run with.

Self-Forcing (arXiv 2506.08009, algorithm 1): chunk by chunk, each is denoised by the few steps of inference up to a
random exit step; only that step has gradients, and its prediction of the clean chunk is the chunk. A forward at t = 0
then commits it to the memory. LongLive (arXiv 2509.22622, section "Streaming long tuning") lets one rollout go on over
many optimizer steps, of which each supervises the newest frames only.

The memory is the one of inference, ``longtake.memory``, with its own policies, so eviction, averages and prompt changes
happen here as they will then, and rollouts can be longer than the window. Without gradients and with the last step as
exit, a rollout is exactly what ``Take`` makes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.memory.change import change_prompt
from longtake.memory.echo_encoder import MemoryEncoder
from longtake.memory.policy import MemoryPolicy
from longtake.prompts import CHANGES
from longtake.sampling import FewStepSchedule, chunk_noise
from longtake.transfer import send

MEMORY_GRADS = ("none", "update", "full")
"""How far gradients go through the memory; see :class:`Rollout`."""


@dataclass(frozen=True)
class Switch:
    """A new prompt from a chunk on.

    Attributes:
        text: its embedding, ``[1 or batch, tokens, dim]``.
        change: what becomes of the past: "keep", "recache", "flush" or "cut", as in ``Take``.
    """

    text: Tensor
    change: str = "keep"


@dataclass
class Clip:
    """What one call of :meth:`Rollout.clip` gives the score networks.

    Attributes:
        frames: ``[batch, channels, frames, height, width]``, float32 (float64 of a float64 model): frames of the clip
            before (detached), then new ones.
        supervised: bool ``[frames]``, on the device: new, and made with gradients (if any were asked for).
        texts: the embedding of every chunk that was made.
        first: index of the first frame within the rollout, in latent frames.
        exit: the exit step.
    """

    frames: Tensor
    supervised: Tensor
    texts: list[Tensor]
    first: int
    exit: int

    @property
    def text(self) -> Tensor:
        """The embedding that held last: the one for score networks, which take one text per clip."""
        return self.texts[-1]


def shared_exit(seed: int, iteration: int, steps: int) -> int:
    """The exit step of a training iteration, uniform in ``0 .. steps - 1``.

    It follows from its arguments alone: all processes and all chunks have the same without a word between them
    (Self-Forcing's ``same_step_across_blocks``), and a resumed run has that of the uninterrupted one.

    Raises:
        ValueError: if there are no steps.
    """
    if steps < 1:
        raise ValueError(f"A schedule has at least one step, not {steps}.")
    return random.Random(f"exit/{seed}/{iteration}").randrange(steps)


class Rollout:
    """A batch of takes that a generator in training makes, clip by clip, each going on where the last one ended.

    Noise follows from (seed, chunk, step) as in ``Take``: row ``i`` of the batch is the take of ``seeds[i]``.

    A clip's backward may run any time after the clip was made and before the weights change. With
    ``transformer.enable_gradient_checkpointing()`` loss and gradients stay the same: the memory that a block saw is
    kept for backward.

    Args:
        transformer: the generator, a ``WanTransformer3DModel``.
        policy: its memory.
        schedule: its few steps; ``FewStepSchedule.from_steps((1000, 750, 500, 250), shift=5)`` as published.
        text: embedding of the first prompt, ``[1 or batch, tokens, dim]``.
        seeds: one per take; their number is the batch.
        height, width: of the latents.
        chunk: latent frames per chunk.
        memory_grad: "none": what is remembered is a constant (the published baselines). "update": the policy's own
            update runs under autograd on constant keys and values, so that its learned parts have gradients in every
            clip, whatever the exit step. "full": commits too, so that later chunks send gradients into earlier ones.
        grad_chunks: only so many of a clip's last chunks are made with gradients, which bounds memory; None: all.
        functional: whether the memory is one for gradients. Without them, one that writes in place is faster and
            gives the bits of inference.
        keep: latent frames of the past that are kept for overlaps and ``reencode``; constant.
        dtype: of what is remembered; the transformer's unless given. Under autocast, that of autocast is what
            inference will have, at half the bytes.
        encoder: weights of a learned memory (``Echo``). With ``memory_grad="update"`` they have gradients, from every
            chunk of a clip that attends to the memory; the state is detached between clips.

    Attributes:
        memory: what is remembered.
        index: number of the next chunk.

    Raises:
        ValueError: if a setting cannot be.
    """

    def __init__(
        self,
        transformer: Any,
        policy: MemoryPolicy,
        schedule: FewStepSchedule,
        text: Tensor,
        seeds: Sequence[int],
        height: int,
        width: int,
        *,
        chunk: int = 3,
        memory_grad: str = "none",
        grad_chunks: int | None = None,
        functional: bool = True,
        keep: int = 21,
        dtype: torch.dtype | None = None,
        encoder: MemoryEncoder | None = None,
    ) -> None:
        if memory_grad not in MEMORY_GRADS:
            raise ValueError(f"memory_grad is one of {', '.join(MEMORY_GRADS)}, not {memory_grad!r}.")
        if grad_chunks is not None and grad_chunks < 1:
            raise ValueError(f"grad_chunks is the number of chunks with gradients, 1 or more, not {grad_chunks}.")
        if not seeds:
            raise ValueError("A rollout needs at least one seed: there is one take per seed.")
        if keep < 0:
            raise ValueError(f"keep is a number of latent frames, 0 or more, not {keep}.")
        self.transformer, self.schedule, self.seeds = transformer, schedule, list(seeds)
        self.chunk, self.memory_grad, self.grad_chunks, self.keep = chunk, memory_grad, grad_chunks, keep
        self.memory = memory_for(
            transformer,
            policy,
            height,
            width,
            batch=len(self.seeds),
            chunk=chunk,
            functional=functional,
            encoder=encoder,
            dtype=dtype,
        )
        self._dtype = next(transformer.parameters()).dtype
        self.shape = (1, transformer.config.in_channels, chunk, height, width)
        self.text = self._fitting(text)
        self.index = 0
        self._last: deque[Tensor] = deque(maxlen=policy.recached(self.memory.chunk))
        self._past = torch.empty(len(self.seeds), self.shape[1], 0, height, width, device=self.memory.device)
        # On the device, one per step and zero for the commit, as in Take: a chunk waits for none of them.
        self._times = send(torch.cat([schedule.timesteps, torch.zeros(1)]), self.memory.device).split(1)

    def _fitting(self, text: Tensor) -> Tensor:
        dim = self.transformer.config.text_dim
        if text.ndim != 3 or text.shape[0] not in (1, len(self.seeds)) or text.shape[2] != dim:
            raise ValueError(f"A text is an embedding [1 or {len(self.seeds)}, tokens, {dim}], not {list(text.shape)}.")
        return text.to(self.memory.device).expand(len(self.seeds), -1, -1)

    def clip(
        self,
        exit: int,
        frames: int = 21,
        overlap: int = 3,
        switches: Mapping[int, Switch] | None = None,
        *,
        grad: bool = True,
        reencode: Callable[[Tensor], Tensor] | None = None,
    ) -> Clip:
        """Makes the next clip of the rollout; what is remembered is detached at its end.

        Args:
            exit: the step at which every chunk ends, 0 to the number of steps less one; see :func:`shared_exit`.
            frames: latent frames of the clip.
            overlap: how many of them are the last ones of the clip before, for the score networks to see; none in the
                first clip, which has as many more new frames.
            switches: new prompts by number of the chunk (counted from the rollout's start) that they hold from.
            grad: whether gradients are recorded at all; False for the critic's samples. ``torch.no_grad()`` around
                the call does the same.
            reencode: makes the image latent that score networks expect at the beginning of a clip: given all frames
                kept up to the first one of the overlap, ``[batch, channels, n, height, width]``, it returns what stands
                in for that one, ``[batch, channels, 1, height, width]``; see :func:`image_latent`.

        Raises:
            ValueError: if the exit is no step, frames are not whole chunks, or a switch is none of this clip's.
            RuntimeError: if gradients are asked of a memory that writes in place.
        """
        grad = grad and torch.is_grad_enabled()
        overlap = overlap if self.index else 0
        switches = dict(switches or {})
        count = self._check(exit, frames, overlap, switches)
        if grad and not self.memory.functional:
            raise RuntimeError("Gradients need a functional memory: make the rollout with functional=True.")
        before, kept = self._past[:, :, self._past.shape[2] - overlap :], self._past
        self.memory.change_prompt("keep")  # the weights may have changed: so have the cached keys of the prompt
        start, made, texts = self.index, [], []
        with_grad = [grad and (self.grad_chunks is None or i >= count - self.grad_chunks) for i in range(count)]
        for i in range(count):
            if self.index in switches:
                # A policy may learn what a change does. What "recache" reads again is a constant in any case.
                with torch.set_grad_enabled(grad and self.memory_grad != "none"):
                    self._switch(switches[self.index])
            made.append(self._next(exit, with_grad[i], grad))
            texts.append(self.text)
        self.memory.detach()
        if overlap and reencode is not None:
            with torch.no_grad():
                head = reencode(kept[:, :, : kept.shape[2] - overlap + 1])
            before = torch.cat([head.to(before), before[:, :, 1:]], 2)
        # Without gradients all new frames count, as a critic may want them to.
        marks = [m for m in (with_grad if grad else [True] * count) for _ in range(self.chunk)]
        supervised = torch.tensor([False] * overlap + marks)
        return Clip(
            torch.cat([before, *made], 2),
            send(supervised, self.memory.device),
            texts,
            start * self.chunk - overlap,
            exit,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the rollout needs to go on, as tensors of the host and numbers. Between clips."""
        tensors, counters = self.memory.state_dict()
        return {
            "memory": tensors,
            "counters": counters,
            "index": self.index,
            "text": self.text.cpu(),
            "past": self._past.cpu(),
            "last": [x.cpu() for x in self._last],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a rollout of the same settings was.

        Raises:
            ValueError: if its memory was another's.
        """
        self.memory.load_state_dict(state["memory"], state["counters"])
        device = self.memory.device
        self.index, self.text, self._past = state["index"], state["text"].to(device), state["past"].to(device)
        self._last.clear()
        self._last.extend(x.to(device) for x in state["last"])

    def _check(self, exit: int, frames: int, overlap: int, switches: dict[int, Switch]) -> int:
        """The number of chunks to be made."""
        if not 0 <= exit < len(self.schedule):
            raise ValueError(f"exit is a step of the schedule, 0 to {len(self.schedule) - 1}, not {exit}.")
        if not 0 <= overlap <= self._past.shape[2]:
            raise ValueError(
                f"overlap is 0 to {self._past.shape[2]} frames here (keep bounds what is kept), not {overlap}."
            )
        count, rest = divmod(frames - overlap, self.chunk)
        if rest or count < 1:
            raise ValueError(
                f"A clip's new frames must be whole chunks of {self.chunk}, not {frames - overlap} "
                f"({frames} with an overlap of {overlap})."
            )
        for chunk, switch in switches.items():
            if not self.index <= chunk < self.index + count:
                raise ValueError(
                    f"This clip makes the chunks {self.index} to {self.index + count - 1}; a switch at {chunk} is not "
                    "one of them."
                )
            if switch.change not in CHANGES:
                raise ValueError(f"A prompt change is one of {', '.join(CHANGES)}, not {switch.change!r}.")
            self._fitting(switch.text)
        return count

    def _switch(self, switch: Switch) -> None:
        self.text = self._fitting(switch.text)
        if self.index:
            change_prompt(self.memory, switch.change, self._last, lambda latents: self._commit(latents, False))
        else:
            self.memory.change_prompt("keep")

    def _next(self, exit: int, grad: bool, clip_grad: bool) -> Tensor:
        """One chunk, ``[batch, channels, chunk, height, width]``, and its commit."""
        with torch.set_grad_enabled(clip_grad and self.memory_grad != "none"):
            self.memory.begin_chunk()
        with torch.no_grad():
            x = self._noise(0)
            for step in range(exit):
                x0 = self.schedule.x0(x, self._forward(x, step), step)
                x = self.schedule.renoise(x0, self._noise(step + 1), step + 1)
        with torch.set_grad_enabled(grad):
            x0 = self.schedule.x0(x, self._forward(x, exit), exit)
        self._commit(x0, grad and self.memory_grad == "full")
        self._last.append(x0.detach())
        if self.keep:
            self._past = torch.cat([self._past, x0.detach()], 2)[:, :, -self.keep :]
        self.index += 1
        return x0

    def _commit(self, latents: Tensor, grad: bool) -> None:
        with torch.set_grad_enabled(grad), self.memory.recording():
            self._forward(latents if grad else latents.detach(), -1)

    def _noise(self, step: int) -> Tensor:
        device, dtype = self.memory.device, torch.promote_types(self._dtype, torch.float32)
        return torch.cat([chunk_noise(seed, self.index, step, self.shape, device, dtype) for seed in self.seeds])

    def _forward(self, x: Tensor, step: int) -> Tensor:
        dtype = self._dtype
        t = self._times[step].expand(len(self.seeds))
        with attending(self.transformer, self.memory):
            flow: Tensor = self.transformer(x.to(dtype), t, self.text.to(dtype), return_dict=False)[0]
        return flow


def image_latent(vae: Any, latents: Tensor) -> Tensor:
    """The last frame of a video as an image: decoded, and encoded by itself.

    Score networks were trained on clips whose first latent is a single frame; one from the middle of a video stands for
    four (LongLive and Self-Forcing's released code re-encode it so). ``functools.partial(image_latent, vae)`` is a
    ``reencode`` for :meth:`Rollout.clip`.

    Args:
        vae: an ``AutoencoderKLWan``.
        latents: normalised, ``[batch, channels, n, height, width]``.

    Returns:
        Normalised ``[batch, channels, 1, height, width]``, like ``latents``.
    """
    dtype = next(vae.parameters()).dtype
    mean, std = (
        torch.tensor(x, device=latents.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        video = vae.decode((latents.float() * std + mean).to(dtype)).sample
        image = vae.encode(video[:, :, -1:].clamp(-1, 1)).latent_dist.mode()
    return ((image.float() - mean) / std).to(latents.dtype)
