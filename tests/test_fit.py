"""The arithmetic against real models: exact numbers of weights, and bytes that real forwards allocate.

Allocations are those of real shapes on tensors without data, see ``helpers_bytes``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import UMT5Config, UMT5EncoderModel

from longtake import sizes
from longtake.attention import attending, memory_for
from longtake.decode import StreamingDecoder
from longtake.facts import ModelFacts
from longtake.fit import Fit
from longtake.memory import MemoryEncoder, MemoryPolicy, parse_memory
from longtake.memory.policy import LEARNED
from longtake.memory.split import SplitMemory
from longtake.placement import ALLOWANCE, place
from longtake.plan import format_bytes
from longtake.pocket.model import TEXT_CONFIG, TRANSFORMER_CONFIG, VAE_CONFIG
from longtake.quantize import quantize
from tests.helpers_bytes import Live, hollow
from tests.helpers_pipeline import build

GB = 10**9
SMALL = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096}  # Wan2.1 1.3B
LARGE = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "text_dim": 4096}  # Wan2.1 14B
WORDS = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
TINY = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 32, "text_dim": 128}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "1.3B": SMALL,
    "14B": LARGE,
    "14B with pictures": {**LARGE, "image_dim": 1280, "added_kv_proj_dim": 5120, "in_channels": 36, "out_channels": 16},
    "pocket": TRANSFORMER_CONFIG,
    "tiny": TINY,
    "odd": {**TINY, "patch_size": (1, 1, 2), "cross_attn_norm": False, "in_channels": 5, "freq_dim": 16},
}
VAES: dict[str, dict[str, Any]] = {
    "wan": {},
    "pocket": VAE_CONFIG,
    "odd": {"base_dim": 8, "decoder_base_dim": 12, "dim_mult": [1, 3, 2], "temperal_downsample": [False, True]},
    "attending": {"base_dim": 8, "attn_scales": [0.5, 1.0], "num_res_blocks": 1, "z_dim": 4, "latents_mean": [0.0] * 4},
    "residual": {"base_dim": 8, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12},
}
TEXTS: dict[str, dict[str, Any]] = {
    "umt5-xxl": WORDS,
    "pocket": {**TEXT_CONFIG, "vocab_size": 48},
    "plain": {**WORDS, "num_layers": 2, "feed_forward_proj": "relu", "relative_attention_num_buckets": 8},
}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def count(model: Any) -> int:
    return sum(x.numel() for x in model.parameters())


def near(estimate: float, real: float) -> bool:
    """Within 15 %, and never more than 5 % too low."""
    return 0.95 * real <= estimate <= 1.15 * real


# Numbers of weights


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_numbers_of_a_transformer(name: str) -> None:
    with torch.device("meta"):
        model = WanTransformer3DModel(**TRANSFORMERS[name])
    size = sizes.TransformerSize.of(model.config)
    assert size.numbers() == count(model)
    assert size.block.total() == count(model.blocks[0])
    assert size.last.total() == count(model.proj_out)
    linear = [m for m in model.blocks[0].modules() if isinstance(m, torch.nn.Linear)]
    assert size.block.linear == sum(m.weight.numel() for m in linear)
    assert size.block.rows == sum(m.out_features for m in linear)


@pytest.mark.parametrize("name", VAES)
def test_numbers_of_an_autoencoder(name: str) -> None:
    with torch.device("meta"):
        model = AutoencoderKLWan(**VAES[name])
    assert sizes.vae_numbers(model.config) == count(model)
    assert sizes.vae_numbers(VAES[name]) == count(model)  # what the file leaves out has diffusers' default


@pytest.mark.parametrize("name", TEXTS)
def test_numbers_of_a_text_encoder(name: str) -> None:
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**TEXTS[name]))
    assert sizes.text_numbers(TEXTS[name]) == count(model)
    assert sizes.text_numbers(model.config.to_dict()) == count(model)


@pytest.mark.parametrize("kind", [None, "fp8", "int8"])
def test_bytes_of_a_loaded_transformer(tmp_path: Path, kind: str | None) -> None:
    """As diffusers loads it in bfloat16, which leaves some weights in float32."""
    WanTransformer3DModel(**TINY).save_pretrained(tmp_path)
    model = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    if kind is not None:
        quantize(model, kind)
    size = sizes.TransformerSize.of(model.config)
    held = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    assert held == size.weights(2, size.layers, quantize=kind)


# Bytes of a running take


def simulate(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], policy: MemoryPolicy, size: tuple[int, int], dtype: str
) -> tuple[int, int, int]:
    """Bytes of memory and decoder cache at the end of some chunks, and at the peak; bytes of weights are left out."""
    kind = getattr(torch, dtype)
    height, width = size[0] // 8, size[1] // 8
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = hollow(lambda: WanTransformer3DModel(**transformer), kind)
        decoder = StreamingDecoder(hollow(lambda: AutoencoderKLWan(**vae), kind))
        live, frames, encoder = Live(), getattr(policy, "frames", 0), None
        if policy.learned:
            shape = (model.config.num_attention_heads, model.config.attention_head_dim)
            grid = (height // 2, width // 2)
            encoder = hollow(lambda: MemoryEncoder(*shape, frames=frames, grid=grid), kind)
            assert sizes.encoder_numbers(policy, *shape, grid[0] * grid[1]) == count(encoder)
        with live:
            memory = memory_for(model, policy, height, width, dtype=kind, encoder=encoder)
            assert not isinstance(memory, SplitMemory)
            text, time = torch.empty(1, 512, model.config.text_dim, dtype=kind), torch.empty(1)
            x = torch.empty(1, model.config.in_channels, 3, height, width, dtype=kind)
            memory.frame = memory.capacity - frames  # full
            memory.tags = [*range(memory.frame), *(LEARNED - i for i in range(frames))]
            memory.begin_chunk()
            with attending(model, memory), memory.recording():
                model(x, time, text, return_dict=False)
            decoder.decode(x.float())
            memory.begin_chunk()
            decoder.decode(x.float())
        held = memory.nbytes
        cache = sum(x.nbytes for x in decoder._cache if isinstance(x, torch.Tensor))
    return held, cache, live.peak


RUNS = [
    ("1.3B", "wan", "memrope", (480, 832), "bfloat16"),
    ("1.3B", "wan", "memrope:pooling=position", (832, 480), "float32"),
    ("1.3B", "wan", "memrope:pooling=position,averages=short", (480, 832), "bfloat16"),
    ("1.3B", "wan", "longlive", (240, 416), "bfloat16"),
    ("1.3B", "wan", "echo", (480, 832), "bfloat16"),
    ("1.3B", "wan", "deep-forcing", (480, 832), "bfloat16"),
    ("14B", "wan", "memrope:adaptive=true", (480, 832), "bfloat16"),
    ("14B", "wan", "infinity-rope", (720, 1280), "float32"),
]


@pytest.mark.parametrize(("transformer", "vae", "memory", "size", "dtype"), RUNS)
def test_bytes_of_a_take(transformer: str, vae: str, memory: str, size: tuple[int, int], dtype: str) -> None:
    policy = parse_memory(memory)
    held, cache, peak = simulate(TRANSFORMERS[transformer], VAES[vae], policy, size, dtype)
    fit = Fit(TRANSFORMERS[transformer], VAES[vae], WORDS, policy, *size, dtype=dtype)
    load = fit.generating["cpu"]
    assert load.memory == held
    assert load.decoder == cache
    assert near(load.work, peak - held - cache), (load, peak)


@pytest.mark.parametrize("name", ["1.3B", "14B", "pocket"])
@pytest.mark.parametrize("kind", [None, "fp8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_of_a_forward(name: str, kind: str | None, dtype: str) -> None:
    config = {**TRANSFORMERS[name], "num_layers": 2}  # the most is held within one block
    number = getattr(torch, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = hollow(lambda: WanTransformer3DModel(**config), number)
        if kind is not None:
            quantize(model, kind)
        memory = memory_for(model, parse_memory("memrope"), 60, 104, dtype=number)
        x, text = torch.empty(1, 16, 3, 60, 104), torch.empty(1, 512, config["text_dim"])
        memory.begin_chunk()
        with attending(model, memory):
            model(x.to(number), torch.empty(1), text.to(number))  # the prompt is kept from now on
            with Live() as live:
                model(x.to(number), torch.empty(1), text.to(number))
    size = sizes.TransformerSize.of(config)
    estimate = size.forward(number.itemsize, 3 * memory.tokens, 512, kind)
    assert near(estimate, live.peak) or (name == "pocket" and 0.95 * live.peak < estimate < 1.35 * live.peak)


def test_bytes_of_turning_a_memory_anew() -> None:
    """What a chunk begins with after a snapshot: all slots are rotated, of which otherwise none would be."""
    policy = parse_memory("self-forcing")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = hollow(lambda: WanTransformer3DModel(**SMALL), torch.bfloat16)
        memory = memory_for(model, policy, 60, 104, dtype=torch.bfloat16)
        assert not isinstance(memory, SplitMemory)
        memory.tags = [*range(18), -1, -1, -1]
        memory.frame = 18
        with Live() as live:
            memory.begin_chunk()
    assert near(sizes.begin_bytes(policy, 30, 12, 128, 1560, 3, 2), live.peak)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("vae", "size"), [("wan", (480, 832)), ("wan", (832, 480)), ("pocket", (64, 64))])
@pytest.mark.parametrize("latents", [1, 3])
def test_bytes_of_decoding(vae: str, size: tuple[int, int], dtype: str, latents: int) -> None:
    number = getattr(torch, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = StreamingDecoder(hollow(lambda: AutoencoderKLWan(**VAES[vae]), number))
        with Live() as live:
            for _ in range(3):  # the first latent gives fewer pictures than later ones
                decoder.decode(torch.empty(1, 16, latents, size[0] // 8, size[1] // 8))
        cache = sum(x.nbytes for x in decoder._cache if isinstance(x, torch.Tensor))
    assert near(sizes.decoding_bytes(VAES[vae], *size, number.itemsize, latents), live.peak - cache)
    assert sizes.decoder_cache(VAES[vae], *size) * number.itemsize == cache


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tokens", [64, 512])
def test_bytes_of_encoding_a_prompt(dtype: str, tokens: int) -> None:
    number = getattr(torch, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = hollow(lambda: UMT5EncoderModel(UMT5Config(**{**WORDS, "num_layers": 2})), number)
        ids = torch.zeros(1, tokens, dtype=torch.long)
        with Live() as live:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    estimate = sizes.encoding_bytes(WORDS, number.itemsize, tokens)
    assert near(estimate, live.peak)


# What follows from the numbers


def fit(free: Mapping[str, int | None], config: Mapping[str, Any] = SMALL, **settings: Any) -> Fit:
    given = {"devices": ("cuda:0",), "offload": "text", **settings}
    return Fit(config, {}, WORDS, parse_memory("memrope"), 480, 832, free=free, **given)


def test_a_placed_pipeline_holds_what_was_said() -> None:
    """The pocket's kin, really loaded, split and run: weights and memory per part."""
    pipe = build(layers=3)
    place(pipe, ("cpu", "cpu"))
    take = pipe.start("a red ball rolls over a meadow", "memrope:recent=1")
    for _ in range(4):
        take.next_chunk()
    said = Fit(
        pipe.transformer.config,
        pipe.vae.config,
        pipe.text_encoder.config.to_dict(),
        take.policy,
        32,
        48,
        dtype="float32",
        devices=("cpu", "cpu"),
        text_tokens=24,
    )
    assert said.layers == (2, 1)
    load = said.generating["cpu"]
    weights = sum(x.nbytes for m in (pipe.transformer, pipe.vae, pipe.text_encoder) for x in m.parameters())
    assert load.weights == weights + sum(x.nbytes for x in pipe.transformer.buffers())
    assert load.memory == take.memory.nbytes
    assert load.decoder == sum(x.nbytes for x in take.decoder._cache if isinstance(x, torch.Tensor))


