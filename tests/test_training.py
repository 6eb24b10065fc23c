"""Training: what is trained must be what runs, and a stage must survive whatever stops it."""

import copy
import csv
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.checkpoints import load
from longtake.memory import MemoryPolicy, MemRoPE, Sliding, parse_memory
from longtake.pipeline import LongTakePipeline
from longtake.pocket.model import build_vae
from longtake.pocket.world import PERIODS, Scenes, render, sample_scenes
from longtake.rope import Rope
from longtake.training import autoencoder, denoiser, rollout
from longtake.training.clip_vae import decode_clip, encode_clip
from longtake.training.denoiser import MEMORIES, sequence_losses, training_plans
from longtake.training.export import assemble
from longtake.training.latents import CHUNKS, SequencePool, encode, load_vae
from longtake.training.loop import Stage, load_averaged
from longtake.training.optim import MuonAdam, orthogonalise
from longtake.training.rollout import Actor, period_latents
from longtake.training.sequence import Plan, attending_sequences, lay_out, plan_sequence

# The autoencoder on whole clips


def small_vae(temporal: list[bool], patch: int | None) -> AutoencoderKLWan:
    torch.manual_seed(0)
    channels = 3 if patch is None else 3 * patch**2
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2] if len(temporal) == 2 else [1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=temporal,
        patch_size=patch,
        in_channels=channels,
        out_channels=channels,
        scale_factor_temporal=2 ** sum(temporal),
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return vae.eval()


@pytest.mark.parametrize("clip", [5, 9, 13, 25])
@pytest.mark.parametrize(
    ("temporal", "patch"), [([True, True], 2), ([False, True], 2), ([True, False], 2), ([False, True, True], None)]
)
@torch.no_grad()
def test_whole_clips_equal_latent_by_latent(temporal: list[bool], patch: int | None, clip: int) -> None:
    vae = small_vae(temporal, patch)
    video = torch.rand(2, 3, clip, 16, 24) * 2 - 1
    expected = vae.encode(video).latent_dist
    mean, logvar = encode_clip(vae, video)
    assert mean.shape[2] == 1 + (clip - 1) // 2 ** sum(temporal)
    assert mean.std() > 1e-3
    assert torch.allclose(mean, expected.mean, atol=1e-5)
    assert torch.allclose(logvar, expected.logvar, atol=1e-5)
    latents = torch.randn(mean.shape)
    decoded = decode_clip(vae, latents)
    assert decoded.shape == video.shape
    assert torch.allclose(decoded.clamp(-1, 1), vae.decode(latents).sample, atol=1e-5)


@torch.no_grad()
def test_the_pocket_autoencoder_on_clips() -> None:
    vae = build_vae().eval()
    video = render(sample_scenes(1, 3), torch.arange(13))[0].transpose(1, 2) * 2 - 1
    mean = encode_clip(vae, video)[0]
    assert mean.shape == (1, 16, 4, 8, 8)
    assert torch.allclose(mean, vae.encode(video).latent_dist.mean, atol=1e-5)
    assert torch.allclose(decode_clip(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-5)
    # a single frame is the first of any clip
    one = decode_clip(vae, mean[:, :, :1])
    assert torch.allclose(one, decode_clip(vae, mean)[:, :, :1], atol=1e-5)


# Teacher forcing through the memories

LENGTH = 9  # chunks
HEIGHT, WIDTH = 4, 6


def model(layers: int = 2) -> WanTransformer3DModel:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
    )
    for p in transformer.parameters():  # strong attention: small weights would hide a wrong slot
        if p.ndim == 2:
            p.data.mul_(2)
    return transformer.eval()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def cached(
    transformer: Any,
    policy: MemoryPolicy,
    clean: Tensor,
    noisy: dict[int, Tensor],
    sigma: dict[int, float],
    text: Tensor,
) -> dict[int, Tensor]:
    """Inference: clean chunks ``[chunks, channels, 3, ...]`` committed one by one, noisy ones answered before that."""
    memory = memory_for(transformer, policy, HEIGHT, WIDTH)
    flows = {}
    for index, chunk in enumerate(clean):
        memory.change_prompt()
        memory.begin_chunk()
        prompt = text[index][None]
        with attending(transformer, memory):
            if index in noisy:
                t = torch.tensor([1000 * sigma[index]])
                flows[index] = transformer(noisy[index][None], t, prompt, return_dict=False)[0][0]
            with memory.recording():
                transformer(chunk[None], torch.zeros(1), prompt, return_dict=False)
    return flows


@torch.no_grad()
def forced(
    transformer: Any,
    plans: list[Plan],
    clean: list[Tensor],
    noisy: list[dict[int, Tensor]],
    sigmas: list[dict[int, float]],
    texts: list[Tensor],
    known: int,
    solo: list[tuple[Tensor, float, Tensor]],
) -> tuple[list[dict[int, Tensor]], list[Tensor]]:
    """The same as training does it: everything in one forward, ``known`` clean chunks beside the noisy ones."""
    targets = [sorted(n) for n in noisy]
    layout = lay_out(plans, targets, known, len(solo))
    inputs: list[Tensor] = []
    times: list[float] = []
    prompts: list[Tensor] = []
    for chunks, chosen, noise, sigma, text in zip(clean, targets, noisy, sigmas, texts, strict=True):
        inputs += [*chunks[:known], *(noise[j] for j in chosen)]
        times += [0.0] * known + [1000 * sigma[j] for j in chosen]
        prompts += [*text[:known], *(text[j] for j in chosen)]
    for x, sigma_alone, prompt in solo:
        inputs.append(x)
        times.append(1000 * sigma_alone)
        prompts.append(prompt)
    before = [block.attn1.processor for block in transformer.blocks]
    with attending_sequences(transformer, layout, Rope(12, (HEIGHT // 2, WIDTH // 2))):
        out = transformer(torch.stack(inputs), torch.tensor(times), torch.stack(prompts), return_dict=False)[0]
    assert [block.attn1.processor for block in transformer.blocks] == before
    flows, start = [], 0
    for chosen in targets:
        flows.append({j: out[start + known + i] for i, j in enumerate(chosen)})
        start += known + len(chosen)
    return flows, list(out[start:])


def material(seed: int, targets: list[int], chunks: int = LENGTH) -> tuple[Any, ...]:
    """Clean chunks, noisy ones, their noise levels, and a prompt for every chunk."""
    clean = draw(seed, chunks, 4, 3, HEIGHT, WIDTH)
    noisy = {j: draw(seed + 100 + j, 4, 3, HEIGHT, WIDTH) for j in targets}
    return clean, noisy, {j: 0.2 + 0.08 * j for j in targets}, draw(seed + 50, chunks, 5, 8)


@pytest.mark.parametrize(
    "spec",
    [
        *MEMORIES,
        "memrope:first_eviction=released",
        "memrope:sink=1,recent=2,long=0.3,short=0.6,pooling=position",
        "memrope:sink=0,recent=1,long=0.2,short=0.5",
        "sliding:window=7,sink=2,ids=relative",
        "infinity-rope",
    ],
)
def test_a_training_forward_equals_cached_inference(spec: str) -> None:
    """Every chunk but the first as a target: before the memory is full, at the first eviction, and after."""
    transformer, policy = model(), parse_memory(spec)
    clean, noisy, sigma, text = material(1, list(range(1, LENGTH)))
    expected = cached(transformer, policy, clean, noisy, sigma, text)
    plan = plan_sequence(policy, range(LENGTH))
    (flows,), _ = forced(transformer, [plan], [clean], [noisy], [sigma], [text], LENGTH - 1, [])
    for j in noisy:
        assert expected[j].std() > 0.1
        assert torch.allclose(flows[j], expected[j], atol=1e-4), j
    # what is compared depends on the memory
    forgetful = cached(transformer, Sliding(3, 0), clean, noisy, sigma, text)
    assert all((forgetful[j] - expected[j]).abs().max() > 0.01 for j in noisy)


def test_sequences_with_different_memories_and_first_chunks_beside() -> None:
    """One batch as training lays it out: elements must not see one another."""
    transformer = model()
    policies = [parse_memory(m) for m in (*MEMORIES, MEMORIES[0])]
    chosen = [[1, 2, 6], [3, 7, 8], [4, 5, 8]]
    parts = [material(10 * i, t) for i, t in enumerate(chosen)]
    solo = [(draw(90 + i, 4, 3, HEIGHT, WIDTH), 0.9 - 0.3 * i, draw(95 + i, 5, 8)) for i in range(2)]
    plans = [plan_sequence(p, range(LENGTH)) for p in policies]
    clean, noisy, sigmas, texts = ([part[i] for part in parts] for i in range(4))
    flows, alone = forced(transformer, plans, clean, noisy, sigmas, texts, LENGTH - 1, solo)
    for policy, part, found in zip(policies, parts, flows, strict=True):
        expected = cached(transformer, policy, *part)
        assert list(found) == list(expected)
        assert all(torch.allclose(found[j], expected[j], atol=1e-4) for j in found)
    for (x, sigma, prompt), single in zip(solo, alone, strict=True):
        with torch.no_grad():  # the stock model, without any memory
            t = torch.tensor([1000 * sigma])
            expected_alone = transformer(x[None], t, prompt[None], return_dict=False)[0][0]
        assert torch.allclose(single, expected_alone, atol=1e-4)


def test_sequences_from_late_in_a_take() -> None:
    """Chunks 1 to 19 left out: a window has forgotten them. One layer, as deeper keys still know what they saw."""
    transformer, policy = model(layers=1), parse_memory(MEMORIES[1])
    timeline = [0, *range(20, 25)]
    clean, noisy, sigma, text = material(4, [22, 23, 24], chunks=25)
    expected = cached(transformer, policy, clean, noisy, sigma, text)
    plan = plan_sequence(policy, timeline)
    rows = {timeline.index(j): j for j in noisy}
    (flows,), _ = forced(
        transformer,
        [plan],
        [clean[timeline]],
        [{r: noisy[j] for r, j in rows.items()}],
        [{r: sigma[j] for r, j in rows.items()}],
        [text[timeline]],
        5,
        [],
    )
    for r, j in rows.items():
        assert torch.allclose(flows[r], expected[j], atol=1e-4)


@pytest.mark.parametrize("spec", [*MEMORIES, "memrope:recent=1,long=0.5,short=0.9", "infinity-rope"])
@pytest.mark.parametrize("timeline", [list(range(12)), [0, *range(40, 47)]])
def test_every_slot_of_a_plan_is_an_average(spec: str, timeline: list[int]) -> None:
    policy = parse_memory(spec)
    plan = plan_sequence(policy, timeline)
    assert plan.weights.shape == (len(timeline), policy.capacity(3) - 3, 3 * len(timeline))
    assert plan.weights.min() >= 0
    sums = plan.weights.sum(-1)
    assert torch.all(((sums - 1).abs() < 1e-5) | (sums == 0))
    for row in range(len(timeline)):
        assert plan.weights[row, :, 3 * row :].sum() == 0  # nothing of itself or of what comes
    if timeline[-1] == len(timeline) - 1:
        used = [min(3 * row, policy.capacity(3) - 3) for row in range(len(timeline))]
        assert (sums > 0).sum(-1).tolist() == used
        assert plan.own.tolist() == [[u, u + 1, u + 2] for u in used]


def test_the_plan_of_memrope_in_closed_form() -> None:
    rates = {"long": 0.01, "short": 0.1}
    plan = plan_sequence(MemRoPE(), range(14))
    for row in range(14):
        expected = torch.zeros(9, 42)
        if row < 4:  # all fits
            for i in range(3 * row):
                expected[i, i] = 1
        else:
            expected[[0, 1, 2], [0, 1, 2]] = 1
            for slot, rate in zip((3, 4), rates.values(), strict=True):
                expected[slot, 3:8] = (1 - rate) ** (row - 4) / 5
                for group in range(1, row - 3):
                    first = 8 + 3 * (group - 1)
                    expected[slot, first : first + 3] = rate * (1 - rate) ** (row - 4 - group) / 3
            for i in range(4):
                expected[5 + i, 3 * row - 4 + i] = 1
        assert torch.allclose(plan.weights[row], expected, atol=1e-6)
        assert plan.pooled[row].tolist() == ([0] * 3 + [1, 1] + [0] * 4 if row >= 4 else [0] * 9)
        slots = min(3 * row, 9)
        assert plan.ids[row, :slots].tolist() == list(range(slots))


def test_what_teacher_forcing_cannot_do_is_refused() -> None:
    for policy in (parse_memory("longlive"), MemRoPE(adaptive=True), MemRoPE(ids="absolute")):
        with pytest.raises(ValueError):
            plan_sequence(policy, range(5))


# The optimizer


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 90)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_orthogonalise(shape: tuple[int, int], size: float) -> None:
    """Singular values go near one, singular vectors stay."""
    rank = min(shape)
    u, v = (torch.linalg.qr(draw(i, side, rank))[0] for i, side in enumerate(shape))
    matrix = size * (u * torch.linspace(1.0, 0.1, rank)) @ v.T
    out = orthogonalise(matrix)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.6 and values.max() < 1.3
    turned = u.T @ out @ v
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.1
    assert turned.diagonal().min() > 0.6


def test_the_adam_part_is_adam() -> None:
    start = [draw(1, 7), draw(2, 1, 9), draw(3, 5, 1), draw(4)]  # vectors, matrices of rank one, a number
    mine, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    one = MuonAdam(mine, lr=9.0, adam_lr=0.03)
    other = torch.optim.Adam(theirs, lr=0.03, betas=(0.9, 0.99), eps=1e-8)
    for step in range(25):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            a.grad = draw(100 * step + i, *a.shape) * 0.1**i
            b.grad = a.grad.clone()
        one.step()
        other.step()
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, theirs, strict=True))
    assert all(not torch.equal(a, x) for a, x in zip(mine, start, strict=True))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (8, 4, 3, 3, 3)])
