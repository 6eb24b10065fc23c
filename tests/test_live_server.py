"""The live server, as those who watch and steer see it."""

from __future__ import annotations

import io
import json
import math
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed

from longtake import LongTakePipeline
from longtake.cli import app
from longtake.live.pictures import encode
from longtake.prompts import parse_script
from longtake.record import Recording
from longtake.video import probe, read_frames

from .helpers_live import OTHER, PROMPT, Live, Seen, credit, play, serving, wait_for

FAST = {"ahead": 60.0}
Serving = Callable[..., AbstractContextManager[Live]]


@pytest.fixture
def server(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> Serving:
    return partial(serving, tiny, tiny_folder, tmp_path / "data")


@pytest.fixture
def live(server: Serving) -> Iterator[Live]:
    with server() as live:
        yield live


def recorded(live: Live, id: str) -> list[np.ndarray]:
    return list(read_frames(live.studio.get(id).folder.video))


def alike(picture: bytes, frame: np.ndarray) -> bool:
    """Whether a picture shows a frame. The tiny model's videos are coloured noise, of which files keep brightness."""
    shown = Image.open(io.BytesIO(picture))
    assert shown.format == "JPEG" and shown.size == (frame.shape[1], frame.shape[0])
    grey = [
        np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), np.int16)
        for image in (shown, Image.fromarray(frame))
    ]
    return bool(np.abs(grey[0] - grey[1]).mean() < 4)


