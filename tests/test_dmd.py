"""Distribution matching: against the KL divergence of Gaussians in closed form, and that it learns."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from longtake.attention import install
from longtake.memory import Sliding, parse_memory
from longtake.sampling import FewStepSchedule
from longtake.training.critic import critic_from, freeze
from longtake.training.dmd import DMD, masked_mean
from longtake.training.flow import Flow, SigmaSampling, WanFlow, flow_from_x0, score_from_x0, x0_from_flow
from longtake.training.selfforcing import Rollout, shared_exit
from tests.helpers_training import draw
from tests.test_attention import build, text

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.2, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.4, 0.3, 0.8]], dtype=torch.float64)


def gaussian_flow(mean: Tensor, covariance: Tensor) -> Flow:
    """The exact flow of data N(mean, covariance), for [batch, dim]."""

    def flow(x_t: Tensor, sigma: Tensor, text: Tensor | None) -> Tensor:
        s = sigma.to(mean)[:, None, None]
        eye = torch.eye(len(mean), dtype=mean.dtype)
        gain = (1 - s) * covariance @ torch.linalg.inv((1 - s) ** 2 * covariance + s**2 * eye)
        x0 = mean + (gain @ (x_t - (1 - s[..., 0]) * mean)[..., None])[..., 0]
        return flow_from_x0(x_t, x0, sigma.to(mean))

    return flow


def exact_draws(count: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two samples [count, dim] that are jointly standard normal to second order exactly: mean 0, covariance 1, no
    correlation. The expectation of anything quadratic is then its mean over them, with no error."""
    x = draw(seed, count, 2 * dim).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / count)).T
    return x[:, :dim], x[:, dim:]


