"""``longtake eval --vbench``: the official package in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longtake.evaluation.source import look
from longtake.evaluation.vbench import VBenchSettings, cut_clips
from longtake.evaluation.vbench_env import VARIABLE, VERSION
from longtake.video import read_frames
from tests.conftest import ENVIRONMENT, Cli
from tests.helpers_videos import clean, to_bytes, write


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("vbench") / "good.mp4", clean(5.0))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the official package, as far as temporal_flickering needs it: the whole, with its 7 GB, is for
    who wants it, and is used where LONGTAKE_VBENCH names it. What is not there is fetched from PyPI, but for torch."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    folder = tmp_path_factory.mktemp("environment")
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no environment can be made here: {error}")
    made = folder / "bin" / "python"
    # an old torchvision: it is imported and not used here, and newer ones want the torch that they were built for
    needed = [f"vbench=={VERSION}", "numpy<2", "opencv-python-headless<4.12", "decord", "tqdm", "torchvision==0.16.2"]
    install = [str(made), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    done = subprocess.run([*install, *needed], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        pytest.skip(f"vbench {VERSION} cannot be installed from PyPI here: {lines[-1]}")
    import torch

    found = subprocess.run(
        [str(made), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True
    )
    # after its own packages: numpy is its own, torch is ours
    (Path(found.stdout.strip()) / "torch_from_here.pth").write_text(str(Path(torch.__file__).parent.parent))
    return made


def test_temporal_flickering_for_real(cli: Cli, video: Path, python: Path, tmp_path: Path) -> None:
    """The package's own number of clips of 2 seconds, against what it is by definition; a dimension that it cannot
    compute is left out, and named."""
    write(tmp_path / "short.mp4", clean(1.0, seed=3))
    (tmp_path / "wget").write_text("#!/bin/sh\nexit 4\n")  # no weights, whatever there is
    (tmp_path / "wget").chmod(0o755)
    environment = {
        **ENVIRONMENT,
        VARIABLE: str(python),
        "VBENCH_CACHE_DIR": str(tmp_path / "weights"),
        "PATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT.get('PATH', '')}",
    }
    chosen = ["--dimensions", "temporal_flickering,imaging_quality", "--device", "cpu"]
    made = cli("eval", video, "short.mp4", "found.json", "--json", "--vbench", *chosen, env=environment)
    assert made.returncode == 3, made.stderr
    assert "Error: VBench's imaging_quality is left out: its weights are not here" in made.stderr
    assert "Traceback" not in made.stderr and "vbench_temporal_flickering" in made.stdout
    report = json.loads((tmp_path / "found.json").read_text())
    about = report["vbench"]
    assert about["versions"]["vbench"] == VERSION and about["versions"]["numpy"].startswith("1.")
    assert about["device"] == "cpu" and about["clip_seconds"] == 2
    assert list(about["clips"].values()) == [3, 1]
    assert [one["what"] for one in report["skipped"]] == ["vbench_imaging_quality"]
    for one, starts, length in zip(report["videos"], ([0, 32, 48], [0]), (32, 16), strict=True):
        frames = np.stack(list(read_frames(tmp_path / one["path"]))).astype(float)
        clips = [frames[start : start + length] for start in starts]
        expected = np.mean([1 - np.abs(np.diff(clip, axis=0)).mean() / 255 for clip in clips])
        assert one["metrics"]["vbench_temporal_flickering"] == pytest.approx(expected, abs=5e-4)
    assert report["metrics"]["vbench_temporal_flickering"]["direction"] == "higher"


def test_clips_are_the_video(video: Path, tmp_path: Path) -> None:
    """Every frame is in a clip, all clips are of one length, and they are the video but for the rounding of colours."""
    source = look(video)
    frames = np.stack(list(source)).astype(int)
    assert cut_clips(source, VBenchSettings(), tmp_path, "a_") == 3
    for index, start in enumerate((0, 32, 48)):
        clip = np.stack(list(read_frames(tmp_path / f"a_{index:06d}.mp4")))
        assert len(clip) == 32 and np.abs(clip - frames[start : start + 32]).mean() < 2
    assert cut_clips(source, VBenchSettings(clips=2), tmp_path, "b_") == 2
    assert sorted(p.name for p in tmp_path.glob("b_*")) == ["b_000000.mp4", "b_000001.mp4"]
    last = np.stack(list(read_frames(tmp_path / "b_000001.mp4")))
    assert np.abs(last - frames[48:]).mean() < 2
    assert cut_clips(source, VBenchSettings(seconds=60), tmp_path, "c_") == 1
    assert look(tmp_path / "c_000000.mp4").frames == 80


def test_where_there_is_no_network(cli: Cli, video: Path, tmp_path: Path) -> None:
    """Nothing to install from: one sentence, and all but VBench is measured."""
    # in pip's own words, an index that has nothing
    environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    environment.pop(VARIABLE, None)
    made = cli("eval", video, "--json", "--vbench", "-q", env=environment)
    assert made.returncode == 3
    error, last = made.stderr.splitlines()
    assert error.startswith("Error: VBench ") and VARIABLE in error and "Traceback" not in error
    if sys.version_info[:2] in ((3, 10), (3, 11)):
        assert "could not be installed: a network is needed once (" in error
    assert last == "1 video measured; left out: vbench."
    report = json.loads(made.stdout)
    assert report["skipped"] == [{"what": "vbench", "reason": error.removeprefix("Error: ")}]
    assert report["vbench"] is None and report["videos"][0]["metrics"]["motion"] > 0


@pytest.mark.parametrize(("named", "says"), [("no/such/python", "is no program"), (sys.executable, "does not run in")])
def test_a_python_without_vbench(named: str, says: str, video: Path, cli: Cli) -> None:
    made = cli("eval", video, "--vbench", "-q", env={**ENVIRONMENT, VARIABLE: named})
    assert made.returncode == 3 and says in made.stderr and len(made.stderr.splitlines()) == 2, made.stderr


def test_odd_sizes_are_cropped(tmp_path: Path) -> None:
    """Video of odd sizes exists elsewhere; what is written for VBench is even."""
    with av.open(str(tmp_path / "odd.mkv"), "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=16, width=47, height=33)
        stream.pix_fmt = "yuv444p"
        for rgb in to_bytes(clean(0.5))[:, :33, :47]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb))))
        container.mux(stream.encode(None))
    source = look(tmp_path / "odd.mkv")
    assert (source.width, source.height) == (47, 33) and cut_clips(source, VBenchSettings(), tmp_path, "") == 1
    clip = look(tmp_path / "000000.mp4")
    assert (clip.width, clip.height, clip.frames) == (46, 32, 8)
