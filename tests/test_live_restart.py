"""The real server, started from the command line, stopped, and killed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from longtake import LongTakePipeline
from longtake.cli import app
from longtake.live.replay import measure
from longtake.record import Recorded
from longtake.video import probe

from .conftest import ENVIRONMENT, cli_command
from .helpers_live import OTHER, PATIENCE, PROMPT, TOKEN, Live, Seen, serving, wait_for
from .test_cli import refused


@contextmanager
def started(
    model: Path, data: Path, *options: str, token: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    """``longtake serve`` on a free port; killed at the end of the block, if it is still there."""
    command = cli_command("serve", "--model", model, "--data", data, "--port", "0", "--dtype", "float32", *options)
    environment, headers = ENVIRONMENT, {}
    if token is not None:
        environment, headers = {**ENVIRONMENT, "LONGTAKE_TOKEN": token}, {"Authorization": f"Bearer {token}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", line)
        assert found, line + process.stderr.read()
        live = Live(None, int(found[1]), headers)  # type: ignore[arg-type]
        wait_for(lambda: live.http.get("/readyz").status_code == 200)
        yield process, live
    finally:
        process.kill()
        process.communicate()


def test_killed_and_continued(
    tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that were said after the last snapshot take effect again at the same frames, and nothing else changes."""
    data = tmp_path / "data"
    with started(tiny_folder, data, "--snapshot-every", "4s") as (process, live):
        id = live.create(memory="memrope:recent=2")
        with live.watch(id, "?from=0&credit=256") as socket:
            seen = Seen(socket)
            changes: list[tuple[str, str | None]] = [(OTHER, "cut"), ("a green star at night", None)]
            for frames, (prompt, change) in zip((12, 72), changes, strict=True):
                seen.until_frames(frames)
                live.order(id, "steer", prompt=prompt, change=change)
            seen.until_frames(110)
            process.kill()
            process.wait()
        before = {header.frame: picture for header, picture in seen.frames}
        prompts = {header.frame: header.prompt for header, _ in seen.frames}
    video = data / "takes" / id / "take.mp4"
    left, (frames, size) = video.read_bytes(), measure(video)
    assert frames >= 110 and probe(video).frames == frames

    with serving(tiny, tiny_folder, data, snapshot_every=4.0) as live:
        take = live.take(id)
        assert (take["state"], take["reason"], take["can_continue"]) == ("paused", "restart", True)
        assert take["frames"] == frames and 64 <= take["snapshot_frame"] < frames
        assert [entry["state"] for entry in take["timeline"]] == ["holds"] * 3
        held = [entry["frame"] for entry in take["timeline"]]
        assert held[1] < take["snapshot_frame"] <= held[2]  # the last prompt is in no snapshot
        assert len(live.http.get(f"/api/takes/{id}/video.mp4").content) == size
        live.order(id, "resume")
        said = live.order(id, "steer", prompt=PROMPT)  # must wait until what was seen is there again
        with live.watch(id, f"?from={frames - 5}&credit=200") as socket:
            seen = Seen(socket)
            seen.until_frames(40)
        live.order(id, "pause")
        timeline = live.take(id)["timeline"]
        assert [entry["frame"] for entry in timeline[:3]] == held
        assert timeline[said["id"]]["frame"] >= frames
        repeat = live.http.get(f"/api/takes/{id}/repeat").json()

    assert [header.frame for header, _ in seen.frames] == [*range(frames - 5, frames + 35)]
    assert all(header.prompt == prompts.get(header.frame, header.prompt) for header, _ in seen.frames)
    made_again = {h.frame: p for h, p in seen.frames if h.made}
    assert all(before[frame] == made_again[frame] for frame in before.keys() & made_again.keys())
    # What was on the disk when the server was killed is how the file begins, but for the length in its header.
    content = video.read_bytes()
    header = content.index(b"moof") - 4
    assert content[header:size] == left[header:size]
    # And all of it is what the command line makes that was never interrupted.
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(repeat["command"])[1:]
    assert typer.main.get_command(app).main([*arguments, "--quiet"], standalone_mode=False) == 0
    assert (tmp_path / f"{id}.mp4").read_bytes() == content