REAL = gaussian_flow(MEAN, ROOT @ ROOT.T)
OFF = (torch.tensor([0.2, 0.1, -0.3], dtype=torch.float64), ROOT.flip(0) + 0.3 * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("space", ["score", "x0"])
@pytest.mark.parametrize("shift,root", [(MEAN, ROOT), OFF], ids=["at the fixed point", "off it"])
def test_the_gradient_is_that_of_the_kl_divergence(level: float, space: str, shift: Tensor, root: Tensor) -> None:
    """x = shift + root z: the mean gradient of the loss, by autograd, against the gradient of KL(generated || real) of
    the two noisy Gaussians, by autograd through torch's closed form."""
    draws, noise = exact_draws(400, 3)
    b, a = shift.clone().requires_grad_(), root.clone().requires_grad_()
    x = b + draws @ a.T
    fake = gaussian_flow(shift, root @ root.T)
    dmd = DMD(normalise=False, space=space)
    found = dmd.loss(x, None, REAL, fake, sigma=torch.full((400,), level, dtype=torch.float64), noise=noise)
    (found.loss * 3).backward()  # a mean over dimensions; divergences add them up

    c, d = shift.clone().requires_grad_(), root.clone().requires_grad_()
    eye = level**2 * torch.eye(3, dtype=torch.float64)
    ours = MultivariateNormal((1 - level) * c, (1 - level) ** 2 * d @ d.T + eye)
    theirs = MultivariateNormal((1 - level) * MEAN, (1 - level) ** 2 * ROOT @ ROOT.T + eye)
    kl_divergence(ours, theirs).backward()
    factor = 1.0 if space == "score" else (level / (1 - level)) ** 2
    assert a.grad is not None and b.grad is not None and c.grad is not None and d.grad is not None
    assert torch.allclose(b.grad, factor * c.grad, atol=1e-10)
    assert torch.allclose(a.grad, factor * d.grad, atol=1e-10)
    assert (float(a.grad.abs().max()) < 1e-9) == (shift is MEAN)


def test_training_reaches_the_data_and_its_whole_covariance() -> None:
    """An affine generator under the published settings but for the critic, which is exact."""
    a = torch.nn.Parameter(0.1 * torch.eye(3, dtype=torch.float64))  # nearly collapsed to begin with
    b = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([a, b], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 700)
    generator = torch.Generator().manual_seed(0)
    for _ in range(700):
        x = b + torch.randn(256, 3, generator=generator, dtype=torch.float64) @ a.T
        fake = gaussian_flow(b.detach(), (a @ a.T).detach())
        DMD().loss(x, None, REAL, fake, generator).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    made, data = (a @ a.T).detach(), ROOT @ ROOT.T
    assert torch.allclose(b, MEAN, atol=1e-4)
    # Whole: the narrowest direction has a variance of 0.14, and has not collapsed either.
    assert torch.allclose(made, data, atol=1e-4)


def test_the_critic_recovers_a_score() -> None:
    """Flow matching on samples of a distribution of two bumps, whose score is known."""
    centers = torch.tensor([[-1.5, 0.0], [1.5, 1.0]])
    width = 0.5

    def exact(x_t: Tensor, sigma: Tensor, text: Tensor | None) -> Tensor:
        s = sigma[:, None, None]
        variance = ((1 - s) * width) ** 2 + s**2
        away = x_t[:, None] - (1 - s) * centers
        posterior = centers + (1 - s) * width**2 / variance * away
        weight = (-away.square().sum(-1, keepdim=True) / (2 * variance)).softmax(1)
        return flow_from_x0(x_t, (weight * posterior).sum(1), sigma)

    torch.manual_seed(0)
    width_of = 96
    net = torch.nn.Sequential(
        torch.nn.Linear(5, width_of), torch.nn.SiLU(), torch.nn.Linear(width_of, width_of), torch.nn.SiLU(),
        torch.nn.Linear(width_of, 2),
    )  # fmt: skip

    def critic(x_t: Tensor, sigma: Tensor, text: Tensor | None) -> Tensor:
        s = sigma[:, None]
        out: Tensor = net(torch.cat([x_t, s, s.square(), (6 * s).sin()], 1))
        return out

    generator = torch.Generator().manual_seed(1)

    def samples(count: int) -> Tensor:
        which = torch.randint(2, (count,), generator=generator)
        return centers[which] + width * torch.randn(count, 2, generator=generator)

    dmd = DMD(SigmaSampling(shift=1.0))
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, 1200)
    for _ in range(1200):
        dmd.critic_loss(samples(512), None, critic, generator).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for level, tolerance in ((0.2, 0.06), (0.5, 0.02), (0.8, 0.002)):
        sigma = torch.full((2000,), level)
        x_t = (1 - level) * samples(2000) + level * torch.randn(2000, 2, generator=generator)
        with torch.no_grad():
            scores = [score_from_x0(x_t, x0_from_flow(x_t, f(x_t, sigma, None), sigma), sigma) for f in (critic, exact)]
        assert float((scores[0] - scores[1]).square().mean() / scores[1].square().mean()) < tolerance


# A transformer


def latent_flow(mean: Tensor, deviation: float) -> Flow:
    """The exact flow of latents N(mean, deviation**2), independent."""

    def flow(x_t: Tensor, sigma: Tensor, text: Tensor | None) -> Tensor:
        s = sigma.view(-1, 1, 1, 1, 1)
        gain = (1 - s) * deviation**2 / (((1 - s) * deviation) ** 2 + s**2)
        return flow_from_x0(x_t, mean + gain * (x_t - (1 - s) * mean), sigma)

    return flow


