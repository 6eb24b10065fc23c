"""A start in few steps for the causal student: consistency distillation, and regression to a teacher's trajectories.

Both teach a student to jump along the teacher's ordinary differential equation ``dx / dsigma = velocity(x, sigma)``,
where few-step sampling (predict the clean latents, add fresh noise, again) can take over:

- **Consistency** (arXiv 2303.01469; in latents and with guidance, LCM, arXiv 2310.04378): what the student predicts at
  one level must be what its average predicts one solver step further on. Needs no trajectories.
- **ODE pairs** (CausVid, arXiv 2412.07772, section on student initialisation): whole trajectories are solved once; the
  student learns to tell their ends from the states at its own few levels.

A teacher that is causal, given the same clean past as the student, is one whose answer the student can give; from a
bidirectional one's noise the end of an early chunk also depends on the noise of later chunks, which the student does
not see, and it learns their mean. Velocities (``velocity.py``) carry the past, so that one code does both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from longtake.sampling import warp
from longtake.training.flow import noised, spread, x0_from_flow
from longtake.training.velocity import Velocity

SOLVERS = ("euler", "heun")


def discretise(steps: int, shift: float = 5.0, levels: Sequence[float] = ()) -> Tensor:
    """Noise levels of a solver: equal steps of time, shifted as Wan's are (``sampling.warp``).

    Args:
        steps: how many.
        shift: positive; 1 for equal steps of the level.
        levels: further levels in (0, 1] that must be among them (those of the student).

    Returns:
        float32 on the host, falling from 1 to 0: ``[steps + 1]``, more if ``levels`` are not among them already.

    Raises:
        ValueError: if a number is out of range.
    """
    if steps < 1:
        raise ValueError(f"A solver needs at least one step, not {steps}.")
    if any(not 0 < level <= 1 for level in levels):
        raise ValueError(f"Levels must be above 0 and at most 1, not {list(levels)}.")
    grid = warp([1000 * (1 - i / steps) for i in range(steps + 1)], shift) / 1000
    extra = [level for level in levels if float((grid - level).abs().min()) > 1e-5]
    return torch.cat([grid, torch.tensor(extra, dtype=grid.dtype)]).sort(descending=True).values


def ode_step(velocity: Velocity, x: Tensor, sigma: Tensor, lower: Tensor, solver: str = "euler") -> Tensor:
    """One deterministic step of the flow from level ``sigma`` down to ``lower`` (both with x's leading dimensions).

    "euler" is of first order; "heun" of second, with two calls. Heun ends with Euler's step where ``lower`` is 0, as
    networks are seldom good there (Karras et al., arXiv 2206.00364, algorithm 1).

    Raises:
        ValueError: for an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be {' or '.join(SOLVERS)}, not {solver!r}.")
    step = spread(lower - sigma, x)
    slope = velocity(x, sigma)
    there = x + step * slope
    if solver == "euler":
        return there
    # a level of 0 is never asked for: the answer would not be used, so any other level does
    second = velocity(there, torch.where(lower > 0, lower, sigma))
    return torch.where(spread(lower, x) > 0, x + step * 0.5 * (slope + second), there)


@torch.no_grad()
def solve(velocity: Velocity, noise: Tensor, sigmas: Tensor, solver: str = "euler", lead: int = 1) -> Tensor:
    """The trajectory from noise: states at all ``sigmas``, ``[levels, *noise.shape]``.

    Args:
        velocity: the teacher.
        noise: what to begin with, at the first level.
        sigmas: falling levels, e.g. of :func:`discretise`; a last one of 0 is the clean end.
        solver: see :func:`ode_step`.
        lead: how many leading dimensions of ``noise`` have levels of their own.
    """
    states = [noise]
    shape = noise.shape[:lead]
    levels = sigmas.tolist()
    for level, lower in pairwise(levels):
        at, to = (torch.full(shape, s, device=noise.device) for s in (level, lower))
        # Heun's last step is one of Euler: do not ask twice for it
        states.append(ode_step(velocity, states[-1], at, to, solver if lower > 0 else "euler"))
    return torch.stack(states)


@dataclass(frozen=True)
class OdePairs:
    """States of trajectories and where they end.

    Attributes:
        levels: the student's, falling, float32 on the host ``[levels]``.
        states: ``[levels, n, ...]``.
        ends: clean latents ``[n, ...]``.
    """

    levels: Tensor
    states: Tensor
    ends: Tensor


def ode_pairs(
    teacher: Velocity,
    noise: Tensor,
    levels: Sequence[float],
    steps: int = 50,
    shift: float = 5.0,
    solver: str = "euler",
) -> OdePairs:
    """Solves the teacher's ODE from ``noise`` and keeps the states at the student's levels, and the ends.

    Args:
        teacher: with its guidance inside (``velocity.guided``): ``teacher_forced`` for a causal teacher given clean
            pasts, ``bidirectional`` for one that makes whole clips.
        noise: ``[n, ...]``, at level 1.
        levels: of the student's sampling, falling, in (0, 1].
        steps, shift, solver: of the solution; see :func:`discretise`.

    Raises:
        ValueError: if levels do not fall.
    """
    wanted = torch.tensor(list(levels), dtype=torch.float32)
    if not len(wanted) or bool((wanted[1:] >= wanted[:-1]).any()):
        raise ValueError(f"Levels must fall, at least one, not {list(levels)}.")
    sigmas = discretise(steps, shift, wanted.tolist())
    states = solve(teacher, noise, sigmas, solver)
    rows = [int((sigmas - level).abs().argmin()) for level in wanted.tolist()]
    return OdePairs(wanted, states[rows], states[-1])


def ode_loss(student: Velocity, pairs: OdePairs, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of the clean latents that the student predicts from states of trajectories.

    Args:
        student: as a velocity, e.g. ``teacher_forced(...)`` over ``pairs.ends`` or clean data as the past.
        pairs: of n trajectories.
        index: ``[n]`` long, on the states' device: which level each is taken at.
        weights: ``[n]`` of the means of each, with a sum of 1; None: all alike.
    """
    x = pairs.states[index, torch.arange(len(index), device=index.device)]
    sigma = pairs.levels.to(x.device)[index]
    error = (x0_from_flow(x, student(x, sigma), sigma) - pairs.ends).square().flatten(1).mean(1)
    return error.mean() if weights is None else (error * weights).sum()


def consistency_loss(
    student: Velocity,
    average: Velocity,
    teacher: Velocity,
    clean: Tensor,
    noise: Tensor,
    index: Tensor,
    sigmas: Tensor,
    solver: str = "euler",
    huber: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Consistency distillation: the student at level t must predict what its average predicts at the next level s < t.

    The state at s is one step of the teacher's ODE from the state at t. At s = 0 the prediction is the state itself
    (the boundary condition), which a flow model meets by its form, x - sigma * flow, without scalings.

    Args:
        student: with gradients.
        average: a running average of the student's weights (or the student itself), without gradients.
        teacher: the multi-step model, guidance inside (``velocity.guided``), without gradients.
        clean, noise: ``[n, ...]``; for chunks, with the past inside the three velocities.
        index: ``[n]`` long, on the latents' device: which step of ``sigmas`` each takes, 0 to ``len(sigmas) - 2``.
        sigmas: falling to 0, on the host, of :func:`discretise`.
        solver: see :func:`ode_step`.
        huber: None for the mean squared error, else the width c of the pseudo-Huber distance sqrt(d**2 + c**2) - c with
            d the distance of an element (arXiv 2310.14189), which bounds what outliers do.
        weights: ``[n]`` of the distances of each, with a sum of 1; None: all alike.

    Raises:
        ValueError: if ``sigmas`` does not fall to 0.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2 or bool((sigmas[1:] >= sigmas[:-1]).any()) or float(sigmas[-1]) != 0:
        raise ValueError("sigmas must fall strictly, to 0.")
    levels = sigmas.to(clean.device)
    sigma, lower = levels[index], levels[index + 1]
    x = noised(clean, noise, sigma)
    with torch.no_grad():
        further = ode_step(teacher, x, sigma, lower, solver)
        target = x0_from_flow(further, average(further, lower), lower)
    difference = (x0_from_flow(x, student(x, sigma), sigma) - target).flatten(1)
    error = difference.square().mean(1)
    if huber is not None:
        error = (difference.square().sum(1) + huber**2).sqrt() - huber
    return error.mean() if weights is None else (error * weights).sum()