def test_one_large_card() -> None:
    said = fit({"cuda:0": 80 * GB, "cpu": 64 * GB})
    assert said.fits and said.advice() is None and said.encodes_on == "cuda:0"
    load = said.encoding["cuda:0"]
    assert load.weights == said.generating["cuda:0"].weights + said.text_bytes
    assert said.generating["cpu"].waiting == said.text_bytes == sizes.text_numbers(WORDS) * 2
    assert len(said.lines()) == 3 and "80.0 GB free" in said.lines()[0] and "encodes on cuda:0" in said.lines()[2]


def test_the_text_encoder_works_on_the_cpu_where_it_has_no_room() -> None:
    said = fit({"cuda:0": 14 * GB, "cpu": 64 * GB})
    assert said.fits and said.encodes_on == "cpu" and said.encoding["cpu"].work > 0
    assert fit({"cuda:0": None, "cpu": None}).encodes_on == "cpu"


def test_unknown_rooms_are_no_obstacle() -> None:
    assert fit({}).fits and "free" not in fit({}).lines()[0]


@pytest.mark.parametrize("config", [SMALL, LARGE])
def test_pinned_copies(config: dict[str, Any]) -> None:
    """Every weight of every block, rounded up to a power of two."""
    with torch.device("meta"):
        blocks = WanTransformer3DModel(**config).blocks
    rounded = sum(2 ** math.ceil(math.log2(x.numel() * 2)) for x in blocks.parameters())
    assert abs(fit({}, config).size.pinned(2) - rounded) < 0.005 * rounded


