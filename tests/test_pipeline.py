"""Pipeline and takes: what is promised of seeds, lengths, snapshots, prompts and outputs.

On a model of a few thousand random weights, strong enough that memory, prompt and noise all show in the video.
"""

import copy
import gc
import json
import resource
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from longtake.decode import StreamingDecoder
from longtake.memory import MEMORIES, Sliding
from longtake.pipeline import LongTakePipeline, LongTakePipelineOutput
from longtake.pocket.model import build_text_encoder, build_tokenizer
from longtake.prompts import Script, Segment, parse_script
from longtake.sampling import chunk_noise
from longtake.snapshot import read_snapshot_data
from longtake.take import Chunk, Take
from longtake.text import encode_text
from longtake.training.export import assemble

FPS = 16
PROMPT = "a red ball rolls over a meadow"
OTHER = "a blue box bounces at night"
SCRIPT = f"{PROMPT} [2s] | {OTHER} [3s] | a green star in the snow [1h]"
CHANGES = (3, 7)  # chunks: the first whose middle is not before 2 s, and 5 s
ALL_MEMORIES = [
    *MEMORIES,
    "memrope:sink=1,recent=1,long=0.3,short=0.6,pooling=position",
    "memrope:recent=2,adaptive=true,short=0.4",
    "memrope:ids=absolute,first_eviction=released",
    "sliding:window=7,sink=2,ids=relative",
]


def build(
    seed: int = 0,
    *,
    heads: int = 2,
    head_dim: int = 12,
    layers: int = 2,
    vae: dict[str, Any] | None = None,
    **config: Any,
) -> LongTakePipeline:
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        in_channels=4,
        out_channels=4,
        text_dim=128,
        freq_dim=16,
        ffn_dim=32,
    )
    for p in transformer.parameters():
        if p.ndim == 2:
            p.data.mul_(2)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.15)
    sizes: dict[str, Any] = {
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
    }
    autoencoder = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
        **(sizes if vae is None else vae),
    )
    tokenizer = build_tokenizer()
    pipe = LongTakePipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer).eval(),
        vae=autoencoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=transformer.eval(),
        **{"default_size": (32, 48), "fps": FPS, **config},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


@cache
def twins() -> tuple[LongTakePipeline, LongTakePipeline]:
    """Two pipelines with nothing in common but the values of their weights."""
    return build(), build()


def make(pipe: LongTakePipeline, prompt: Any, **settings: Any) -> Any:
    out = pipe(prompt, **settings)
    assert isinstance(out, LongTakePipelineOutput)
    return out.frames


def run(take: Take, count: int) -> list[Chunk]:
    return list(take.chunks(count))


def video(chunks: Sequence[Chunk]) -> Tensor:
    return torch.cat([c.video for c in chunks])


def same(one: Sequence[Chunk], other: Sequence[Chunk]) -> bool:
    """Bit for bit, counters and prompts too."""
    return len(one) == len(other) and all(
        torch.equal(a.video, b.video)
        and torch.equal(a.latents, b.latents)
        and (a.index, a.first_frame, a.prompt) == (b.index, b.first_frame, b.prompt)
        for a, b in zip(one, other, strict=True)
    )


def middle(chunk: int) -> float:
    """Time of a chunk's middle, in seconds: 9 frames in the first, 12 in every other."""
    return 4.5 / FPS if chunk == 0 else (9 + 12 * (chunk - 1) + 6) / FPS


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


