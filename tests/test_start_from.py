"""Takes with a given past: a picture they start from, a video they go on from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from longtake.memory import parse_memory
from longtake.pictures import read_clip
from longtake.pipeline import LongTakePipeline
from longtake.prompts import CHANGES
from longtake.record import Recording
from longtake.take import Chunk, Take
from longtake.video import VideoWriter, probe, read_frames
from tests.helpers_pipeline import OTHER, PROMPT, build, make, run, same, twins, video

HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    made = build()
    for parameter in made.vae.encoder.parameters():  # strong enough that what it saw shows in a take
        if parameter.ndim > 1:
            parameter.data.mul_(2)
    return made


@cache
def shown(count: int, seed: int = 0) -> np.ndarray:
    """Frames with something in them that moves."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    times = np.arange(count)[:, None, None]
    waves = [np.sin((rows + k * columns + (seed + 3) * times) / (3 + k)) for k in range(3)]
    return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


def scales(pipe: LongTakePipeline) -> list[Tensor]:
    config = pipe.vae.config
    return [torch.tensor(values).view(1, 4, 1, 1, 1) for values in (config.latents_mean, config.latents_std)]


@torch.no_grad()
def encoded(pipe: LongTakePipeline, frames: np.ndarray) -> Tensor:
    """By diffusers: normalised latents of a whole clip."""
    x = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None] / 127.5 - 1
    mean, std = scales(pipe)
    latents: Tensor = (pipe.vae.encode(x).latent_dist.mode() - mean) / std
    return latents


@torch.no_grad()
def decoded(pipe: LongTakePipeline, latents: Tensor) -> Tensor:
    """By diffusers: all frames of a take at once, [frames, 3, height, width] in [0, 1]."""
    mean, std = scales(pipe)
    frames: Tensor = pipe.vae.decode(latents * std + mean).sample[0].transpose(0, 1)
    return (frames + 1) / 2


def forced(pipe: LongTakePipeline, latents: Tensor, **settings: Any) -> Take:
    """A take whose first chunks are these latents, by the stages of a chunk: what a past is meant to be."""
    take = pipe.start(PROMPT, **settings)
    for part in latents.split(3, 2):
        text = take.begin()
        take.commit(part, text)
        take.decoder.decode(part)
        take.last.append(part)
        take.index += 1
    return take


@pytest.mark.parametrize("memory", ["memrope", "self-forcing", "longlive", "infinity-rope"])
@pytest.mark.parametrize("count", [9, 21, 81])
def test_a_video_is_a_past_like_any_other(pipe: LongTakePipeline, memory: str, count: int) -> None:
    """The same bits as a take that made those latents itself; decoded without a seam."""
    frames = shown(count)
    take = pipe.start(PROMPT, memory, seed=4, video=frames)
    past = encoded(pipe, frames)
    other = forced(pipe, past, memory=memory, seed=4)
    assert take.index == other.index == (count + 3) // 12
    assert take.frames_done == 0 and take.skip == count
    made, expected = run(take, 3), run(other, 3)
    for a, b in zip(made, expected, strict=True):
        assert torch.equal(a.latents, b.latents) and torch.equal(a.video, b.video)
        assert (a.index, a.first_frame + count, a.prompt) == (b.index, b.first_frame, b.prompt)
    whole = decoded(pipe, torch.cat([past, *(c.latents for c in made)], 2))
    assert torch.allclose(video(made), whole[count:], atol=1e-5)
    assert whole.std() > 0.05


def test_the_past_matters(pipe: LongTakePipeline) -> None:
    settings: list[dict[str, Any]] = [{"video": shown(33)}, {"video": shown(33, seed=2)}, {"image": shown(33)[-1]}, {}]
    made = [run(pipe.start(PROMPT, **s), 3)[-1].latents for s in settings]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("count", [1, 5, 8, 10, 20, 22, 32])
def test_a_length_that_does_not_fit_keeps_the_end(pipe: LongTakePipeline, count: int) -> None:
    frames = shown(count)
    usable = max(9, count - (count - 9) % 12)
    fitting = np.concatenate([np.repeat(frames[:1], max(0, 9 - count), 0), frames])[-usable:]
    take, other = pipe.start(PROMPT, video=frames), pipe.start(PROMPT, video=fitting)
    assert take.skip == len(fitting) == usable
    assert same(run(take, 2), run(other, 2))