def test_each_offload_mode_needs_less_than_the_one_before() -> None:
    totals = [fit({"cuda:0": 80 * GB}, SMALL, offload=mode) for mode in ("none", "text", "model", "group")]
    needs = [said.generating["cuda:0"].total for said in totals]
    assert needs == sorted(needs, reverse=True) and len({*needs}) == 4
    block = sizes.TransformerSize.of(SMALL).block.bytes(2)
    group = totals[3].generating["cuda:0"]
    assert group.weights == totals[1].generating["cuda:0"].weights - 28 * block
    held = totals[3].transformer_bytes + totals[3].text_bytes + totals[3].size.pinned(2)
    assert totals[3].generating["cpu"].waiting == held
    encoding = totals[2].encoding["cuda:0"]
    assert encoding.weights == totals[2].text_bytes and encoding.memory > 0


def test_on_a_cpu_offloading_moves_nothing() -> None:
    plain, text = (fit({"cpu": 64 * GB}, devices=("cpu",), offload=mode) for mode in ("none", "text"))
    assert plain.generating == text.generating and plain.encoding == text.encoding
    assert plain.generating["cpu"].weights == plain.transformer_bytes + plain.vae_bytes + plain.text_bytes


def test_blocks_go_where_there_is_room() -> None:
    even = fit({"cuda:0": 80 * GB, "cuda:1": 80 * GB}, LARGE, devices=("cuda:0", "cuda:1"))
    assert even.layers == (20, 20)
    uneven = fit({"cuda:0": 24 * GB, "cuda:1": 80 * GB}, LARGE, devices=("cuda:0", "cuda:1"))
    assert uneven.layers[0] < 20 and sum(uneven.layers) == 40 and uneven.fits
    one_more = replace(uneven, free={"cuda:0": 24 * GB * 21 // 20, "cuda:1": 80 * GB})
    assert one_more.layers[0] >= uneven.layers[0]
    beside = fit({"cuda:0": 24 * GB, "cpu": 128 * GB}, LARGE, devices=("cuda:0", "cpu"))
    assert beside.fits and 1 < beside.layers[0] < 40
    # The card is as full as it can be: one more block would be too much.
    block = beside.size.block.bytes(2) + beside._memory(1)
    assert (beside.generating["cuda:0"].total + block) * (1 + ALLOWANCE) > 24 * GB
    roomy = fit({"cuda:0": 200 * GB, "cpu": 128 * GB}, LARGE, devices=("cuda:0", "cpu"))
    assert roomy.layers == (39, 1)
    assert fit({}, LARGE, devices=("cuda:0", "cuda:0", "cuda:0")).layers == (14, 13, 13)


def flags(advice: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+) ([^ ;]+?)(?=\.$| |$)", advice.split("fits with")[1]))


@pytest.mark.parametrize(
    ("free", "config", "settings", "words"),
    [
        ({"cuda:0": 24.5, "cpu": 64}, SMALL, {"offload": "none"}, {"offload": "text"}),
        ({"cuda:0": 40, "cpu": 128}, LARGE, {}, {"offload": "group"}),
        ({"cuda:0": 48, "cpu": 20}, LARGE, {}, {"quantize": "fp8"}),
        ({"cuda:0": 12, "cpu": 128}, SMALL, {"offload": "group", "quantize": "int8"}, None),
        ({"cuda:0": 10.1, "cpu": 16}, SMALL, {"offload": "group", "quantize": "int8"}, {"memory": "memrope:recent=3"}),
        ({"cuda:0": 3, "cpu": 20}, SMALL, {"offload": "group", "quantize": "int8"}, {"height": "", "width": ""}),
        ({"cpu": 36}, SMALL, {"devices": ("cpu",), "offload": "none", "dtype": "float32"}, {"dtype": "bfloat16"}),
    ],
)
def test_advice_names_what_is_enough(
    free: dict[str, float], config: dict[str, Any], settings: dict[str, Any], words: dict[str, str] | None
) -> None:
    said = fit({name: int(x * GB) for name, x in free.items()}, config, **settings)
    advice = said.advice()
    if words is None:
        assert advice is None
        return
    assert advice is not None and advice.endswith(".") and "\n" not in advice
    found = flags(advice)
    assert set(found) == set(words) and all(found[name] == value for name, value in words.items() if value), advice
    # Taken at its word, it fits.
    changed: dict[str, Any] = {**found}
    if "memory" in changed:
        changed["policy"] = parse_memory(changed.pop("memory"))
    for name in ("height", "width"):
        if name in changed:
            changed[name] = int(changed[name])
            assert changed[name] % 16 == 0
    assert not said.fits and replace(said, **changed).fits


def test_advice_knows_other_devices() -> None:
    said = fit({"cuda:0": 25 * GB, "cpu": 20 * GB}, LARGE, quantize="fp8")
    advice = said.advice({"cuda:1": 25 * GB, "cuda:0": 25 * GB})
    assert advice is not None and advice.endswith("fits with --devices cuda:0,cuda:1.")
    lonely = fit({"cuda:0": 10 * GB, "cpu": 12 * GB}, LARGE, offload="group", quantize="fp8")
    advice = lonely.advice({"cuda:1": 80 * GB})
    assert advice is not None and advice.endswith("--devices cuda:0,cuda:1 --offload text.")


def test_advice_admits_that_nothing_helps() -> None:
    advice = fit({"cuda:0": GB // 10, "cpu": GB}).advice()
    assert advice is not None and advice.endswith("makes it fit.") and "\n" not in advice


def test_a_line_adds_up() -> None:
    said = fit({"cuda:0": 14 * GB, "cpu": 64 * GB})
    load = said.needed("cuda:0")
    assert load.total == load.weights + load.waiting + load.memory + load.decoder + load.work
    assert said.lines()[0].endswith(f"on cuda:0: {format_bytes(load.total)} of 14.0 GB free")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"offload": "disk"}, "offloaded"),
        ({"offload": "model", "devices": ("cuda:0", "cuda:1")}, "one device"),
        ({"quantize": "int4"}, "fp8 or int8"),
        ({"devices": ("cpu",) * 31, "offload": "none"}, "at most 30 devices"),
        ({"chunk": 20}, ""),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(settings: dict[str, Any], word: str) -> None:
    if "chunk" in settings:
        with pytest.raises(ValueError):
            Fit(SMALL, {}, WORDS, parse_memory("infinity-rope"), 480, 832, **settings)
        return
    with pytest.raises(ValueError) as error:
        fit({}, **settings)
    text = str(error.value)
    assert word in text and text.endswith(".") and "\n" not in text


def test_tokens_of_a_frame() -> None:
    assert sizes.tokens_of(SMALL, {}, 480, 832) == 1560 == math.prod((30, 52))
    assert sizes.tokens_of(TRANSFORMERS["odd"], {}, 64, 64) == 8 * 4


def test_of_a_model_that_is_here() -> None:
    model = ModelFacts.read("pocket")
    said = Fit.of(model, parse_memory(model.memory), *model.size, dtype="float32", devices=("cpu",))
    with torch.device("meta"):
        parts = (WanTransformer3DModel(**TRANSFORMER_CONFIG), AutoencoderKLWan(**VAE_CONFIG))
    assert said.generating["cpu"].weights >= sum(count(part) for part in parts) * 4
    assert said.fits and len(said.lines()) == 1
