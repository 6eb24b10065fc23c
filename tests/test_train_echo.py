"""The stages of the learned memory: what is trained, from what, by which steps; and what comes out."""

from pathlib import Path

import pytest
import torch

from longtake.training.config import Config, load_config
from longtake.training.exporting import export
from longtake.training.registry import make_stage
from longtake.training.run import Run
from tests.helpers_train import assert_resumes, column, saved, tiny, train
from tests.test_train_command import side_by_side
from tests.test_train_stages import begun, copy_of, learned  # noqa: F401 (begun is a fixture)

BEFORE = ("teacher", "causal", "consistency", "dmd")


@pytest.fixture(scope="module")
def short(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The same folder with stage 1 finished."""
    folder = copy_of(begun, tmp_path_factory.mktemp("echo") / "run", *BEFORE)
    train(make_stage("echo", tiny()), folder)
    return folder


def moved(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """Names of weights that differ."""
    return {name for name, x in first.items() if not torch.equal(x, second[name])}


@pytest.mark.parametrize("stage", ["echo", "echo_long"])
@pytest.mark.parametrize("trains", ["all", "memory"])
def test_one_step_of_the_generator_moves_every_weight_of_the_memory(
    stage: str, trains: str, short: Path, tmp_path: Path
) -> None:
    """... whatever the denoising step the clip ends at; and the model's, or none of them."""
    folder = copy_of(short, tmp_path / "run", *BEFORE, "echo")
    if stage == "echo":
        for file in folder.glob("echo-*"):
            file.unlink()
    for seed in range(3):  # exits differ
        settings = tiny(f"{stage}.steps=1", f"{stage}.trains={trains}", f"{stage}.frames=39", f"run.seed={seed}")
        run = Run(make_stage(stage, settings), settings, folder)
        run.open()
        before = {name: x.detach().clone() for name, x in run.networks["memory"].parameters.items()}
        model = dict(run.stage.network.module.named_parameters())  # type: ignore[attr-defined]
        kept = {name: x.detach().clone() for name, x in model.items()}
        clips = 2 if stage == "echo_long" else 1
        for step in range(0, 2 * clips, 2):  # the first clip of a long take ends before much has left the window
            run.stage.step(run, step)
        for network in run.networks.values():
            network.finish_gradients()
            network.apply(0, 0.0)
        after = {name: x.detach() for name, x in run.networks["memory"].parameters.items()}
        assert moved(before, after) == set(before)
        assert bool(moved(kept, {n: x.detach() for n, x in model.items()})) is (trains == "all")


@pytest.mark.parametrize("stage", ["echo", "echo_long"])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(stage: str, short: Path, tmp_path: Path) -> None:
    """`echo_long` is stopped in the middle of takes, with states of their memories."""
    stages = BEFORE if stage == "echo" else (*BEFORE, "echo")
    whole, stopped = (copy_of(short, tmp_path / name, *stages) for name in ("whole", "stopped"))
    assert_resumes(stage, tiny(f"{stage}.steps=5", "run.accumulate=2"), whole, stopped)


def test_two_processes_make_the_run_of_one(short: Path, tmp_path: Path) -> None:
    """The model is split between them (FSDP2), its memory is not."""
    one, two = (copy_of(short, tmp_path / name, *BEFORE, "echo") for name in ("one", "two"))
    changes = ("echo_long.steps=3", "echo_long.trains=all", "run.tensorboard=false")
    train(make_stage("echo_long", tiny(*changes)), one)
    words = [word for change in changes for word in ("--set", change)]
    side_by_side(2, "train", "echo_long", "--config", "tiny", "--folder", str(two), *words)
    assert column(two, "critic", "echo_long") == pytest.approx(column(one, "critic", "echo_long"), abs=1e-5)
    first, second = (saved(folder, "echo_long")["networks"]["memory"] for folder in (one, two))
    for name, weight in first["weights"].items():
        assert torch.allclose(weight, second["weights"][name], atol=2e-5, rtol=0), name


def test_checkpointing_changes_nothing(short: Path, tmp_path: Path) -> None:
    rows = []
    for name, changes in (("plain", ()), ("checkpointed", ("run.checkpointing=true",))):
        folder = copy_of(short, tmp_path / name, *BEFORE, "echo")
        train(make_stage("echo_long", tiny("echo_long.steps=4", *changes)), folder)
        rows.append(column(folder, "critic", "echo_long"))
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


def test_fifty_steps_teach_the_critic(short: Path, tmp_path: Path) -> None:
    """With a model and a memory that stay, so that their clips are fixed data."""
    folder = copy_of(short, tmp_path / "run", *BEFORE)
    still = ("echo.steps=50", "echo.trains=memory", "echo.memory.lr=0", "echo.critic.lr=1e-2")
    before, after = learned("echo", tiny(*still, "data.clips=4", "data.held_out=1"), folder)
    assert after["critic"] < 0.95 * before["critic"], (before, after)


def test_from_training_to_a_take(short: Path, tmp_path: Path) -> None:
    """Both stages with the memory alone, which leaves the model as it was; the export has both."""
    folder = copy_of(short, tmp_path / "run", *BEFORE)
    changes = ("echo.trains=memory", "echo_long.trains=memory", "echo.groups=2", "echo_long.groups=2")
    for stage in ("echo", "echo_long"):
        run = train(make_stage(stage, tiny(*changes)), folder)
        assert set(run.networks) == {"memory", "critic"}
    export(folder, tmp_path / "out", dtype=torch.float32)
    export(folder, tmp_path / "before", "dmd", dtype=torch.float32)
    assert (tmp_path / "out" / "memory" / "README.md").stat().st_size > 100
    ours, before = (saved_model(tmp_path / name) for name in ("out", "before"))
    assert moved(ours, before) == set()
    memory = saved(folder, "echo_long")["networks"]["memory"]
    from safetensors.torch import load_file

    (file,) = (tmp_path / "out" / "memory").glob("*.safetensors")
    written = load_file(file)
    assert moved(memory["average"] or memory["weights"], written) == set() and len(written) == len(memory["weights"])


def saved_model(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (folder / "transformer").glob("*.safetensors")
    return load_file(file)


def test_clips_may_be_longer_than_the_teachers(short: Path, tmp_path: Path) -> None:
    """A rollout keeps as many frames as this stage's own clips are long, whatever another stage says of its."""
    folder = copy_of(short, tmp_path / "run", *BEFORE, "echo")
    longer = ("echo_long.clip_frames=39", "echo_long.overlap=24", "echo_long.frames=54", "echo_long.steps=2")
    train(make_stage("echo_long", tiny(*longer, "long.clip_frames=21")), folder)
    assert saved(folder, "echo_long")["step"] == 2


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ("echo", "echo.memories=[memrope]", "must name the memory that is to learn"),
        ("echo", "echo.memories=['echo:frames=1', 'echo:frames=3']", "as many memory frames"),
        ("echo", "echo.memories=['echo:frames=10']", "max_id is 20"),
        ("echo", "echo.start=checkpoint", "there is no model.checkpoint"),
        ("echo_long", "echo_long.frames=60", "like 75"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(stage: str, change: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_stage(stage, load_config("tiny", (change,))).check_config()


def test_a_memory_of_another_shape_is_refused(short: Path, tmp_path: Path) -> None:
    settings: Config = tiny("echo_long.groups=2")
    run = Run(make_stage("echo_long", settings), settings, copy_of(short, tmp_path / "run", *BEFORE, "echo"))
    with pytest.raises(ValueError, match="memory of echo"):
        run.open()