def test_stopped_gently_and_damaged_folders(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    token = "not-for-the-log"
    with started(tiny_folder, data, token=token) as (process, live):
        running, waiting = live.create(), live.create()
        live.wait(running, frames=21)
        with pytest.raises(ValueError, match="Another server uses the folder"), serving(tiny, tiny_folder, data):
            pass
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "can be continued" in said and "Traceback" not in said, said
        assert "?token=..." in said and token not in said
    broken = data / "takes" / "00000000000000ff"
    broken.mkdir()
    (broken / "take.json").write_text("{}")
    (data / "takes" / "not-a-take").mkdir()
    (data / "takes" / f"{waiting[:-1]}x").mkdir()
    half = data / "takes" / "00000000000000ee.deleted"
    half.mkdir()
    with serving(tiny, tiny_folder, data) as live:
        takes = {take["id"]: take for take in live.http.get("/api/takes").json()["takes"]}
        assert takes.keys() == {running, waiting} and not half.exists() and broken.exists()
        assert takes[running]["snapshot_frame"] == takes[running]["frames"] >= 21
        live.order(waiting, "resume")
        live.wait(waiting, frames=9)
        assert live.http.delete(f"/api/takes/{running}").status_code == 204
        assert not (data / "takes" / running).exists()


def test_a_service_manager_stops_it_as_gently(tiny_folder: Path, tmp_path: Path) -> None:
    with started(tiny_folder, tmp_path / "data") as (process, live):
        id = live.create()
        live.wait(id, frames=21)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and said == "Stopped; all takes can be continued.\n"
    video = tmp_path / "data" / "takes" / id / "take.mp4"
    found = Recorded.look(video)
    assert found is not None and found.frames == probe(video).frames >= 21


def test_other_models_do_not_continue_a_take(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(tiny, tiny_folder, data) as live:
        id = live.create()
        live.wait(id, frames=9)
    take = json.loads((data / "takes" / id / "take.json").read_text())
    (data / "takes" / id / "take.json").write_text(json.dumps({**take, "signature": "of something else"}))
    with serving(tiny, tiny_folder, data) as live:
        answer = live.http.post(f"/api/takes/{id}/resume")
        assert answer.status_code == 409 and "other weights" in answer.json()["error"]["message"]
        assert not live.http.get(f"/api/takes/{id}/repeat").json()["exact"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--host", "0.0.0.0"], "token"),
        (["--idle-pause", "soon"], "--idle-pause"),
        (["--model", "nonsense"], "no model 'nonsense'"),
        (["--device", "cpu,cpu"], "twice"),
        (["--min-free", "inf"], "--min-free must be 0 GB or more"),
        (["--min-free", "-1"], "not -1."),
        (["--token", ""], "8 to 200"),  # a variable that is not set
    ],
)
def test_refusals(options: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused("serve", *options, cwd=tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_an_address_that_cannot_be_listened_to(host: str, tiny_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ["--host", host, "--port", str(taken.getsockname()[1]), "--token", TOKEN]
        command = cli_command("serve", "--model", tiny_folder, "--data", tmp_path / "data", *options)
        made = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert made.returncode == 1 and not made.stdout
    (line,) = made.stderr.splitlines()
    assert line.startswith(f"Error: {host} port ") and "cannot be listened to: " in line
    assert ("in use" in line) == (host == "127.0.0.1")


def test_a_model_that_cannot_be_loaded_ends_the_server(tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (weights,) = (model / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    command = cli_command("serve", "--model", model, "--data", tmp_path / "data", "--port", "0")
    made = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    (line,) = made.stderr.splitlines()
    assert made.returncode == 1 and line.startswith("Error: The model ") and "damaged" in line


def test_the_example_in_the_documentation(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    """examples/live_client.py is what docs/live.md shows, and it works."""
    root = Path(__file__).parents[1]
    example = root / "examples" / "live_client.py"
    assert f"```python\n{example.read_text()}```" in (root / "docs" / "live.md").read_text()
    with serving(tiny, tiny_folder, tmp_path / "data") as live:
        environment = {**ENVIRONMENT, "LONGTAKE_URL": f"127.0.0.1:{live.port}"}
        made = subprocess.run(
            [sys.executable, example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    assert made.returncode == 0, made.stderr
    assert len([*tmp_path.glob("*.jpg")]) == 60 and OTHER in made.stdout