def test_the_muon_part(shape: tuple[int, ...]) -> None:
    """Steps against the gradient of the same size whatever the shape and the scale of the gradient."""
    p = torch.nn.Parameter(draw(0, *shape))
    optimizer = MuonAdam([p], lr=0.5, adam_lr=9.0, weight_decay=0.1)
    before, gradient = p.detach().clone(), draw(1, *shape)
    p.grad = 1e-3 * gradient
    optimizer.step()
    step = before * (1 - 0.5 * 0.1) - p.detach()
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=0.25)
    u, _, vh = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(step.flatten(), (u @ vh).flatten(), dim=0)
    assert cosine > 0.95


def test_rates_are_scaled_from_where_they_began() -> None:
    optimizer = MuonAdam([torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))], 0.5, 0.25)
    for factor in (0.1, 0.5, 1.0):
        optimizer.scale_lr(factor)
        assert [g["lr"] for g in optimizer.param_groups] == [0.5 * factor, 0.25 * factor]


# Stages

FOREVER = 1e7  # minutes: the learning rate does not fall


class Toy(torch.nn.Module):
    """Learns a fixed linear map, on batches that follow from the step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(6, 4)

    def loss(self, step: int) -> Tensor:
        x = draw(step, 16, 6)
        loss: Tensor = (self.layer(x) - x @ draw(-1, 6, 4) - 1).square().mean()
        return loss


def toy_stage(folder: Path, minutes: float = FOREVER, **settings: Any) -> tuple[Toy, Stage]:
    toy = Toy()
    return toy, Stage("toy", folder, {"toy": toy}, minutes, **{"lr": 0.05, "adam_lr": 0.05, "ema": 0.9, **settings})


def train_toy(toy: Toy, stage: Stage, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = toy.loss(stage.steps)
        loss.backward()
        stage.update({"loss": loss.item()})
        losses.append(loss.item())
    return losses


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def test_a_stage_learns(tmp_path: Path) -> None:
    toy, stage = toy_stage(tmp_path, lr=0.2)
    losses = train_toy(toy, stage, 120)
    assert losses[-1] < 0.1 * losses[0]
    with (tmp_path / "toy.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(r["step"]) for r in rows] == list(range(1, 121))
    assert [float(r["loss"]) for r in rows] == pytest.approx(losses, abs=1e-4)


def test_a_stage_ends_when_its_budget_is_spent(tmp_path: Path) -> None:
    toy, stage = toy_stage(tmp_path, minutes=0.2 / 60)
    progress = [stage.progress]
    while not stage.done:
        train_toy(toy, stage, 1)
        progress.append(stage.progress)
    assert progress == sorted(progress)
    assert progress[0] == 0 and progress[-1] == 1
    assert stage.optimizer.param_groups[0]["lr"] < 0.01 * 0.05  # it has come to rest
    again, resumed = toy_stage(tmp_path, minutes=0.2 / 60)
    assert resumed.done and resumed.steps == stage.steps
    assert torch.equal(weights(again), weights(toy))
    assert not toy_stage(tmp_path, minutes=9)[1].done  # a larger budget goes on


def test_the_average_of_the_weights(tmp_path: Path) -> None:
    toy, stage = toy_stage(tmp_path)
    expected = weights(toy)
    for step in range(1, 140):
        train_toy(toy, stage, 1)
        rate = min(0.9, step / (step + 10))
        expected = rate * expected + (1 - rate) * weights(toy)
    stage.save()
    raw = weights(toy)
    assert torch.allclose(torch.cat([x.flatten() for x in stage.ema]), expected, atol=1e-5)
    other = Toy()
    load_averaged(stage.path, {"toy": other})
    stage.copy_ema()
    assert torch.allclose(weights(other), expected, atol=1e-5)
    assert torch.equal(weights(toy), weights(other))
    assert not torch.equal(raw, weights(other))


def test_a_resumed_stage_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    toy, stage = toy_stage(tmp_path / "a")
    train_toy(toy, stage, 30)
    other, first = toy_stage(tmp_path / "b")
    train_toy(other, first, 17)
    first.save()
    other.layer.weight.data.zero_()  # what was not saved is lost
    resumed_toy, resumed = toy_stage(tmp_path / "b")
    assert (resumed.steps, resumed.spent) == (17, first.spent)
    assert resumed.spent > 0
    train_toy(resumed_toy, resumed, 13)
    assert torch.allclose(weights(resumed_toy), weights(toy), atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(resumed.ema, stage.ema, strict=True))


def test_gradients_are_clipped_and_missing_ones_are_zero(tmp_path: Path) -> None:
    one, two = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    stage = Stage("x", tmp_path, {"one": one, "two": two}, FOREVER, lr=0.1, adam_lr=0.1)
    unused = two.weight.detach().clone()
    seen: list[Tensor] = []
    stage.optimizer.register_step_pre_hook(lambda *_: seen.append(one.weight.grad.clone()))  # type: ignore[union-attr]
    for factor in (1000.0, 0.001):
        (factor * one(torch.ones(3))).sum().backward()
        stage.update({})
    assert float(seen[0].norm()) == pytest.approx(1, abs=1e-3)
    assert float(seen[1].norm()) == pytest.approx(0.003, rel=1e-3)
    assert torch.equal(two.weight, unused)


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    toy, stage = toy_stage(tmp_path)
    train_toy(toy, stage, 3)
    stage.save()
    old, kept = stage.path.read_bytes(), weights(toy)
    train_toy(toy, stage, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
        with pytest.raises((OSError, RuntimeError)):
            stage.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stage.path.read_bytes() == old
    again, resumed = toy_stage(tmp_path)
    assert resumed.steps == 3
    assert torch.equal(weights(again), kept)


_COMMON = f"""
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from longtake.training.loop import Stage

