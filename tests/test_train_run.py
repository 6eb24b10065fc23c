"""The loop: what it steps, when, and what is left when something goes wrong."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from longtake.training.checkpoint import Stopped, checkpoints, write_checkpoint
from longtake.training.config import load_config
from longtake.training.run import Run
from longtake.training.stage import Figure
from longtake.training.teacher import TeacherStage
from tests.helpers_train import Line, column, differences, saved, tiny, train

CONSTANT = ("teacher.schedule=constant", "teacher.warmup_steps=0")


def lines(*changes: str) -> Line:
    return Line(tiny(*CONSTANT, *changes))


def test_the_average_is_the_weighted_sum_of_the_weights_it_saw(tmp_path: Path) -> None:
    stage = lines("teacher.steps=12", "teacher.ema=0.8", "teacher.ema_start=3", "teacher.lr=0.1")
    run = train(stage, tmp_path / "run")
    after = [w.double() for w in [*stage.seen[1:], stage.weights()]]  # after step 0, 1, ...
    tail = after[3:]
    n = len(tail) - 1
    expected = 0.8**n * tail[0] + sum(0.2 * 0.8 ** (n - i) * tail[i] for i in range(1, n + 1))
    network = run.networks["line"]
    average = torch.cat([t.flatten() for t in network.average.values()])
    assert torch.allclose(average.double(), expected, atol=1e-6)
    assert not torch.allclose(average.double(), after[-1], atol=1e-3)
    with network.averaged():
        assert torch.equal(stage.weights(), average)
    assert torch.equal(stage.weights().double(), after[-1])


def test_the_learning_rate_in_the_log_falls_to_zero_along_a_line(tmp_path: Path) -> None:
    schedule = ("teacher.schedule=linear-decay", "teacher.decay_from=0", "teacher.lr=0.5", "teacher.steps=5")
    train(lines(*schedule), tmp_path / "run")
    assert column(tmp_path / "run", "lr") == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    free, held = lines("teacher.clip=null", "teacher.steps=1"), lines("teacher.clip=0.5", "teacher.steps=1")
    for stage, norm in ((free, None), (held, 0.5)):
        run = Run(stage, stage.config, tmp_path)
        run.open(resume=False)
        stage.step(run, 0)
        before = run.networks["line"].finish_gradients()
        grads = torch.cat([p.grad.flatten() for p in run.networks["line"].parameters.values() if p.grad is not None])
        assert float(grads.norm()) == pytest.approx(float(before) if norm is None else norm, rel=1e-4)
        assert float(before) > 1


@pytest.mark.parametrize(
    "changes",
    [
        ("teacher.steps=4",),
        ("teacher.steps=4", "run.checkpointing=true"),
        ("teacher.steps=4", "teacher.opening_share=0.5", "teacher.opening_batch=3"),
    ],
)
def test_parts_and_checkpointing_change_nothing_of_the_teacher(tmp_path: Path, changes: tuple[str, ...]) -> None:
    plain = [change for change in changes if not change.startswith("run.")]
    one = train(TeacherStage(tiny(*plain)), tmp_path / "one")
    two = train(TeacherStage(tiny(*changes, "run.accumulate=2")), tmp_path / "two")
    assert column(tmp_path / "two", "flow") == pytest.approx(column(tmp_path / "one", "flow"), rel=1e-5)
    for name, weight in one.networks["transformer"].parameters.items():
        assert torch.allclose(weight, two.networks["transformer"].parameters[name], atol=2e-6), name


def test_every_sample_comes_once_and_every_clip_once_an_epoch(tmp_path: Path) -> None:
    stage = lines("teacher.steps=6", "run.batch=4")
    run = train(stage, tmp_path / "run")
    assert stage.samples == list(range(24))
    chosen = run.clips(range(0, 24), 12)
    assert sorted(chosen[:12]) == sorted(chosen[12:]) == list(range(12)) and chosen[:12] != chosen[12:]
    assert [run.clips(range(i, i + 1), 12)[0] for i in range(24)] == chosen
    assert run.clips(range(5, 9), None) == [5, 6, 7, 8]


class Pair(Line):
    """A critic in every step, a generator in every third."""

    def build(self, run: Run) -> None:
        super().build(run)
        self.slow = run.network("slow", torch.nn.Linear(6, 4), every=3)

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        losses = dict(super().step(run, step))
        # also in steps in which it is not due: such gradients must not leak into those in which it is
        x = torch.ones(1, 6) * (1 if self.slow.due(step) else math.nan)
        loss = self.slow.module(x).square().mean()
        run.backward(loss)
        return {**losses, "slow": loss.detach()} if self.slow.due(step) else losses


def test_networks_are_stepped_by_their_own_rhythms(tmp_path: Path) -> None:
    stage = Pair(tiny(*CONSTANT, "teacher.steps=7"))
    run = train(stage, tmp_path / "run")
    assert (run.networks["line"].updates, run.networks["slow"].updates) == (7, 3)
    assert all(bool(p.isfinite().all()) for p in stage.slow.parameters.values())
    rows = (tmp_path / "run" / "teacher.csv").read_text().splitlines()
    place = rows[0].split(",").index("slow")
    assert [bool(row.split(",")[place]) for row in rows[1:]] == [True, False, False, True, False, False, True]


class Drawing(Line):
    """Draws from the global random states as well, and remembers something."""

    def build(self, run: Run) -> None:
        super().build(run)
        self.total = torch.zeros(())

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        import random

        import numpy as np

        losses = dict(super().step(run, step))
        run.backward(self.network.module(torch.randn(2, 6) + random.random() + np.random.rand()).mean())
        self.total = self.total + losses["loss"]
        return losses

    def state(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def load_state(self, state: dict[str, Tensor] | None) -> None:
        assert state is not None
        self.total = state["total"].clone()

    def sample(self, run: Run) -> Image.Image:
        torch.randn(7)
        return Image.new("RGB", (4, 4))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(tmp_path: Path, optimizer: str) -> None:
    changes = ("teacher.steps=9", f"teacher.optimizer={optimizer}", "teacher.schedule=linear-decay")
    make = lambda *more: Drawing(tiny(*CONSTANT, *changes, *more))  # noqa: E731
    train(make(), tmp_path / "whole")
    calls = iter(range(99))
    first = Run(make("run.sample_every=2"), make().config, tmp_path / "parts", stop=lambda: next(calls) == 3)
    first.folder.mkdir()
    first.open()
    assert not first.train() and first.step == 4
    train(make("run.sample_every=2"), tmp_path / "parts")  # samples in between draw nothing that counts
    different = differences(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    assert [key for key in different if key not in ("/minutes", "/config/run/sample_every")] == []
    assert column(tmp_path / "parts", "loss") == column(tmp_path / "whole", "loss")
    assert column(tmp_path / "parts", "step") == list(range(1, 10))
    assert {p.name for p in (tmp_path / "parts" / "samples").iterdir()} >= {
        "teacher-00000006.png",
        "teacher-00000009.png",
    }


class Bad(Line):
    """Not a number in the chosen steps."""

    steps: tuple[int, ...] = ()

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        self.trouble = lambda now, loss: loss * (math.nan if now in self.steps else 1)
        return super().step(run, step)


def bad(*steps: int, changes: tuple[str, ...] = ()) -> Bad:
    stage = Bad(tiny(*CONSTANT, "teacher.steps=8", "run.save_every=0", *changes))
    stage.steps = steps
    return stage


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught:
        train(bad(5), tmp_path / "run", command="longtake train {stage} --config x")
    message = str(caught.value)
    for part in (
        "loss 'loss' of teacher",
        "at step 5",
        "The last good state is step 5",
        "longtake train teacher --config x",
    ):
        assert part in message
    state = saved(tmp_path / "run")
    assert state["step"] == 5 and all(bool(t.isfinite().all()) for t in state["networks"]["line"]["weights"].values())
    assert train(bad(), tmp_path / "run").finished  # and that state can be continued


def test_single_bad_steps_can_be_left_out(tmp_path: Path) -> None:
    run = train(bad(2, 3, 6, changes=("run.skip_bad_steps=2",)), tmp_path / "run")
    assert run.step == 8 and run.networks["line"].updates == 5
    loss = column(tmp_path / "run", "loss")
    assert [i for i, x in enumerate(loss) if math.isnan(x)] == [2, 3, 6]
    with pytest.raises(Stopped, match="at step 4"):
        train(bad(2, 3, 4, changes=("run.skip_bad_steps=2",)), tmp_path / "other")


class Broken(Line):
    """The loss is fine, the weights are not."""

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        losses = super().step(run, step)
        if step == 3:
            with torch.no_grad():
                self.network.module.weight[0, 0] = math.inf
        return losses


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="weights that are not finite numbers"):
        train(Broken(tiny(*CONSTANT, "teacher.steps=8", "run.save_every=0")), tmp_path / "run")
    assert saved(tmp_path / "run")["step"] == 3


def test_two_checkpoints_are_kept_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(lines("teacher.steps=5", "run.save_every=0"), folder)
    assert [p.name for p in checkpoints(folder, "teacher")] == ["teacher-00000005.pt", "teacher-00000004.pt"]
    last = checkpoints(folder, "teacher")[0]
    last.write_bytes(last.read_bytes()[:-500])
    said: list[str] = []
    run = Run(lines("teacher.steps=5"), tiny("teacher.steps=5"), folder, note=said.append)
    run.open()
    assert run.step == 4 and "is not a whole checkpoint" in said[0] and "teacher-00000004.pt" in said[0]


def test_a_disk_that_fills_up_leaves_the_last_good_state(small_disk: Path) -> None:
    sizes = ("model.layers=1", "model.ffn=16", "run.save_every=0", "teacher.steps=6", "run.sample_every=0")
    with pytest.raises(Stopped) as caught:
        train(TeacherStage(tiny(*sizes)), small_disk)
    message = str(caught.value)
    assert (
        "the disk has" in message and "The last good state is step" in message and "longtake train teacher" in message
    )
    assert not list(small_disk.glob("*.part"))
    step = saved(small_disk)["step"]
    run = Run(TeacherStage(tiny(*sizes)), tiny(*sizes), small_disk)
    run.open()
    assert run.step == step >= 1


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(TeacherStage(tiny("teacher.steps=1")), folder)
    other = tiny("teacher.steps=1", "model.layers=1")
    with pytest.raises(ValueError, match=r"was made with model.layers 2, and the configuration has 1: choose another"):
        Run(TeacherStage(other), other, folder).open()
    state = saved(folder)
    write_checkpoint(folder / "teacher-00000009.pt", {**state, "stage": "causal"})
    with pytest.raises(ValueError, match="is a checkpoint of the stage 'causal', not of 'teacher'"):
        Run(TeacherStage(tiny()), tiny(), folder).open()


class Second(Line):
    """Comes after the teacher, and begins with its weights."""

    name = "causal"

    def needs(self) -> tuple[str, ...]:
        return ("teacher",)

    def build(self, run: Run) -> None:
        module = torch.nn.Linear(6, 4)
        run.load_previous("teacher", "line", module)
        self.network = run.network("line", module)
        self.seen, self.samples = [], []


def test_a_stage_begins_with_the_average_of_the_one_before_or_says_how_to_make_it(tmp_path: Path) -> None:
    config = tiny("causal.steps=1", "teacher.steps=6", "teacher.lr=0.1", *CONSTANT)
    run = Run(Second(config), config, tmp_path, command="longtake train {stage} --config mine.yaml")
    with pytest.raises(ValueError, match=r"no checkpoint of it; make it: longtake train teacher --config mine\.yaml"):
        run.open()
    calls = iter(range(99))
    first = Run(Line(config), config, tmp_path, stop=lambda: next(calls) == 1)
    first.open()
    first.train()
    with pytest.raises(ValueError, match=r"is only at step 2; finish it: longtake train teacher"):
        run.open()
    first = train(Line(config), tmp_path)
    run.open()
    average = first.networks["line"].average
    assert torch.equal(run.networks["line"].parameters["weight"], average["weight"])
    assert not torch.equal(average["weight"], first.networks["line"].parameters["weight"])


class Checked(Line):
    """Has figures: one that passes, one that does not, one without a bar."""

    def check(self, run: Run) -> Mapping[str, Figure]:
        return {"error": Figure(0.2, 0.5), "psnr": Figure(20.0, 24.0, "higher"), "size": Figure(math.nan)}


def test_a_check_is_told_and_written(tmp_path: Path) -> None:
    said: list[str] = []
    train(Checked(tiny("teacher.steps=2")), tmp_path / "run", note=said.append)
    report = json.loads((tmp_path / "run" / "teacher.check.json").read_text())
    assert (report["step"], report["passed"]) == (2, False)
    assert [f["passed"] for f in report["figures"].values()] == [True, False, True]
    assert any("FAILED" in line and "psnr 20 (at least 24)" in line for line in said)


def test_a_budget_of_minutes_ends_and_is_known_to_be_spent(tmp_path: Path) -> None:
    run = train(Line(tiny("teacher.minutes=0.003")), tmp_path / "run")
    assert run.finished and run.minutes >= 0.003 and column(tmp_path / "run", "minutes")[-2] < 0.003
    again = train(Line(tiny("teacher.minutes=0.003")), tmp_path / "run")
    assert again.step == run.step


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    from longtake.training.config import check_world

    with pytest.raises(ValueError, match=r"run.batch is 4, and 3 processes .* need a multiple of 3: try 3"):
        check_world(load_config("tiny"), "teacher", 3)


def test_the_teacher_begins_with_first_chunks(tmp_path: Path) -> None:
    """... of more clips than a step has samples, and goes on with whole clips when their share is spent."""
    changes = ("teacher.steps=4", "teacher.opening_share=0.5", "teacher.opening_batch=3")
    stage = TeacherStage(tiny(*changes))
    run = Run(stage, stage.config, tmp_path)
    run.open()
    seen = []
    for step in range(4):
        run.step = step
        for part in run.parts(step):
            numbers, clean, captions = stage._batch(run, part)
            assert len(numbers) == len(clean) == len(captions)
            seen.append((list(numbers), clean.shape[1]))
    batch, model = run.batch, stage.config.model
    assert [n for n, _ in seen[:2]] == [list(range(3 * batch)), list(range(3 * batch, 6 * batch))]
    assert [n for n, _ in seen[2:]] == [list(range(2 * batch, 3 * batch)), list(range(3 * batch, 4 * batch))]
    assert [frames for _, frames in seen] == [model.chunk] * 2 + [model.frames] * 2


def test_fifty_steps_lower_the_loss_of_the_teacher(tmp_path: Path) -> None:
    changes = ("teacher.steps=50", "data.clips=8", "run.batch=8", "teacher.lr=1e-2", "teacher.text_dropout=0")
    train(TeacherStage(tiny(*changes)), tmp_path / "run")
    loss = column(tmp_path / "run", "flow")
    assert sum(loss[-10:]) < 0.8 * sum(loss[:10])