@pytest.mark.parametrize("memory", ["memrope", "infinity-rope"])
def test_a_picture_is_the_first_frame(pipe: LongTakePipeline, memory: str) -> None:
    picture = shown(1)[0]
    still = np.repeat(picture[None], 9, 0)
    take, other = pipe.start(PROMPT, memory, image=picture), forced(pipe, encoded(pipe, still), memory=memory)
    assert take.frames_done == 0 and take.index == 0
    made = run(take, 4)
    assert [c.first_frame for c in made] == [0, 1, 13, 25] and [len(c.video) for c in made] == [1, 12, 12, 12]
    assert torch.equal(made[0].latents, encoded(pipe, still))
    expected = run(other, 3)
    assert all(torch.equal(a.video, b.video) for a, b in zip(made[1:], expected, strict=True))
    whole = decoded(pipe, torch.cat([c.latents for c in made], 2))
    assert torch.allclose(video(made), whole[8:], atol=1e-5)


def test_pictures_and_videos_in_every_form(pipe: LongTakePipeline, tmp_path: Path) -> None:
    frames = shown(21)
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    expected = run(pipe.start(PROMPT, image=frames[0]), 2)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(frames[0]), frames[0] / 255.0):
        assert same(run(pipe.start(PROMPT, image=image), 2), expected)
    with VideoWriter(tmp_path / "a.mp4", width=WIDTH, height=HEIGHT, fps=16) as writer:
        writer.write(frames)
    expected = run(pipe.start(PROMPT, video=frames), 2)
    forms: list[Any] = [list(frames), (f for f in frames), [Image.fromarray(f) for f in frames]]
    for form in forms:
        assert same(run(pipe.start(PROMPT, video=form), 2), expected)
    from_file = [tmp_path / "a.mp4", read_clip(tmp_path / "a.mp4", HEIGHT, WIDTH, 16), read_frames(tmp_path / "a.mp4")]
    for other in from_file[1:]:
        assert same(run(pipe.start(PROMPT, video=other), 2), run(pipe.start(PROMPT, video=from_file[0]), 2))
    # any size, any rate
    take = pipe.start(PROMPT, video=tmp_path / "a.mp4", height=16, width=64)
    assert run(take, 1)[0].video.shape == (12, 3, 16, 64)


def test_lengths(pipe: LongTakePipeline) -> None:
    for seconds in (1 / 16, 2.3):
        frames = max(1, round(seconds * 16))
        for past in ({"image": shown(1)[0]}, {"video": shown(21)}):
            long = make(pipe, PROMPT, seconds=3, output_type="pt", **past)
            short = make(pipe, PROMPT, seconds=seconds, output_type="pt", **past)
            assert short.shape[1] == frames and torch.equal(short, long[:, :frames])
            take = pipe.start(PROMPT, **past)
            count = take.chunks_until(frames)
            run(take, count - 1)
            assert take.frames_done < frames <= take.frames_in(take.index + 1)
            run(take, 1)
            assert take.chunks_until(frames) == 0
            streamed = list(pipe.stream(PROMPT, seconds, **past))
            assert torch.equal(video(streamed)[:frames], short[0])
    plain = pipe.start(PROMPT)
    assert [plain.chunks_until(n) for n in (0, 1, 9, 10, 21, 22)] == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("past", ["image", "video"])
def test_script_times_count_from_the_first_frame_given(pipe: LongTakePipeline, past: str) -> None:
    settings: dict[str, Any] = {"image": shown(1)[0]} if past == "image" else {"video": shown(45)}
    take = pipe.start(f"{PROMPT} [2s] | {OTHER} [9s]", **settings)
    chunks = run(take, 6)
    for chunk in chunks:
        middle = (chunk.first_frame + len(chunk.video) / 2) / 16
        assert chunk.prompt == (PROMPT if middle < 2 else OTHER)
    assert {c.prompt for c in chunks} == {PROMPT, OTHER}


