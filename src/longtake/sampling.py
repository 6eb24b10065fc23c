"""The few-step schedule of distilled flow models, and noise that belongs to its chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from longtake.transfer import send

_MASK = 0xFFFFFFFF
_DRAWS_PER_CHUNK = 64


def warp(steps: Sequence[float], shift: float) -> Tensor:
    """Shift timesteps towards the noisy end, as Wan's flow schedule does.

    sigma' = shift * s / (1 + (shift - 1) * s) with s = t / 1000 (Wan, arXiv 2503.20314; Self-Forcing, arXiv
    2506.08009, ``warp_denoising_step``).

    Args:
        steps: timesteps in 0..1000.
        shift: positive; 1 changes nothing.

    Returns:
        float32 timesteps [len(steps)] in 0..1000.

    Raises:
        ValueError: if a step or the shift is out of range.
    """
    if shift <= 0:
        raise ValueError(f"shift must be positive, not {shift}.")
    if not steps or any(not 0 <= t <= 1000 for t in steps):
        raise ValueError(f"steps must be one or more timesteps from 0 to 1000, not {list(steps)}.")
    sigmas = [t / 1000 for t in steps]
    return torch.tensor([1000 * shift * s / (1 + (shift - 1) * s) for s in sigmas], dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class FewStepSchedule:
    """Which timesteps a chunk is denoised at, and how to go from one to the next (Self-Forcing, arXiv 2506.08009).

    Attributes:
        timesteps: float32 on the host [steps], strictly decreasing, in (0, 1000].
        sigmas: the noise levels, t / 1000.
    """

    timesteps: Tensor
    sigmas: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        steps = self.timesteps.flatten().tolist()
        falling = all(a > b for a, b in pairwise(steps))
        if self.timesteps.ndim != 1 or not steps or not falling or not (steps[0] <= 1000 and steps[-1] > 0):
            raise ValueError(f"timesteps must fall strictly within 1000..0 (0 excluded), not {steps}.")
        # Python floats: multiplying by them never waits for the device.
        object.__setattr__(self, "sigmas", tuple(t / 1000 for t in steps))

    @classmethod
    def from_steps(cls, steps: Sequence[float] = (1000, 750, 500, 250), shift: float = 5.0) -> FewStepSchedule:
        """The schedule of un-warped ``steps``; the defaults are those of the published 1.3B checkpoints."""
        return cls(warp(steps, shift))

    def __len__(self) -> int:
        return len(self.sigmas)

    def x0(self, x: Tensor, flow: Tensor, index: int) -> Tensor:
        """The clean latents that step ``index`` predicts: x - sigma * flow, computed in float32, in the dtype of x."""
        return (x.float() - self.sigmas[index] * flow.float()).to(x.dtype)

    def renoise(self, x0: Tensor, noise: Tensor, index: int) -> Tensor:
        """The input of step ``index``: (1 - sigma) * x0 + sigma * noise, computed in float32, in the dtype of x0."""
        sigma = self.sigmas[index]
        return ((1 - sigma) * x0.float() + sigma * noise.float()).to(x0.dtype)


def denoise(schedule: FewStepSchedule, noise: Callable[[int], Tensor], flow: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Clean latents of a chunk, by all steps of a schedule.

    Args:
        noise: of a step, by its number, as latents are.
        flow: what the model predicts of latents at a step.
    """
    x = noise(0)
    for step in range(len(schedule)):
        if step:
            x = schedule.renoise(x, noise(step), step)
        x = schedule.x0(x, flow(x, step), step)
    return x


def _mix(value: int, key: int) -> int:
    """A keyed one-to-one map of 32-bit integers (the finalizer of MurmurHash3, keyed at both ends)."""
    value = (value ^ key) & _MASK
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _MASK
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _MASK
    value ^= value >> 16
    return (value + (key >> 32)) & _MASK


def _noise_seed(seed: int, chunk_index: int, step: int) -> int:
    # The CPU generator (mt19937) looks at the low 32 bits of its seed only, so a 64-bit hash of the three numbers
    # would give equal noise about 25 times in a day of video (birthdays among 2**32). A one-to-one map of the
    # draw's number, keyed by the seed, cannot: no draw repeats within the first 2**26 chunks of a take.
    key = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # splitmix64: near seeds, unrelated keys
        key = ((key ^ (key >> 30)) * multiplier) & 0xFFFFFFFFFFFFFFFF
    key ^= key >> 31
    return _mix(_mix((chunk_index * _DRAWS_PER_CHUNK + step) & _MASK, key), key >> 7)


def chunk_noise(
    seed: int,
    chunk_index: int,
    step: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gaussian noise that depends on (seed, chunk_index, step) alone.

    Drawn on the host in float32, so it is the same on every device, for every length asked for, and after a resume.

    Args:
        seed: any integer.
        chunk_index: 0 or more.
        step: number of the draw within the chunk, 0..63; 0 is the chunk's first noise by convention.
        shape: shape of the result.
        device, dtype: of the result.

    Raises:
        ValueError: if ``chunk_index`` is negative or ``step`` is not in 0..63.
    """
    if chunk_index < 0 or not 0 <= step < _DRAWS_PER_CHUNK:
        raise ValueError(f"chunk_index must be 0 or more and step 0..63, not {chunk_index} and {step}.")
    generator = torch.Generator(device="cpu").manual_seed(_noise_seed(seed, chunk_index, step))
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    return send(noise, device).to(dtype)