def metrics(live: Live) -> dict[tuple[str, ...], float]:
    """By name and values of labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(live.http.get("/metrics").text)
        for sample in family.samples
    }


# Watching


def test_frames_are_those_that_are_recorded(live: Live) -> None:
    id = live.create()
    with live.watch(id, "?credit=40") as socket:
        seen = Seen(socket)
        hello = seen.next()
        assert isinstance(hello, dict) and hello["type"] == "hello" and hello["take"]["id"] == id
        assert seen.until_frames(40) == [*range(hello["from"], hello["from"] + 40)]
        assert seen.quiet()  # not one frame more than there was credit for
        credit(socket, 3)
        seen.until_frames(43)
        assert seen.quiet(0.2)
    live.order(id, "pause")
    frames = recorded(live, id)
    for header, picture in seen.frames:
        assert alike(picture, frames[header.frame])
        assert (header.take, header.prompt, header.time) == (id, 0, header.frame / 16)
        assert header.chunk == (0 if header.frame < 9 else 1 + (header.frame - 9) // 12)
        assert abs(header.made - time.time()) < 600
    memories = [message["memory"] for message in seen.kind("memory")]
    assert [m["chunk"] for m in memories] == [*range(memories[0]["chunk"], memories[-1]["chunk"] + 1)]


def test_one_generation_for_all(live: Live) -> None:
    id = live.create()
    with live.watch(id, "?from=0&credit=30") as one, live.watch(id, "?from=0&credit=30") as other:
        seen = [Seen(one), Seen(other)]
        assert seen[0].until_frames(30) == seen[1].until_frames(30) == [*range(30)]
        live_ones = [{h.frame: p for h, p in s.frames if h.made} for s in seen]
        both = live_ones[0].keys() & live_ones[1].keys()
        assert both and all(live_ones[0][frame] == live_ones[1][frame] for frame in both)
        assert live.take(id)["viewers"] == 2
    wait_for(lambda: live.take(id)["viewers"] == 0)


def test_a_prompt_takes_effect(live: Live) -> None:
    id = live.create()
    with live.watch(id, "?from=0&credit=256") as socket:
        seen = Seen(socket)
        seen.until_frames(10)
        first = live.order(id, "steer", prompt="a green star at night")
        said = live.order(id, "steer", prompt=OTHER, change="cut")
        assert (first["id"], said["id"], said["state"]) == (1, 2, "waiting")
        entries = seen.until(lambda: [e["entry"] for e in seen.kind("timeline") if e["entry"]["latency"] is not None])
        entry = entries[0]
        assert (entry["id"], entry["state"], entry["change"]) == (2, "holds", "cut")
        frame = entry["frame"]
        assert frame >= said["asked_frame"] and (frame - 9) % 12 == 0 and entry["chunk"] == 1 + (frame - 9) // 12
        seen.until(lambda: seen.frames and seen.frames[-1][0].frame > frame)
        prompts = {header.frame: header.prompt for header, _ in seen.frames}
        assert all(prompt == (2 if f >= frame else 0) for f, prompt in prompts.items())
    take = live.take(id)
    assert [e["state"] for e in take["timeline"]] == ["holds", "replaced", "holds"]
    assert take["prompt"] == {"id": 2, "prompt": OTHER} and take["latency"] == entry["latency"] > 0


def test_looking_back_and_coming_back(server: Serving) -> None:
    with server(ahead=30.0) as live:
        id = live.create()
        live.wait(id, frames=9 + 12 * 20)  # more than is kept in memory
        with live.watch(id, "?from=5&credit=20") as socket:
            back = Seen(socket)
            assert back.until_frames(20) == [*range(5, 25)]
            assert all(header.made == 0 and header.chunk == (header.frame + 3) // 12 for header, _ in back.frames)
            play(socket, 100)
            credit(socket, 10)
            seen = [h.frame for h, _ in back.frames[20:] or [(back.next(), b"")] if not isinstance(h, dict)]
            back.until_frames(30)
            assert [h.frame for h, _ in back.frames[20:]] == [*range(100, 110)], seen
            assert back.kind("skip")[-1] | {"to": 100, "reason": "seek"} == back.kind("skip")[-1]
            play(socket, "live")
            credit(socket, 1)
            back.until_frames(31)
            assert back.frames[-1][0].frame > 200 and back.frames[-1][0].made > 0
        last = back.frames[-1][0].frame
        live.order(id, "pause")
        with live.watch(id, f"?from={last + 1}&credit=5") as socket:
            again = Seen(socket)
            assert again.until_frames(5) == [*range(last + 1, last + 6)]
        frames = recorded(live, id)
        for header, picture in [*back.frames, *again.frames]:
            assert alike(picture, frames[header.frame])


def test_beyond_the_end_waits(live: Live) -> None:
    id = live.create()
    live.wait(id, frames=21)
    live.order(id, "pause")
    with live.watch(id, "?from=4000000000&credit=5") as socket:
        seen = Seen(socket)
        seen.next()
        assert seen.quiet(0.3)
        there = live.take(id)["frames"]
        live.order(id, "resume")
        assert seen.until_frames(5) == [*range(there, there + 5)]


# Slow viewers


def test_stalled_viewers_cost_nothing(server: Serving) -> None:
    """Twenty viewers, of which one reads nothing and one gives no credit, while more is made than is kept in memory."""
    frames = 9 + 12 * 20
    with server(**FAST) as live:
        id = live.create(max_seconds=frames / 16)
        counted: list[set[int]] = [set() for _ in range(18)]
        skipped = threading.Event()

        def watch(number: int) -> None:
            with live.watch(id, "?from=0&credit=256") as socket:
                seen = Seen(socket)
                while max(counted[number], default=0) < frames - 1:
                    if not isinstance(seen.next(), dict):
                        credit(socket, 1)
                        counted[number].add(seen.frames.pop()[0].frame)
                    if seen.kind("skip"):
                        skipped.set()

        # The first one's socket is never read.
        with live.watch(id, "?from=0&credit=256", max_queue=1), live.watch(id):
            threads = [threading.Thread(target=watch, args=(i,)) for i in range(18)]
            for thread in threads:
                thread.start()
            live.wait(id, frames=60)
            take = live.wait(id, state="finished")
            for thread in threads:
                thread.join()
            assert take["frames"] == frames
            video = live.studio.get(id).folder.video
            assert probe(video).frames == frames
            # Everybody got the end; who is a little late may have been sent ahead, and is told so.
            assert all(frames - 1 in got and len(got) > 60 for got in counted)
            assert skipped.is_set() or all(len(got) == frames for got in counted)
            # What waits for the two, wherever it waits, is what they gave credit for, however long this lasts.
            assert 0 < metrics(live)["longtake_frames_sent_total",] - sum(map(len, counted)) <= 256
    # The same take without any viewers.
    alone = video.parent / "alone.mp4"
    pipe = live.studio.engines[0]._pipe
    assert Recording.start(pipe.start(PROMPT, "memrope", 1), alone).run(frames / 16)
    assert alone.read_bytes() == video.read_bytes()


def test_a_live_viewer_who_falls_behind_is_sent_ahead(server: Serving) -> None:
    with server(**FAST) as live:
        id = live.create()
        with live.watch(id, "?credit=1") as socket:
            seen = Seen(socket)
            seen.until_frames(1)
            live.wait(id, frames=150)
            credit(socket, 2)
            seen.until_frames(3)
            (skip,) = seen.kind("skip")
            assert skip["reason"] == "slow" and skip["from"] == 1 and skip["to"] >= 130
            assert [header.frame for header, _ in seen.frames] == [0, skip["to"], skip["to"] + 1]


def test_who_reads_nothing_is_sent_the_newest_only(live: Live) -> None:
    """Nothing piles up for a stalled viewer but what fits into the connection's own buffers."""
    id = live.create()
    live.wait(id, frames=9)
    live.order(id, "pause")
    take, count, filler = live.studio.get(id), 4000, "x" * 16_000  # 64 MB in all
    with live.watch(id, max_queue=1) as socket:
        seen = Seen(socket)
        seen.next()
        for number in range(count):
            with live.studio.changed:
                live.studio.tell(take, "memory", {"number": number, "filler": filler})
            if number % 100 == 0:
                live.http.get("/healthz")  # the loop has seen to all before
        numbers: list[int] = []
        while not numbers or numbers[-1] < count - 1:
            numbers += [message["memory"]["number"] for message in [seen.next()] if "memory" in message]  # type: ignore
            seen.messages.clear()
    assert numbers == sorted(numbers) and len(numbers) < count / 2


