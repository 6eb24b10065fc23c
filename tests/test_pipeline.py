"""The pipeline: saving and loading, outputs, callbacks, LoRA, and what is refused."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from longtake.decode import StreamingDecoder
from longtake.memory import Sliding
from longtake.pipeline import LongTakePipeline
from longtake.prompts import Script, Segment, parse_script
from longtake.take import Chunk
from longtake.training.export import assemble
from tests.helpers_pipeline import (
    OTHER,
    PROMPT,
    SCRIPT,
    build,
    make,
    refused,
    run,
    same,
    video,
)


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


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


def test_decoding_several_latents_at_once(tmp_path: Path) -> None:
    """The same frames up to rounding, and the same bits for every take of a seed, resumed or not."""
    pipe = build()
    expected = video(run(pipe.start(PROMPT), 4))
    pipe.decoding = "fast"
    take = pipe.start(PROMPT)
    calls: list[int] = []
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    made = run(take, 2)
    handle.remove()
    assert len(calls) == 1 + 1 + 1  # the first latent by itself, the two after it, a chunk of three
    take.snapshot(tmp_path / "take")
    made += run(pipe.resume(tmp_path / "take"), 2)
    assert torch.allclose(video(made), expected, atol=1e-5)
    assert same(made, run(pipe.start(PROMPT), 4))
    pipe.decoding = "slow"
    with pytest.raises(ValueError, match="exact, fast, tiny, not 'slow'"):
        pipe.start(PROMPT)


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
        ({"on_prompt_change": "forget"}, "keep, recache, flush, cut"),
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


def test_sizes_beyond_the_rotary_table_are_refused() -> None:
    """Diffusers' forward cuts its table to what is asked for, and fails where the table ends."""
    small = build()
    small.transformer = WanTransformer3DModel.from_config(small.transformer.config, rope_max_seq_len=4).eval()
    assert run(small.start(PROMPT, height=64, width=64), 1)[0].video.shape == (9, 3, 64, 64)
    for size in ((80, 64), (64, 80), (800, 800)):
        with pytest.raises(ValueError, match=f"at most 64, not {size[0]}x{size[1]}\\.$"):
            small.start(PROMPT, height=size[0], width=size[1])
    long = build(chunk_frames=5)
    long.transformer = small.transformer
    with pytest.raises(ValueError, match=r"at most 4 frames, not 5\.$"):
        long.start(PROMPT)


def test_a_script_without_an_end_needs_seconds(pipe: LongTakePipeline) -> None:
    with pytest.raises(ValueError, match="needs seconds"):
        pipe(parse_script(PROMPT))


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


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of a second adapter
def test_a_snapshot_under_another_scale_of_lora_is_refused(tmp_path: Path) -> None:
    tuned, path = build(), tmp_path / "take"
    plain = tuned.fingerprint()
    tuned.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]), "one")
    tuned.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]), "two")
    for name, p in tuned.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    tuned.set_adapters("one", 1.0)
    take = tuned.start(PROMPT)
    run(take, 2)
    take.snapshot(path)
    expected = run(take, 2)
    seen = {plain, tuned.fingerprint()}
    for adapters, scales in (("one", 0.5), ("two", 1.0), (["one", "two"], [1.0, 1.0])):
        tuned.set_adapters(adapters, scales)
        assert "another model" in refused(tuned, path)
        seen.add(tuned.fingerprint())
    tuned.set_adapters("one", 1.0)
    tuned.disable_lora()
    assert "another model" in refused(tuned, path)
    seen.add(tuned.fingerprint())
    assert len(seen) == 6
    tuned.enable_lora()
    assert same(run(tuned.resume(path), 2), expected)
