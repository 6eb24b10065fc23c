"""Takes: what is promised of seeds, lengths, prompts, steering, turns and cost."""

import copy
import gc
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch._subclasses import FakeTensor

from longtake.pipeline import LongTakePipeline
from longtake.prompts import parse_script
from longtake.sampling import chunk_noise
from longtake.take import Chunk
from longtake.text import encode_text, text_length
from tests.helpers_pipeline import (
    FPS,
    OTHER,
    PROMPT,
    SCRIPT,
    build,
    make,
    middle,
    run,
    same,
    video,
)


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


# What a take is, by hand


class BlockCausal(WanAttnProcessor):
    """Stock attention where a frame sees all frames up to the end of its chunk."""

    def __init__(self, chunk: int, tokens: int) -> None:
        super().__init__()
        self.chunk, self.tokens = chunk, tokens

    def __call__(self, attn: Any, hidden: Tensor, encoder: Any = None, mask: Any = None, rotary: Any = None) -> Tensor:
        if rotary is not None:
            chunk = torch.arange(hidden.shape[1]) // (self.tokens * self.chunk)
            mask = chunk[None] <= chunk[:, None]
        out: Tensor = super().__call__(attn, hidden, encoder, mask, rotary)
        return out


@pytest.mark.parametrize("memory", ["self-forcing", "memrope"])
def test_a_take_equals_few_step_sampling_of_the_whole_sequence(pipe: LongTakePipeline, memory: str) -> None:
    """While nothing is forgotten: the stock transformer on all frames so far, the past at t = 0, no memory at all."""
    chunks = run(pipe.start(PROMPT, memory=memory, seed=5), 3)
    model = copy.deepcopy(pipe.transformer)
    model.set_attn_processor(BlockCausal(3, tokens=2 * 3))
    text = pipe.encode_prompt(PROMPT)
    steps = [5 * s / (1 + 4 * s) for s in (1, 0.75, 0.5, 0.25)]
    past = torch.empty(1, 4, 0, 4, 6)
    with torch.no_grad():
        for index in range(3):
            x0 = torch.zeros(1, 4, 3, 4, 6)
            for number, sigma in enumerate(steps):
                x = (1 - sigma) * x0 + sigma * chunk_noise(5, index, number, x0.shape)
                t = torch.zeros(1, (past.shape[2] + 3) * 6)
                t[:, -18:] = 1000 * sigma
                flow = model(torch.cat([past, x], 2), t, text, return_dict=False)[0][:, :, -3:]
                x0 = x - sigma * flow
            past = torch.cat([past, x0], 2)
        mean, std = (
            torch.tensor(v).view(1, 4, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
        )
        decoded = pipe.vae.decode(past * std + mean).sample[0].transpose(0, 1)
    made = torch.cat([c.latents for c in chunks], 2)
    assert made.std() > 0.1
    assert torch.allclose(made, past, atol=1e-4)
    assert torch.allclose(video(chunks), (decoded + 1) / 2, atol=1e-4)


def test_seed_prompt_and_memory_all_matter(pipe: LongTakePipeline) -> None:
    settings: list[dict[str, Any]] = [{}, {"seed": 1}, {"prompt": OTHER}, {"memory": "infinity-rope"}]
    videos = [video(run(pipe.start(**{"prompt": PROMPT, **s}), 7)) for s in settings]
    again = video(run(pipe.start(PROMPT), 7))
    assert torch.equal(again, videos[0])
    for i, one in enumerate(videos):
        for other in videos[:i]:
            assert (one[-12:] - other[-12:]).abs().max() > 0.01
    assert torch.equal(videos[0][:9], videos[3][:9])  # nothing is remembered in the first chunk


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1, 1.4, 3])
def test_a_longer_take_begins_with_the_shorter_one(pipe: LongTakePipeline, seconds: float) -> None:
    long = make(pipe, SCRIPT, seconds=6, output_type="pt")
    short = make(pipe, PROMPT, seconds=seconds, output_type="pt")
    until = min(short.shape[1], 33)  # where the script changes
    assert short.shape[1] == max(1, round(seconds * FPS))
    assert torch.equal(short[:, :until], long[:, :until])


