"""The processors on diffusers' own transformer: what they leave alone, and what a chunked run must equal."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from longtake.attention import attending, install, memory_for
from longtake.memory import Memory, MemoryPolicy, MemRoPE, Sliding

HEIGHT, WIDTH = 4, 6


def build(**changes: Any) -> WanTransformer3DModel:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
    sizes |= {"freq_dim": 16, "ffn_dim": 32, "num_layers": 2, **changes}
    model = WanTransformer3DModel(**sizes).eval()
    for parameter in model.parameters():  # strong attention: small weights would hide a wrong id
        if parameter.ndim == 2:
            parameter.data.mul_(2)
    return model


@pytest.fixture
def model() -> Iterator[WanTransformer3DModel]:
    with torch.no_grad():
        yield build()


def latents(frames: int, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(batch, 4, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def text(seed: int = 2, batch: int = 1) -> Tensor:
    return torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(seed))


def forward(model: Any, x: Tensor, prompt: Tensor, t: float = 0.0) -> Tensor:
    out: Tensor = model(x, torch.full((x.shape[0],), t), prompt, return_dict=False)[0]
    return out


def commit(model: Any, memory: Memory, x: Tensor, prompt: Tensor) -> Tensor:
    memory.begin_chunk()
    with attending(model, memory), memory.recording():
        return forward(model, x, prompt)


def run(model: Any, policy: MemoryPolicy, x: Tensor, chunk: int = 3, **options: Any) -> Tensor:
    memory = memory_for(model, policy, HEIGHT, WIDTH, batch=x.shape[0], chunk=chunk, **options)
    prompt = text(batch=x.shape[0])
    return torch.cat([commit(model, memory, part, prompt) for part in x.split(chunk, dim=2)], dim=2)


def test_without_a_memory_nothing_changes(model: WanTransformer3DModel) -> None:
    x = latents(5)
    before = forward(model, x, text(), 500)
    install(model)
    install(model)
    assert torch.equal(forward(model, x, text(), 500), before)
    memory = memory_for(model, Sliding(), HEIGHT, WIDTH)
    commit(model, memory, latents(3), text())
    assert torch.equal(forward(model, x, text(), 500), before)


def test_the_first_chunk_is_a_stock_forward(model: WanTransformer3DModel) -> None:
    x = latents(3)
    before = forward(model, x, text(), 500)
    memory = memory_for(model, MemRoPE(), HEIGHT, WIDTH)
    memory.begin_chunk()
    with attending(model, memory):
        for _ in range(2):
            assert torch.allclose(forward(model, x, text(), 500), before, atol=1e-5)


class BlockCausal(WanAttnProcessor):  # type: ignore[misc]
    """Stock attention where a frame sees all frames up to the end of its chunk, and at most ``window`` back."""

    def __init__(self, chunk: int, window: int) -> None:
        super().__init__()
        self.chunk, self.window = chunk, window

    def __call__(self, attn: Any, hidden: Tensor, encoder: Any = None, mask: Any = None, rotary: Any = None) -> Tensor:
        if rotary is not None:
            frame = torch.arange(hidden.shape[1]) // (HEIGHT * WIDTH // 4)
            end = (frame // self.chunk + 1) * self.chunk
            mask = (frame[None] < end[:, None]) & (frame[None] >= end[:, None] - self.window)
        out: Tensor = super().__call__(attn, hidden, encoder, mask, rotary)
        return out


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
@pytest.mark.parametrize("ids", ["absolute", "relative"])
def test_chunks_equal_one_masked_forward(model: WanTransformer3DModel, chunk: int, ids: str) -> None:
    x = latents(12, batch=2)
    chunked = run(model, Sliding(30, 2, ids), x, chunk)
    model.set_attn_processor(BlockCausal(chunk, 99))
    assert torch.allclose(chunked, forward(model, x, text(batch=2)), atol=3e-5)


@pytest.mark.parametrize(("window", "layers"), [(7, 1), (9, 1)])
def test_a_sliding_window_equals_a_banded_mask(window: int, layers: int) -> None:
    # One layer: deeper, a cached key remembers frames that the mask has cut off by then, in both alike only if
    # the window slides by whole chunks.
    with torch.no_grad():
        model, x = build(num_layers=layers), latents(15)
        chunked = {ids: run(model, Sliding(window, 0, ids), x) for ids in ("absolute", "relative")}
        model.set_attn_processor(BlockCausal(3, window))
        expected = forward(model, x, text())
    assert torch.allclose(chunked["absolute"], expected, atol=3e-5)
    assert torch.allclose(chunked["relative"], expected, atol=3e-5)


def test_ids_are_only_differences_without_a_sink(model: WanTransformer3DModel) -> None:
    x = latents(24)
    absolute, relative = (run(model, Sliding(9, 0, ids), x) for ids in ("absolute", "relative"))
    assert torch.allclose(absolute, relative, atol=1e-4)
    absolute, relative = (run(model, Sliding(9, 3, ids), x) for ids in ("absolute", "relative"))
    assert not torch.allclose(absolute, relative, atol=1e-2)


def test_takes_side_by_side_do_not_mix(model: WanTransformer3DModel) -> None:
    x = latents(18, batch=2)
    both = run(model, MemRoPE(adaptive=True), x)
    memory = memory_for(model, MemRoPE(adaptive=True), HEIGHT, WIDTH)
    alone = [commit(model, memory, part, text(batch=2)[1:]) for part in x[1:].split(3, dim=2)]
    assert torch.allclose(both[1:], torch.cat(alone, dim=2), atol=1e-5)


def test_two_takes_share_a_transformer(model: WanTransformer3DModel) -> None:
    x, y = latents(15, seed=3), latents(15, seed=4)
    expected = run(model, MemRoPE(1, 2), x)
    one = memory_for(model, MemRoPE(1, 2), HEIGHT, WIDTH)
    other = memory_for(model, Sliding(9, 3), HEIGHT, WIDTH)
    outputs = []
    for part, noise in zip(x.split(3, dim=2), y.split(3, dim=2), strict=True):
        one.begin_chunk()
        with attending(model, one), one.recording():
            commit(model, other, noise, text(9))  # nested: the outer memory is bound again afterwards
            outputs.append(forward(model, part, text()))
    assert torch.equal(torch.cat(outputs, dim=2), expected)


def test_the_prompt_is_computed_once(model: WanTransformer3DModel) -> None:
    memory = memory_for(model, Sliding(), HEIGHT, WIDTH)
    x, calls = latents(3), []
    model.blocks[1].attn2.to_k.register_forward_hook(lambda *_: calls.append(1))
    memory.begin_chunk()
    with attending(model, memory):
        first = [forward(model, x, text(), t) for t in (1000, 500)]
        assert len(calls) == 1
        memory.change_prompt()
        second = [forward(model, x, text(3), t) for t in (1000, 500)]
    assert len(calls) == 2
    assert torch.allclose(first[1], forward(model, x, text(), 500), atol=1e-5)
    assert torch.allclose(second[1], forward(model, x, text(3), 500), atol=1e-5)


def test_recaching_by_rewinding(model: WanTransformer3DModel) -> None:
    """Clean latents re-run under a new prompt leave the memory that this prompt would have made."""
    x = latents(12)
    changed, fresh = (memory_for(model, Sliding(15, 3), HEIGHT, WIDTH) for _ in range(2))
    for part in x.split(3, dim=2):
        commit(model, changed, part, text())
        commit(model, fresh, part, text(3))
    changed.change_prompt()
    changed.rewind(12)
    for part in x.split(3, dim=2):
        commit(model, changed, part, text(3))
    assert torch.equal(changed.keys, fresh.keys)
    assert torch.equal(changed.values, fresh.values)


def test_fused_projections(model: WanTransformer3DModel) -> None:
    x = latents(12)
    expected = run(model, MemRoPE(1, 2), x)
    for block in model.blocks:
        block.attn1.fuse_projections()
        block.attn2.fuse_projections()
    assert torch.allclose(run(model, MemRoPE(1, 2), x), expected, atol=1e-5)


def test_image_conditioned_cross_attention_is_left_to_diffusers() -> None:
    with torch.no_grad():
        model = build(image_dim=8, added_kv_proj_dim=24)
        memory = memory_for(model, MemRoPE(), HEIGHT, WIDTH)
        arguments = {"timestep": torch.zeros(1), "encoder_hidden_states": torch.randn(1, 512, 8)}
        arguments |= {"encoder_hidden_states_image": torch.randn(1, 7, 8), "hidden_states": latents(3)}
        expected = model(**arguments).sample
        memory.begin_chunk()
        with attending(model, memory):
            assert torch.allclose(model(**arguments).sample, expected, atol=1e-5)


def test_bfloat16_and_inference_mode() -> None:
    model = build().bfloat16()
    memory = memory_for(model, MemRoPE(1, 1), HEIGHT, WIDTH)
    for index in range(5):
        x = latents(3, seed=index).bfloat16()
        mode = torch.inference_mode() if index % 2 else torch.no_grad()
        with mode:
            out = commit(model, memory, x, text().bfloat16())
        assert out.dtype == memory.keys.dtype == torch.bfloat16
        assert out.isfinite().all()
    assert memory.averages[-2][0].dtype == torch.float32


def test_training_needs_a_functional_memory() -> None:
    model, x = build(), latents(3)
    memory = memory_for(model, MemRoPE(), HEIGHT, WIDTH)
    memory.begin_chunk()
    with attending(model, memory), pytest.raises(RuntimeError, match="make it functional"):
        forward(model, x, text())


def test_gradients_through_a_whole_take() -> None:
    """Commits and forwards under autograd: gradients equal those of one masked forward over the whole sequence."""
    model, x = build(), latents(9)
    weight = model.blocks[0].attn1.to_k.weight
    out = run(model, Sliding(9), x, functional=True)
    out.square().mean().backward()
    gradient = weight.grad.clone()
    model.zero_grad()
    model.set_attn_processor(BlockCausal(3, 99))
    forward(model, x, text()).square().mean().backward()
    assert gradient.abs().max() > 1e-6
    assert torch.allclose(gradient, weight.grad, atol=1e-6, rtol=1e-3)


def test_gradients_of_one_chunk_over_a_fixed_past() -> None:
    model = build()
    memory = memory_for(model, MemRoPE(1, 1), HEIGHT, WIDTH, functional=True)
    for index in range(5):
        x = latents(3, seed=index).requires_grad_()
        memory.begin_chunk()
        with attending(model, memory):
            forward(model, x, text(), 500).square().mean().backward()
            with torch.no_grad(), memory.recording():
                forward(model, x.detach(), text())
        assert x.grad is not None
        assert x.grad.abs().max() > 0
        assert not memory.keys.requires_grad
    assert model.blocks[0].attn2.to_k.weight.grad.abs().max() > 0


def test_sizes_that_do_not_match_are_refused(model: WanTransformer3DModel) -> None:
    with pytest.raises(ValueError, match="do not divide into patches"):
        memory_for(model, MemRoPE(), 5, 6)
    memory = memory_for(model, MemRoPE(), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="2 layers, the transformer 1"), attending(build(num_layers=1), memory):
        pass
    memory.begin_chunk()
    with attending(model, memory), pytest.raises(ValueError, match="takes keys"):
        forward(model, latents(2), text())