def test_saved_and_loaded_it_makes_the_same(pipe: LongTakePipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    loaded = LongTakePipeline.from_pretrained(tmp_path / "model")
    assert same(run(pipe.start(SCRIPT, seed=3), 8), run(loaded.start(SCRIPT, seed=3), 8))
    assert loaded.fingerprint() == pipe.fingerprint()
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["chunk_frames"] == 3


def test_settings_are_saved_with_the_model(tmp_path: Path) -> None:
    odd = build(denoising_steps=[1000, 400], chunk_frames=2, fps=10, default_size=(16, 32))
    odd.save_pretrained(tmp_path / "model")
    loaded = LongTakePipeline.from_pretrained(tmp_path / "model")
    chunks = run(loaded.start(PROMPT), 4)
    assert same(chunks, run(odd.start(PROMPT), 4))
    assert video(chunks).shape == (1 + 4 * 7, 3, 16, 32)
    assert loaded.start(PROMPT).schedule.sigmas == pytest.approx((1, 5 * 0.4 / 2.6))


def test_the_pocket_parts_assembled(tmp_path: Path) -> None:
    """The shipped model's own configuration, untrained."""
    pocket = assemble(None)
    torch.nn.init.normal_(pocket.transformer.proj_out.weight, std=0.05)
    pocket.set_progress_bar_config(disable=True)
    first = make(pocket, PROMPT, seconds=1)
    assert first.shape == (1, 16, 64, 64, 3)
    assert first.std() > 0.02
    take = pocket.start(PROMPT)
    chunks = run(take, 1)
    take.snapshot(tmp_path / "take")
    chunks += run(pocket.resume(tmp_path / "take"), 1)
    assert np.array_equal(video(chunks)[:16].permute(0, 2, 3, 1).numpy(), first[0])
    # decoding does not depend on the portions at this size either
    latents = torch.cat([c.latents for c in chunks], 2)
    for size in (1, 2, 6):
        decoder = StreamingDecoder(pocket.vae)
        assert torch.equal(torch.cat([decoder.decode(x) for x in latents.split(size, 2)]), video(chunks))


# Snapshots


@pytest.mark.parametrize("on_change", ["keep", "flush", "recache"])
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


def refused(pipe: LongTakePipeline, path: Path) -> str:
    with pytest.raises(ValueError) as error:
        pipe.resume(path)
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 400
    return text


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
    for name in data:
        with pytest.raises(ValueError):
            Take.from_state(pipe, tensors, {k: v for k, v in data.items() if k != name})
    with pytest.raises(ValueError, match="memory with"):
        Take.from_state(pipe, tensors, {**data, "policy": "memrope:recent=9"})
    with pytest.raises(ValueError, match="decoder state"):
        Take.from_state(pipe, {k: v for k, v in tensors.items() if not k.startswith("decoder.")}, data)


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


# Prompts


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


def test_text_is_padded_with_zeros(pipe: LongTakePipeline) -> None:
    text = pipe.encode_prompt(PROMPT)
    words = len(PROMPT.split()) + 1  # and the end of the sentence
    assert text.shape == (1, 24, 128)
    assert (text[0, words:] == 0).all()
    assert (text[0, :words].abs().sum(-1) > 0).all()
    both = encode_text(pipe.tokenizer, pipe.text_encoder, [OTHER, PROMPT])
    assert torch.allclose(both[1:], text, atol=1e-6)
    assert torch.equal(text, pipe.encode_prompt(f"  {PROMPT.upper()}. "))


# Outputs


def test_output_types_agree(pipe: LongTakePipeline) -> None:
    out = {kind: make(pipe, PROMPT, seconds=2, output_type=kind) for kind in ("np", "pt", "pil", "latent")}
    assert out["np"].shape == (1, 32, 32, 48, 3)
    assert out["np"].dtype == np.float32
    assert 0 <= out["np"].min() < out["np"].max() <= 1
    assert out["pt"].shape == (1, 32, 3, 32, 48)
    assert np.array_equal(out["pt"].permute(0, 1, 3, 4, 2).numpy(), out["np"])
    assert len(out["pil"]) == 1 and len(out["pil"][0]) == 32
    assert out["pil"][0][5].size == (48, 32)
    for image, frame in zip(out["pil"][0], out["np"][0], strict=True):
        assert np.array_equal(np.asarray(image), (frame * 255).round().astype(np.uint8))
    assert out["latent"].shape == (1, 4, 9, 4, 6)  # whole chunks
    config = pipe.vae.config
    mean, std = (torch.tensor(x).view(1, 4, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        decoded = (pipe.vae.decode(out["latent"] * std + mean).sample + 1) / 2
    assert torch.equal(decoded[0].transpose(0, 1)[:32], out["pt"][0])
    (frames,) = pipe(PROMPT, seconds=2, return_dict=False)
    assert np.array_equal(frames, out["np"])


def test_length_is_the_scripts_own_or_five_seconds(pipe: LongTakePipeline) -> None:
    assert make(pipe, f"{PROMPT} [0.5s] | {OTHER} [1s]").shape[1] == 24
    assert make(pipe, PROMPT).shape[1] == 80
    script = Script((Segment(PROMPT, 0, 1.0),))
    assert make(pipe, script).shape[1] == 16
    assert make(pipe, script, seconds=2).shape[1] == 32
    assert make(pipe, f"{PROMPT} [0.5s] | {OTHER}", seconds=1).shape[1] == 16


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 21, 22, 33, 34])
def test_number_of_chunks(pipe: LongTakePipeline, frames: int) -> None:
    total, expected = 9, 1
    while total < frames:
        total, expected = total + 12, expected + 1
    assert pipe.chunks_for(frames) == expected


def test_callback_and_progress(pipe: LongTakePipeline) -> None:
    seen: list[Chunk] = []

    def note(given: LongTakePipeline, chunk: Chunk) -> None:
        assert given is pipe
        seen.append(chunk)

    frames = make(pipe, f"{PROMPT} [2s] | {OTHER}", seconds=3, output_type="pt", callback_on_chunk_end=note)
    assert [c.index for c in seen] == [0, 1, 2, 3, 4]
    assert [c.first_frame for c in seen] == [0, 9, 21, 33, 45]
    assert [c.prompt for c in seen] == [PROMPT] * 3 + [OTHER] * 2
    assert torch.equal(video(seen)[:48], frames[0])
    assert np.array_equal(
        np.concatenate([c.to_uint8() for c in seen]),
        (video(seen).permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8),
    )


def test_streaming(pipe: LongTakePipeline) -> None:
    expected = run(pipe.start(PROMPT, seed=4, memory="longlive"), 5)
    assert same(list(islice(pipe.stream(PROMPT, seed=4, memory="longlive"), 5)), expected)
    assert same(list(pipe.stream(PROMPT, seconds=2, seed=4, memory="longlive")), expected[:3])
    changing = list(pipe.stream(f"{PROMPT} [1s] | {OTHER}", seconds=2))
    assert [c.prompt for c in changing] == [PROMPT, PROMPT, OTHER]
    with pytest.raises(ValueError, match="Unknown memory"):
        pipe.stream(PROMPT, memory="nothing")


def test_frames_one_by_one(pipe: LongTakePipeline) -> None:
    expected = np.concatenate([c.to_uint8() for c in run(pipe.start(PROMPT), 3)])
    for count in (0, 1, 9, 10, 30):
        frames = list(pipe.start(PROMPT).frames(count))
        assert len(frames) == count
        assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=False))
    assert np.array_equal(np.stack(list(islice(pipe.start(PROMPT).frames(), 25))), expected[:25])