def test_pictures_may_be_webp(server: Serving) -> None:
    with server(picture="webp") as live:
        id = live.create()
        with live.watch(id, "?from=0&credit=12") as socket:
            made = Seen(socket)
            made.until_frames(12)
        live.order(id, "pause")
        with live.watch(id, "?from=3&credit=2") as socket:
            again = Seen(socket)
            again.until_frames(2)
        for header, picture in [*made.frames, *again.frames]:
            assert header.picture == "webp" and Image.open(io.BytesIO(picture)).format == "WEBP"


# Pauses and queues


def test_real_time_and_a_little_ahead(server: Serving) -> None:
    with server(ahead=1.0) as live:
        started = time.time()
        id = live.create()
        for frames in (9, 33, 57):
            made = live.wait(id, frames=frames)["frames"]
            # It may be slower on a busy machine, but never more than `ahead` and a chunk too early.
            assert made / 16 <= time.time() - started + 1 + 12 / 16


def test_idle_takes_pause_and_go_on(server: Serving) -> None:
    with server(idle_pause=1.0) as live:
        id = live.create()
        take = live.wait(id, state="paused")
        assert take["reason"] == "idle" and take["can_continue"] and take["snapshot_frame"] == take["frames"] > 0
        with live.watch(id, f"?from={take['frames']}&credit=50") as socket:
            assert Seen(socket).until_frames(15) == [*range(take["frames"], take["frames"] + 15)]
            time.sleep(1.5)
            assert live.take(id)["state"] == "running"
        assert live.wait(id, state="paused")["reason"] == "idle"


