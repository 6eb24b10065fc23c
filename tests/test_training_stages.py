"""A stage must survive whatever stops it, and the pocket model's own must lead to a model."""

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
from diffusers import AutoencoderKLWan
from torch import Tensor

from longtake.checkpoints import load
from longtake.pipeline import LongTakePipeline
from longtake.pocket.first.world import PERIODS, Scenes, render, sample_scenes
from longtake.pocket.model import build_vae
from longtake.training import autoencoder, denoiser, rollout
from longtake.training.denoiser import sequence_losses, training_plans
from longtake.training.export import assemble
from longtake.training.latents import CHUNKS, SequencePool, encode, load_vae
from longtake.training.loop import Stage, load_averaged
from longtake.training.rollout import Actor, period_latents
from tests.helpers_training import FOREVER, draw, weights


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
    _, errors = process.communicate(timeout=600)
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
        _, errors = process.communicate(timeout=600)
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