# Prompts


def test_what_a_new_prompt_does_to_the_past(pipe: LongTakePipeline) -> None:
    kinds = {k: run(pipe.start(SCRIPT, on_prompt_change=k), 5) for k in ("keep", "flush", "recache")}
    for kind in ("flush", "recache"):
        assert same(kinds[kind][:3], kinds["keep"][:3])
        assert (kinds[kind][3].video - kinds["keep"][3].video).abs().max() > 1e-3
    assert (kinds["flush"][3].video - kinds["recache"][3].video).abs().max() > 1e-3


def test_recaching_reads_the_last_two_chunks_under_the_new_prompt(pipe: LongTakePipeline) -> None:
    """By hand: a take that remembers two chunks, both of them committed under the new prompt."""
    take = pipe.start(SCRIPT, memory="sliding:window=9", on_prompt_change="recache")
    chunks = run(take, 3)
    text = take.begin()
    other = pipe.start(SCRIPT, memory="sliding:window=9")
    run(other, 1)
    for chunk in chunks[1:]:
        other.memory.change_prompt()
        other.memory.begin_chunk()
        other.commit(chunk.latents, pipe.encode_prompt(OTHER))
        other.index += 1
    other.memory.begin_chunk()
    assert torch.equal(text, pipe.encode_prompt(OTHER))
    assert take.index == other.index == 3
    assert torch.allclose(take.denoise(text), other.denoise(text), atol=1e-5)


@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.1, 1.6875, 1.69, 2.5])
def test_a_prompt_changes_at_the_chunk_whose_middle_it_reaches(pipe: LongTakePipeline, seconds: float) -> None:
    expected = next(k for k in range(9) if middle(k) >= seconds)
    chunks = run(pipe.start(f"{PROMPT} [{seconds}s] | {OTHER} [9s]"), 5)
    assert [c.prompt for c in chunks] == [PROMPT] * expected + [OTHER] * (5 - expected)
    plain = run(pipe.start(PROMPT), 5)
    assert same(chunks[:expected], plain[:expected])
    assert (chunks[expected].video - plain[expected].video).abs().max() > 1e-3


def test_repeating_a_prompt_changes_nothing(pipe: LongTakePipeline) -> None:
    script = f"{PROMPT} [1s] | {PROMPT} [1s] | {PROMPT} [9s]"
    for kind in ("keep", "flush", "recache"):
        assert same(run(pipe.start(script, on_prompt_change=kind), 5), run(pipe.start(PROMPT), 5))


def test_steering_takes_effect_with_the_next_chunk(pipe: LongTakePipeline) -> None:
    steered = pipe.start(PROMPT)
    chunks = run(steered, 3)
    steered.steer(parse_script(OTHER))
    chunks += run(steered, 3)
    assert same(chunks, run(pipe.start(f"{PROMPT} [2s] | {OTHER} [60s]"), 6))


def test_a_prompt_that_cannot_be_read_does_no_harm(pipe: LongTakePipeline) -> None:
    take = pipe.start(PROMPT)
    chunks = run(take, 2)
    script = take.script
    take.steer(parse_script("zxcv qwerty"))
    with pytest.raises(ValueError, match="knows no word"):
        take.next_chunk()
    take.steer(script)
    assert same([*chunks, *run(take, 2)], run(pipe.start(PROMPT), 4))


