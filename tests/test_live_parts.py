"""The parts of the live server, one by one."""

from __future__ import annotations

import io
import json
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longtake import LongTakePipeline
from longtake.cli import app
from longtake.live.api import parse_range
from longtake.live.pictures import Header, Ring, encode
from longtake.live.remembered import Remembered, describe_memories
from longtake.live.replay import Download, Replay, measure
from longtake.live.settings import Settings
from longtake.live.timeline import Timeline
from longtake.live.trouble import Trouble
from longtake.memory.policy import LONG, SHORT
from longtake.mp4 import Fragment, fragments
from longtake.prompts import parse_script
from longtake.record import Recording
from longtake.video import VideoWriter, probe, read_frames

PROMPT = "a red ball rolls over a meadow"


def record(pipe: LongTakePipeline, path: Path, seconds: float) -> Path:
    assert Recording.start(pipe.start(PROMPT, "memrope", 1), path).run(seconds)
    return path


# Pictures


def test_header_is_laid_out_as_the_protocol_says() -> None:
    header = Header("webp", "00112233445566aa", 1, 2, 3, 0.0625, 1.5e9)
    packed = header.pack()
    assert len(packed) == 40
    assert packed[:4] == b"LT\x01\x02" and packed[4:12].hex() == "00112233445566aa"
    assert [int.from_bytes(packed[i : i + 4], "big") for i in (12, 16, 20)] == [1, 2, 3]
    assert struct.unpack(">d", packed[24:32]) == (0.0625,) and struct.unpack(">d", packed[32:]) == (1.5e9,)
    assert Header.unpack(packed + b"picture") == header


@pytest.mark.parametrize("message", [b"", b"LT\x01\x01", b"LT\x02" + bytes(40), b"XX\x01\x01" + bytes(40), bytes(60)])
def test_what_is_no_frame_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):
        Header.unpack(message)


@pytest.mark.parametrize("picture", ["jpeg", "webp"])
def test_pictures_show_the_frame(picture: str) -> None:
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[8:24, 12:36] = (200, 30, 60)
    shown = Image.open(io.BytesIO(encode(frame, picture, 95)))
    assert shown.format == picture.upper() and shown.size == (48, 32)
    assert np.abs(np.asarray(shown, np.int16) - frame).mean() < 6
    assert Image.open(io.BytesIO(encode(frame, picture, 95, width=24))).size == (24, 16)
    assert Image.open(io.BytesIO(encode(frame, picture, 95, width=480))).size == (48, 32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 40)), max_size=20))
def test_ring_holds_the_newest(size: int, chunks: list[tuple[bool, int, int]]) -> None:
    ring, model, end = Ring(size), dict[int, bytes](), 0
    for jump, count, place in chunks:
        first = place if jump else end
        if first != end:
            model.clear()
        messages = [f"{first} {i}".encode() for i in range(count)]
        ring.add(first, messages)
        model |= dict(enumerate(messages, first))
        end = first + count
        model = {k: v for k, v in model.items() if k >= end - size}
        assert ring.end == end
        assert {i: ring.get(i) for i in range(end + 20) if ring.get(i) is not None} == model


# Recordings