@pytest.mark.parametrize("mode", CHANGES)
def test_a_past_can_be_left_at_once(pipe: LongTakePipeline, mode: str) -> None:
    """What is said before the first frame changes the prompt as it would anywhere else."""
    take, other = pipe.start(PROMPT, video=shown(45)), forced(pipe, encoded(pipe, shown(45)))
    take.say(OTHER, mode)
    other.say(OTHER, mode)
    made, expected = run(take, 2), run(other, 2)
    assert all(torch.equal(a.latents, b.latents) and a.prompt == OTHER for a, b in zip(made, expected, strict=True))
    assert (made[0].latents - pipe.start(PROMPT, video=shown(45)).next_chunk().latents).abs().max() > 1e-3


@pytest.mark.parametrize("memory", ["memrope", "memrope:ids=absolute", "longlive"])
@pytest.mark.parametrize("past", ["image", "video"])
def test_stopped_and_resumed_after_every_chunk(memory: str, past: str, tmp_path: Path) -> None:
    pipes = twins()
    settings: dict[str, Any] = {"image": shown(1)[0]} if past == "image" else {"video": shown(57)}
    script = f"{PROMPT} [2s] | [recache] {OTHER} [2s] | [cut] a green star"
    expected = run(pipes[0].start(script, memory, seed=2, **settings), 8)
    take, path = pipes[0].start(script, memory, seed=2, **settings), tmp_path / "take"
    chunks: list[Chunk] = []
    for index in range(8):
        take.snapshot(path)
        take = pipes[index % 2].resume(path)
        assert take.frames_done == sum(len(c.video) for c in chunks)
        chunks.append(take.next_chunk())
    assert same(chunks, expected)


def test_a_snapshot_whose_past_is_damaged_is_refused(pipe: LongTakePipeline) -> None:
    for settings, skips in (({"image": shown(1)[0]}, (0, 9, -8)), ({"video": shown(21)}, (20, 33, -1))):
        take = pipe.start(PROMPT, **settings)  # type: ignore[arg-type]
        tensors, data = take.state()
        Take.from_state(pipe, tensors, data)
        for skip in (*skips, "8", None, True, 8.0, 10**30):
            with pytest.raises(ValueError) as error:
                Take.from_state(pipe, tensors, {**data, "skip": skip})
            assert str(error.value).endswith(".")
        for odd in (torch.zeros(()), torch.zeros(1, 4, 2, 4, 6)):
            with pytest.raises(ValueError, match="do not belong"):
                Take.from_state(pipe, {**tensors, "given": odd}, data)
    take = pipe.start(PROMPT, image=shown(1)[0])
    tensors, data = take.state()
    with pytest.raises(ValueError, match="do not belong"):
        Take.from_state(pipe, {k: v for k, v in tensors.items() if k != "given"}, data)
    run(take, 1)
    later, data = take.state()
    with pytest.raises(ValueError, match="do not belong"):
        Take.from_state(pipe, {**later, "given": tensors["given"]}, data)


@pytest.mark.parametrize("past", ["image", "video"])
def test_recorded_and_continued_it_is_the_same_file(pipe: LongTakePipeline, past: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"image": shown(1)[0]} if past == "image" else {"video": shown(33)}
    whole, parts = tmp_path / "whole.mp4", tmp_path / "parts.mp4"
    Recording.start(pipe.start(PROMPT, **settings), whole).run(4)
    Recording.start(pipe.start(PROMPT, **settings), parts).run(1 / 16)
    for seconds in (0.3, 1, 2.5, 4):
        Recording.resume(pipe, parts).run(seconds)
    assert whole.read_bytes() == parts.read_bytes()
    assert probe(whole).frames == 64


def test_progress_and_a_mere_iterator(pipe: LongTakePipeline) -> None:
    seen: list[tuple[int, int]] = []
    take = pipe.start(PROMPT, video=shown(57), on_past=lambda done, count: seen.append((done, count)))
    assert seen == [(i, 5) for i in range(1, 6)]
    other = pipe.start(PROMPT)
    other.begin_from_video(iter(shown(57)), 57)
    third = pipe.start(PROMPT)
    third.begin_from_video(iter(shown(57)))
    expected = run(take, 2)
    assert same(run(other, 2), expected) and same(run(third, 2), expected)