def test_fifty_steps_of_distillation_move_a_transformer_towards_the_data() -> None:
    """The whole recipe on a tiny Wan: rollouts longer than the window, a critic that is trained beside, both losses."""
    mean = torch.tensor([1.0, -0.5, 0.0, 0.8]).view(1, 4, 1, 1, 1)
    real, dmd = latent_flow(mean, 0.3), DMD()
    student = build(num_layers=1)
    teacher = freeze(build(num_layers=1))
    critic = critic_from(teacher)
    schedule = FewStepSchedule.from_steps((1000, 500))
    optimizers = [torch.optim.Adam(m.parameters(), lr=5e-3, betas=(0.0, 0.99)) for m in (student, critic)]
    generator = torch.Generator().manual_seed(0)

    def clip(seed: int, exit: int, grad: bool) -> tuple[Tensor, Tensor]:
        rollout = Rollout(student, Sliding(6, 0, "relative"), schedule, text(), range(seed, seed + 4), 4, 6)
        made = rollout.clip(exit, 12, grad=grad)
        return made.frames, made.text

    def distance() -> tuple[float, float]:
        frames, _ = clip(10_000, 1, False)
        return float((frames - mean).mean((0, 2, 3, 4)).square().mean().sqrt()), float(frames.std((0, 2)).mean())

    before = distance()
    for step in range(50):
        for _ in range(2):
            x, said = clip(1000 + step, step % 2, False)
            dmd.critic_loss(x, said, WanFlow(critic), generator).backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
        x, said = clip(step, step % 2, True)
        dmd.loss(x, said, real, WanFlow(critic), generator).loss.backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
    after = distance()
    assert after[0] < 0.35 * before[0]
    assert 0.3 < after[1] < 0.85 * before[1]  # narrower, and not one point