def test_replay_gives_every_frame_in_any_order(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = record(tiny, tmp_path / "take.mp4", (9 + 12 * 5) / 16)
    frames = list(read_frames(path))
    replay = Replay(path)
    for index in (0, 1, 20, 21, 40, 68, 3, 8, 9, 50):
        part = replay.read(index)
        assert part is not None and part.first <= index < part.end
        assert len(part.frames) == (9 if index < 9 else 12)
        assert all(np.array_equal(a, frames[i]) for i, a in enumerate(part.frames, part.first))
    assert replay.read(69) is None and replay.read(10_000) is None
    assert measure(path) == (69, path.stat().st_size)


def test_replay_with_few_places_gives_the_same(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = record(tiny, tmp_path / "take.mp4", (9 + 12 * 20) / 16)
    frames = list(read_frames(path))
    replay = Replay(path, places=4, readers=2)
    numbers = random.Random(0)
    for index in [len(frames) - 1, 0, *(numbers.randrange(len(frames)) for _ in range(60))]:
        part = replay.read(index)
        assert part is not None and np.array_equal(part.frames[index - part.first], frames[index])


def test_a_picture_of_a_long_recording_is_found_by_a_short_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "take.mp4"
    with VideoWriter(path, width=16, height=16) as writer:
        for _ in range(400):
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
    walked = 0

    def counted(file: BinaryIO, start: int = 0) -> Iterator[Fragment]:
        nonlocal walked
        for found in fragments(file, start):
            walked += 1
            yield found

    monkeypatch.setattr("longtake.live.replay.fragments", counted)
    replay = Replay(path, places=64)
    assert replay.read(399) is not None and walked >= 400
    for index in (398, 2, 300, 301, 150, 333):
        walked = 0
        assert replay.read(index) is not None
        assert walked <= 2 + 400 / 32  # every second place may have been dropped; one is for the header


def test_replay_of_a_file_that_is_torn_grows_and_is_cut(tiny: LongTakePipeline, tmp_path: Path) -> None:
    whole = record(tiny, tmp_path / "whole.mp4", (9 + 12 * 3) / 16)
    path, content, frames = tmp_path / "take.mp4", whole.read_bytes(), list(read_frames(whole))
    path.write_bytes(content[:-10])
    replay = Replay(path)
    assert measure(path)[0] == 33 and replay.read(33) is None
    part = replay.read(32)
    assert part is not None and np.array_equal(part.frames[-1], frames[32])
    path.write_bytes(content)
    part = replay.read(33)
    assert part is not None and np.array_equal(part.frames[0], frames[33])
    path.write_bytes(content[: len(content) // 2])
    part = replay.read(0)
    assert part is not None and np.array_equal(part.frames[0], frames[0])
    (tmp_path / "none.mp4").write_bytes(b"")
    assert Replay(tmp_path / "none.mp4").read(0) is None
    (tmp_path / "other.mp4").write_bytes(content.replace(b"tfdt", b"free"))
    with pytest.raises(ValueError):
        Replay(tmp_path / "other.mp4").read(0)
    assert measure(tmp_path / "none.mp4") == measure(tmp_path / "missing.mp4") == (0, 0)


def test_a_download_is_the_shorter_recording_byte_for_byte(tiny: LongTakePipeline, tmp_path: Path) -> None:
    long = record(tiny, tmp_path / "long.mp4", (9 + 12 * 4) / 16)
    for until, frames in ((0, 9), (8, 9), (9, 21), (32, 33), (None, 57)):
        video = Download(long, 16, until)
        short = record(tiny, tmp_path / f"{frames}.mp4", frames / 16).read_bytes()
        assert (video.frames, video.size) == (frames, len(short))
        assert b"".join(video.read(0, video.size)) == short
        for start, end in ((0, 1), (10, 5000), (video.size - 7, video.size), (900, 901)):
            assert b"".join(video.read(start, end, 100)) == short[start:end]
        (tmp_path / "got.mp4").write_bytes(short)
        assert probe(tmp_path / "got.mp4").frames == frames


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.text("0123456789-=, bytes", max_size=14) | st.from_regex(r"bytes=\d{0,3}-\d{0,3}"))
def test_ranges(size: int, text: str) -> None:
    content = bytes(i % 251 for i in range(size))
    try:
        span = parse_range(text, size)
    except Trouble as trouble:
        assert trouble.status == 416
        assert text.strip().startswith("bytes")
        return
    if span is not None:
        first, last = text.strip().partition("=")[2].split("-")
        wanted = content[int(first) : int(last) + 1 if last.strip() else None] if first.strip() else None
        if wanted is None:
            wanted = content[max(0, size - int(last)) :]
        assert content[slice(*span)] == wanted and wanted


# What was said


def test_timeline_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    timeline = Timeline(path, 16)
    timeline.say(PROMPT, None, 0)
    timeline.hold(0, 0)
    timeline.say("a green  star\nat night", "cut", 20)
    timeline.say("a blue box in a room", None, 20)
    changed = timeline.hold(2, 21)
    assert [(e.id, e.state) for e in changed] == [(1, "replaced"), (2, "holds")]
    timeline.say("a yellow ball", None, 30)
    before = [entry.to_dict() for entry in timeline.entries]
    with path.open("ab") as file:
        file.write(b'{"id": 4, "prompt": "half')
    again = Timeline(path, 16)
    assert [entry.to_dict() for entry in again.entries] == before and again.entries[1].prompt == "a green star at night"
    again.say("a red star", "flush", 40)
    assert [e.prompt for e in Timeline(path, 16).waiting] == ["a yellow ball", "a red star"]
    assert [again.at(f).id for f in (0, 20, 21, 500)] == [0, 0, 2, 2]
    assert again.script() == parse_script(f"{PROMPT} [{21 / 16}s] | a blue box in a room")
    assert again.script(21) == parse_script(PROMPT)


@pytest.mark.parametrize("line", ["[]", "{}", '{"id": 7}', "nonsense", '{"id": 0, "surprise": 1}', "null"])
def test_damaged_timelines_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "timeline.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="damaged"):
        Timeline(tmp_path / "timeline.jsonl", 16)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["say", "hold", "again"]), max_size=25))