def test_the_seed_of_a_generator(pipe: LongTakePipeline) -> None:
    def half(**settings: Any) -> Any:
        return make(pipe, PROMPT, seconds=0.5, **settings)

    generator = torch.Generator().manual_seed(77)
    assert np.array_equal(half(generator=generator), half(seed=77))
    assert np.array_equal(half(), half(seed=0))
    assert not np.array_equal(half(seed=77), half())


def test_several_prompts(pipe: LongTakePipeline) -> None:
    frames = make(pipe, [PROMPT, OTHER], seconds=1)
    assert frames.shape == (2, 16, 32, 48, 3)
    for prompt, one in zip((PROMPT, OTHER), frames, strict=True):
        assert np.array_equal(make(pipe, prompt, seconds=1)[0], one)
    uneven = [f"{PROMPT} [1s]", f"{OTHER} [0.5s]"]
    for kind in ("np", "pt", "pil"):
        assert [len(one) for one in make(pipe, uneven, output_type=kind)] == [16, 8]


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "  \n"}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "zxcv qwerty"}, "knows no word of the prompt 'zxcv qwerty'"),
        ({"prompt": f"{PROMPT} [1s] | zxcv [1s]"}, "knows no word of the prompt 'zxcv'"),
        ({"prompt": f"{PROMPT} [1s] | "}, "prompt"),
        ({"seconds": 0}, "duration|seconds"),
        ({"seconds": -1}, "duration|seconds"),
        ({"seconds": float("nan")}, "duration|seconds"),
        ({"seconds": float("inf")}, "duration|seconds"),
        ({"output_type": "gif"}, "np, pt, pil, latent"),
        ({"memory": "nothing"}, "Unknown memory"),
        ({"memory": "memrope:sink=-1"}, "sink"),
        ({"memory": "sliding:window=2"}, "window must be at least 3"),
        ({"memory": Sliding(4, 3)}, "window must be at least 6"),
        ({"on_prompt_change": "forget"}, "keep, flush, recache"),
        ({"height": 33}, "multiples of 16"),
        ({"width": 40}, "multiples of 16"),
        ({"height": 0}, "multiples of 16"),
        ({"height": -32}, "multiples of 16"),
    ],
)
def test_bad_arguments(pipe: LongTakePipeline, settings: dict[str, Any], message: str) -> None:
    made: list[Chunk] = []
    with pytest.raises(ValueError, match=message) as error:
        pipe(**{"prompt": PROMPT, "seconds": 2, "callback_on_chunk_end": lambda _, c: made.append(c), **settings})
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert not made  # before any work


def test_a_script_without_an_end_needs_seconds(pipe: LongTakePipeline) -> None:
    with pytest.raises(ValueError, match="needs seconds"):
        pipe(parse_script(PROMPT))


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
    found = [x for x in gc.get_objects() if isinstance(x, Tensor)]
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


# LoRA


def test_lora(tmp_path: Path) -> None:
    base = build()
    before = run(base.start(PROMPT), 5)
    trained = build()
    trained.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(1)
    for name, p in trained.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    expected = run(trained.start(PROMPT), 5)
    layers = get_peft_model_state_dict(trained.transformer)
    LongTakePipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)

    take = base.start(PROMPT)
    take.snapshot(tmp_path / "take")
    base.load_lora_weights(tmp_path)
    assert "another model" in refused(base, tmp_path / "take")
    changed = run(base.start(PROMPT), 5)
    assert (video(changed) - video(before)).abs().max() > 0.01
    assert torch.allclose(video(changed), video(expected), atol=1e-5)
    base.unload_lora_weights()
    assert same(run(base.start(PROMPT), 5), before)
    assert same(run(base.resume(tmp_path / "take"), 5), before)
