"""The student's loss: against inference and by hand, over splits of a batch, and that it learns."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from longtake.memory import Sliding, parse_memory
from longtake.training.student import (
    ChunkSequences,
    StudentOptions,
    draw_sequence,
    sample_levels,
    student_against_teacher,
    student_losses,
)
from tests.helpers_causal import HEIGHT, WIDTH, ByHand, cached, model
from tests.helpers_training import draw

CHUNKS = 6
SMALL = ("memrope:sink=1,recent=2", "sliding:window=7,sink=1,ids=relative")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generators(*seeds: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


def sequences(count: int, chunks: int = CHUNKS, seed: int = 0, changes: bool = False) -> ChunkSequences:
    """With ``changes`` the text changes within each sequence, else each has one."""
    latents = draw(seed + 1, count, 3 * chunks, 4, HEIGHT, WIDTH)
    if not changes:
        return ChunkSequences(latents, draw(seed + 2, count, 5, 8))
    texts = [[i % 3] * 2 + [(i + 1) % 3] * (chunks - 2) for i in range(count)]
    return ChunkSequences(latents, draw(seed + 2, 3, 5, 8), texts)


def chunks_of(batch: ChunkSequences, i: int) -> Tensor:
    """[chunks, channels, 3, h, w], frame by frame."""
    frames = batch.latents[i]
    return torch.stack([torch.stack(list(frames[c : c + 3]), 1) for c in range(0, len(frames), 3)])


def text_of(batch: ChunkSequences, i: int, count: int) -> Tensor:
    return batch.text[[i] * count if batch.texts is None else list(batch.texts[i])[:count]]


# By hand


@pytest.mark.parametrize("memory", SMALL)
def test_teacher_forcing_is_the_error_of_inference(memory: str) -> None:
    """Clean pasts with their noise run at t = 0 through the memory itself; targets compared one by one."""
    options = StudentOptions(memories=(memory,), context_share=1.0, weights=(1.0, 2.0, 0.5, 1.0, 0.0, 3.0))
    batch, transformer = sequences(2, changes=True), model()
    with torch.no_grad():
        found = student_losses(transformer, batch, generators(7, 8), options)
    later, first = [], []
    for i, g in enumerate(generators(7, 8)):
        clean = chunks_of(batch, i)
        drawn = draw_sequence(clean.shape, g, options)
        assert 0 < drawn.dirt <= 0.12 and drawn.targets == list(range(CHUNKS))
        levels = drawn.sigma[:, None, None, None, None]
        past = (1 - drawn.dirt) * clean + drawn.dirt * drawn.past_noise
        noisy = (1 - levels) * clean + levels * drawn.noise
        flows = cached(transformer, parse_memory(memory), past, noisy, drawn.sigma, text_of(batch, i, CHUNKS))
        errors = (flows - (drawn.noise - clean)).square().flatten(1).mean(1)
        assert options.weights is not None
        errors = errors * torch.tensor(options.weights)
        first.append(errors[0])
        later.append(errors[1:].mean())
    assert float(found["first"]) == pytest.approx(float(torch.stack(first).mean()), rel=1e-4)
    assert float(found["later"]) == pytest.approx(float(torch.stack(later).mean()), rel=1e-4)
    assert float(found["loss"]) == pytest.approx(float(found["first"] + found["later"]), rel=1e-6)


def test_diffusion_forcing_is_the_error_by_hand() -> None:
    options = StudentOptions(forcing="diffusion", memories=("causal",))
    batch, transformer, count = sequences(1, 3), model(), 3
    with torch.no_grad():
        found = student_losses(transformer, batch, generators(7), options)
    clean = chunks_of(batch, 0)
    drawn = draw_sequence(clean.shape, generators(7)[0], options)
    assert len(set(drawn.sigma.tolist())) > 1
    levels = drawn.sigma[:, None, None, None, None]
    noisy = (1 - levels) * clean + levels * drawn.noise
    alone, past, errors = ByHand(transformer), [[] for _ in transformer.blocks], []  # type: Any, Any, Any
    for c in range(count):
        own = [3 * c + j for j in range(3)]
        flow, kept = alone(noisy[c], float(drawn.sigma[c]), batch.text[0], own, past)
        errors.append((flow - (drawn.noise[c] - clean[c])).square().mean())
        for layer, (k, v) in enumerate(kept):
            past[layer] += [(k[j], v[j], own[j]) for j in range(3)]
    assert float(found["first"]) == pytest.approx(float(errors[0]), rel=1e-4)
    assert float(found["later"]) == pytest.approx(float(errors[1] + errors[2]) / 2, rel=1e-4)


def test_first_chunks_alone_beside() -> None:
    """Their errors are those of the stock model, and they do not touch the sequences."""
    options = StudentOptions(memories=SMALL, targets=2, context_share=0.0)
    batch, starts, transformer = sequences(2), sequences(3, 1, seed=20), model()
    with torch.no_grad():
        plain = student_losses(transformer, batch, generators(1, 2), options)
        found = student_losses(transformer, batch, generators(1, 2), options, starts, generators(3, 4, 5))
        errors = []
        for i, g in enumerate(generators(3, 4, 5)):
            clean = chunks_of(starts, i)
            drawn = draw_sequence(clean.shape, g, replace(options, targets=None))
            noisy = (1 - drawn.sigma) * clean + drawn.sigma * drawn.noise
            flow = transformer(noisy, 1000 * drawn.sigma, starts.text[i, None], return_dict=False)[0]
            errors.append((flow - (drawn.noise - clean)).square().mean())
    assert set(plain) == {"later", "loss"}
    assert float(found["later"]) == pytest.approx(float(plain["later"]), rel=1e-4)
    assert float(found["first"]) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_late_sequences_attend_to_what_a_long_take_would_hold() -> None:
    """One layer, so that what chunks left out would have handed on does not matter to a window."""
    memory = "sliding:window=9,sink=3,ids=relative"
    options = StudentOptions(memories=(memory,), context_share=0.0)
    transformer, length = model(1), 20
    whole, text = draw(1, length, 4, 3, HEIGHT, WIDTH), draw(2, 1, 5, 8)
    timeline = [0, 15, 16, 17, 18, 19]
    frames = whole.transpose(1, 2).flatten(0, 1).unflatten(0, (length, 3))[timeline].flatten(0, 1)
    batch = ChunkSequences(frames[None], text, timelines=[timeline])
    with torch.no_grad():
        found = student_losses(transformer, batch, generators(5), options)
    drawn = draw_sequence(chunks_of(batch, 0).shape, generators(5)[0], options, timeline)
    assert drawn.targets == [0, 2, 3, 4, 5]  # chunk 1 would see chunk 14, which is not there
    levels = drawn.sigma[:, None, None, None, None]
    noisy, sigma = whole.clone(), torch.ones(length)
    noisy[timeline] = (1 - levels) * whole[timeline] + levels * drawn.noise
    sigma[timeline] = drawn.sigma
    flows = cached(transformer, parse_memory(memory), whole, noisy, sigma, text.expand(length, 5, 8))[timeline]
    errors = (flows - (drawn.noise - whole[timeline])).square().flatten(1).mean(1)
    assert float(found["first"]) == pytest.approx(float(errors[0]), rel=1e-4)
    assert float(found["later"]) == pytest.approx(float(errors[2:].mean()), rel=1e-4)


# What is drawn


def test_what_is_drawn() -> None:
    options = StudentOptions(
        memories=("memrope", "sliding:window=12,sink=3,ids=relative"), length=6, late=0.5, targets=2
    )
    shape = (16, 1, 3, 1, 1)
    drawn = [draw_sequence(shape, g, options) for g in generators(*range(600))]
    late = [d for d in drawn if d.positions != list(range(6))]
    assert 0.44 < len(late) / 600 < 0.56
    for d in late:
        start = d.positions[1]
        assert d.positions == [0, *range(start, start + 5)] and 2 <= start <= 11
    assert {d.positions[1] for d in late} == set(range(2, 12))
    assert all(len(d.targets) == 2 and min(d.targets) >= 1 for d in drawn)
    assert {c for d in drawn if d.positions == list(range(6)) for c in d.targets} == {1, 2, 3, 4, 5}
    assert {c for d in late for c in d.targets} == {3, 4, 5}
    dirty = [d.dirt for d in drawn if d.dirt]
    assert 0.64 < len(dirty) / 600 < 0.76 and 0.11 < max(dirty) <= 0.12 and 0.05 < sum(dirty) / len(dirty) < 0.07
    pooled = sum(bool(d.plan.pooled.any()) for d in drawn) / 600
    assert 0.4 < pooled < 0.6  # memrope, which alone has pooled slots
    assert abs(float(torch.stack([d.noise for d in drawn]).mean())) < 0.02


def test_levels() -> None:
    options = StudentOptions()
    levels = sample_levels(20000, Generator().manual_seed(0), options)
    exact = torch.stack([(levels - s).abs() < 1e-6 for s in (1.0, 15 / 16, 5 / 6, 0.625)]).float().mean(1)
    assert torch.allclose(exact, torch.full((4,), 0.15), atol=0.01)
    # P(level < s) of a uniform number shifted by 5
    others = sample_levels(20000, Generator().manual_seed(0), replace(options, exact=0.0))
    for s in (0.1, 0.5, 0.9):
        assert float((others < s).float().mean()) == pytest.approx(s / (5 - 4 * s), abs=0.01)
    assert float(others.min()) >= 0 and float(others.max()) <= 1


# Over processes, precision, memory


def gradients(transformer: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in transformer.parameters()])


@pytest.mark.parametrize("forcing", ["teacher", "diffusion"])
def test_a_batch_split_over_processes_is_the_same(forcing: str) -> None:
    options = StudentOptions(forcing, SMALL, length=5, late=0.5)
    batch, starts = sequences(4, 8), sequences(2, 1, seed=20)
    whole, halves = model(), model()
    every = student_losses(whole, batch, generators(1, 2, 3, 4), options, starts, generators(5, 6))
    every["loss"].backward()
    total: dict[str, float] = dict.fromkeys(every, 0.0)
    for half in (0, 1):
        part, rows = slice(2 * half, 2 * half + 2), slice(half, half + 1)
        mine = student_losses(
            halves,
            ChunkSequences(batch.latents[part], batch.text[part]),
            generators(1, 2, 3, 4)[part],
            options,
            ChunkSequences(starts.latents[rows], starts.text[rows]),
            generators(5, 6)[rows],
        )
        (mine["loss"] / 2).backward()
        total = {name: total[name] + float(mine[name].detach()) / 2 for name in every}
    assert total == pytest.approx({name: float(x.detach()) for name, x in every.items()}, rel=1e-5)
    assert torch.allclose(gradients(whole), gradients(halves), rtol=1e-4, atol=1e-6)


def test_the_same_generators_give_the_same_loss_whatever_was_drawn_elsewhere() -> None:
    options, batch, transformer = StudentOptions(memories=SMALL), sequences(2), model()
    with torch.no_grad():
        one = student_losses(transformer, batch, generators(1, 2), options)["loss"]
        torch.rand(1)
        again = student_losses(transformer, batch, generators(1, 2), options)["loss"]
        other = student_losses(transformer, batch, generators(1, 3), options)["loss"]
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_checkpointing_and_autocast() -> None:
    options, batch = StudentOptions(memories=SMALL), sequences(2)
    plain, checkpointed, short = model(), model(), model()
    checkpointed.enable_gradient_checkpointing()
    losses = []
    for transformer in (plain, checkpointed):
        losses.append(student_losses(transformer, batch, generators(1, 2), options)["loss"])
        losses[-1].backward()
    assert torch.equal(losses[0], losses[1])
    assert torch.allclose(gradients(plain), gradients(checkpointed), rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        loss = student_losses(short, batch, generators(1, 2), options)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(losses[0].item(), rel=0.03)
    cosine = torch.nn.functional.cosine_similarity(gradients(short), gradients(plain), dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("forcing", ["teacher", "diffusion"])
def test_fifty_steps_lower_the_loss(forcing: str) -> None:
    options = StudentOptions(forcing, SMALL)
    batch, transformer = sequences(2, 5), model()
    optimizer = torch.optim.Adam(transformer.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = student_losses(transformer, batch, generators(1, 2), options)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


# The check of the stage


def test_student_against_teacher_on_gaussians() -> None:
    """First chunks are N(0, 1), later ones N(2, 0.5**2): the best predictions and their errors are known."""
    count = 40000
    first = torch.arange(count) < count // 2
    mean, deviation = torch.where(first, 0.0, 2.0)[:, None], torch.where(first, 1.0, 0.5)[:, None]
    clean, noise = mean + deviation * draw(1, count, 1), draw(2, count, 1)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        best = mean + (1 - s) * deviation**2 / (((1 - s) * deviation) ** 2 + s**2) * (x - (1 - s) * mean)
        return (x - best) / s

    def off(x: Tensor, sigma: Tensor) -> Tensor:  # predicts the same, 0.3 too high
        return exact(x, sigma) - 0.3 / sigma[:, None]

    found = student_against_teacher(off, exact, clean, noise, [1.0, 0.625], first.tolist())
    assert list(found) == ["1.000", "0.625"]
    for level, row in zip((1.0, 0.625), found.values(), strict=True):
        for name, d in (("first", 1.0), ("later", 0.5)):
            least = (d * level) ** 2 / (((1 - level) * d) ** 2 + level**2)
            assert row[f"teacher_{name}"] == pytest.approx(least, rel=0.05)
            assert row[f"student_{name}"] == pytest.approx(least + 0.09, rel=0.05)
            assert row[f"between_{name}"] == pytest.approx(0.09, rel=1e-3)
    only = student_against_teacher(off, exact, clean, noise, [0.5], [False] * count)
    assert set(only["0.500"]) == {"student_later", "teacher_later", "between_later"}


def test_mistakes_are_told() -> None:
    batch, transformer = sequences(2), model(1)
    for wrong, words in (
        ({"forcing": "both"}, "forcing must be"),
        ({"forcing": "diffusion", "targets": 2}, "leave targets out"),
        ({"context_noise": 1.2}, "context_noise must be from 0 to 1"),
        ({"late": -0.1}, "late must be from 0 to 1"),
        ({"targets": 0}, "targets must be 1 or more"),
        ({"memories": ()}, "at least one memory"),
        ({"memories": ("nonsense",)}, "nonsense"),
        ({"memories": ("memrope:adaptive=true",)}, "fixed rates"),
        ({"weights": ()}, "weights must be 0 or more"),
        ({"timesteps": (1200.0,)}, "0 to 1000"),
    ):
        with pytest.raises(ValueError, match=words):
            StudentOptions(**wrong)
    with pytest.raises(ValueError, match="2 sequences need as many generators, not 1"):
        student_losses(transformer, batch, generators(1), StudentOptions())
    with pytest.raises(ValueError, match="length is 9 chunks, but the sequences have 6"):
        student_losses(transformer, batch, generators(1, 2), StudentOptions(length=9))
    with pytest.raises(ValueError, match="First chunks have 3 frames, not 18"):
        student_losses(transformer, batch, generators(1, 2), StudentOptions(), batch, generators(1, 2))
    with pytest.raises(ValueError, match="weights has 2 factors"):
        student_losses(transformer, batch, generators(1, 2), StudentOptions(weights=(1.0, 1.0)))
    with pytest.raises(ValueError, match="relative ids, or shorter"):
        student_losses(transformer, batch, generators(1, 2), StudentOptions(memories=("causal",), trained_frames=12))
    late = replace(batch, timelines=[[0, 9, 10, 11, 12, 13]] * 2)
    with pytest.raises(ValueError, match="No chunk of a sequence with the chunks"):
        student_losses(transformer, late, generators(1, 2), StudentOptions(memories=("causal",), targets=1))
    with pytest.raises(ValueError, match="must name each of the 6 chunks, not 2"):
        student_losses(transformer, replace(batch, timelines=[[0, 1]] * 2), generators(1, 2), StudentOptions())
    with pytest.raises(ValueError, match="each of the 3 chunks"):
        x = draw(1, 3, 1)
        student_against_teacher(lambda x, s: x, lambda x, s: x, x, x, [0.5], [True])
    assert Sliding(12, 3, "relative").spec() in StudentOptions().memories


def test_sharded_and_checkpointed_is_the_same() -> None:
    """FSDP2 with blocks of their own, in a group of one process: parameters are DTensors, hooks run around blocks."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    options, batch = StudentOptions(memories=SMALL), sequences(2)
    plain, sharded = model(), model()
    loss = student_losses(plain, batch, generators(1, 2), options)["loss"]
    loss.backward()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        sharded.enable_gradient_checkpointing()
        other = student_losses(sharded, batch, generators(1, 2), options)["loss"]
        other.backward()
        assert torch.allclose(loss, other, rtol=1e-6)
        found = torch.cat([p.grad.full_tensor().flatten() for p in sharded.parameters()])
        assert torch.allclose(found, gradients(plain), rtol=1e-5, atol=1e-7)
    finally:
        dist.destroy_process_group()
