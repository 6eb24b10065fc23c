"""``longtake compare`` as people use it: in processes of their own, stopped, killed and gone on with."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longtake.comparison.definition import Comparison, Job, read_definition
from longtake.comparison.result import Result, read_result
from longtake.evaluation.evaluate import evaluate
from longtake.lock import Lock
from longtake.record import snapshot_path
from longtake.video import probe
from tests.conftest import ENVIRONMENT, Cli, cli_command
from tests.helpers_hub import closed_port, environment, folder_content, serve, write_registry
from tests.helpers_videos import clean, write
from tests.test_cli import light, refused

PROMPT = "a red ball rolls over a meadow"
MEMORIES = "small=sliding:window=6,ids=relative,again=sliding:window=6,ids=relative;large=sliding:window=9"
LENGTHS = (1.5, 10.0)


def arguments(model: Path, out: Path | str) -> list[str]:
    options = {"--memories": MEMORIES, "--prompts": "prompts.txt", "--seconds": "1.5,10", "--seeds": "1"}
    options |= {
        "--model": str(model),
        "--dtype": "float32",
        "--window": "0.5s",
        "--snapshot-every": "1",
        "--out": str(out),
    }
    return ["compare", *(word for pair in options.items() for word in pair)]


@pytest.fixture(scope="module")
def compared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing interrupted."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "prompts.txt").write_text(f"{PROMPT}\n")
    made = subprocess.run(
        cli_command(*arguments(tiny_folder, "out"), "--jobs", "2"),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(folder / "out" / "report.html")
    assert made.stderr.splitlines()[0] == "3 videos of 10 s: 3 memories, 1 prompt, 1 seed"
    return folder / "out"


def definition(folder: Path) -> Comparison:
    found = read_definition(folder)
    assert found is not None
    return found


def results(folder: Path) -> dict[str, Result]:
    found = {job.label: read_result(job, folder) for job in definition(folder).jobs()}
    assert all(result is not None for result in found.values())
    return found  # type: ignore[return-value]


def without_time(report: str) -> str:
    """A report without what no two runs have in common: milliseconds, and the folder."""
    report = re.sub(r"(?m)^(\| \w+ \| `sliding.*) \| [^|]* \|$", r"\1", report)
    return re.sub(r"--out \S+|--prompts \S+|with one video at a time|with up to 2 videos at a time", "", report)


def test_same_noise(compared: Path) -> None:
    """Two equal memories make the same files, so that nothing is found between them; another one does not."""
    jobs = {job.label: job for job in definition(compared).jobs()}
    small, again, large = (jobs[label].video(compared).read_bytes() for label in ("small", "again", "large"))
    assert small == again != large
    found = results(compared)
    assert found["small"].metrics.keys() == set(LENGTHS)
    for seconds in LENGTHS:
        assert json.dumps(found["small"].metrics[seconds]) == json.dumps(found["again"].metrics[seconds])
    report = json.loads((compared / "report.json").read_text())
    for row in report["paired"]["10"]["again"].values():
        assert row["mean"] == 0 and (row["above"], row["below"], row["p"]) == (0, 0, 1.0)
    assert any(row["mean"] for row in report["paired"]["10"]["large"].values())


def test_numbers_are_those_of_eval(compared: Path) -> None:
    comparison = definition(compared)
    for job in comparison.jobs()[1:]:
        result = read_result(job, compared)
        assert result is not None
        alone = evaluate(job.video(compared), comparison.settings)
        assert result.metrics[10.0] == pytest.approx(alone.metrics, nan_ok=True)
        assert result.video["sha256"] == alone.source.sha256 and result.video["frames"] == 160
        assert result.windows["contrast"] == pytest.approx(alone.measured.windows["contrast"].tolist())
        cost = result.cost
        assert cost["chunk_ms"] > 0 and 10 <= cost["chunks_timed"] <= 27 and cost["memory_bytes"] > 1000
    assert comparison.settings.chunk is not None and comparison.settings.chunk.rest == 12


def test_its_command_makes_a_video_again(compared: Path, cli: Cli, tmp_path: Path) -> None:
    result = results(compared)["large"]
    command = shlex.split(result.made["command"])
    assert command[:2] == ["longtake", "generate"]
    made = cli(*command[1:], "-q")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "take.mp4").read_bytes() == result.job.video(compared).read_bytes()


def test_report(compared: Path) -> None:
    page, text = (compared / "report.html").read_text(), (compared / "report.md").read_text()
    assert page.count("<svg") == 8 and page.count("data:image/jpeg") == 3 and "http" not in page
    assert "large=sliding:window=9" in page and "9 frames" in text and "## Side by side" in text
    assert "With 1 videos" not in text and "too few to mark anything" in text
    for linked in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (compared / linked).is_file()


def test_stopped_and_killed(compared: Path, tiny_folder: Path, cli: Cli, tmp_path: Path) -> None:
    """Ctrl-C within the first video, kill -9 within the second: what comes of it is what an uninterrupted run gives."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    words = arguments(tiny_folder, "out")
    jobs: list[Job] = []
    for number, how in enumerate((signal.SIGINT, signal.SIGKILL)):
        running = subprocess.Popen(
            cli_command(*words),
            cwd=tmp_path,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 300
        while not jobs:
            jobs = definition(tmp_path / "out").jobs() if (tmp_path / "out" / "comparison.json").exists() else []
            assert time.monotonic() < until and running.poll() is None
            time.sleep(0.01)
        video = jobs[number].video(tmp_path / "out")
        while not video.exists():
            assert time.monotonic() < until and running.poll() is None
            time.sleep(0.01)
        running.send_signal(how)
        _, said = running.communicate(timeout=300)
        assert "Traceback" not in said
        assert not jobs[number].result(tmp_path / "out").exists() and not jobs[2].video(tmp_path / "out").exists()
        if how == signal.SIGINT:
            assert running.returncode == 130 and "The same command goes on" in said
            assert snapshot_path(video).exists() and probe(video).frames < 160
            assert not (tmp_path / "out" / "report.md").exists()
    first = jobs[0].video(tmp_path / "out").stat().st_mtime_ns
    made = cli(*words)
    assert made.returncode == 0, made.stderr
    assert "finished before: 1" in made.stderr and "1 of 2: again" in made.stderr
    assert jobs[0].video(tmp_path / "out").stat().st_mtime_ns == first
    for job, other in zip(definition(tmp_path / "out").jobs(), definition(compared).jobs(), strict=True):
        assert job == other and job.video(tmp_path / "out").read_bytes() == job.video(compared).read_bytes()
        assert job.strip(tmp_path / "out").read_bytes() == job.strip(compared).read_bytes()
    reports = [without_time((folder / "report.md").read_text()) for folder in (tmp_path / "out", compared)]
    assert reports[0] == reports[1] and len(reports[0]) > 5000
    for mine, theirs in zip(results(tmp_path / "out").values(), results(compared).values(), strict=True):
        assert json.dumps(mine.metrics[10.0]) == json.dumps(theirs.metrics[10.0])


def test_broken_videos_are_left_out(compared: Path, tiny_folder: Path, cli: Cli, tmp_path: Path) -> None:
    """A sentence each; the others stay, and the exit code says so, also when only the report is made again."""
    shutil.copytree(compared, tmp_path / "out")
    shutil.copy(compared.parent / "prompts.txt", tmp_path)
    small, again, _ = definition(tmp_path / "out").jobs()
    os.truncate(small.video(tmp_path / "out"), 500)
    snapshot_path(again.video(tmp_path / "out")).unlink()
    write(again.video(tmp_path / "out"), clean(10))
    made = cli(*arguments(tiny_folder, "out"))
    assert made.returncode == 3, made.stderr
    said = [line for line in made.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 2 and all(line.endswith(".") and "--overwrite" not in line for line in said)
    assert said[0].startswith("Error: small, seed 0, ") and "has 500 bytes" in said[0]
    assert said[1].startswith("Error: again, ") and "is 96x64 and the others 32x32" in said[1]
    assert made.stderr.splitlines()[-1] == "1 video in the report; left out: 2."
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Left out: 2 videos" in text and "has 500 bytes" in text and "is 96x64 and the others" in text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["means"]["10"]) == ["large"] and report["paired"]["10"] == {}
    before = results(compared)["large"].metrics[10.0]["contrast"]
    assert report["means"]["10"]["large"]["contrast"]["mean"] == before
    again_made = CliRunner().invoke(_app(), ["compare", "--report-only", "--out", str(tmp_path / "out")])
    assert again_made.exit_code == 3 and "left out: 2" in again_made.stderr


def _app() -> Any:
    from longtake.cli import app

    return app


def test_report_alone(compared: Path, tmp_path: Path) -> None:
    """Without videos or model, the same again; and against another baseline."""
    shutil.copytree(compared, tmp_path / "out", ignore=shutil.ignore_patterns("videos"))
    before = (tmp_path / "out" / "report.md").read_text()
    for path in (tmp_path / "out").glob("report.*"):
        path.unlink()
    arguments = ["compare", "--report-only", "--out", str(tmp_path / "out")]
    made = CliRunner().invoke(_app(), arguments)
    assert made.exit_code == 0 and without_time((tmp_path / "out" / "report.md").read_text()) == without_time(before)
    made = CliRunner().invoke(_app(), [*arguments, "--baseline", "large", "--sheets", "0"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert made.exit_code == 0 and "## Differences to large" in text and "Side by side" not in text
    ours, theirs = (json.loads((f / "report.json").read_text())["paired"]["10"] for f in (tmp_path / "out", compared))
    assert ours["small"]["flicker"]["mean"] == pytest.approx(-theirs["large"]["flicker"]["mean"])
    made = CliRunner().invoke(_app(), [*arguments, "--baseline", "x"])
    assert made.exit_code == 2 and "small, again, large; not 'x'" in made.stderr


def test_other_windows_only_measure_again(compared: Path, tiny_folder: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "out")
    shutil.copy(compared.parent / "prompts.txt", tmp_path)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "videos").rglob("*.mp4")}
    words = [word if word != "0.5s" else "1s" for word in arguments(tiny_folder, "out")]
    words[words.index("--memories") + 1] = "large=sliding:window=9"
    made = cli(*words)
    assert made.returncode == 0, made.stderr
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert len(results(tmp_path / "out")["large"].windows["seconds"]) == 10
    cost = results(tmp_path / "out")["large"].cost
    assert cost == results(compared)["large"].cost and not math.isnan(cost["chunk_ms"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Which memories?"),
        (["--memories", "elephant"], "accepted are memrope"),
        (["--memories", "memrope:nose=1"], "accepted are sink"),
        (["--memories", "sliding:window=2"], "window must be at least 3"),
        (["--memories", "memrope,memrope"], "twice"),
        (["--memories", "memrope,echo"], "there are no trained weights of it"),
        (["--memories", "memrope", "--memory-weights", "w"], "there is none in --memories"),
        (["--memories", "memrope", "--memory-weights", "memrope=w"], "'memrope' is none"),
        (["--memories", "memrope", "--seeds", "0"], "--seeds takes"),
        (["--memories", "memrope", "--seconds", "soon"], "not a duration"),
        (["--memories", "memrope", "--baseline", "x"], "--baseline must be one of the memories, memrope"),
        (["--memories", "memrope", "--prompts", "nowhere.txt"], "no file of prompts"),
        (["--memories", "memrope", "--prompts", "empty.txt"], "has no prompts"),
        (["--memories", "memrope", "--prompts", "odd.txt"], "it knows colours"),
        (["--memories", "memrope", "--model", "gigantic"], "accepted are pocket"),
        (["--memories", "memrope", "--height", "50"], "multiple of 16"),
        (["--memories", "memrope", "--dtype", "int8"], "auto, float32, bfloat16"),
        (["--memories", "memrope", "--features", "x"], "--features takes fixed"),
        (["--memories", "memrope", "--window", "0.1"], "A window is from"),
        (["--memories", "memrope", "--out", "empty.txt"], "--out is the folder"),
        (["--memories", "memrope", "--seconds", "8000h", "--height", "1024", "--width", "1024"], "are free"),
        (["--report-only"], "There is no comparison in"),
        (["--report-only", "--out", "other"], "cannot be read"),
    ],
)
def test_refused(words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text(f"{PROMPT}\n")
    Path("odd.txt").write_text(f"{PROMPT}\nquantum chromodynamics\n")
    Path("empty.txt").write_text("")
    Path("other").mkdir()
    Path("other/comparison.json").write_text("{")
    default = [] if "--prompts" in words or "--report-only" in words else ["--prompts", "prompts.txt"]
    made = CliRunner().invoke(_app(), ["compare", *words, *default])
    assert made.exit_code == 2 and says in made.stderr and len(made.stderr.splitlines()) == 1, made.stderr
    assert not Path("comparison").exists(), "nothing comes of what is refused"


def test_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    words = ("compare", "--memories", "memrope,longlive", "--prompts", "prompts.txt")
    assert "multiple of 16" in refused(*words, "--width", "10", cwd=tmp_path)
    code, out, _ = light("compare", "--help", cwd=tmp_path)
    assert code == 0 and "--baseline" in out and "docs/compare.md" in out


def test_another_comparison_is_left_alone(compared: Path, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "out", ignore=shutil.ignore_patterns("videos"))
    before = (tmp_path / "out" / "comparison.json").read_bytes()
    shutil.copy(compared.parent / "prompts.txt", tmp_path)
    words = arguments(tiny_folder, tmp_path / "out")
    words[words.index("--prompts") + 1] = str(tmp_path / "prompts.txt")
    made = CliRunner().invoke(_app(), [*words, "--height", "48"])
    assert made.exit_code == 2 and "begun with another --height (with 32), not with 48" in made.stderr
    lock = Lock(tmp_path / "out" / "comparison.json")
    try:
        made = CliRunner().invoke(_app(), words)
    finally:
        lock.release()
    assert made.exit_code == 2 and "Another process is writing" in made.stderr
    assert (tmp_path / "out" / "comparison.json").read_bytes() == before


def test_a_named_model_is_downloaded_once(tiny_folder: Path, cli: Cli, tmp_path: Path) -> None:
    """Before several processes look for it; and if that cannot be, in one sentence."""
    weights = (tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    with serve({"me/model": {"weights.safetensors": weights}, "me/base": folder_content(tiny_folder)}) as hub:
        parts: dict[str, Any] = {"repo": "me/base", "revision": hub.commit("me/base")}
        for part in ("transformer", "vae", "text_encoder"):
            parts[part] = json.loads((tiny_folder / part / "config.json").read_text())
        parts["files"] = ["model_index.json", "vae/*", "tokenizer/*", "text_encoder/*", "transformer/config.json"]
        entry = {"transformer": hub.file("me/model", "weights.safetensors"), "base": "small", "size": [32, 32]}
        env = environment(hub, tmp_path, write_registry(tmp_path / "models.yaml", {"mine": entry}, {"small": parts}))
        (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
        words = arguments("mine", "out")  # type: ignore[arg-type]
        words[words.index("--memories") + 1] = "large=sliding:window=9,other=longlive"
        words[words.index("--seconds") + 1] = "1,2"
        made = cli(*words, "--jobs", "2", env=env)
        assert made.returncode == 0, made.stderr
        assert len(hub.downloads("weights.safetensors")) == 1
    comparison = definition(tmp_path / "out")
    assert comparison.model == "mine" and comparison.signature is not None
    shutil.rmtree(tmp_path / "hf")
    env["HF_ENDPOINT"] = closed_port()
    words[words.index("--out") + 1] = "again"
    made = cli(*words, env=env)
    assert made.returncode == 2 and "does not answer" in made.stderr and "Traceback" not in made.stderr
    assert not (tmp_path / "again" / "logs").exists()
