"""Few-step starts: on Gaussians, where the teacher's flow and its solution are known, and on a small Wan."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from longtake.training.causal import causal_layout, plan_for
from longtake.training.consistency import consistency_loss, discretise, ode_loss, ode_pairs, ode_step, solve
from longtake.training.flow import noised, x0_from_flow
from longtake.training.velocity import Velocity, bidirectional, guided, teacher_forced, to_chunks
from tests.helpers_causal import HEIGHT, WIDTH, model
from tests.helpers_training import draw

MEAN = torch.tensor([1.5, -0.5])
SPREAD = torch.tensor([0.4, 1.3])  # standard deviations of the data


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def deviation(sigma: Tensor) -> Tensor:
    """Of the noisy data, at levels [n, 1]."""
    return (((1 - sigma) * SPREAD) ** 2 + sigma**2).sqrt()


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The flow of N(MEAN, SPREAD**2) in closed form: E[noise - clean | x]."""
    s = sigma[:, None]
    centred = (x - (1 - s) * MEAN) / deviation(s) ** 2
    return s * centred - (MEAN + (1 - s) * SPREAD**2 * centred)


def flow_map(x: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """The solution of the ODE in closed form: a Gaussian is carried on by scaling."""
    s, t = sigma[:, None], lower[:, None]
    return (1 - t) * MEAN + deviation(t) * (x - (1 - s) * MEAN) / deviation(s)


def test_the_flow_map_is_the_solution() -> None:
    """Of the tests' own formulas: the derivative of the map is the flow."""
    x, sigma = draw(1, 9, 2).double(), torch.linspace(0.2, 1, 9, dtype=torch.float64)
    h = 1e-5
    slope = (flow_map(x, sigma, sigma + h) - flow_map(x, sigma, sigma - h)) / (2 * h)
    assert torch.allclose(slope, gaussian(x, sigma), atol=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_solvers_converge_with_their_order(solver: str, order: int, shift: float) -> None:
    noise = draw(2, 64, 2).double()
    exact = flow_map(noise, torch.ones(64), torch.zeros(64))
    errors = [
        float((solve(gaussian, noise, discretise(n, shift), solver)[-1] - exact).square().mean().sqrt())
        for n in (32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.2)


def test_heun_asks_nothing_of_a_clean_level() -> None:
    asked = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma)
        return gaussian(x, sigma)

    x = draw(3, 4, 2)
    upper, lower = torch.tensor([0.9, 0.5, 0.1, 0.1]), torch.tensor([0.5, 0.1, 0.0, 0.05])
    out = ode_step(velocity, x, upper, lower, "heun")
    assert all(bool((sigma > 0).all()) for sigma in asked)
    assert torch.allclose(out[2], ode_step(gaussian, x, upper, lower)[2])
    assert not torch.allclose(out[3], ode_step(gaussian, x, upper, lower)[3])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_of_a_solver(shift: float) -> None:
    sigmas = discretise(10, shift)
    expected = [shift * u / (1 + (shift - 1) * u) for u in (1 - i / 10 for i in range(11))]
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    more = discretise(10, shift, [1.0, 0.77, float(sigmas[4])])
    assert len(more) == 12 and 0.77 in [round(s, 6) for s in more.tolist()]
    assert bool((more[1:] < more[:-1]).all()) and more[0] == 1 and more[-1] == 0


class Table(torch.nn.Module):
    """A flow that is affine in x, with numbers of its own for each level of a list."""

    def __init__(self, levels: Tensor) -> None:
        super().__init__()
        self.levels = levels
        self.scale = torch.nn.Parameter(torch.zeros(len(levels), 2))
        self.shift = torch.nn.Parameter(torch.zeros(len(levels), 2))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        row = (sigma[:, None] - self.levels).abs().argmin(1)
        return self.scale[row] * x + self.shift[row]


def error_of(student: Velocity, levels: Tensor) -> float:
    """Largest root mean square distance of the student's jumps to the closed form, over levels."""
    worst = 0.0
    clean, noise = MEAN + SPREAD * draw(4, 512, 2), draw(5, 512, 2)
    with torch.no_grad():
        for level in levels.tolist():
            sigma = torch.full((512,), level)
            x = noised(clean, noise, sigma)
            jump = x0_from_flow(x, student(x, sigma), sigma)
            distance = (jump - flow_map(x, sigma, torch.zeros(512))).square().mean().sqrt()
            worst = max(worst, float(distance))
    return worst


@pytest.mark.parametrize("huber", [None, 0.1])
def test_consistency_training_finds_the_flow_map(huber: float | None) -> None:
    sigmas = discretise(16, 2.0)
    student = Table(sigmas[:-1])
    average = deepcopy(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 1500)
    g = torch.Generator().manual_seed(0)
    assert error_of(student, sigmas[:-1]) > 0.5
    for _ in range(1500):
        clean = MEAN + SPREAD * torch.randn(64, 2, generator=g)
        noise = torch.randn(64, 2, generator=g)
        index = torch.randint(16, (64,), generator=g)
        loss = consistency_loss(student, average, gaussian, clean, noise, index, sigmas, "heun", huber)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
    assert error_of(student, sigmas[:-1]) < 0.04


def test_the_exact_flow_map_has_no_consistency_loss() -> None:
    """... with a fine solver; and only the student gets gradients."""
    sigmas = discretise(200, 3.0)
    clean, noise = MEAN + SPREAD * draw(6, 100, 2), draw(7, 100, 2)
    factor = torch.ones((), requires_grad=True)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:  # the flow whose jump is the map
        s = sigma[:, None].clamp(min=1e-9)
        return factor * (x - flow_map(x, sigma, torch.zeros_like(sigma))) / s

    index = torch.arange(100) * 2 - (torch.arange(100) * 2 > 199).long()
    loss = consistency_loss(exact, exact, gaussian, clean, noise, index, sigmas, "heun")
    assert loss.item() < 1e-6
    (gradient,) = torch.autograd.grad(
        consistency_loss(exact, exact, gaussian, clean, noise, index * 0, torch.tensor([0.8, 0.0]), "euler"), factor
    )
    x = noised(clean, noise, torch.full((100,), 0.8))
    jump = flow_map(x, torch.full((100,), 0.8), torch.zeros(100))
    target = x - 0.8 * gaussian(x, torch.full((100,), 0.8))  # at level 0 the state itself
    by_hand = (2 * (jump - target) * (jump - x)).mean()
    assert float(gradient) == pytest.approx(float(by_hand), rel=1e-4)


def test_regression_to_trajectories_finds_the_flow_map() -> None:
    levels = [1.0, 0.938, 0.833, 0.625]
    pairs = ode_pairs(gaussian, draw(8, 256, 2), levels, steps=40, solver="heun")
    assert pairs.states.shape == (4, 256, 2)
    assert torch.equal(pairs.states[0], draw(8, 256, 2))
    for level, state in zip(levels, pairs.states, strict=True):
        exact = flow_map(draw(8, 256, 2), torch.ones(256), torch.full((256,), level))
        assert torch.allclose(state, exact, atol=5e-3)
    student = Table(torch.tensor(levels))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    g = torch.Generator().manual_seed(1)
    assert error_of(student, torch.tensor(levels)) > 0.5
    for _ in range(500):
        loss = ode_loss(student, pairs, torch.randint(4, (256,), generator=g))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error_of(student, torch.tensor(levels)) < 0.03


def test_weights_share_the_loss_among_what_it_is_of() -> None:
    """The mean over processes of weighted sums is the mean over all, when they hold different numbers of chunks."""
    sigmas, pairs = discretise(8), ode_pairs(gaussian, draw(8, 6, 2), [1.0, 0.5], steps=4)
    student, index = Table(sigmas[:-1]), torch.arange(6) % 2
    clean, noise = draw(4, 6, 2), draw(5, 6, 2)
    weights = torch.tensor([0.1, 0.1, 0.3, 0.1, 0.3, 0.1])

    def both(rows: Tensor | slice, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        some = type(pairs)(pairs.levels, pairs.states[:, rows], pairs.ends[rows])
        return (
            ode_loss(student, some, index[rows], weights),
            consistency_loss(
                student, student, gaussian, clean[rows], noise[rows], index[rows], sigmas, weights=weights
            ),
        )

    alone = [both(slice(i, i + 1)) for i in range(6)]
    for i, loss in enumerate(both(slice(None), weights)):
        assert torch.allclose(loss, sum(w * one[i] for w, one in zip(weights, alone, strict=True)), atol=1e-6)
    for i, loss in enumerate(both(slice(None))):
        assert torch.allclose(loss, torch.stack([one[i] for one in alone]).mean(), atol=1e-6)


def test_guidance_by_hand() -> None:
    x, sigma = draw(9, 3, 2), torch.tensor([0.2, 0.5, 1.0])

    def null(x: Tensor, sigma: Tensor) -> Tensor:
        return x * sigma[:, None]

    expected = 3.5 * gaussian(x, sigma) - 2.5 * null(x, sigma)
    assert torch.allclose(guided(gaussian, null, 3.5)(x, sigma), expected, atol=1e-5)
    assert guided(gaussian, null, 1) is gaussian


# A small Wan

CHUNKS = 3


def material() -> tuple[Tensor, Tensor, Tensor]:
    """Clean chunks, noise and texts of two sequences."""
    shape = (2 * CHUNKS, 4, 3, HEIGHT, WIDTH)
    return 0.5 * draw(11, *shape) + 1, draw(12, *shape), draw(13, 2, 5, 8)


def forced(transformer: torch.nn.Module, clean: Tensor, text: Tensor) -> Velocity:
    layout = causal_layout([plan_for(None, range(CHUNKS))] * 2)
    return teacher_forced(
        transformer, layout, clean[layout.rows(CHUNKS)[: layout.clean]], text, [s for s, _ in layout.elements]
    )


@pytest.mark.parametrize("method", ["consistency", "causal pairs", "bidirectional pairs"])
def test_fifty_steps_lower_the_loss(method: str) -> None:
    clean, noise, text = material()
    teacher, student = model(1, seed=1).requires_grad_(False), model(1, seed=2)
    average = deepcopy(student).requires_grad_(False)
    sigmas = discretise(8)
    null = forced(teacher, clean, torch.zeros_like(text))
    source = guided(forced(teacher, clean, text), null, 2.0)
    if method == "bidirectional pairs":
        source = guided(bidirectional(teacher, text), bidirectional(teacher, torch.zeros_like(text)), 2.0)
    levels = [1.0, 0.938, 0.833, 0.625]
    pairs = ode_pairs(source, noise, levels, steps=6)
    past = clean if method == "causal pairs" else pairs.ends
    index = torch.arange(2 * CHUNKS) % 4
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(50):
        if method == "consistency":
            ours, mean = forced(student, clean, text), forced(average, clean, text)
            loss = consistency_loss(ours, mean, source, clean, noise, index, sigmas)
        else:
            loss = ode_loss(forced(student, past, text), pairs, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_bidirectional_teacher_sees_the_whole_clip() -> None:
    transformer = model().eval()
    _, noise, text = material()
    sigma = torch.tensor([0.3, 0.9]).repeat_interleave(CHUNKS)
    with torch.no_grad():
        flows = bidirectional(transformer, text)(noise, sigma)
        for clip in range(2):
            part = noise[clip * CHUNKS : (clip + 1) * CHUNKS]
            whole = torch.cat(list(part), dim=1)[None]  # chunks one behind the other in time
            expected = transformer(whole, 1000 * sigma[clip * CHUNKS, None], text[clip, None], return_dict=False)[0][0]
            found = torch.cat(list(flows[clip * CHUNKS : (clip + 1) * CHUNKS]), dim=1)
            assert torch.allclose(found, expected, atol=1e-5)
    frames = draw(1, 2, 9, 4, HEIGHT, WIDTH)
    chunks = to_chunks(frames, 3)
    assert torch.equal(chunks[1, 2, :, 1], frames[1, 7])


def test_mistakes_are_told() -> None:
    x = draw(1, 4, 2)
    with pytest.raises(ValueError, match="at least one step"):
        discretise(0)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        discretise(4, levels=[0.0])
    with pytest.raises(ValueError, match="euler or heun"):
        ode_step(gaussian, x, torch.ones(4), torch.zeros(4), "rk4")
    for levels in ([], [0.5, 0.5], [0.5, 0.6]):
        with pytest.raises(ValueError, match="Levels must fall"):
            ode_pairs(gaussian, x, levels)
    for sigmas in (torch.tensor([1.0, 0.5]), torch.tensor([0.0]), torch.tensor([0.5, 1.0, 0.0])):
        with pytest.raises(ValueError, match="fall strictly, to 0"):
            consistency_loss(gaussian, gaussian, gaussian, x, x, torch.zeros(4).long(), sigmas)
    with pytest.raises(ValueError, match="whole chunks of 3"):
        to_chunks(draw(1, 1, 7, 4, 4, 4), 3)
    with pytest.raises(ValueError, match="divide into patches"):
        forced(model(1), draw(1, 6, 4, 3, 3, 4), draw(2, 2, 5, 8))(draw(1, 6, 4, 3, 3, 4), torch.ones(6))
