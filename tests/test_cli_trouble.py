"""The command line where something around it is broken: streams, snapshots, other processes, libraries."""

from __future__ import annotations

import json
import os
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake import LongTakePipeline
from longtake.record import Recorded, Recording, snapshot_path
from longtake.video import probe
from tests.conftest import ENVIRONMENT, Cli, cli_command
from tests.test_cli import PROMPT, refused, start, take, wait_for_snapshot

__all__ = ["take"]  # the fixture

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def test_bfloat16(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """A take in bfloat16, resumed, is the one that never stopped; what is resumed stays in bfloat16."""
    new = [PROMPT, "--model", tiny_folder, "--dtype", "bfloat16", "-q", "--seconds"]
    assert cli("generate", *new, "2", "--out", "a.mp4").returncode == 0
    assert cli("generate", "--resume", "--seconds", "3", "--out", "a.mp4", "-q").returncode == 0
    assert cli("generate", *new, "3", "--out", "b.mp4").returncode == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@posix
def test_one_process_per_file(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    new = [PROMPT, "--model", tiny_folder, "--seconds", "1h", "-q"]
    process = start(tmp_path, *new)
    try:
        wait_for_snapshot(process, path, 1)
        for arguments in (["--resume"], [*new, "--overwrite"], new):
            made = subprocess.run(
                cli_command("generate", *arguments), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
            )
            assert made.returncode == 2 and not made.stdout
            assert made.stderr.startswith("Error: Another process is writing take.mp4")
            assert len(made.stderr.splitlines()) == 1
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(30)
    found = Recorded.look(path)  # the lock's file is still there, and blocks nothing
    assert found is not None and (tmp_path / "take.mp4.lock").exists()
    seconds = str(found.frames / 16 + 1)
    again = start(tmp_path, "--resume", "--seconds", seconds, "-q")
    assert again.wait(120) == 0
    assert not (tmp_path / "take.mp4.lock").exists()


def shell(command: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs ``longtake ARGUMENTS`` with redirections."""
    line = f"{shlex.join(cli_command(*arguments))} {command}"
    return subprocess.run(line, shell=True, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


@full
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_nobody_reads_stderr(redirection: str, tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    new = [f"{PROMPT} with unicorns", "--model", tiny_folder, "--seconds", "3", "--dtype", "float32"]
    made = shell(redirection, tmp_path, "generate", *new)
    assert made.returncode == 0 and made.stdout == f"{tmp_path / 'take.mp4'}\n", made
    Recording.start(tiny.start(new[0], "memrope", 0), tmp_path / "whole.mp4").run(3)
    assert (tmp_path / "take.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert shell(redirection, tmp_path, "generate", "").returncode == 2


@full
def test_stdout_is_full(tiny_folder: Path, tmp_path: Path) -> None:
    made = shell(">/dev/full", tmp_path, "generate", PROMPT, "--model", tiny_folder, "--seconds", "1", "-q")
    assert made.returncode == 1 and made.stderr.startswith("Error: The output could not be written"), made.stderr
    assert len(made.stderr.splitlines()) == 1 and probe(tmp_path / "take.mp4").frames == 16
    for command in ("memories", "--help", "--version"):
        made = shell(">/dev/full", tmp_path, command)
        assert made.returncode == 1 and made.stderr.startswith("Error: ") and "Traceback" not in made.stderr


@posix
def test_the_terminal_goes_away(tiny_folder: Path, tmp_path: Path) -> None:
    """Its end is told twice, by the system and by the shell, and nothing can be shown on it any more."""
    path = tmp_path / "take.mp4"
    terminal, other = os.openpty()
    command = cli_command("generate", PROMPT, "--model", tiny_folder, "--seconds", "1h")
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=other, stderr=other, text=True)
    os.close(other)
    try:
        wait_for_snapshot(process, path, 1)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 128 + signal.SIGHUP
    finally:
        process.kill()
    found = Recorded.look(path)
    assert found is not None and found.frames == probe(path).frames > 0


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites a snapshot's JSON part, leaving its tensors alone."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    data = json.loads(header["__metadata__"]["longtake"])
    edit(data)
    header["__metadata__"]["longtake"] = json.dumps(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    "part",
    [
        {"policy": 3},
        {"policy": "elephant"},
        {"index": "3"},
        {"seed": "5"},
        {"seed": None},
        {"height": []},
        {"script": []},
        {"script": {"segments": 3}},
        {"extra": []},
        {"on_change": {}},
        {"dtype": 1},
    ],
)
def test_odd_snapshots(part: dict[str, Any], take: Path) -> None:
    change(snapshot_path(take), lambda data: data.update(part))
    refused("generate", "--resume", "--seconds", "9", cwd=take.parent)


@pytest.mark.parametrize(
    "part",
    [
        {"settings": []},
        {"settings": {"seconds": "x"}},
        {"settings": {"every": float("nan")}},
        {"settings": {"model": 3}},
        {"finished": {}},
        {"finished": 3},
        {"finished": {"bytes": "x", "frames": 1}},
        {"video": {"bytes": "1", "frames": 3}},
        {"video": []},
    ],
)
def test_odd_recordings(part: dict[str, Any], take: Path) -> None:
    change(snapshot_path(take), lambda data: data["extra"].update(part))
    assert "damaged" in refused("generate", "--resume", "--seconds", "9", cwd=take.parent)


def test_a_flipped_bit(cli: Cli, take: Path) -> None:
    snapshot, video = snapshot_path(take), take.read_bytes()
    content = bytearray(snapshot.read_bytes())
    content[-9] ^= 1
    snapshot.write_bytes(content)
    made = cli("generate", "--resume", "--seconds", "9", "-q")
    assert made.returncode == 2 and "is damaged" in made.stderr and len(made.stderr.splitlines()) == 1, made.stderr
    assert take.read_bytes() == video and snapshot.read_bytes() == content


def test_long_prompts_and_the_plan(cli: Cli, tmp_path: Path) -> None:
    made = cli("generate", f"{PROMPT} {'and a red star ' * 6}", "--seconds", "0.06", "--threads", "1")
    assert made.returncode == 0, made.stderr
    assert "reads 23 words of a prompt at most: the last 8 words of" in made.stderr  # 7 and 24 are 31
    assert "1 frame of" in made.stderr and "in 1 chunk\n" in made.stderr and "Made 1 frame in" in made.stderr
    assert "roughly" in made.stderr and "1 thread of this CPU" in made.stderr
    assert probe(tmp_path / "take.mp4").frames == 1


@pytest.mark.parametrize("library", ["torch", "diffusers", "transformers"])
def test_doctor_where_a_library_is_broken(library: str, tmp_path: Path) -> None:
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "longtake.cli", "doctor", "--json"]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert made.returncode == 1 and "Traceback" not in made.stderr, made.stderr
    report = json.loads(made.stdout)
    assert not report["ok"] and "libgomp.so.1" in report["problems"][0]