def test_only_a_portion_is_held(pipe: LongTakePipeline) -> None:
    """Of a video given frame by frame, no more than a chunk is alive at a time."""
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal most
        for frame in shown(129):
            copy = frame.copy()
            alive.append(weakref.ref(copy))
            most = max(most, sum(ref() is not None for ref in alive))
            yield copy

    pipe.start(PROMPT, height=HEIGHT, width=WIDTH).begin_from_video(source(), 129)
    assert 9 <= most <= 26


def test_an_interrupted_past_refuses_to_go_on(pipe: LongTakePipeline) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from shown(20)
        raise KeyboardInterrupt

    take = pipe.start(PROMPT)
    with pytest.raises(KeyboardInterrupt):
        take.begin_from_video(source(), 57)
    for call in (take.next_chunk, take.state, lambda: take.begin_from_picture(shown(1)[0])):
        with pytest.raises(RuntimeError, match="interrupted"):
            call()


@pytest.mark.parametrize("kind", ["chunk_frames=1", "chunk_frames=4", "wan", "half"])
def test_other_models(kind: str) -> None:
    vaes = {
        "wan": {"dim_mult": [1, 1, 2, 2], "temperal_downsample": [False, True, True]},
        "half": {"dim_mult": [1, 1, 2, 2], "temperal_downsample": [False, False, True], "scale_factor_temporal": 2},
    }
    chunk = int(kind[-1]) if "=" in kind else 3
    pipe = build(chunk_frames=chunk, vae=vaes.get(kind))
    temporal = 2 if kind == "half" else 4
    first, more = 1 + temporal * (chunk - 1), temporal * chunk
    for count in (1, 7, 40):
        take = pipe.start(PROMPT, video=shown(count))
        assert take.skip == first + max(0, count - first) // more * more
        made = run(take, 2)
        assert [(c.first_frame, len(c.video)) for c in made] == [(0, more), (more, more)]
    take = pipe.start(PROMPT, image=shown(1)[0])
    again = Take.from_state(pipe, *take.state())  # before its first chunk, too
    made = run(take, 3)
    assert [len(c.video) for c in made] == [1, more, more]
    assert [c.first_frame for c in made] == [0, 1, 1 + more]
    assert same(run(again, 3), made)


def test_bfloat16(pipe: LongTakePipeline) -> None:
    half = build().to(torch.bfloat16)
    for settings in ({"image": shown(1)[0]}, {"video": shown(33)}):
        take = half.start(PROMPT, **settings)  # type: ignore[arg-type]
        again = Take.from_state(half, *take.state())
        chunks = run(take, 3)
        assert same(run(again, 3), chunks)
        full = run(pipe.start(PROMPT, **settings), 3)  # type: ignore[arg-type]
        assert all((a.video - b.video).abs().mean() < 0.05 for a, b in zip(chunks, full, strict=True))


def test_what_cannot_be_a_past_is_refused_before_anything_happens(pipe: LongTakePipeline, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("neither picture nor video")
    for settings, says in (
        ({"image": tmp_path / "none.png"}, "There is no picture"),
        ({"video": tmp_path / "none.mp4"}, "There is no video"),
        ({"image": tmp_path / "note.txt"}, "not a picture"),
        ({"video": tmp_path / "note.txt"}, "cannot be read as a video"),
        ({"image": 3}, "A picture must be"),
        ({"video": []}, "at least one frame"),
        ({"video": shown(9)[0]}, "A picture must be"),
        ({"image": shown(1)[0], "video": shown(9)}, "one of them"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            pipe.start(PROMPT, **settings)  # type: ignore[arg-type]
        assert str(error.value).endswith(".") and "\n" not in str(error.value)
    take = pipe.start(PROMPT)
    for frames, count, says in (
        (shown(9)[:, :16], None, "uint8"), (shown(9), 21, "ended after"), (iter(()), None, "at least one"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            pipe.start(PROMPT).begin_from_video(frames, count)
    with pytest.raises(ValueError, match="uint8"):
        take.begin_from_picture(shown(1)[0][:8])
    take.next_chunk()
    for call in (lambda: take.begin_from_picture(shown(1)[0]), lambda: take.begin_from_video(shown(9))):
        with pytest.raises(ValueError, match="Only a new take"):
            call()
    assert parse_memory("memrope") == take.policy
    take.next_chunk()