def test_a_paused_and_resumed_take_is_the_same(live: Live, tiny: LongTakePipeline, tmp_path: Path) -> None:
    id = live.create(memory="longlive", seed=5)
    for frames in (9, 33, 57):
        live.wait(id, frames=frames)
        assert live.order(id, "pause")["reason"] == "user"
        assert live.http.post(f"/api/takes/{id}/pause").status_code == 409
        before = live.take(id)["frames"]
        live.order(id, "resume")
        live.wait(id, frames=before + 1)
    end = live.order(id, "pause")["frames"]
    whole = tmp_path / "whole.mp4"
    assert Recording.start(tiny.start(PROMPT, "longlive", 5), whole).run(end / 16)
    assert live.studio.get(id).folder.video.read_bytes() == whole.read_bytes()


def test_queue(server: Serving) -> None:
    with server(queue=2) as live:
        one = live.create()
        live.wait(one, state="running")
        two, three = live.create(), live.create()
        assert [live.take(id)["place"] for id in (one, two, three)] == [None, 1, 2]
        full = live.http.post("/api/takes", json={"prompt": PROMPT})
        assert full.status_code == 503 and full.json()["error"]["code"] == "busy" and full.headers["retry-after"]
        with live.watch(three) as socket:
            seen = Seen(socket)
            seen.next()
            live.order(two, "pause")
            seen.until(lambda: any(m["take"]["place"] == 1 for m in seen.kind("take")))
            live.order(one, "pause")
            seen.until(lambda: any(m["take"]["state"] == "running" for m in seen.kind("take")))
        assert live.http.get("/api/info").json()["devices"][0]["running"] == three
        assert [take["id"] for take in live.http.get("/api/takes").json()["takes"]] == [three, two, one]
        live.order(one, "resume")
        assert live.http.delete(f"/api/takes/{one}").status_code == 204
        assert live.http.get(f"/api/takes/{one}").status_code == 404
        live.order(two, "resume")
        live.http.delete(f"/api/takes/{three}")
        live.wait(two, state="running")


def test_turns(server: Serving) -> None:
    with server(turn=1.0) as live:
        one, two = live.create(), live.create(seed=2)
        live.wait(two, state="running")
        assert live.take(one)["state"] == "queued" and live.take(one)["reason"] == "turn"
        frames = live.take(one)["frames"]
        assert live.wait(one, state="running", frames=frames + 1)


def test_takes_end(server: Serving) -> None:
    with server(max_seconds=2.0) as live:
        assert live.http.post("/api/takes", json={"prompt": PROMPT, "max_seconds": 3}).status_code == 422
        id = live.create()
        take = live.wait(id, state="finished")
        assert take["frames"] == 32 and not take["can_continue"]
        for what in ("resume", "pause"):
            assert live.http.post(f"/api/takes/{id}/{what}").status_code == 409
        assert live.http.post(f"/api/takes/{id}/steer", json={"prompt": OTHER}).status_code == 409
        assert len(recorded(live, id)) == 32
        frame = live.http.get(f"/api/takes/{id}/frame.jpg")
        assert alike(frame.content, recorded(live, id)[-1]) and not alike(frame.content, recorded(live, id)[0])


def test_deleting_sends_viewers_home(live: Live) -> None:
    id = live.create()
    with live.watch(id, "?credit=9") as socket:
        seen = Seen(socket)
        seen.until_frames(9)
        folder = live.studio.get(id).folder.path
        assert live.http.delete(f"/api/takes/{id}").status_code == 204
        assert not folder.exists() and not [*folder.parent.iterdir()]
        with pytest.raises(ConnectionClosed) as closed:
            seen.until(lambda: False)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4404
        assert seen.messages[-1] == {"type": "gone", "message": "The take was deleted."}
    assert live.http.delete(f"/api/takes/{id}").status_code == 404


