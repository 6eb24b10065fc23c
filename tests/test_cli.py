"""The command line, as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longtake import LongTakePipeline
from longtake.record import Recorded, Recording, snapshot_path
from longtake.video import probe
from tests.conftest import ENVIRONMENT, Cli, cli_command

PROMPT = "a red ball rolls over a meadow"
DATA = Path(__file__).parent / "data"

# Runs the command line in this very interpreter and says whether anything heavy was loaded.
WITHOUT_TORCH = """
import sys
sys.argv = ["longtake", *sys.argv[1:]]
from longtake.cli import main
try:
    main()
except SystemExit as error:
    heavy = [name for name in ("torch", "diffusers", "transformers", "safetensors", "av") if name in sys.modules]
    print("CODE", error.code, "HEAVY", *heavy)
"""


def light(*arguments: str | Path, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that must load nothing heavy."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    made = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    found = re.search(r"CODE (\w+) HEAVY(.*)", made.stdout)
    assert found and not found[2].strip(), made.stdout + made.stderr
    return int(found[1]), made.stdout[: found.start()], made.stderr


def refused(*arguments: str | Path, cwd: Path) -> str:
    """The sentence that such a command is refused with; nothing is written, loaded or printed."""
    before = {path: path.stat().st_mtime_ns for path in cwd.rglob("*")}
    code, out, err = light(*arguments, cwd=cwd)
    assert code == 2 and not out and "Traceback" not in err, err
    assert {path: path.stat().st_mtime_ns for path in cwd.rglob("*")} == before
    assert err.startswith("Error: ") and len(err.strip().splitlines()) == 1, err
    return err


@pytest.fixture
def take(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> Path:
    """A finished take of 3 seconds, as the command line leaves it."""
    path = tmp_path / "take.mp4"
    recording = Recording.start(
        tiny.start(PROMPT, "memrope", 5),
        path,
        settings={"model": str(tiny_folder), "seconds": 3.0, "every": 10.0, "device": "cpu"},
    )
    assert recording.run(3)
    return path


def test_light_commands(tmp_path: Path) -> None:
    for arguments, expected in (
        (("--help",), "generate"),
        (("generate", "--help"), "--resume"),
        (("--version",), "longtake 0"),
        (("models",), "pocket"),
        (("memories",), "arXiv 2603.12513"),
    ):
        code, out, _ = light(*arguments, cwd=tmp_path)
        assert code == 0 and expected in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "prompt is needed"),
        ([""], "no prompt"),
        (["   "], "no prompt"),
        ([PROMPT, "--memory", "elephant"], "memrope, sliding"),
        ([PROMPT, "--memory", "memrope:nose=1"], "accepted are sink"),
        ([PROMPT, "--memory", "memrope:sink=x"], "whole number"),
        ([PROMPT, "--memory", "sliding:window=2"], "at least 3"),
        ([PROMPT, "--model", "gigantic"], "accepted are pocket"),
        ([PROMPT, "--model", "self_forcing"], "did you mean self-forcing"),
        ([PROMPT, "--model", ""], "no model ''"),
        ([PROMPT, "--devices", "cpu,"], "parts from nothing in 'cpu,'"),
        ([PROMPT, "--model", "."], "a diffusers folder, or an original Wan folder"),
        ([PROMPT, "--seconds", "0"], "1ms to 366 days"),
        ([PROMPT, "--seconds=-3"], "is not a duration"),
        ([PROMPT, "--seconds", "nan"], "is not a duration"),
        ([PROMPT, "--seconds", "inf"], "is not a duration"),
        ([PROMPT, "--seconds", "400000000"], "366 days"),
        ([PROMPT, "--seconds", "soon"], "10s, 1.5s"),
        ([PROMPT, "--seconds", "8000h", "--height", "1024", "--width", "1024"], "are free"),
        ([PROMPT, "--height", "50"], "multiple of 16"),
        ([PROMPT, "--width", "0"], "multiple of 16"),
        ([PROMPT, "--width", "160000"], "multiple of 16 from 16 to"),
        ([PROMPT, "--threads", "100000"], "at most"),
        (["красный шар, 日本"], "it knows colours red"),
        ([PROMPT, "--out", "nowhere/take.mp4"], "no folder"),
        ([PROMPT, "--out", "take.avi"], "end in .mp4"),
        ([PROMPT, "--out", "folder.mp4"], "must be a file"),
        ([PROMPT, "--out", "/proc/take.mp4"], "cannot be written"),
        ([PROMPT, "--dtype", "int8"], "auto, float32, bfloat16"),
        ([PROMPT, "--device", "abacus"], "cpu, mps, cuda and cuda:N"),
        ([PROMPT, "--on-change", "panic"], "keep, recache, flush, cut"),
        ([PROMPT, "--threads", "0"], "1 or more"),
        ([PROMPT, "--snapshot-every", "0"], "1ms to 366 days"),
        ([PROMPT, "--resume", "--overwrite"], "one of them"),
        (["--resume"], "nothing to continue"),
        (["quantum chromodynamics"], "it knows colours red"),
        ([f"{PROMPT} | a blue ball [3s]"], "needs a duration"),
        ([f"{PROMPT} [5s] | a blue ball", "--seconds", "3"], "never be shown"),
        ([f"{PROMPT} [3s] | zzz [3s]"], "it knows colours red"),
    ],
)
def test_bad_input(arguments: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    assert expected in refused("generate", *arguments, cwd=tmp_path)


def test_larger_than_the_model_has_positions_for(tiny_folder: Path, tmp_path: Path) -> None:
    for option in ("--width", "--height"):  # 32 positions of 16 pixels
        message = refused("generate", PROMPT, "--model", tiny_folder, option, "528", cwd=tmp_path)
        assert "multiple of 16 from 16 to 512 pixels" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o500)
    assert "cannot be written" in refused("generate", PROMPT, "--out", "folder/take.mp4", cwd=tmp_path)


def test_usage_errors(tmp_path: Path) -> None:
    for arguments in (
        ["generate", PROMPT, "--nonsense"],
        ["generate", PROMPT, "--seed", "x"],
        ["nonsense"],
        ["parity"],
    ):
        code, out, err = light(*arguments, cwd=tmp_path)
        assert code == 2 and not out and "Error: " in err and "Traceback" not in err


def test_what_is_there_is_kept(take: Path) -> None:
    folder = take.parent
    message = refused("generate", PROMPT, cwd=folder)
    assert "--resume" in message and "--overwrite" in message
    for arguments, expected in (
        (["--seed", "6"], "made with 5"),
        (["--memory", "sliding"], "made with memrope"),
        (["--height", "64"], "made with 32"),
        (["--dtype", "bfloat16"], "made with float32"),
        (["--on-change", "flush"], "made with keep"),
        (["a blue box"], "only what comes after"),
    ):
        assert expected in refused("generate", "--resume", "--seconds", "9", *arguments, cwd=folder)
    # The same settings, said again, are no contradiction; and there is nothing to do.
    for arguments in ([], [PROMPT, "--seed", "5", "--memory", "memrope:sink=3"], ["--seconds", "1"]):
        code, out, err = light("generate", "--resume", *arguments, cwd=folder)
        assert code == 0 and out.strip() == str(take) and "3 s long already" in err


def test_damaged_snapshots(take: Path, tiny_folder: Path) -> None:
    folder, snapshot = take.parent, snapshot_path(take)
    good = snapshot.read_bytes()
    for content in (good[:-1], good[:100], b"", b"hello, I am a file", good + b"x"):
        snapshot.write_bytes(content)
        assert "not a Longtake snapshot" in refused("generate", "--resume", "--seconds", "9", cwd=folder)
    snapshot.write_bytes(good)
    content = take.read_bytes()
    take.write_bytes(content[:500])
    assert "fewer than" in refused("generate", "--resume", "--seconds", "9", cwd=folder)
    take.unlink()
    assert "not there" in refused("generate", "--resume", "--seconds", "9", cwd=folder)
    assert "--overwrite" in refused("generate", PROMPT, cwd=folder)
    take.write_bytes(content)
    snapshot.unlink()
    assert "no snapshot" in refused("generate", "--resume", cwd=folder)


def test_cuda_where_there_is_none(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    made = cli("generate", PROMPT, "--model", tiny_folder, "--device", "cuda", "-q")
    assert made.returncode == 2 and "no device cuda" in made.stderr and "Traceback" not in made.stderr
    assert not list(tmp_path.iterdir())


def test_generate(cli: Cli, tmp_path: Path) -> None:
    """The real model, from prompt to file; then longer; then a snapshot that another model cannot take over."""
    made = cli("generate", f"{PROMPT} and unicorns", "--seconds", "2.1", "--seed", "3", "--out", "a film.mp4")
    assert made.returncode == 0, made.stderr
    path = tmp_path / "a film.mp4"
    assert made.stdout == f"{path}\n"
    info = probe(path)
    assert (info.frames, info.width, info.height, info.fps) == (34, 64, 64, 16)
    assert "does not know unicorns; it knows colours" in made.stderr
    for part in ("34 frames of 64x64", "4 chunks", "3 sink + 1 long + 1 short + 4 recent + 3 current = 12 frames"):
        assert part in made.stderr
    assert "seed 3" in made.stderr and "frames/s" in made.stderr and "x real time" in made.stderr
    assert "deprecated" not in made.stderr and "%|" not in made.stderr and "annotation" not in made.stderr


def test_same_seed_longer_and_refusals(cli: Cli, take: Path, tiny_folder: Path, tmp_path: Path) -> None:
    made = cli("generate", "--resume", "--seconds", "6", "--quiet")
    assert made.returncode == 0 and made.stderr == "" and made.stdout == f"{take}\n", made.stderr
    assert probe(take).frames == 96
    other = tmp_path / "other.mp4"
    new = ["--seed", "5", "--seconds", "6", "--model", tiny_folder, "--out", other, "--dtype", "float32"]
    made = cli("generate", PROMPT, *new, "--resume")
    assert made.returncode == 0, made.stderr
    assert other.read_bytes() == take.read_bytes()
    # Other weights in the same folder: told apart without loading them.
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    weights = next(model.glob("transformer/*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-100:] = bytes(100)
    weights.write_bytes(content)
    assert "another model" in refused(
        "generate", "--resume", "--seconds", "9", "--out", other, "--model", model, cwd=tmp_path
    )
    assert "another model" in refused(
        "generate", "--resume", "--seconds", "9", "--out", other, "--model", "pocket", cwd=tmp_path
    )
    shutil.rmtree(model)


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        cli_command("generate", *arguments),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_snapshot(process: subprocess.Popen[str], path: Path, frames: int) -> None:
    """Until the snapshot continues after at least so many frames."""
    end = time.monotonic() + 100
    while time.monotonic() < end and process.poll() is None:
        found = Recorded.look(path) if snapshot_path(path).exists() else None
        if found is not None and found.frames >= frames:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_killed_and_resumed(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    path, seconds = tmp_path / "take.mp4", 45
    for kill in range(2):
        new = [PROMPT, "--seed", "7", "--model", tiny_folder, "--seconds", str(seconds)]
        new += ["--snapshot-every", "2", "--dtype", "float32"]
        process = start(tmp_path, "--resume", "--quiet", *(new if kill == 0 else []))
        wait_for_snapshot(process, path, kill * 200 + 1)
        time.sleep(random.random() * 0.3)
        process.kill()
        process.wait(30)
        assert probe(path).frames > 0
    made = start(tmp_path, "--resume", "--quiet")
    out, err = made.communicate(timeout=600)
    assert made.returncode == 0 and out == f"{path}\n", err
    whole = tmp_path / "whole.mp4"
    Recording.start(tiny.start(PROMPT, "memrope", 7), whole).run(seconds)
    assert path.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued(
    number: signal.Signals, tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "my take.mp4"
    new = ["--model", tiny_folder, "--seconds", "1h", "--out", path.name, "--dtype", "float32", "--threads", "1"]
    process = start(tmp_path, PROMPT, *new)
    wait_for_snapshot(process, path, 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number and not out and "Traceback" not in err
    frames = probe(path).frames
    found = Recorded.look(path)
    assert found is not None and found.frames == frames
    command = shlex.split(err.strip().splitlines()[-1])
    assert command[0] == "longtake" and command[-4:] == ["--threads", "1", "--seconds", "3600"]
    if number == signal.SIGINT:
        command[-1] = str(frames / 16 + 2)
        again = start(tmp_path, *command[2:])
        assert again.wait(120) == 0
        whole = tmp_path / "whole.mp4"
        Recording.start(tiny.start(PROMPT, "memrope", 0), whole).run(frames / 16 + 2)
        assert path.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_disk_that_fills(tiny_folder: Path, small_disk: Path) -> None:
    path = small_disk / "take.mp4"
    process = start(small_disk, PROMPT, "--model", tiny_folder, "--seconds", "1m", "--snapshot-every", "1")
    wait_for_snapshot(process, path, 1)
    try:
        with (small_disk / "something else").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1 and not out and "Traceback" not in err
    assert "longtake generate --resume" in err.splitlines()[-1]
    found = Recorded.look(path)
    assert found is not None and 0 < found.frames <= probe(path).frames
    message = refused("generate", PROMPT, "--overwrite", cwd=small_disk)
    assert "need about" in message and "are free" in message


def test_doctor(cli: Cli) -> None:
    made = cli("doctor", "--json")
    report = json.loads(made.stdout)
    assert made.returncode == 0 and report["ok"] and not report["problems"], made.stdout + made.stderr
    assert "resumes bit for bit" in report["facts"]["test memrope"]
    assert {"torch", "diffusers", "device", "attention", "memory", "disk", "video"} <= set(report["facts"])


def test_parity(cli: Cli, tmp_path: Path) -> None:
    file = DATA / "memrope_ema.safetensors"
    made = cli("parity", file, "--tolerance", "1e-4")
    assert made.returncode == 0 and "memrope" in made.stdout and "pass" in made.stdout and "chunks" in made.stdout
    (tmp_path / "junk").write_bytes(b"junk")
    made = cli("parity", file, "--tolerance", "1e-30")
    assert made.returncode == 1 and made.stdout.count("FAIL") == 1 and made.stderr == ""
    made = cli("parity", "junk", file)
    assert made.returncode == 2 and made.stdout.count("pass") == 1 and "junk is not a recording" in made.stderr


def test_parity_refuses(tmp_path: Path) -> None:
    def file(metadata: dict[str, str]) -> str:
        header = json.dumps({"__metadata__": metadata}).encode()
        (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header)
        return "x"

    (tmp_path / "junk").write_bytes(b"junk")
    for name, expected in (
        ("nothing", "no recording"),
        ("junk", "not a recording"),
        (file({"spec": '{"policy": "elephant"}'}), "supported are"),
    ):
        assert expected in refused("parity", name, cwd=tmp_path)
    for metadata in ({}, {"spec": "[1]"}, {"spec": "{"}):
        assert "no 'spec'" in refused("parity", file(metadata), cwd=tmp_path)
    for tolerance in ("0", "-1", "nan", "inf"):
        message = refused("parity", DATA / "memrope_ema.safetensors", f"--tolerance={tolerance}", cwd=tmp_path)
        assert "number above 0" in message


def test_sheet(cli: Cli, take: Path, tmp_path: Path) -> None:
    from PIL import Image

    made = cli("sheet", take, "--every", "0.5", "--columns", "3")
    assert made.returncode == 0 and made.stdout == f"{take.with_suffix('.png')}\n", made.stderr
    with Image.open(take.with_suffix(".png")) as picture:
        assert picture.size[0] > 3 * 32 and picture.size[1] > 2 * 32
    before = take.with_suffix(".png").read_bytes()
    assert "--overwrite replaces it" in refused("sheet", take, cwd=tmp_path)
    assert "no place for the sheet" in refused("sheet", take.with_suffix(".png"), "--overwrite", cwd=tmp_path)
    assert take.with_suffix(".png").read_bytes() == before
    assert cli("sheet", take, "--overwrite").returncode == 0 and take.with_suffix(".png").read_bytes() != before
    assert "no video" in refused("sheet", "nothing.mp4", cwd=tmp_path)
    assert "end in .png" in refused("sheet", take, "--out", "x.mp4", cwd=tmp_path)