folder = Path(sys.argv[1])
torch.manual_seed(int(os.environ.get("RANK", 0)))
layer = torch.nn.Linear(5, 3)
stage = Stage("toy", folder, {{"layer": layer}}, 1e7, lr=0.05, adam_lr=0.05)

def step(seed):
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
    (layer(x) - 1).square().mean().backward()
    stage.update({{"loss": 0.0}})
"""
_KILLED = """
for i in range(5):
    step(i)
stage.save()
torch.save(layer.state_dict(), folder / "at_5.pt")
for i in range(4):
    step(5 + i)
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)  # everything is written but not yet renamed
stage.save()
"""
_PARALLEL = """
for i in range(4):
    step(10 * i + stage.rank)
torch.save(layer.state_dict(), folder / f"rank{stage.rank}.pt")
"""


def spawn(code: str, folder: Path, **env: str) -> subprocess.Popen[bytes]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen([sys.executable, "-c", _COMMON + code, str(folder)], env=settings, stderr=subprocess.PIPE)


def test_kill_nine_while_saving_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    process = spawn(_KILLED, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    layer = torch.nn.Linear(5, 3)
    stage = Stage("toy", tmp_path, {"layer": layer}, FOREVER, lr=0.05, adam_lr=0.05)
    assert stage.steps == 5
    saved = torch.load(tmp_path / "at_5.pt", weights_only=True)
    assert all(torch.equal(saved[k], v) for k, v in layer.state_dict().items())
    stage.save()  # what the dead process left behind is in nobody's way
    assert Stage("toy", tmp_path, {"layer": layer}, FOREVER, lr=0.05, adam_lr=0.05).steps == 5


def test_two_processes_stay_alike(tmp_path: Path) -> None:
    """And equal one process that averages the gradients of both batches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [spawn(_PARALLEL, tmp_path, RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    one, two = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    stage = Stage("alone", tmp_path, {"layer": layer}, FOREVER, lr=0.05, adam_lr=0.05)
    for i in range(4):
        for rank in range(2):
            x = draw(10 * i + rank, 8, 5)
            (0.5 * (layer(x) - 1).square().mean()).backward()
        stage.update({})
    for name, value in layer.state_dict().items():
        assert torch.allclose(value, one[name], atol=2e-4)


# The pocket model's own stages


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    """Untrained, its latents of about unit size."""
    torch.manual_seed(0)
    model = build_vae().eval().requires_grad_(False)
    latents = encode(model, render(sample_scenes(6, 1), torch.arange(17))[0])
    model.register_to_config(
        latents_mean=latents.mean((0, 1, 3, 4)).tolist(), latents_std=latents.std((0, 1, 3, 4)).tolist()
    )
    return model


def moving(name: str) -> Scenes:
    scenes = sample_scenes(2, 4)
    scenes.motion[:] = ["rolls", "bounces", "circles", "swings", "grows"].index(name)
    return scenes


@pytest.mark.parametrize("motion", ["bounces", "circles"])
def test_latents_of_a_period(vae: AutoencoderKLWan, motion: str) -> None:
    """Entry p is the latent that ends at a time p, in a clip long enough; of clips longer still it is the nearest."""
    scenes = moving(motion)
    table = period_latents(vae, scenes, 1)
    period = int(PERIODS[scenes.motion[1]])
    assert table.shape == (period, 16, 8, 8)
    one = scenes.select(torch.tensor([1]))
    for time in range(28, 28 + period, 5):
        clip = encode(vae, render(one, torch.arange(time % 4, time + 1))[0])[0]
        assert torch.allclose(table[time % period], clip[-1], atol=1e-3)
        assert (table[(time + 3) % period] - clip[-1]).abs().max() > 0.1
    if motion == "circles":  # a bounce looks the same upwards and downwards to weights that know no time
        for start in (0, 50, 4001):
            clip = encode(vae, render(one, start + torch.arange(45))[0])[0]
            error = (table - clip[-1]).square().mean((1, 2, 3))
            assert int(error.argmin()) == (start + 44) % period
            assert error.min() < 0.3 * error.median()


def test_an_actor_finds_its_clock(vae: AutoencoderKLWan) -> None:
    """A true clip that is ahead or behind, with noise on it."""
    scenes = moving("bounces")
    tables = period_latents(vae, scenes, 0), period_latents(vae, scenes, 1)
    for slip in (-9, -4, -1, 0, 1, 2, 6, 11):
        for chunk, side in ((3, 0), (8, 1)):
            actor = Actor(tables, ("before", "after"), switch=5, clock=50, start=tables[0][0])
            table = tables[side]
            shown = torch.stack([table[(50 + 12 + slip - 4 * back) % 24] for back in (2, 1, 0)], 1)
            actor.observe(chunk, shown + 0.1 * draw(slip, *shown.shape))
            assert actor.clock == 62 + slip
            follows = torch.stack([table[(62 + slip + 4 * ahead) % 24] for ahead in (1, 2, 3)], 1)
            assert torch.equal(actor.truth(chunk), follows)
            assert actor.captions[actor.side(chunk)] == ("before", "after")[side]


def test_training_sequences(vae: AutoencoderKLWan) -> None:
    pool = SequencePool(vae, 4, seed=3)
    again = SequencePool(vae, 4, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(pool.latents, again.latents, strict=True))
    assert pool.captions == again.captions
    batch = pool.batch(5)
    assert batch.latents.shape == (5, 3 * CHUNKS, 16, 8, 8)
    assert batch.latents.isfinite().all()
    assert [len(c) for c in batch.captions] == [CHUNKS] * 5
    oldest = pool.latents[0]
    pool.renew()
    assert len(pool.latents) == len(pool.captions) == len(pool.gap) == 4
    assert not any(x is oldest for x in pool.latents)


def test_every_weight_is_trained(vae: AutoencoderKLWan) -> None:
    parts = denoiser.build()
    torch.nn.init.normal_(parts["transformer"].proj_out.weight, std=0.05)
    torch.manual_seed(0)
    later, first = sequence_losses(
        parts, SequencePool(vae, 4, 1), training_plans(), random.Random(0), sequences=1, targets=2, solo=1
    )
    assert 0.5 < later < 5 and 0.5 < first < 5  # flows of noise and latents of unit size
    (later + first).backward()
    for name in ("transformer", "text_encoder"):
        for key, p in parts[name].named_parameters():
            assert p.grad is not None and p.grad.abs().max() > 0, key


def at_least_two_steps(train: Callable[..., Stage], folder: Path, minutes: float, **settings: Any) -> Stage:
    """The last step of a budget is taken at a rate of zero: on a slow machine, more of it is needed."""
    stage = train(folder, minutes, **settings)
    while stage.steps < 2:
        stage = train(folder, 5 * stage.spent / 60, **settings)
    return stage


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_all_stages_on_a_tiny_budget(tmp_path: Path) -> None:
    """Each through its own command's function, the next from the checkpoint of the one before, to a loadable model."""
    runs = tmp_path / "runs"
    with pytest.raises(FileNotFoundError):
        denoiser.train(runs, 0.01, pool=4)
    untrained = build_vae()
    stage = autoencoder.train(runs, 0.01, crops=2, pool=8)
    steps = stage.steps
    assert stage.done and steps >= 1
    stage = autoencoder.train(runs, stage.spent / 60 + 0.01, crops=2, pool=8)
    assert stage.steps > steps
    trained = build_vae()
    load_averaged(runs / "autoencoder.pt", {"vae": trained})
    assert torch.equal(weights(trained), weights(stage.modules["vae"]))
    assert not torch.equal(weights(trained), weights(untrained))
    # measuring the latents takes a minute: here they are said to be as they are
    trained.save_pretrained(runs / "vae")
    assert torch.equal(weights(load_vae(runs)), weights(trained))

    first = at_least_two_steps(denoiser.train, runs, 0.03, sequences=1, targets=2, solo=1, pool=4)
    checked = [assemble(runs)]
    last = at_least_two_steps(rollout.train, runs, 0.08, size=1, pool=4)
    checked.append(assemble(runs))
    for stage, pipe in zip((first, last), checked, strict=True):
        assert stage.done and stage.steps >= 1
        for name, module in stage.modules.items():
            assert torch.equal(weights(getattr(pipe, name)), weights(module))
            assert weights(module).isfinite().all()
        with (runs / f"{stage.name}.csv").open() as f:
            rows = list(csv.reader(f))
        assert len(rows) == 1 + stage.steps
        assert all(float(x) == float(x) for row in rows[1:] for x in row)
    assert not torch.equal(weights(checked[0].transformer), weights(checked[1].transformer))

    pipe = copy.deepcopy(checked[1].to(torch.float16))
    pipe.save_pretrained(tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert isinstance(loaded, LongTakePipeline) and loaded.dtype == torch.float32
    loaded.set_progress_bar_config(disable=True)
    frames = loaded("a red ball rolls over a meadow", seconds=1, return_dict=False)[0]
    assert frames.shape == (1, 16, 64, 64, 3)
    assert 0 <= frames.min() < frames.max() <= 1
