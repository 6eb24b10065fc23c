"""Snapshots: a take continues bit for bit, and what does not fit is refused."""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longtake.pipeline import LongTakePipeline
from longtake.prompts import CHANGES
from longtake.snapshot import read_snapshot_data
from longtake.take import Chunk, Take
from tests.helpers_pipeline import (
    ALL_MEMORIES,
    OTHER,
    PROMPT,
    SCRIPT,
    build,
    refused,
    run,
    same,
    twins,
)


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


@pytest.mark.parametrize("on_change", CHANGES)
@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_stopped_and_resumed_after_every_chunk(memory: str, on_change: str, tmp_path: Path) -> None:
    """Each time by another pipeline object, past two changes of prompt and until the largest memory is full."""
    pipes = twins()
    expected = run(pipes[0].start(SCRIPT, memory=memory, seed=2, on_prompt_change=on_change), 10)
    assert [c.prompt for c in expected] == [PROMPT] * 3 + [OTHER] * 4 + ["a green star in the snow"] * 3
    take, path = pipes[0].start(SCRIPT, memory=memory, seed=2, on_prompt_change=on_change), tmp_path / "take.snapshot"
    chunks: list[Chunk] = []
    for index in range(10):
        take.snapshot(path)
        take = pipes[index % 2].resume(path)
        assert take.index == index
        assert take.frames_done == sum(len(c.video) for c in chunks)
        chunks.append(take.next_chunk())
    assert same(chunks, expected)
    assert list(tmp_path.iterdir()) == [path]


def test_a_snapshot_carries_everything_it_was_given(pipe: LongTakePipeline, tmp_path: Path) -> None:
    take = pipe.start(SCRIPT, memory="longlive", seed=-7, height=48, width=32)
    run(take, 2)
    take.snapshot(tmp_path / "take", video={"frames": 21}, note="über")
    data = read_snapshot_data(tmp_path / "take")
    assert data["extra"] == {"video": {"frames": 21}, "note": "über"}
    resumed = pipe.resume(tmp_path / "take")
    assert resumed.policy == take.policy
    assert (resumed.seed, resumed.height, resumed.width, resumed.script) == (-7, 48, 32, take.script)
    assert resumed.seconds_done == take.seconds_done == 21 / 16
    assert same(run(resumed, 2), run(take, 2))


def test_a_take_goes_on_while_its_snapshot_stays(pipe: LongTakePipeline, tmp_path: Path) -> None:
    """State handed out is a copy: the take writes into its own tensors, and so does one made of it."""
    take = pipe.start(PROMPT)
    run(take, 6)
    tensors, data = take.state()
    kept = {k: v.clone() for k, v in tensors.items()}
    after = run(take, 3)
    assert all(torch.equal(kept[k], v) for k, v in tensors.items())
    for _ in range(2):
        assert same(run(Take.from_state(pipe, tensors, data), 3), after)
    assert all(torch.equal(kept[k], v) for k, v in tensors.items())


