"""Flow matching: the algebra against its inverses and closed forms, levels against their distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longtake.sampling import warp
from longtake.training.flow import (
    SigmaSampling,
    WanFlow,
    flow_from_x0,
    flow_target,
    guided,
    noise_from_flow,
    noised,
    score_from_x0,
    shift_sigma,
    x0_from_flow,
)
from tests.helpers_training import draw
from tests.test_attention import build, text

SHAPE = (2, 4, 3, 4, 6)


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_quantity_gives_every_other(per_frame: bool, dtype: torch.dtype) -> None:
    clean, noise = draw(0, *SHAPE).to(dtype), draw(1, *SHAPE).to(dtype)
    sigma = draw(2, 2, 3).sigmoid() if per_frame else draw(2, 2).sigmoid()
    x_t, flow = noised(clean, noise, sigma), flow_target(clean, noise)
    for index in range(3):  # frame by frame, by hand
        for row in range(2):
            s = float(sigma[row, index] if per_frame else sigma[row])
            by_hand = (1 - s) * clean[row, :, index] + s * noise[row, :, index]
            assert torch.allclose(x_t[row, :, index], by_hand, atol=1e-6)
    assert torch.allclose(x0_from_flow(x_t, flow, sigma), clean, atol=1e-5)
    assert torch.allclose(noise_from_flow(x_t, flow, sigma), noise, atol=1e-5)
    assert torch.allclose(flow_from_x0(x_t, clean, sigma), flow, atol=1e-4)


def test_the_flow_is_the_derivative_of_the_noisy_latents() -> None:
    clean, noise = draw(0, *SHAPE), draw(1, *SHAPE)
    _, flow = torch.func.jvp(lambda s: noised(clean, noise, s), (torch.full((2,), 0.3),), (torch.ones(2),))
    assert torch.allclose(flow, flow_target(clean, noise), atol=1e-6)


def test_the_score_of_a_gaussian() -> None:
    """Of data N(mean, deviation**2), every noisy level is a Gaussian too, whose score autograd knows."""
    mean, deviation, sigma = 0.7, 0.4, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_t = draw(3, 3, 5).double().requires_grad_()
    s = sigma[:, None]
    variance = ((1 - s) * deviation) ** 2 + s**2
    density = torch.distributions.Normal((1 - s) * mean, variance.sqrt()).log_prob(x_t).sum()
    (expected,) = torch.autograd.grad(density, x_t)
    x0 = mean + (1 - s) * deviation**2 / variance * (x_t.detach() - (1 - s) * mean)  # the posterior mean
    assert torch.allclose(score_from_x0(x_t.detach(), x0, sigma), expected, atol=1e-9)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    x = draw(0, *SHAPE)
    for sigma in (torch.ones(3), torch.ones(2, 4), torch.ones(2, 1), torch.tensor(0.5), torch.ones(2, 3, 1)):
        with pytest.raises(ValueError, match=r"sigma must be \[batch\]"):
            noised(x, x, sigma)
    with pytest.raises(ValueError, match="5-dimensional"):
        noised(draw(0, 2, 3), draw(1, 2, 3), torch.ones(2, 3))


def test_half_precision_is_computed_in_float32() -> None:
    clean, noise, sigma = draw(0, *SHAPE).bfloat16(), draw(1, *SHAPE).bfloat16(), torch.tensor([0.013, 0.987])
    x_t = noised(clean, noise, sigma)
    assert x_t.dtype is torch.bfloat16
    assert torch.equal(x_t, noised(clean.float(), noise.float(), sigma).bfloat16())


# Levels


def test_the_shift_is_that_of_sampling() -> None:
    steps = (1000, 750, 500, 250, 10)
    assert torch.allclose(1000 * shift_sigma(torch.tensor(steps) / 1000, 5), warp(steps, 5), atol=1e-3)


def _cdf(sampling: SigmaSampling, s: float) -> float:
    """P(sigma <= s), by inverting what is done to the draw."""
    u = s / (sampling.shift - (sampling.shift - 1) * s)
    if sampling.how == "uniform":
        return u
    return 0.5 * (1 + math.erf((math.log(u / (1 - u)) - sampling.mean) / sampling.std / math.sqrt(2)))


@pytest.mark.parametrize(
    "sampling",
    [SigmaSampling(), SigmaSampling(shift=1, low=0, high=1), SigmaSampling("logit-normal", mean=-0.5, std=1.5)],
)
def test_levels_have_their_distribution(sampling: SigmaSampling) -> None:
    count = 20_000
    sigma = sampling.sample(count, torch.Generator().manual_seed(0))
    assert sigma.shape == (count,) and sigma.dtype is torch.float32
    assert float(sigma.min()) > sampling.low - 1e-6 and float(sigma.max()) < sampling.high + 1e-6
    for s in (0.05, 0.2, 0.5, 0.8, 0.95):
        assert float((sigma <= s).float().mean()) == pytest.approx(_cdf(sampling, s), abs=0.015)
    if sampling == SigmaSampling():  # what is beyond is held, not drawn again
        assert float((sigma > 0.9799).float().mean()) == pytest.approx(1 - _cdf(sampling, 0.98), abs=0.01)


def test_levels_follow_from_the_generator_alone() -> None:
    one, other = (SigmaSampling().sample((4, 7), torch.Generator().manual_seed(5)) for _ in range(2))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(one, other) and one.shape == (4, 7)
    SigmaSampling("logit-normal").sample(3, torch.Generator())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings",
    [{"how": "cosine"}, {"shift": 0}, {"low": 0.5, "high": 0.4}, {"high": 1.1}, {"std": -1}, {"shift": math.nan}],
)
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        SigmaSampling(**settings)  # type: ignore[arg-type]


# The transformer as a flow


def wan() -> tuple[object, Tensor, Tensor, Tensor]:
    return build(), draw(4, *SHAPE), text(seed=5, batch=2), text(seed=6)


def test_guidance_is_two_forwards_in_one() -> None:
    model, x, cond, negative = wan()
    sigma = torch.tensor([0.9, 0.3])
    with torch.no_grad():
        alone = WanFlow(model)(x, sigma, cond)
        without = WanFlow(model)(x, sigma, negative)
        both = WanFlow(model, 4.0, negative)(x, sigma, cond)
        direct = model(x, 1000 * sigma, cond, return_dict=False)[0]  # type: ignore[operator]
    assert torch.equal(alone, direct)
    assert (alone - without).abs().max() > 1e-2
    assert torch.allclose(both, without + 4 * (alone - without), atol=1e-5)
    # Released code writes it another way: its 3 is a 4 here.
    assert torch.allclose(both, alone + 3 * (alone - without), atol=1e-5)
    assert torch.equal(guided(alone, without, 0.0), without)


def test_one_level_per_frame() -> None:
    model, x, cond, negative = wan()
    with torch.no_grad():
        same = WanFlow(model)(x, torch.tensor([[0.4] * 3, [0.8] * 3]), cond)
        assert torch.allclose(same, WanFlow(model)(x, torch.tensor([0.4, 0.8]), cond), atol=1e-5)
        sigma = torch.tensor([[0.4, 0.6, 0.8], [0.1, 0.1, 0.9]])
        mixed = WanFlow(model)(x, sigma, cond)
        tokens = 1000 * sigma.repeat_interleave(2 * 3, 1)
        expected = model(x, tokens, cond, return_dict=False)[0]  # type: ignore[operator]
        assert torch.allclose(mixed, expected, atol=1e-6)
        assert (mixed - same).abs().max() > 1e-3
        both = WanFlow(model, 2.0, negative)(x, sigma, cond)
        assert torch.allclose(both, 2 * mixed - WanFlow(model)(x, sigma, negative), atol=1e-5)


def test_what_a_flow_needs() -> None:
    model, x, cond, _ = wan()
    with pytest.raises(ValueError, match="negative prompt"):
        WanFlow(model, 3.0)
    with pytest.raises(ValueError, match="needs a text"):
        WanFlow(model)(x, torch.ones(2), None)
    with pytest.raises(ValueError, match="same shape"):
        WanFlow(model, 3.0, torch.zeros(1, 9, 8))(x, torch.ones(2), cond)