def test_timeline_on_the_disk_is_the_one_in_memory(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    path = tmp_path_factory.mktemp("timeline") / "timeline.jsonl"
    timeline = Timeline(path, 16)
    timeline.say(PROMPT, None, 0)
    timeline.hold(0, 0)
    chunk = 1
    for number, step in enumerate(steps):
        if step == "say":
            timeline.say(f"prompt {number}", None, 9 + 12 * (chunk - 1))
        elif step == "hold":
            timeline.hold(chunk, 9 + 12 * (chunk - 1))
            chunk += number % 2  # sometimes twice at one chunk
        else:
            timeline = Timeline(path, 16)
        held = [entry.chunk for entry in timeline.held]
        assert held == sorted(set(held))  # type: ignore[type-var]
    assert [e.to_dict() for e in Timeline(path, 16).entries] == [e.to_dict() for e in timeline.entries]
    assert all(json.loads(line) for line in path.read_text().splitlines())


# What is remembered


@pytest.mark.parametrize("memory", ["memrope", "sliding", "longlive", "infinity-rope", "self-forcing"])
def test_slots_are_those_that_were_announced(memory: str, tiny: LongTakePipeline) -> None:
    take = tiny.start(PROMPT, memory, 1)
    remembered = Remembered("00112233445566aa", take)
    for chunk in take.chunks(9):
        seen = remembered.after(chunk.index, chunk.first_frame)
    (kind,) = (kind for kind in describe_memories(3, False) if kind["name"] == memory)
    roles = [slot["role"] for slot in seen["slots"]]
    assert roles == [slot["role"] for slot in kind["slots"] for _ in range(slot["count"])]
    assert seen["capacity"] == kind["capacity"] == len(roles)
    current = [slot for slot in seen["slots"] if slot["role"] == "current"]
    assert [slot["latent"] for slot in current] == [24, 25, 26] and current[-1]["age"] == 0
    assert [slot["frame"] for slot in current] == [96, 100, 104]  # the last ones that each was decoded to
    assert chunk.first_frame + len(chunk.video) - 1 == 104
    assert all(0 <= slot["age"] <= 105 / 16 for slot in seen["slots"])


@pytest.mark.parametrize("spec", ["memrope", "memrope:sink=1,recent=2,long=0.2,short=0.7"])
def test_mean_age_of_the_averages(spec: str, tiny: LongTakePipeline) -> None:
    """Against weights that are kept by hand, frame by frame, from what the real memory lets go."""
    take = tiny.start(PROMPT, spec, 1)
    remembered = Remembered("00112233445566aa", take)
    weights: dict[str, dict[int, float]] = {"long": {}, "short": {}}
    rates = {"long": take.policy.long, "short": take.policy.short}  # type: ignore[attr-defined]
    before: set[int] = set()
    for chunk in take.chunks(14):
        tags = {*take.memory.tags}
        gone = sorted(tag for tag in before - tags if tag >= 0)
        for name, kept in weights.items():
            if gone:
                rate = rates[name] if kept else 1.0
                for frame in kept:
                    kept[frame] *= 1 - rate
                kept |= {frame: rate / len(gone) for frame in gone}
        before = tags
        seen = {slot["role"]: slot for slot in remembered.after(chunk.index, chunk.first_frame)["slots"]}
        assert {LONG, SHORT} <= tags or not {"long", "short"} & {*seen}
        for name, kept in weights.items():
            if kept:
                newest = take.memory.frame - 1
                mean = sum(weight * (newest - frame) for frame, weight in kept.items())
                # More leave at the first overflow than later: that is all that the formula does not know.
                assert seen[name]["age"] == pytest.approx(mean / 4, rel=0.15)
                assert seen[name]["rate"] == rates[name]
    late = Remembered("00112233445566aa", take)  # of a take that was continued
    ages = [r.after(13, 0)["slots"][take.policy.sink]["age"] for r in (late, remembered)]
    assert ages[0] == pytest.approx(ages[1], rel=0.2)


# Settings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host": "0.0.0.0"}, "token"),
        ({"host": "192.168.1.5"}, "token"),
        ({"host": "example.org"}, "token"),
        ({"token": "short"}, "8 to 200"),
        ({"token": "with a space in it"}, "8 to 200"),
        ({"port": 70000}, "--port"),
        ({"ahead": float("nan")}, "--ahead"),
        ({"idle_pause": 0.0}, "--idle-pause"),
        ({"quality": 0}, "--quality"),
        ({"picture": "gif"}, "jpeg, webp"),
        ({"max_seconds": float("inf")}, "--max-length"),
        ({"snapshot_every": float("inf")}, "--snapshot-every"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        Settings(tmp_path, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_a_token_on_this_computer_only(host: str, tmp_path: Path) -> None:
    assert Settings(tmp_path, host=host).local


# Documentation

ROOT = Path(__file__).parents[1]


def test_files_in_the_documentation_are_those_that_are_there() -> None:
    deploy = (ROOT / "docs" / "deploy.md").read_text()
    assert f"```python\n{(ROOT / 'examples' / 'ray_serve.py').read_text()}```" in deploy
    assert f"# docs/Containerfile\n{(ROOT / 'docs' / 'Containerfile').read_text()}```" in deploy


def test_every_option_is_documented_and_every_documented_one_is_there() -> None:
    live, deploy = ((ROOT / "docs" / name).read_text() for name in ("live.md", "deploy.md"))
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {name for option in command.params for name in option.opts if name.startswith("--")}
    table = live.split("## Settings")[1].split("## ")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", table.split("`longtake generate --resume")[0])) == options - {"--help"}
    serving = re.findall(r"longtake serve ((?:.|\\\n)*)", deploy) + re.findall(r'"longtake", "serve", (.*)', deploy)
    assert len(serving) >= 3
    assert {name for text in serving for name in re.findall(r"--[a-z][a-z-]*", text)} <= options
