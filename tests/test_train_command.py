"""``longtake train`` as people run it: killed, continued, on several processes, with bad input."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from longtake.training.checkpoint import checkpoints
from longtake.training.teacher import TeacherStage
from tests.conftest import ENVIRONMENT, Cli, cli_command, warm
from tests.helpers_train import column, differences, saved, tiny, train

STEPS = 24
SAME = ("--set", "teacher.schedule=constant", "--set", "run.tensorboard=false")


def invoke(*words: str | Path) -> Any:
    """The command line in this process: importing PyTorch anew takes seconds."""
    from typer.testing import CliRunner

    from longtake.cli import app

    return CliRunner().invoke(app, [str(word) for word in words])


def arguments(folder: Path, *more: str, steps: int = STEPS) -> list[str]:
    return ["train", "teacher", "--config", "tiny", "--folder", str(folder), "--steps", str(steps), *SAME, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption, of one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    made = subprocess.run(cli_command(*arguments(folder)), env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    return folder


def wait_for_lines(log: Path, lines: int, process: "subprocess.Popen[Any]") -> None:
    """Until a log has more than so many lines, or its process has ended."""
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > lines):
        time.sleep(0.002)


def test_a_killed_run_goes_on_with_the_same_command_to_the_last_bit(tmp_path: Path, whole: Path, cli: Cli) -> None:
    folder = tmp_path / "run"
    command = arguments(folder, "--set", "run.save_every=0")
    process = subprocess.Popen(cli_command(*command), env=ENVIRONMENT, stderr=subprocess.DEVNULL, cwd=tmp_path)
    log = folder / "teacher.csv"
    wait_for_lines(log, 6, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = saved(folder)["step"]
    assert 0 < before < STEPS  # killed on the way
    assert cli(*command).returncode == 0
    first, second = saved(whole), saved(folder)
    different = differences({k: v for k, v in first.items() if k != "config"}, second | {"config": None})
    assert [key for key in different if key not in ("/minutes", "/config")] == []
    assert column(folder, "flow") == column(whole, "flow") and column(folder, "step") == list(range(1, STEPS + 1))
    assert not list(folder.glob("*.part"))


def test_ctrl_c_saves_after_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = cli_command(*arguments(tmp_path / "run", steps=100_000))
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "teacher.csv"
    wait_for_lines(log, 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    step = saved(tmp_path / "run")["step"]
    assert process.returncode == 130 and f"after {step} steps" in said and "Traceback" not in said
    assert f"To go on: longtake train teacher --config tiny --folder {tmp_path / 'run'}" in said
    assert column(tmp_path / "run", "step")[-1] == step


def torchrun(processes: int, *command: str) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    made = subprocess.run(
        [*start, "-m", "longtake.training", *command[1:]], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("is finished") == 1  # one process speaks


def side_by_side(processes: int, *command: str) -> None:
    """The same without torchrun, in what it gives to processes: it loads torch once more, and so do they.

    A thread of gloo crashes one of some hundred runs (SIGSEGV in pt_gloo_runloop, PyTorch 2.13). As with torchrun's
    --max-restarts 1 all processes are then started again, once, and go on from the checkpoint to the same result.
    """
    codes: list[int] = []
    for _ in range(2):
        made = _beside_each_other(processes, command)
        codes = [process.returncode for process in made]
        if not {-signal.SIGSEGV, -signal.SIGABRT} & set(codes):
            break
    assert codes == [0] * processes, [process.stderr for process in made]
    assert sum(process.stderr.count("is finished") for process in made) == 1  # one process speaks


def _beside_each_other(processes: int, command: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    running = []
    for rank in map(str, range(processes)):
        place = {**given, "RANK": rank, "LOCAL_RANK": rank}
        running.append(warm.start("longtake.training", *command[1:], cwd=Path.cwd(), more=place))
    return [process.wait() for process in running]


def close(first: Path, second: Path, atol: float) -> None:
    a, b = saved(first)["networks"]["transformer"], saved(second)["networks"]["transformer"]
    for kind in ("weights", "average"):
        assert a[kind].keys() == b[kind].keys() and len(a[kind]) > 10
        for name, weight in a[kind].items():
            assert torch.allclose(weight, b[kind][name], atol=atol, rtol=0), (kind, name)


def test_two_processes_make_the_run_of_one(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    torchrun(2, *arguments(folder, "--set", "run.fsdp=false"))
    assert column(folder, "flow") == pytest.approx(column(whole, "flow"), abs=2e-6)
    assert column(folder, "norm") == pytest.approx(column(whole, "norm"), rel=1e-4)
    close(folder, whole, atol=2e-6)


def test_two_processes_with_split_networks_too_and_one_goes_on_with_what_they_began(
    tmp_path: Path, whole: Path
) -> None:
    folder = tmp_path / "run"
    side_by_side(2, *arguments(folder, steps=STEPS - 4))
    assert invoke(*arguments(folder)).exit_code == 0
    assert column(folder, "flow") == pytest.approx(column(whole, "flow"), abs=2e-6)
    assert column(folder, "norm") == pytest.approx(column(whole, "norm"), rel=1e-4)
    close(folder, whole, atol=2e-6)


def test_muon_of_split_matrices_is_muon_of_whole_ones(tmp_path: Path) -> None:
    changes = ("--set", "teacher.optimizer=muon", "--set", "teacher.weight_decay=0.1")
    side_by_side(2, *arguments(tmp_path / "two", *changes, steps=6))
    config = ("teacher.schedule=constant", "teacher.optimizer=muon", "teacher.weight_decay=0.1", "teacher.steps=6")
    train(TeacherStage(tiny(*config)), tmp_path / "one")
    assert column(tmp_path / "two", "flow") == pytest.approx(column(tmp_path / "one", "flow"), abs=1e-4)
    close(tmp_path / "two", tmp_path / "one", atol=1e-3)  # Newton-Schulz is in bfloat16; a step is up to 3e-3


def test_files_that_may_not_grow_leave_the_last_good_state(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "run"
    train(TeacherStage(tiny("teacher.steps=3", "teacher.schedule=constant")), folder)
    before = [p.read_bytes() for p in checkpoints(folder, "teacher")]
    limit: Callable[[], Any] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    stopped = cli(*arguments(folder), preexec_fn=limit)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert re.search(
        r"Error: teacher stopped at step \d+: .*The last good state is step 3, .*To go on: ", stopped.stderr
    )
    assert [p.read_bytes() for p in checkpoints(folder, "teacher")] == before and not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("zork", "--config", "tiny"), "There is no stage 'zork'; the stages are autoencoder"),
        ((), "Which stage? One of autoencoder"),
        (("teacher",), "Give a configuration with --config"),
        (("teacher", "--config", "none.yaml"), "There is no configuration 'none.yaml'"),
        (("teacher", "--config", "tiny", "--steps", "1", "--minutes", "1"), "Give --minutes or --steps, not both"),
        (("teacher", "--config", "tiny", "--steps", "0"), "A budget must be above 0"),
        (("teacher", "--config", "tiny", "--set", "model.width=3"), "model.width must be a multiple of model.patch"),
        (("teacher", "--config", "tiny", "--set", "teacher.steps=null"), "has no budget in tiny"),
        (("teacher", "--config", "tiny", "--folder", "a_file"), "a_file is a file"),
        (("dmd", "--config", "pocket-cpu"), "autoencoder"),
        (("causal", "--config", "tiny"), "longtake train teacher"),
        (("export", "--folder", "x"), "An export needs the run's --folder and an --out"),
        (("export", "--folder", "x", "--out", "y"), "There is no folder x"),
        (("export", "--folder", ".", "--out", "y"), "has no checkpoint of any stage"),
        (("export", "--folder", ".", "--out", "y", "--shard-size", "big"), "--shard-size is written like 16MB"),
        (("teacher", "--config", "tiny", "--set", "run.device=cuda"), "run.device is cuda"),
        (
            ("teacher", "--config", "tiny", "--set", "data.source=prompts", "--set", "data.path=p.txt"),
            "learns from clips, and data.source prompts has none",
        ),
        (
            ("teacher", "--config", "tiny", "--set", "data.source=latents", "--set", "data.path=."),
            "has 0 .safetensors files of latents",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    if "run.device=cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    result = invoke("train", *words)
    message = result.stderr if result.stderr else capfd.readouterr().err
    assert result.exit_code == 2 and said in message, (result.exit_code, message, result.exception)
    assert message.startswith("Error: ") and message.strip().count("\n") == 0
    left = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert left == [tmp_path / "a_file"]


def test_a_refusal_does_not_load_torch(cli: Cli) -> None:
    code = "import sys\nfrom longtake.training.command import TrainRequest, train_command\n"
    code += "print(train_command(TrainRequest('teacher', 'tiny', changes=('model.layer=1',))), 'torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert made.stdout.strip() == "2 False"


def test_all_stages_leave_out_what_is_finished_and_the_list_says_how_far_they_are(whole: Path) -> None:
    before = checkpoints(whole, "teacher")[0].stat().st_mtime_ns
    only = ("--set", "run.stages=[teacher]", "--steps", str(STEPS))
    again = invoke("train", "pocket", "--config", "tiny", "--folder", whole, *only)
    assert again.exit_code == 0 and f"The stage teacher is finished: {STEPS} steps" in again.stderr
    assert checkpoints(whole, "teacher")[0].stat().st_mtime_ns == before
    listed = invoke("train", "--list", "--folder", whole)
    assert re.search(rf"(?m)^teacher: .* \[finished: {STEPS} steps, ", listed.stdout)


def test_an_export_is_a_diffusers_folder_of_the_average_in_small_files(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "model"
    made = invoke("train", "export", "--folder", whole, "--out", out, "--shard-size", "20KB")
    assert made.exit_code == 0 and made.stdout.strip() == str(out)
    files = list((out / "transformer").glob("*.safetensors"))
    assert len(files) > 1 and all(f.stat().st_size < 30_000 for f in files)
    loaded = WanTransformer3DModel.from_pretrained(out / "transformer", torch_dtype=torch.bfloat16)
    average = saved(whole)["networks"]["transformer"]["average"]
    weights = dict(loaded.named_parameters())
    assert weights.keys() == average.keys()
    for name, weight in weights.items():
        assert torch.equal(weight.bfloat16(), average[name].bfloat16()), name
    assert not torch.equal(
        average["proj_out.weight"], saved(whole)["networks"]["transformer"]["weights"]["proj_out.weight"]
    )
    refused = invoke("train", "export", "--folder", whole, "--out", out)
    assert refused.exit_code == 2 and "exists: choose another --out, or give --overwrite" in refused.stderr
    assert os.listdir(tmp_path) == ["model"]