@pytest.fixture(scope="module")
def saved(pipe: LongTakePipeline, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    take, path = pipe.start(PROMPT), tmp_path_factory.mktemp("saved") / "take"
    run(take, 2)
    take.snapshot(path)
    return path.read_bytes()


def test_a_snapshot_of_another_model_is_refused(pipe: LongTakePipeline, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "take"
    path.write_bytes(saved)
    pipe.resume(path)
    others = [build(1), build(heads=4, head_dim=6), build(layers=1), build()]
    others[3].vae = build(1).vae
    for other in others:
        assert "another model" in refused(other, path)
    swapped = build()
    swapped.resume(path)
    swapped.transformer = build(1).transformer  # replaced in a pipeline that has been used
    assert "another model" in refused(swapped, path)


def test_a_snapshot_of_another_dtype_is_refused(pipe: LongTakePipeline, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "take"
    path.write_bytes(saved)
    text = refused(build().to(torch.bfloat16), path)
    assert "torch.float32" in text and "torch.bfloat16" in text


@pytest.mark.parametrize("share", [0, 3, 8, 100, 0.3, 0.9, -1])
def test_a_snapshot_cut_off_is_refused(pipe: LongTakePipeline, saved: bytes, share: float, tmp_path: Path) -> None:
    length = int(share * len(saved)) if 0 < share < 1 else int(share) if share >= 0 else len(saved) - 1
    (tmp_path / "take").write_bytes(saved[:length])
    refused(pipe, tmp_path / "take")


def test_what_is_no_snapshot_is_refused(pipe: LongTakePipeline, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "take"
    rng = np.random.default_rng(0)
    for content in (rng.bytes(10_000), b"\xff" * 5000, saved + b"more", b"{}", bytes(8) + saved, b"text" * 99):
        path.write_bytes(content)
        refused(pipe, path)
    save_file({"x": torch.zeros(3)}, path)
    assert "not a Longtake snapshot" in refused(pipe, path)
    save_file({"x": torch.zeros(3)}, path, metadata={"longtake": json.dumps({"format": 99})})
    assert "another version" in refused(pipe, path)
    save_file({"x": torch.zeros(3)}, path, metadata={"longtake": json.dumps({"format": 1})})
    refused(pipe, path)
    refused(pipe, tmp_path)  # a folder
    with pytest.raises(FileNotFoundError, match="no snapshot"):
        pipe.resume(tmp_path / "nothing")


def test_a_snapshot_that_lacks_a_part_is_refused(pipe: LongTakePipeline, tmp_path: Path) -> None:
    take = pipe.start(PROMPT)
    run(take, 5)
    tensors, data = take.state()
    for name in tensors:
        if name.startswith("memory."):
            with pytest.raises(ValueError):
                Take.from_state(pipe, {k: v for k, v in tensors.items() if k != name}, data)
    for name in {*data} - {"skip"}:  # which older ones do not have
        with pytest.raises(ValueError):
            Take.from_state(pipe, tensors, {k: v for k, v in data.items() if k != name})
    with pytest.raises(ValueError, match="memory with"):
        Take.from_state(pipe, tensors, {**data, "policy": "memrope:recent=9"})
    with pytest.raises(ValueError, match="decoder state"):
        Take.from_state(pipe, {k: v for k, v in tensors.items() if not k.startswith("decoder.")}, data)


@pytest.mark.parametrize("on_change", ["keep", "recache"])
def test_a_snapshot_of_an_older_version_goes_on(pipe: LongTakePipeline, on_change: str) -> None:
    """Without what has come since: given pasts, cuts, changes per segment, and latents where none were needed."""
    take = pipe.start(SCRIPT, on_prompt_change=on_change)
    run(take, 2)
    tensors, data = take.state()
    old = {k: v for k, v in data.items() if k != "skip"}
    old["memory"] = {k: v for k, v in data["memory"].items() if k != "cut"}
    old["script"] = {"segments": [{k: s[k] for k in ("prompt", "start", "end")} for s in data["script"]["segments"]]}
    if on_change == "keep":
        tensors = {k: v for k, v in tensors.items() if not k.startswith("last.")}
    old = json.loads(json.dumps(old))
    resumed = Take.from_state(pipe, tensors, old)
    assert same(run(resumed, 6), run(take, 6))
    resumed = Take.from_state(pipe, tensors, old)
    resumed.say("a green star", "recache")  # with what there is
    run(resumed, 1)
    again = Take.from_state(pipe, *resumed.state())
    assert same(run(again, 2), run(resumed, 2))
    if on_change == "recache":
        with pytest.raises(ValueError, match="do not belong"):
            Take.from_state(pipe, {k: v for k, v in tensors.items() if k != "last.1"}, old)


ODD: tuple[Any, ...] = (None, "x", "3", 1.5, True, [], {}, [[1]], -1, 10**30)


def test_a_snapshot_with_odd_data_is_refused(pipe: LongTakePipeline) -> None:
    """Whatever stands where something else belongs: one sentence, and no other kind of error."""
    take = pipe.start(PROMPT, on_prompt_change="recache")
    run(take, 5)
    tensors, data = take.state()
    changes = [{name: odd} for name in data for odd in ODD if name not in ("seed", "prompt")]
    changes += [{"seed": odd} for odd in ODD if type(odd) is not int]
    changes += [{"prompt": odd} for odd in ODD if odd is not None and not isinstance(odd, str)]
    changes += [
        {part: {**data[part], name: odd}}
        for part in ("memory", "decoder")
        for name in data[part]
        for odd in ODD
        if odd != data[part][name] and (name, odd) not in (("open", True), ("repeats", {}), ("repeats", []))
    ]
    changes += [{"index": 4}, {"index": 6}, {"height": 64}, {"script": {"segments": [1]}}]
    for change in changes:
        with pytest.raises(ValueError) as error:
            Take.from_state(pipe, tensors, {**data, **change})
        assert str(error.value).endswith(".") and "\n" not in str(error.value), change
    with pytest.raises(ValueError, match="a take needs"):
        Take.from_state(pipe, tensors, [])  # type: ignore[arg-type]


def test_a_snapshot_with_odd_tensors_is_refused(pipe: LongTakePipeline) -> None:
    take = pipe.start(PROMPT, on_prompt_change="recache")
    run(take, 5)
    tensors, data = take.state()
    for name in tensors:
        for odd in (torch.zeros(()), torch.zeros(2, 3), torch.zeros(0, dtype=torch.int64)):
            with pytest.raises(ValueError):
                Take.from_state(pipe, {**tensors, name: odd}, data)
    for tags in (tensors["memory.tags"] + 99, tensors["memory.tags"] * 0, tensors["memory.tags"] - 3):
        with pytest.raises(ValueError):
            Take.from_state(pipe, {**tensors, "memory.tags": tags}, data)
    with pytest.raises(ValueError):
        Take.from_state(pipe, {**tensors, "decoder.x": torch.zeros(1)}, data)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_take_interrupted_within_a_chunk_goes_on_from_its_snapshot_only(
    part: str, kind: type[BaseException], tmp_path: Path
) -> None:
    pipe = build()
    expected = run(pipe.start(PROMPT), 5)
    take = pipe.start(PROMPT)
    run(take, 3)
    take.snapshot(tmp_path / "take")
    calls = []

    def stop(*_: Any) -> None:
        calls.append(0)
        if len(calls) == 2:
            raise kind("stop")

    module = pipe.transformer if part == "transformer" else pipe.vae.decoder
    handle = module.register_forward_pre_hook(stop)
    with pytest.raises(kind, match="stop"):
        take.next_chunk()
    handle.remove()
    for call in (take.next_chunk, take.state, lambda: take.snapshot(tmp_path / "other"), lambda: list(take.frames(1))):
        with pytest.raises(RuntimeError, match="resume it from its last snapshot"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["take"]
    assert same(run(pipe.resume(tmp_path / "take"), 2), expected[3:])


def test_a_full_disk_leaves_the_old_snapshot(pipe: LongTakePipeline, tmp_path: Path) -> None:
    take, path = pipe.start(PROMPT), tmp_path / "take"
    run(take, 2)
    take.snapshot(path)
    old = path.read_bytes()
    expected = run(take, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
        with pytest.raises(OSError):
            take.snapshot(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    assert same(run(pipe.resume(path), 2), expected)
    run(take, 1)  # the take itself has not suffered


def test_bfloat16(tmp_path: Path) -> None:
    half = build().to(torch.bfloat16)
    expected = run(half.start(SCRIPT, on_prompt_change="recache"), 8)
    assert all(c.video.dtype == torch.float32 and c.video.isfinite().all() for c in expected)
    full = run(build().start(SCRIPT, on_prompt_change="recache"), 8)
    assert not torch.equal(expected[0].video, full[0].video)
    assert (expected[0].video - full[0].video).abs().mean() < 0.05
    take = half.start(SCRIPT, on_prompt_change="recache")
    chunks = []
    for _ in range(8):
        chunks.append(take.next_chunk())
        take.snapshot(tmp_path / "take")
        take = half.resume(tmp_path / "take")
    assert same(chunks, expected)
