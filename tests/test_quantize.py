"""Weights in one byte: close to the original, as small as promised, and nothing else touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig

from longtake.checkpoints import load
from longtake.pipeline import LongTakePipeline
from longtake.quantize import ByteLinear, quantize
from longtake.sizes import TransformerSize
from tests.helpers_pipeline import PROMPT, build, run, same, video

KINDS = ["fp8", "int8"]
CHUNKS = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pocket() -> LongTakePipeline:
    return load("pocket")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_the_one_it_stands_for_up_to_rounding(kind: str, dtype: torch.dtype) -> None:
    """Every weight is off by at most half a step: a 254th of its row's largest, or a 16th of its own value."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48).to(dtype)
    linear.weight.data *= torch.logspace(-3, 2, 48).to(dtype)[:, None]  # rows of very different size
    layer = ByteLinear(linear, kind)
    assert layer.weight.dtype.itemsize == 1 and layer.weight.shape == (48, 64) and layer.scale.shape == (48, 1)
    original = linear.weight.detach().double()
    stored = layer.weight.double() * layer.scale.double()
    largest = original.abs().amax(1, keepdim=True)
    step = largest / 127 / 2 if kind == "int8" else (original.abs() / 16).maximum(largest / 448 * 2**-10)
    assert ((stored - original).abs() <= step * 1.02 + largest * 2**-8 * (dtype == torch.bfloat16)).all()
    x = torch.randn(5, 64).to(dtype)
    expected = torch.nn.functional.linear(x.double(), stored, linear.bias.detach().double())
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert layer(x).dtype == dtype
    assert torch.allclose(layer(x).double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_one(kind: str) -> None:
    linear = torch.nn.Linear(8, 2, bias=False)
    linear.weight.data[0] = 0
    assert (ByteLinear(linear, kind)(torch.ones(8))[0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_pocket_model_stays_close_and_shrinks(pocket: LongTakePipeline, kind: str) -> None:
    expected = video(run(pocket.start(PROMPT, seed=1), CHUNKS))
    pipe = load("pocket")
    before = {name: p.clone() for name, p in pipe.transformer.named_parameters()}
    quantize(pipe.transformer, kind)
    made = video(run(pipe.start(PROMPT, seed=1), CHUNKS))
    errors = (made - expected).square().flatten(1).mean(1)
    assert 0 < errors.max() < 10**-3.7  # 37 dB in the worst frame; 41 was measured

    size = TransformerSize.of(pipe.transformer.config)
    held = sum(x.nbytes for x in (*pipe.transformer.parameters(), *pipe.transformer.buffers()))
    assert held == size.weights(4, size.layers, quantize=kind)
    assert held < 0.4 * size.weights(4, size.layers)
    kept = {name for name, p in pipe.transformer.named_parameters() if p.is_floating_point() and p.itemsize == 4}
    untouched = {name for name in before if not (name.startswith("blocks.") and before[name].ndim == 2)}
    assert untouched <= kept
    assert all(torch.equal(before[name], pipe.transformer.get_parameter(name)) for name in untouched)
    assert pipe.transformer.dtype == torch.float32
    assert pipe.fingerprint() != pocket.fingerprint()


def test_quantised_models_can_be_offloaded_and_split() -> None:
    from longtake.placement import place

    made = []
    for devices, offload in ((("cpu",), "none"), (("cpu", "cpu"), "text"), (("cpu",), "model"), (("cpu",), "group")):
        pipe = build(layers=2)
        quantize(pipe.transformer, "fp8")
        place(pipe, devices, offload)
        made.append((run(pipe.start(PROMPT, "memrope:recent=1"), 3), pipe.fingerprint()))
    assert all(same(chunks, made[0][0]) and mark == made[0][1] for chunks, mark in made[1:])


def test_what_cannot_be_quantised_is_refused() -> None:
    transformer = build().transformer
    for call in (lambda: quantize(transformer, "int4"), lambda: quantize(transformer, "")):
        with pytest.raises(ValueError, match="fp8 or int8, not"):
            call()
    quantize(transformer, "int8")
    with pytest.raises(ValueError, match="already"):
        quantize(transformer, "fp8")
    tuned = build().transformer
    tuned.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match="fused"):
        quantize(tuned, "fp8")
    assert not any(isinstance(module, ByteLinear) for module in tuned.modules())
