"""Distribution matching distillation: what a few-step generator and its critic are trained with.

DMD (arXiv 2311.18828), DMD2 (arXiv 2405.14867), and as Self-Forcing (arXiv 2506.08009, section 3.3 and released code)
uses it for video. The generator's clips ``x`` are noised to a random level; where the real score (the frozen teacher)
and the fake score (the critic, which follows the generator's own distribution) disagree about the clean clip, the
generator is pushed from the one to the other. The gradient is that of the KL divergence from generated to real clips,
up to a positive factor per sample.

Any function ``(x_t, sigma, text) -> flow`` is a score here, see ``longtake.training.flow``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from longtake.training.flow import Flow, SigmaSampling, flow_target, gaussian, noised, spread, x0_from_flow


@dataclass
class Matched:
    """What one generator step computed.

    Attributes:
        loss: a scalar; its gradient with respect to the clip is ``gradient`` over the number of supervised elements.
        gradient: where the clip is pushed from, like the clip; no graph.
        sigma: the levels, ``[batch]``.
    """

    loss: Tensor
    gradient: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class DMD:
    """Settings of distribution matching.

    Args:
        sigmas: how levels are drawn, one per clip; the published ones by default (uniform, shift 5, held in
            [0.02, 0.98]).
        normalise: divide the gradient of each sample by the mean of ``|x - real x0|`` over all but the batch (DMD,
            equation 8): levels then weigh alike.
        space: "x0", the published one: the gradient is ``fake x0 - real x0``. "score": the same times
            ``((1 - sigma) / sigma) ** 2``, which is exactly the gradient of KL(generated || real) at that level.

    Raises:
        ValueError: for an unknown space.
    """

    sigmas: SigmaSampling = field(default_factory=SigmaSampling)
    normalise: bool = True
    space: str = "x0"

    spaces: ClassVar[tuple[str, ...]] = ("x0", "score")

    def __post_init__(self) -> None:
        if self.space not in self.spaces:
            raise ValueError(f"The gradient is taken in the space {' or '.join(self.spaces)}, not {self.space!r}.")
        if self.space == "score" and self.sigmas.low <= 0:
            raise ValueError("In the space of scores the lowest level must be above 0: set low of the levels.")

    @torch.no_grad()
    def gradient(self, x: Tensor, text: Tensor | None, real: Flow, fake: Flow, sigma: Tensor, noise: Tensor) -> Tensor:
        """The distribution matching gradient with respect to the clip.

        Args:
            x: clips, ``[batch, ...]``.
            text: passed on to the scores.
            real, fake: the scores; guidance is the real score's own matter.
            sigma: ``[batch]`` in (0, 1].
            noise: like ``x``.

        Returns:
            Like ``x``, in at least float32. Elements that are not finite are 0.
        """
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        x_t = noised(x, noise, sigma)
        real_x0 = x0_from_flow(x_t, real(x_t, sigma, text), sigma)
        fake_x0 = x0_from_flow(x_t, fake(x_t, sigma, text), sigma)
        gradient = fake_x0 - real_x0
        if self.space == "score":
            s = spread(sigma, x)
            gradient = gradient * ((1 - s) / s).square()
        if self.normalise:
            gradient = gradient / (x - real_x0).abs().mean(tuple(range(1, x.ndim)), keepdim=True)
        # A sample that the teacher gives back exactly has a normaliser of 0: no number, so no gradient.
        return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def loss(
        self,
        x: Tensor,
        text: Tensor | None,
        real: Flow,
        fake: Flow,
        generator: torch.Generator | None = None,
        *,
        supervised: Tensor | None = None,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Matched:
        """The generator's loss, ``0.5 * mean((x - (x - gradient).detach()) ** 2)``.

        Args:
            x: clips with a graph, ``[batch, ...]``; ``[batch, channels, frames, height, width]`` with ``supervised``.
            text, real, fake: see :meth:`gradient`.
            generator: of the host; draws what is not given of ``sigma`` and ``noise``.
            supervised: bool ``[frames]`` or ``[batch, frames]``: the mean is taken over these frames alone. The scores
                see all of them.
            sigma: ``[batch]``.
            noise: like ``x``.

        Raises:
            ValueError: if something must be drawn and there is no generator, or a shape does not fit.
        """
        sigma, noise = self._draw(x, generator, sigma, noise)
        gradient = self.gradient(x, text, real, fake, sigma, noise)
        wide = x.to(gradient.dtype)
        error = 0.5 * (wide - (wide - gradient).detach()).square()
        return Matched(masked_mean(error, supervised), gradient, sigma)

    def critic_loss(
        self,
        x: Tensor,
        text: Tensor | None,
        critic: Flow,
        generator: torch.Generator | None = None,
        *,
        supervised: Tensor | None = None,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The critic's loss: flow matching on what the generator makes, ``mean((critic - (noise - x)) ** 2)``.

        The clips are detached: generate them under ``torch.no_grad()`` to spare the work of a graph. Levels are drawn
        as for the generator. Arguments as of :meth:`loss`; the published code supervises all frames.
        """
        sigma, noise = self._draw(x, generator, sigma, noise)
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        error = critic(noised(x, noise, sigma), sigma, text) - flow_target(x, noise)
        return masked_mean(error.square(), supervised)

    def _draw(
        self, x: Tensor, generator: torch.Generator | None, sigma: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if sigma is None or noise is None:
            if generator is None:
                raise ValueError("A generator must be given, or both sigma and noise.")
            sigma = self.sigmas.sample(x.shape[0], generator, x.device) if sigma is None else sigma
            noise = gaussian(x, generator) if noise is None else noise
        if noise.shape != x.shape or sigma.shape != x.shape[:1]:
            raise ValueError(
                f"Clips of {list(x.shape)} need noise of the same shape and sigma [{x.shape[0]}], not "
                f"{list(noise.shape)} and {list(sigma.shape)}."
            )
        return sigma, noise


def masked_mean(x: Tensor, supervised: Tensor | None) -> Tensor:
    """The mean over supervised frames; of none, 0.

    Args:
        x: ``[batch, channels, frames, height, width]``, any shape without a mask.
        supervised: bool ``[frames]`` or ``[batch, frames]``, on the device of ``x``; None: everything is.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    if supervised is None:
        return x.mean()
    frames = tuple(x.shape[:1] + x.shape[2:3])
    if x.ndim != 5 or tuple(supervised.shape) not in (frames, frames[1:]):
        raise ValueError(
            f"supervised must be [frames] or [batch, frames] of [batch, channels, frames, height, width], not "
            f"{list(supervised.shape)} of {list(x.shape)}."
        )
    # A product and not a choice by mask, which would make the host wait for the device.
    weight = supervised.expand(frames)[:, None, :, None, None].to(x.dtype)
    count = weight.sum() * (x.shape[1] * x.shape[3] * x.shape[4])
    return (x * weight).sum() / count.clamp(min=1)
