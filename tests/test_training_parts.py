"""Training must train what runs: whole clips, whole sequences, and the optimizer."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.memory import MemoryPolicy, MemRoPE, Sliding, parse_memory
from longtake.pocket.first.world import render, sample_scenes
from longtake.pocket.model import build_vae
from longtake.rope import Rope
from longtake.training.clip_vae import decode_clip, encode_clip
from longtake.training.denoiser import MEMORIES
from longtake.training.optim import MuonAdam, orthogonalise
from longtake.training.sequence import Plan, attending_sequences, lay_out, plan_sequence
from tests.helpers_training import draw

# The autoencoder on whole clips


def small_vae(temporal: list[bool], patch: int | None) -> AutoencoderKLWan:
    torch.manual_seed(0)
    channels = 3 if patch is None else 3 * patch**2
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2] if len(temporal) == 2 else [1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=temporal,
        patch_size=patch,
        in_channels=channels,
        out_channels=channels,
        scale_factor_temporal=2 ** sum(temporal),
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return vae.eval()


@pytest.mark.parametrize("clip", [5, 9, 13, 25])
@pytest.mark.parametrize(
    ("temporal", "patch"), [([True, True], 2), ([False, True], 2), ([True, False], 2), ([False, True, True], None)]
)
@torch.no_grad()
def test_whole_clips_equal_latent_by_latent(temporal: list[bool], patch: int | None, clip: int) -> None:
    vae = small_vae(temporal, patch)
    video = torch.rand(2, 3, clip, 16, 24) * 2 - 1
    expected = vae.encode(video).latent_dist
    mean, logvar = encode_clip(vae, video)
    assert mean.shape[2] == 1 + (clip - 1) // 2 ** sum(temporal)
    assert mean.std() > 1e-3
    assert torch.allclose(mean, expected.mean, atol=1e-5)
    assert torch.allclose(logvar, expected.logvar, atol=1e-5)
    latents = torch.randn(mean.shape)
    decoded = decode_clip(vae, latents)
    assert decoded.shape == video.shape
    assert torch.allclose(decoded.clamp(-1, 1), vae.decode(latents).sample, atol=1e-5)


@torch.no_grad()
def test_the_pocket_autoencoder_on_clips() -> None:
    vae = build_vae().eval()
    video = render(sample_scenes(1, 3), torch.arange(13))[0].transpose(1, 2) * 2 - 1
    mean = encode_clip(vae, video)[0]
    assert mean.shape == (1, 16, 4, 8, 8)
    assert torch.allclose(mean, vae.encode(video).latent_dist.mean, atol=1e-5)
    assert torch.allclose(decode_clip(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-5)
    # a single frame is the first of any clip
    one = decode_clip(vae, mean[:, :, :1])
    assert torch.allclose(one, decode_clip(vae, mean)[:, :, :1], atol=1e-5)


# Teacher forcing through the memories

LENGTH = 9  # chunks
HEIGHT, WIDTH = 4, 6


def model(layers: int = 2) -> WanTransformer3DModel:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
    )
    for p in transformer.parameters():  # strong attention: small weights would hide a wrong slot
        if p.ndim == 2:
            p.data.mul_(2)
    return transformer.eval()


@torch.no_grad()
def cached(
    transformer: Any,
    policy: MemoryPolicy,
    clean: Tensor,
    noisy: dict[int, Tensor],
    sigma: dict[int, float],
    text: Tensor,
) -> dict[int, Tensor]:
    """Inference: clean chunks ``[chunks, channels, 3, ...]`` committed one by one, noisy ones answered before that."""
    memory = memory_for(transformer, policy, HEIGHT, WIDTH)
    flows = {}
    for index, chunk in enumerate(clean):
        memory.change_prompt()
        memory.begin_chunk()
        prompt = text[index][None]
        with attending(transformer, memory):
            if index in noisy:
                t = torch.tensor([1000 * sigma[index]])
                flows[index] = transformer(noisy[index][None], t, prompt, return_dict=False)[0][0]
            with memory.recording():
                transformer(chunk[None], torch.zeros(1), prompt, return_dict=False)
    return flows


@torch.no_grad()
def forced(
    transformer: Any,
    plans: list[Plan],
    clean: list[Tensor],
    noisy: list[dict[int, Tensor]],
    sigmas: list[dict[int, float]],
    texts: list[Tensor],
    known: int,
    solo: list[tuple[Tensor, float, Tensor]],
) -> tuple[list[dict[int, Tensor]], list[Tensor]]:
    """The same as training does it: everything in one forward, ``known`` clean chunks beside the noisy ones."""
    targets = [sorted(n) for n in noisy]
    layout = lay_out(plans, targets, known, len(solo))
    inputs: list[Tensor] = []
    times: list[float] = []
    prompts: list[Tensor] = []
    for chunks, chosen, noise, sigma, text in zip(clean, targets, noisy, sigmas, texts, strict=True):
        inputs += [*chunks[:known], *(noise[j] for j in chosen)]
        times += [0.0] * known + [1000 * sigma[j] for j in chosen]
        prompts += [*text[:known], *(text[j] for j in chosen)]
    for x, sigma_alone, prompt in solo:
        inputs.append(x)
        times.append(1000 * sigma_alone)
        prompts.append(prompt)
    before = [block.attn1.processor for block in transformer.blocks]
    with attending_sequences(transformer, layout, Rope(12, (HEIGHT // 2, WIDTH // 2))):
        out = transformer(torch.stack(inputs), torch.tensor(times), torch.stack(prompts), return_dict=False)[0]
    assert [block.attn1.processor for block in transformer.blocks] == before
    flows, start = [], 0
    for chosen in targets:
        flows.append({j: out[start + known + i] for i, j in enumerate(chosen)})
        start += known + len(chosen)
    return flows, list(out[start:])


def material(seed: int, targets: list[int], chunks: int = LENGTH) -> tuple[Any, ...]:
    """Clean chunks, noisy ones, their noise levels, and a prompt for every chunk."""
    clean = draw(seed, chunks, 4, 3, HEIGHT, WIDTH)
    noisy = {j: draw(seed + 100 + j, 4, 3, HEIGHT, WIDTH) for j in targets}
    return clean, noisy, {j: 0.2 + 0.08 * j for j in targets}, draw(seed + 50, chunks, 5, 8)


@pytest.mark.parametrize(
    "spec",
    [
        *MEMORIES,
        "memrope:first_eviction=released",
        "memrope:sink=1,recent=2,long=0.3,short=0.6,pooling=position",
        "memrope:sink=0,recent=1,long=0.2,short=0.5",
        "sliding:window=7,sink=2,ids=relative",
        "infinity-rope",
    ],
)
def test_a_training_forward_equals_cached_inference(spec: str) -> None:
    """Every chunk but the first as a target: before the memory is full, at the first eviction, and after."""
    transformer, policy = model(), parse_memory(spec)
    clean, noisy, sigma, text = material(1, list(range(1, LENGTH)))
    expected = cached(transformer, policy, clean, noisy, sigma, text)
    plan = plan_sequence(policy, range(LENGTH))
    (flows,), _ = forced(transformer, [plan], [clean], [noisy], [sigma], [text], LENGTH - 1, [])
    for j in noisy:
        assert expected[j].std() > 0.1
        assert torch.allclose(flows[j], expected[j], atol=1e-4), j
    # what is compared depends on the memory
    forgetful = cached(transformer, Sliding(3, 0), clean, noisy, sigma, text)
    assert all((forgetful[j] - expected[j]).abs().max() > 0.01 for j in noisy)


def test_sequences_with_different_memories_and_first_chunks_beside() -> None:
    """One batch as training lays it out: elements must not see one another."""
    transformer = model()
    policies = [parse_memory(m) for m in (*MEMORIES, MEMORIES[0])]
    chosen = [[1, 2, 6], [3, 7, 8], [4, 5, 8]]
    parts = [material(10 * i, t) for i, t in enumerate(chosen)]
    solo = [(draw(90 + i, 4, 3, HEIGHT, WIDTH), 0.9 - 0.3 * i, draw(95 + i, 5, 8)) for i in range(2)]
    plans = [plan_sequence(p, range(LENGTH)) for p in policies]
    clean, noisy, sigmas, texts = ([part[i] for part in parts] for i in range(4))
    flows, alone = forced(transformer, plans, clean, noisy, sigmas, texts, LENGTH - 1, solo)
    for policy, part, found in zip(policies, parts, flows, strict=True):
        expected = cached(transformer, policy, *part)
        assert list(found) == list(expected)
        assert all(torch.allclose(found[j], expected[j], atol=1e-4) for j in found)
    for (x, sigma, prompt), single in zip(solo, alone, strict=True):
        with torch.no_grad():  # the stock model, without any memory
            t = torch.tensor([1000 * sigma])
            expected_alone = transformer(x[None], t, prompt[None], return_dict=False)[0][0]
        assert torch.allclose(single, expected_alone, atol=1e-4)


def test_sequences_from_late_in_a_take() -> None:
    """Chunks 1 to 19 left out: a window has forgotten them. One layer, as deeper keys still know what they saw."""
    transformer, policy = model(layers=1), parse_memory(MEMORIES[1])
    timeline = [0, *range(20, 25)]
    clean, noisy, sigma, text = material(4, [22, 23, 24], chunks=25)
    expected = cached(transformer, policy, clean, noisy, sigma, text)
    plan = plan_sequence(policy, timeline)
    rows = {timeline.index(j): j for j in noisy}
    (flows,), _ = forced(
        transformer,
        [plan],
        [clean[timeline]],
        [{r: noisy[j] for r, j in rows.items()}],
        [{r: sigma[j] for r, j in rows.items()}],
        [text[timeline]],
        5,
        [],
    )
    for r, j in rows.items():
        assert torch.allclose(flows[r], expected[j], atol=1e-4)


@pytest.mark.parametrize("spec", [*MEMORIES, "memrope:recent=1,long=0.5,short=0.9", "infinity-rope"])
@pytest.mark.parametrize("timeline", [list(range(12)), [0, *range(40, 47)]])
def test_every_slot_of_a_plan_is_an_average(spec: str, timeline: list[int]) -> None:
    policy = parse_memory(spec)
    plan = plan_sequence(policy, timeline)
    assert plan.weights.shape == (len(timeline), policy.capacity(3) - 3, 3 * len(timeline))
    assert plan.weights.min() >= 0
    sums = plan.weights.sum(-1)
    assert torch.all(((sums - 1).abs() < 1e-5) | (sums == 0))
    for row in range(len(timeline)):
        assert plan.weights[row, :, 3 * row :].sum() == 0  # nothing of itself or of what comes
    if timeline[-1] == len(timeline) - 1:
        used = [min(3 * row, policy.capacity(3) - 3) for row in range(len(timeline))]
        assert (sums > 0).sum(-1).tolist() == used
        assert plan.own.tolist() == [[u, u + 1, u + 2] for u in used]


def test_the_plan_of_memrope_in_closed_form() -> None:
    rates = {"long": 0.01, "short": 0.1}
    plan = plan_sequence(MemRoPE(), range(14))
    for row in range(14):
        expected = torch.zeros(9, 42)
        if row < 4:  # all fits
            for i in range(3 * row):
                expected[i, i] = 1
        else:
            expected[[0, 1, 2], [0, 1, 2]] = 1
            for slot, rate in zip((3, 4), rates.values(), strict=True):
                expected[slot, 3:8] = (1 - rate) ** (row - 4) / 5
                for group in range(1, row - 3):
                    first = 8 + 3 * (group - 1)
                    expected[slot, first : first + 3] = rate * (1 - rate) ** (row - 4 - group) / 3
            for i in range(4):
                expected[5 + i, 3 * row - 4 + i] = 1
        assert torch.allclose(plan.weights[row], expected, atol=1e-6)
        assert plan.pooled[row].tolist() == ([0] * 3 + [1, 1] + [0] * 4 if row >= 4 else [0] * 9)
        slots = min(3 * row, 9)
        assert plan.ids[row, :slots].tolist() == list(range(slots))


def test_what_teacher_forcing_cannot_do_is_refused() -> None:
    for policy in (parse_memory("longlive"), MemRoPE(adaptive=True), MemRoPE(ids="absolute")):
        with pytest.raises(ValueError):
            plan_sequence(policy, range(5))


# The optimizer


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 90)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_orthogonalise(shape: tuple[int, int], size: float) -> None:
    """Singular values go near one, singular vectors stay."""
    rank = min(shape)
    u, v = (torch.linalg.qr(draw(i, side, rank))[0] for i, side in enumerate(shape))
    matrix = size * (u * torch.linspace(1.0, 0.1, rank)) @ v.T
    out = orthogonalise(matrix)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.6 and values.max() < 1.3
    turned = u.T @ out @ v
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.1
    assert turned.diagonal().min() > 0.6


def test_the_adam_part_is_adam() -> None:
    start = [draw(1, 7), draw(2, 1, 9), draw(3, 5, 1), draw(4)]  # vectors, matrices of rank one, a number
    mine, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    one = MuonAdam(mine, lr=9.0, adam_lr=0.03)
    other = torch.optim.Adam(theirs, lr=0.03, betas=(0.9, 0.99), eps=1e-8)
    for step in range(25):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            a.grad = draw(100 * step + i, *a.shape) * 0.1**i
            b.grad = a.grad.clone()
        one.step()
        other.step()
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, theirs, strict=True))
    assert all(not torch.equal(a, x) for a, x in zip(mine, start, strict=True))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (8, 4, 3, 3, 3)])
def test_the_muon_part(shape: tuple[int, ...]) -> None:
    """Steps against the gradient of the same size whatever the shape and the scale of the gradient."""
    p = torch.nn.Parameter(draw(0, *shape))
    optimizer = MuonAdam([p], lr=0.5, adam_lr=9.0, weight_decay=0.1)
    before, gradient = p.detach().clone(), draw(1, *shape)
    p.grad = 1e-3 * gradient
    optimizer.step()
    step = before * (1 - 0.5 * 0.1) - p.detach()
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=0.25)
    u, _, vh = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(step.flatten(), (u @ vh).flatten(), dim=0)
    assert cosine > 0.95


def test_rates_are_scaled_from_where_they_began() -> None:
    optimizer = MuonAdam([torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))], 0.5, 0.25)
    for factor in (0.1, 0.5, 1.0):
        optimizer.scale_lr(factor)
        assert [g["lr"] for g in optimizer.param_groups] == [0.5 * factor, 0.25 * factor]