def test_a_prompt_too_long_is_cut_with_a_warning(pipe: LongTakePipeline) -> None:
    words = " ".join([PROMPT] * 5)
    limit = text_length(pipe.tokenizer)
    with pytest.warns(UserWarning, match=f"Only the first {limit} of the prompt's 36 tokens are read.") as warned:
        long = pipe.encode_prompt(words)
    assert len(warned) == 1
    assert long.shape == (1, limit, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encode_prompt(" ".join(words.split()[: limit - 1]))


def test_text_is_padded_with_zeros(pipe: LongTakePipeline) -> None:
    text = pipe.encode_prompt(PROMPT)
    words = len(PROMPT.split()) + 1  # and the end of the sentence
    assert text.shape == (1, 24, 128)
    assert (text[0, words:] == 0).all()
    assert (text[0, :words].abs().sum(-1) > 0).all()
    both = encode_text(pipe.tokenizer, pipe.text_encoder, [OTHER, PROMPT])
    assert torch.allclose(both[1:], text, atol=1e-6)
    assert torch.equal(text, pipe.encode_prompt(f"  {PROMPT.upper()}. "))


def test_frames_one_by_one(pipe: LongTakePipeline) -> None:
    expected = np.concatenate([c.to_uint8() for c in run(pipe.start(PROMPT), 3)])
    for count in (0, 1, 9, 10, 30):
        frames = list(pipe.start(PROMPT).frames(count))
        assert len(frames) == count
        assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=False))
    assert np.array_equal(np.stack(list(islice(pipe.start(PROMPT).frames(), 25))), expected[:25])


# Sharing, cost, dtypes, sizes


def test_takes_take_turns(pipe: LongTakePipeline) -> None:
    settings: list[dict[str, Any]] = [
        {"prompt": SCRIPT, "on_prompt_change": "recache"},
        {"prompt": OTHER, "memory": "infinity-rope", "seed": 9, "height": 16, "width": 32},
    ]
    alone = [run(pipe.start(**s), 7) for s in settings]
    takes = [pipe.start(**s) for s in settings]
    turns: list[list[Chunk]] = [[], []]
    for who in (0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1):
        turns[who].append(takes[who].next_chunk())
    assert all(same(a, b) for a, b in zip(alone, turns, strict=True))


def live_tensors() -> tuple[int, int]:
    gc.collect()
    # those that the compiler keeps of graphs have shapes and no memory
    found = [x for x in gc.get_objects() if isinstance(x, Tensor) and not isinstance(x, FakeTensor)]
    return len(found), sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in found}.values())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch objects that the search touches
@pytest.mark.parametrize("memory", ["memrope", "self-forcing"])
def test_nothing_grows(memory: str) -> None:
    """No tensor of the whole process, and the memory's own stay where they are.

    Rotary tables of the last 64 layouts are kept, so that is how long it takes to settle.
    """
    small = build(heads=1, layers=1)
    take = small.start(f"{PROMPT} [3s] | {OTHER} [9m]", memory, on_prompt_change="recache", height=16, width=16)

    def held() -> tuple[int, list[int]]:
        mine = [take.memory.keys, take.memory.values, *(x for pair in take.memory.averages.values() for x in pair)]
        return take.memory.nbytes, [x.data_ptr() for x in mine]

    for _ in range(72):
        take.next_chunk()
    before, tensors = held(), live_tensors()
    for _ in range(2):
        for _ in range(12):
            take.next_chunk()
            assert held() == before
        assert live_tensors() == tensors


GEOMETRIES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"heads": 3, "head_dim": 20, "layers": 3}, (64, 16)),
    ({"chunk_frames": 1}, (16, 48)),
    ({"chunk_frames": 4}, (48, 32)),
    ({"vae": {"dim_mult": [1, 1, 2, 2], "temperal_downsample": [False, True, True]}}, (32, 32)),
]


@pytest.mark.parametrize(("config", "size"), GEOMETRIES)
def test_other_sizes(config: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    other = build(**config)
    chunk = config.get("chunk_frames", 3)
    take = other.start(PROMPT, height=size[0], width=size[1])
    chunks = run(take, 12 // chunk + 1)
    take.snapshot(tmp_path / "take")
    assert video(chunks).shape == (1 + 4 * (chunk * len(chunks) - 1), 3, *size)
    assert chunks[0].latents.shape == (1, 4, chunk, size[0] // 8, size[1] // 8)
    assert same(run(other.resume(tmp_path / "take"), 2), run(take, 2))