# What goes wrong


def test_one_bad_take_does_not_end_the_server(live: Live) -> None:
    good, bad = live.create(), live.create()
    live.wait(good, frames=9)
    live.order(good, "pause")
    live.wait(bad, frames=9)
    live.order(bad, "pause")
    snapshot = live.studio.get(bad).folder.snapshot
    content = bytearray(snapshot.read_bytes())
    content[-1000] ^= 255
    snapshot.write_bytes(content)
    live.order(bad, "resume")
    failed = live.wait(bad, state="failed")
    assert "damaged" in failed["message"] and "\n" not in failed["message"]
    frames = live.take(good)["frames"]
    live.order(good, "resume")
    live.wait(good, frames=frames + 12)
    assert metrics(live)["longtake_takes_failed_total",] == 1


def test_while_the_model_is_loaded(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    loaded = threading.Event()

    def load() -> LongTakePipeline:
        loaded.wait()
        return tiny

    with serving(tiny, tiny_folder, tmp_path / "data", {"cpu": load}) as live:
        answer = live.http.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
        assert live.http.get("/healthz").status_code == 200
        id = live.create()  # it waits
        assert (live.take(id)["state"], live.take(id)["place"]) == ("queued", 1)
        loaded.set()
        live.wait(id, frames=9)
        assert live.http.get("/readyz").json() == {"status": "ready"}


def test_a_device_that_is_lost(tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    """Its takes go on elsewhere; without any device the server says so. Tensors on "meta" have no values, so that
    nothing can be computed there."""
    data = tmp_path / "data"
    with serving(tiny, tiny_folder, data, {"meta": lambda: tiny, "cpu": lambda: tiny}) as live:
        wait_for(lambda: all(device["ready"] for device in live.http.get("/api/info").json()["devices"]))
        id = live.create()
        assert live.wait(id, frames=9)["device"] == "meta"
        frames = live.order(id, "pause")["frames"]
        wait_for(lambda: not metrics(live)["longtake_device_ready", "meta"])
        assert metrics(live)["longtake_device_ready", "cpu"] == 1
        assert live.http.get("/readyz").status_code == 200
        live.order(id, "resume")
        assert live.wait(id, frames=frames + 12)["device"] == "cpu"
        repeat = live.http.get(f"/api/takes/{id}/repeat").json()
        assert not repeat["exact"] and "meta and cpu" in repeat["note"]
    with serving(tiny, tiny_folder, data, {"meta": lambda: tiny}) as live:
        live.order(id, "resume")
        live.wait(id, state="running")
        waiting = live.create()
        live.order(id, "pause")
        take = live.wait(waiting, state="paused")
        assert "does not work any more" in take["message"] and take["can_continue"]
        answer = live.http.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
        refused = live.http.post("/api/takes", json={"prompt": PROMPT})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "busy"
        assert live.http.get(f"/api/takes/{id}/frame.jpg?frame=0").status_code == 200  # what there is can be seen


def test_a_disk_that_fills(tiny: LongTakePipeline, tiny_folder: Path, small_disk: Path) -> None:
    with serving(tiny, tiny_folder, small_disk / "data", min_free=0, ahead=60.0, snapshot_every=1.0) as live:
        id = live.create()
        take = live.wait(id, state="failed")
        assert "No space left" in take["message"]
        assert len(recorded(live, id)) == take["frames"] > 0
        assert live.http.get("/readyz").status_code == 200
        assert live.http.delete(f"/api/takes/{id}").status_code == 204
        live.wait(live.create(), frames=9)


def test_little_space(server: Serving) -> None:
    with server(min_free=2**62) as live:
        refused = live.http.post("/api/takes", json={"prompt": PROMPT})
        assert refused.status_code == 507 and refused.json()["error"]["code"] == "no_space"
    with server(takes=1) as live:
        live.create()
        assert live.http.post("/api/takes", json={"prompt": PROMPT}).status_code == 507


# Files


def test_snapshot_goes_on_elsewhere(live: Live, tiny: LongTakePipeline, tmp_path: Path) -> None:
    id = live.create()
    live.wait(id, frames=21)
    live.order(id, "steer", prompt=OTHER, change="flush")
    wait_for(lambda: live.take(id)["timeline"][1]["latency"])
    answer = live.order(id, "snapshot")
    got = live.http.get(answer["url"])
    assert len(got.content) == answer["bytes"]
    (tmp_path / "got").write_bytes(got.content)
    take = tiny.resume(tmp_path / "got")
    assert take.frames_done == answer["frame"]
    ours = take.next_chunk()
    live.wait(id, frames=answer["frame"] + 12)
    theirs = recorded(live, id)[answer["frame"] : answer["frame"] + 12]
    for mine, other in zip(ours.to_uint8(), theirs, strict=True):
        assert alike(encode(mine), other)
    live.order(id, "pause")
    assert live.order(id, "snapshot")["frame"] == live.take(id)["frames"]


def test_a_thumbnail_that_is_counted_is_there(live: Live) -> None:
    id, counted = live.create(), 0
    while counted < 2:
        now = live.take(id)["thumbnails"]
        if now > counted:
            assert live.http.get(f"/api/takes/{id}/thumbnails/{now - 1}.jpg").status_code == 200
        counted = now


def test_pictures_and_downloads(live: Live) -> None:
    id = live.create()
    take = live.wait(id, frames=9 + 12 * 7)
    live.order(id, "pause")
    take = live.take(id)
    frames = recorded(live, id)
    assert take["thumbnails"] == 1 + (len(frames) - 1) // 80
    for number in range(take["thumbnails"]):
        got = live.http.get(f"/api/takes/{id}/thumbnails/{number}.jpg")
        assert alike(got.content, frames[number * 80])
    assert live.http.get(f"/api/takes/{id}/thumbnails/{take['thumbnails']}.jpg").status_code == 404
    for frame in (0, 10, 50):
        got = live.http.get(f"/api/takes/{id}/frame.jpg", params={"frame": frame})
        assert alike(got.content, frames[frame])
        assert "immutable" in got.headers["cache-control"]
    assert Image.open(io.BytesIO(live.http.get(f"/api/takes/{id}/frame.jpg?width=16").content)).size == (16, 16)
    assert live.http.get(f"/api/takes/{id}/frame.jpg?frame=100000").status_code == 404
    address = f"/api/takes/{id}/video.mp4"
    whole = live.http.get(address)
    assert whole.content == live.studio.get(id).folder.video.read_bytes()
    size, tag = len(whole.content), whole.headers["etag"]
    part = live.http.get(address, headers={"Range": "bytes=100-299", "If-Range": tag})
    assert (part.status_code, part.content) == (206, whole.content[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{size}"
    assert live.http.get(address, headers={"Range": "bytes=100-299", "If-Range": '"old"'}).status_code == 200
    assert live.http.get(address, headers={"Range": f"bytes={size}-"}).status_code == 416
    short = live.http.get(address, params={"until": 10})
    assert 0 < len(short.content) < size and short.headers["content-length"] == str(len(short.content))


def test_memory_of_a_take_that_ends_within_a_chunk(live: Live) -> None:
    """33 frames and three of the next chunk's twelve: the first of its latent frames has pictures, the others none."""
    id = live.create(max_seconds=36 / 16)
    live.wait(id, state="finished")
    slots = live.take(id)["memory_state"]["slots"]
    current = [slot for slot in slots if slot["role"] == "current"]
    assert [slot["latent"] for slot in current] == [9, 10, 11]
    assert [slot["frame"] for slot in current] == [35, None, None]
    for slot in slots:
        assert (slot["picture"] is None) == (slot["frame"] is None)
        assert slot["picture"] is None or live.http.get(slot["picture"]).status_code == 200


def test_memory_pictures_are_there(live: Live) -> None:
    id = live.create()
    live.wait(id, frames=57)
    slots = live.take(id)["memory_state"]["slots"]
    assert {"sink", "recent", "current"} <= {slot["role"] for slot in slots}
    for slot in slots:
        if slot["picture"] is not None:
            assert live.http.get(slot["picture"]).headers["content-type"] == "image/jpeg"


def test_the_command_makes_the_same_file(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = live.create(
        "a red [ball] | rolls [3s], it's 5 o'clock", memory="memrope:recent=1", on_change="recache", seed=9
    )
    live.wait(id, frames=21)
    live.order(id, "steer", prompt=OTHER)
    live.wait(id, frames=57)
    live.order(id, "steer", prompt="a green | star [cut] at night", change="cut")
    live.order(id, "steer", prompt="a green | star [2s] in the snow", change="flush")
    wait_for(lambda: live.take(id)["timeline"][-1]["latency"])
    live.order(id, "pause")
    repeat = live.http.get(f"/api/takes/{id}/repeat").json()
    assert repeat["exact"] and repeat["frames"] == live.take(id)["frames"]
    assert len(parse_script(repeat["script"]).segments) == 3
    program, *arguments = shlex.split(repeat["command"])
    assert program == "longtake"
    monkeypatch.chdir(tmp_path)
    assert typer.main.get_command(app).main([*arguments, "--quiet"], standalone_mode=False) == 0
    assert (tmp_path / f"{id}.mp4").read_bytes() == live.studio.get(id).folder.video.read_bytes()
    # Its beginning, up to the second prompt.
    short = live.http.get(f"/api/takes/{id}/repeat", params={"until": 0}).json()
    assert short["frames"] == 9 and len(parse_script(short["script"]).segments) == 1


# What there is


def test_info_and_page(live: Live) -> None:
    info = live.http.get("/api/info").json()
    (model,) = info["models"]
    assert (model["width"], model["height"], model["fps"]) == (32, 32, 16)
    assert (model["first_chunk_frames"], model["chunk_frames"]) == (9, 12)
    for example in model["examples"]:
        assert live.http.delete(f"/api/takes/{live.create(example)}").status_code == 204
    memories = {memory["name"]: memory for memory in info["memories"]}
    assert memories["memrope"]["available"] and not memories["echo"]["available"]
    assert live.http.post("/api/takes", json={"prompt": PROMPT, "memory": "echo"}).status_code == 422
    page = live.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert "<script>" not in page.text and "http://" not in page.text and "https://" not in page.text
    assert live.http.get("/page/../app.py").status_code == 404
    assert live.http.get("/page/%2e%2e/app.py").status_code == 404


def test_what_is_counted(live: Live) -> None:
    id = live.create()
    live.wait(id, frames=33)
    live.order(id, "pause")
    live.http.get("/api/takes/0000000000000000")
    values = metrics(live)
    assert values["longtake_frames_total",] == live.take(id)["frames"]
    assert values["longtake_chunk_seconds_count",] == live.take(id)["chunks"]
    assert values["longtake_takes", "paused"] == 1 and values["longtake_takes", "running"] == 0
    assert values["longtake_device_ready", "cpu"] == 1
    assert values["longtake_requests_refused_total", "not_found"] == 1


def test_every_operation_is_described(live: Live) -> None:
    schema = live.http.get("/api/openapi.json").json()
    operations = [(path, op) for path, methods in schema["paths"].items() for op in methods.values()]
    assert len(operations) >= 18
    for path, operation in operations:
        assert operation["description"], path
        assert all("description" in answer for answer in operation["responses"].values())
    assert json.dumps(schema).count("/api/takes/{id}/watch") >= 1
    assert math.isfinite(live.http.get("/api/info").json()["idle_pause"])