@pytest.mark.parametrize("iteration", [0, 1])
def test_the_iteration_of_the_documentation(iteration: int) -> None:
    page = (Path(__file__).parents[1] / "docs" / "dmd.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("height=60, width=104", "height=4, width=6")
    student, teacher = build(), build()
    names: dict[str, Any] = {
        "student": student,
        "teacher": teacher,
        "critic": critic_from(teacher),
        "text": text(),
        "seed": 1,
    }
    names |= {"empty_text": text(4), "iteration": iteration, "generator": torch.Generator()}
    imported: dict[str, Any] = {"DMD": DMD, "FewStepSchedule": FewStepSchedule, "Rollout": Rollout, "WanFlow": WanFlow}
    imported |= {"freeze": freeze, "parse_memory": parse_memory, "shared_exit": shared_exit}
    exec(code, {**imported, **names})
    learning = [any(p.grad is not None for p in m.parameters()) for m in (student, names["critic"], teacher)]
    assert learning == [iteration == 0, iteration == 1, False]


def test_a_critic_starts_as_the_teacher_and_leaves_it_alone() -> None:
    teacher = build()
    x, sigma, said = draw(0, 2, 4, 6, 4, 6), torch.tensor([0.3, 0.9]), text(batch=2)
    install(teacher)
    with torch.no_grad():
        expected = WanFlow(freeze(teacher))(x, sigma, said)
    critic = critic_from(teacher)
    assert {type(p) for p in critic.attn_processors.values()} == {WanAttnProcessor}
    assert all(p.requires_grad for p in critic.parameters()) and not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        assert torch.equal(WanFlow(critic)(x, sigma, said), expected)
    DMD().critic_loss(x, said, WanFlow(critic), torch.Generator()).backward()
    torch.optim.SGD(critic.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert not torch.allclose(WanFlow(critic)(x, sigma, said), expected, atol=1e-3)
        assert torch.equal(WanFlow(teacher)(x, sigma, said), expected)
    assert critic_from(teacher, torch.bfloat16).dtype is torch.bfloat16


# Parts of the loss


def constant(value: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A score that always says the same clean clip."""
    return lambda x_t, sigma, text: flow_from_x0(x_t, torch.full_like(x_t, value), sigma)


def test_the_loss_by_hand() -> None:
    x = draw(0, 2, 4, 3, 2, 2).double().requires_grad_()
    noise, sigma = draw(1, 2, 4, 3, 2, 2).double(), torch.tensor([0.9, 0.2], dtype=torch.float64)
    mask = torch.tensor([[False, True, True], [False, False, True]])
    out = DMD().loss(x, None, constant(2.0), constant(5.0), sigma=sigma, noise=noise, supervised=mask)
    out.loss.backward()
    total, count = 0.0, 0
    for row in range(2):
        normaliser = (x[row] - 2.0).abs().mean().item()  # over all frames, supervised or not
        for frame in range(3):
            gradient = torch.full((4, 2, 2), 3.0 / normaliser, dtype=torch.float64)
            assert torch.allclose(out.gradient[row, :, frame], gradient)
            if mask[row, frame]:
                total, count = total + float(gradient.square().sum()) / 2, count + 16
    assert count == 48
    assert float(out.loss.detach()) == pytest.approx(total / count)
    assert x.grad is not None
    assert torch.allclose(x.grad, out.gradient * mask[:, None, :, None, None] / 48)


def test_one_mask_for_all_and_none_supervised() -> None:
    x = draw(0, 2, 4, 3, 2, 2)
    mask = torch.tensor([True, False, True])
    assert torch.allclose(masked_mean(x, mask), x[:, :, [0, 2]].mean(), atol=1e-6)
    assert float(masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))) == 0
    with pytest.raises(ValueError, match="supervised must be"):
        masked_mean(x, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="supervised must be"):
        masked_mean(draw(0, 2, 4), torch.ones(4, dtype=torch.bool))


def test_a_number_that_is_none_is_no_gradient() -> None:
    """One sample that the teacher gives back exactly (0 / 0 and 1 / 0), one where it breaks down; the third counts."""
    x = torch.full((3, 4), 2.0)
    x[2] = draw(0, 4)

    def broken(x_t: Tensor, sigma: Tensor, text: Tensor | None) -> Tensor:
        flow = constant(2.0)(x_t, sigma, text)
        flow[1, 0] = float("nan")
        return flow

    sigma, noise = torch.ones(3), draw(1, 3, 4)  # at level 1 nothing rounds
    found = DMD().gradient(x, None, broken, constant(3.0), sigma, noise)
    assert found.isfinite().all()
    assert (found[:2] == 0).all() and torch.allclose(found[2], 1 / (x[2] - 2).abs().mean(), atol=1e-5)


def test_scores_are_asked_without_a_graph_at_the_same_point() -> None:
    seen: list[tuple[Tensor, Tensor, object, bool]] = []

    def score(x_t: Tensor, sigma: Tensor, said: Tensor | None) -> Tensor:
        seen.append((x_t, sigma, said, torch.is_grad_enabled()))
        return torch.zeros_like(x_t)

    said = text()
    x = draw(0, 2, 4).requires_grad_()
    out = DMD().loss(x, said, score, score, torch.Generator().manual_seed(3))
    assert len(seen) == 2 and torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], out.sigma)
    assert seen[0][2] is said and not seen[0][3] and not seen[0][0].requires_grad
    again = DMD().loss(x, said, score, score, torch.Generator().manual_seed(3))
    assert torch.equal(out.loss, again.loss)
    assert float(out.loss.detach()) == 0  # where the scores agree there is nothing to learn


def test_the_critic_gives_the_generator_no_gradient() -> None:
    x = draw(0, 2, 4).requires_grad_()
    weight = torch.nn.Parameter(torch.tensor(0.3))
    DMD().critic_loss(x, None, lambda x_t, s, t: weight * x_t, torch.Generator()).backward()
    assert x.grad is None and weight.grad is not None


def test_half_precision_clips_have_gradients_in_float32() -> None:
    x = draw(0, 2, 4, 3, 2, 2).bfloat16().requires_grad_()
    out = DMD().loss(x, None, constant(2.0), constant(2.001), torch.Generator(), supervised=torch.ones(3).bool())
    out.loss.backward()
    assert out.gradient.dtype is torch.float32 and x.grad is not None
    assert out.gradient.abs().min() > 0 and x.grad.abs().min() > 0


def test_settings_and_shapes_that_cannot_be() -> None:
    x = draw(0, 2, 4)
    with pytest.raises(ValueError, match="space"):
        DMD(space="noise")
    with pytest.raises(ValueError, match="lowest level"):
        DMD(SigmaSampling(low=0.0), space="score")
    with pytest.raises(ValueError, match="A generator must be given"):
        DMD().loss(x, None, constant(0), constant(1))
    with pytest.raises(ValueError, match="need noise of the same shape"):
        DMD().critic_loss(x, None, constant(0), sigma=torch.ones(3), noise=x)
