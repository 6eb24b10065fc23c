"""Chunk-causal training forwards: against attention by hand, against inference, and what may depend on what."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.memory import Memory, MemRoPE, Sliding, parse_memory
from longtake.training.causal import Layout, causal_layout, causal_plan, masked_plan, plan_for
from longtake.training.causal_attention import attend, attending_causal
from longtake.training.sequence import Plan, plan_sequence
from tests.helpers_causal import GRID, HEIGHT, WIDTH, ByHand, Key, cached, model
from tests.helpers_training import draw


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chunks(seed: int, count: int, chunk: int = 3) -> Tensor:
    return draw(seed, count, 4, chunk, HEIGHT, WIDTH)


def run(
    transformer: Any, layout: Layout, clean: Tensor, noisy: Tensor, sigma: Tensor, text: Tensor, **options: Any
) -> Tensor:
    """Outputs of all elements. Chunks, levels and texts of all sequences one after the other, ``text`` by chunk."""
    counts = {s: max(c for t, c in layout.elements if t == s) + 1 for s, _ in layout.elements}
    rows = layout.rows([counts[s] for s in sorted(counts)])
    x = torch.cat([clean[rows[: layout.clean]], noisy[rows[layout.clean :]]])
    t = 1000 * torch.cat([torch.zeros(layout.clean), sigma[rows[layout.clean :]]])
    with attending_causal(transformer, layout, GRID, texts=rows.tolist(), **options):
        out: Tensor = transformer(x, t, text, return_dict=False)[0]
    return out


# Against attention by hand


def by_hand(
    transformer: Any, plan: Plan, forcing: str, clean: Tensor, noisy: Tensor, sigma: Tensor, text: Tensor
) -> Any:
    """Every chunk run alone; ``plan`` holds one frame per slot."""
    alone, layers = ByHand(transformer), len(transformer.blocks)
    past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]  # frames that can be seen
    flows = []
    for c in range(len(noisy)):
        keys: list[list[Key]] = [[] for _ in range(layers)]
        for slot, weight in enumerate(plan.weights[c]):
            for frame in weight.nonzero().flatten().tolist():
                for layer in range(layers):
                    keys[layer].append((*past[layer][frame], int(plan.ids[c, slot])))
        own = plan.own[c].tolist()
        flow, kept = alone(noisy[c], float(sigma[c]), text[c], own, keys)
        flows.append(flow)
        if forcing == "teacher":
            _, kept = alone(clean[c], 0.0, text[c], own, keys)
        for layer, (k, v) in enumerate(kept):
            past[layer] += list(zip(k, v, strict=True))
    return torch.stack(flows)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["teacher", "diffusion"]), st.sampled_from([1, 2, 3]))
def test_random_masks_equal_attention_by_hand(seed: int, forcing: str, chunk: int) -> None:
    count = 4
    g = torch.Generator().manual_seed(seed)
    earlier = torch.arange(count * chunk) < chunk * torch.arange(count)[:, None]
    sees = earlier & (torch.rand(count, count * chunk, generator=g) < 0.6)
    ids = torch.randint(0, 30, (count, count * chunk), generator=g)
    own = torch.randint(0, 30, (count, chunk), generator=g)
    plan = masked_plan(sees, ids, own)
    transformer = model()
    clean, noisy = chunks(seed + 1, count, chunk), chunks(seed + 2, count, chunk)
    sigma, text = torch.rand(count, generator=g), draw(seed + 3, count, 5, 8)
    expected = by_hand(transformer, plan, forcing, clean, noisy, sigma, text)
    layout = causal_layout([plan], forcing=forcing)
    with torch.no_grad():
        out = run(transformer, layout, clean, noisy, sigma, text)[layout.clean :]
    assert expected.std() > 0.1
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("forcing", ["teacher", "diffusion"])
@pytest.mark.parametrize("kernel", ["plain", "fused"])
def test_sequences_with_windows_sinks_and_lengths_of_their_own(forcing: str, kernel: str) -> None:
    """One batch: elements must not see one another."""
    transformer = model()
    plans = [
        causal_plan(range(5)),
        causal_plan(range(4), window=7, sink=1, ids="relative"),
        causal_plan([0, 10, 11], window=6, sink=2),
        causal_plan([0]),
    ]
    clean, noisy, text = chunks(1, 13), chunks(2, 13), draw(3, 13, 5, 8)
    sigma = torch.linspace(0.1, 1, 13)
    layout = causal_layout(plans, forcing=forcing)
    with torch.no_grad():
        out = run(transformer, layout, clean, noisy, sigma, text, kernel=kernel)[layout.clean :]
    assert layout.targets == tuple((s, c) for s, n in enumerate((5, 4, 3, 1)) for c in range(n))
    start = 0
    for plan in plans:
        part = slice(start, start + len(plan.own))
        expected = by_hand(transformer, plan, forcing, *(x[part] for x in (clean, noisy, sigma, text)))
        assert torch.allclose(out[part], expected, atol=1e-5)
        start = part.stop


# Against inference


@pytest.mark.parametrize(
    "spec",
    [
        "memrope",
        "memrope:sink=1,recent=2,long=0.3,short=0.6,pooling=position",
        "sliding:window=12,sink=3,ids=relative",
        "sliding:window=7,sink=2,ids=relative",
        "longlive",
        "self-forcing",
        "infinity-rope",
    ],
)
def test_noisy_chunks_equal_what_inference_computes(spec: str) -> None:
    policy, transformer, count = parse_memory(spec), model(), 8
    clean, noisy, text = chunks(1, count), chunks(2, count), draw(3, count, 5, 8)
    sigma = torch.linspace(1.0, 0.2, count)
    expected = cached(transformer, policy, clean, noisy, sigma, text)
    layout = causal_layout([plan_for(policy, range(count))])
    with torch.no_grad():
        out = run(transformer, layout, clean, noisy, sigma, text)[layout.clean :]
    assert torch.allclose(out, expected, atol=1e-5)
    forgetful = cached(transformer, Sliding(3, 0), clean, noisy, sigma, text)
    assert (forgetful - expected)[1:].abs().amax((1, 2, 3, 4)).min() > 0.01  # what is compared depends on the past


def test_plain_causal_attention_is_inference_that_forgets_nothing() -> None:
    transformer, count = model(), 5
    clean, noisy, text = chunks(1, count), chunks(2, count), draw(3, count, 5, 8)
    sigma = torch.full((count,), 0.5)
    expected = cached(transformer, Sliding(100, 0), clean, noisy, sigma, text)
    layout = causal_layout([plan_for(None, range(count))])
    with torch.no_grad():
        out = run(transformer, layout, clean, noisy, sigma, text)[layout.clean :]
    assert torch.allclose(out, expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 9), st.sets(st.integers(0, 14), min_size=1, max_size=7))
def test_windows_are_those_of_the_policy_itself(chunk: int, sink: int, more: int, steps: set[int]) -> None:
    """``plan_sequence`` runs the policy in a real memory; the closed form must agree, slot by slot in order of time."""
    policy, timeline = Sliding(sink + chunk + more, sink, "relative"), sorted(steps)
    plan = causal_plan(timeline, chunk, policy.window, policy.sink, "relative")
    ran = plan_sequence(policy, timeline, chunk)
    assert torch.equal(plan.own, ran.own)
    for row in range(len(timeline)):
        expected = {int(w.argmax()): int(i) for w, i in zip(ran.weights[row], ran.ids[row], strict=True) if w.sum() > 0}
        found = {int(w.argmax()): int(i) for w, i in zip(plan.weights[row], plan.ids[row], strict=True) if w.sum() > 0}
        assert found == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 6), st.integers(1, 14))
def test_unified_ids_are_those_of_the_policy_itself(chunk: int, sink: int, more: int, spare: int, count: int) -> None:
    policy = Sliding(sink + chunk + more, sink, "unified", sink + chunk + more - 1 + spare)
    plan = plan_for(policy, range(count), chunk)
    memory = Memory(policy, num_layers=1, heads=1, head_dim=6, grid=(1, 1), chunk=chunk)
    for row in range(count):
        memory.begin_chunk()
        places = memory.layout()
        assert plan.own[row].tolist() == [p.id for p in places if p.role == "current"]
        found = {int(w.argmax()): int(i) for w, i in zip(plan.weights[row], plan.ids[row], strict=True) if w.sum() > 0}
        assert found == {p.frame: p.id for p in places if p.role != "current"}
        with memory.recording():
            memory.update(0, *torch.zeros(2, 1, chunk, 1, 6))


# Gradients


@pytest.mark.parametrize("forcing", ["teacher", "diffusion"])
def test_checkpointed_losses_and_gradients_are_the_same(forcing: str) -> None:
    """Backward after the context, and after another forward with another layout, as training does it."""
    count = 6
    plans = [plan_for(MemRoPE(1, 2), range(count)), plan_for(Sliding(6, 1, "relative"), range(count))]
    layout = causal_layout(plans, forcing=forcing)
    clean, noisy, text = chunks(1, 2 * count), chunks(2, 2 * count), draw(3, 2 * count, 5, 8)
    sigma = torch.linspace(0.1, 1, 2 * count)
    found = []
    for checkpointed in (False, True):
        transformer = model()
        if checkpointed:
            transformer.enable_gradient_checkpointing()
        out = run(transformer, layout, clean, noisy, sigma, text)
        with torch.no_grad():
            run(transformer, causal_layout([plan_for(None, range(2))]), clean, noisy, sigma, text)
        loss = (out[layout.clean :] - noisy).square().mean()
        loss.backward()
        found.append((loss, {name: p.grad for name, p in transformer.named_parameters()}))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        other = found[1][1][name]
        assert other is not None
        assert torch.allclose(gradient, other, rtol=1e-5, atol=1e-8), name


def test_gradients_against_finite_differences() -> None:
    """Through the sums of a memory, the text and both copies (parts of the model stay float32)."""
    transformer = model(1).double()
    plan = plan_for(MemRoPE(1, 1, 0.3, 0.6), range(4), 1)
    layout = causal_layout([plan])
    clean, noisy, text = (x.double() for x in (chunks(1, 4, 1), chunks(2, 4, 1), draw(3, 4, 2, 8)))
    sigma = torch.linspace(0.2, 1, 4, dtype=torch.float64)

    def loss(clean: Tensor, noisy: Tensor, text: Tensor) -> Tensor:
        return run(transformer, layout, clean, noisy, sigma, text)[layout.clean :].square().sum()

    inputs = [x.requires_grad_() for x in (clean, noisy, text)]
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    with torch.no_grad():
        for i, gradient in enumerate(gradients):
            direction = draw(9 + i, *gradient.shape).double()
            ends = [loss(*(x + s * 1e-2 * direction if j == i else x for j, x in enumerate(inputs))) for s in (1, -1)]
            slope = float(ends[0] - ends[1]) / 2e-2
            assert float((gradient * direction).sum()) == pytest.approx(slope, rel=5e-3)


# What depends on what


@pytest.mark.parametrize("spec", ["causal", "memrope:sink=1,recent=2", "sliding:window=5,sink=1,ids=relative"])
@pytest.mark.parametrize("forcing", ["teacher", "diffusion"])
def test_nothing_comes_from_later_or_from_noisy_copies(spec: str, forcing: str) -> None:
    transformer, count = model(), 5
    plan = plan_for(None if spec == "causal" else parse_memory(spec), range(count))
    layout = causal_layout([plan], forcing=forcing)
    clean, noisy, text = chunks(1, count), chunks(2, count), draw(3, count, 5, 8)
    sigma = torch.full((count,), 0.7)

    def outputs(clean: Tensor, noisy: Tensor) -> Tensor:
        with torch.no_grad():
            return run(transformer, layout, clean, noisy, sigma, text)[layout.clean :]

    before = outputs(clean, noisy)
    for changed in range(count):
        other = noisy.clone()
        other[changed] += 1
        moved = (outputs(clean, other) != before).flatten(1).any(1).tolist()
        if forcing == "teacher":  # a noisy chunk influences itself alone
            assert moved == [c == changed for c in range(count)]
            dirty = clean.clone()
            dirty[changed] += 1
            moved = (outputs(dirty, noisy) != before).flatten(1).any(1).tolist()
            reached, first = moved, changed + 1
        else:
            reached, first = moved, changed
        assert not any(reached[:first])
        # a window hands on what it saw by one chunk per layer; without one everything later is reached
        assert all(reached[first : count if spec == "causal" else first + 1])


def test_targets_can_be_some_of_the_chunks() -> None:
    transformer, count = model(), 6
    plans = [plan_for(MemRoPE(1, 2), range(count)), plan_for(None, range(count))]
    clean, noisy, text = chunks(1, 2 * count), chunks(2, 2 * count), draw(3, 2 * count, 5, 8)
    sigma = torch.linspace(0.1, 1, 2 * count)
    whole, part = causal_layout(plans), causal_layout(plans, [[5], [1, 3]])
    assert (len(whole), len(part)) == (4 * count - 2, 5 + 1 + 3 + 2)
    rows = part.rows(count)
    x = torch.cat([clean[rows[: part.clean]], noisy[rows[part.clean :]]])
    t = 1000 * torch.cat([torch.zeros(part.clean), sigma[rows[part.clean :]]])
    with torch.no_grad():
        every = run(transformer, whole, clean, noisy, sigma, text)
        with attending_causal(transformer, part, GRID):  # a text for each element
            out = transformer(x, t, text[rows], return_dict=False)[0]
    for element, place in enumerate(part.targets, part.clean):
        same = every[whole.clean + whole.targets.index(place)]
        assert torch.allclose(out[element], same, atol=1e-5)


def test_keys_of_a_text_are_computed_once() -> None:
    transformer = model()
    layout = causal_layout([plan_for(None, range(4))] * 2)
    sizes = []
    transformer.blocks[0].attn2.to_k.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    text = draw(3, 2, 5, 8)
    rows = layout.rows(4)
    x = chunks(1, 8)[rows]
    t = torch.full((len(layout),), 500.0)
    of = [s for s, _ in layout.elements]
    with torch.no_grad():
        with attending_causal(transformer, layout, GRID, of):
            shared = transformer(x, t, text, return_dict=False)[0]
        with attending_causal(transformer, layout, GRID):
            each = transformer(x, t, text[of], return_dict=False)[0]
    assert sizes == [2, len(layout)]
    assert torch.allclose(shared, each, atol=1e-5)


@pytest.mark.parametrize("spec", ["memrope", "sliding:window=12,sink=3,ids=relative", "sliding:window=12,sink=3"])
def test_a_gap_of_an_hour_is_planned_as_one_that_the_window_does_not_reach(spec: str) -> None:
    """With relative ids, where nothing else is known of it; with absolute ones the ids are those of the hour."""
    policy = parse_memory(spec)
    near, far = (plan_for(policy, (0, gap, gap + 1, gap + 2)) for gap in (40, 14_000))
    assert all(torch.equal(a, b) for a, b in zip(near.weights, far.weights, strict=True))
    same = policy.ids == "relative"
    assert torch.equal(near.ids, far.ids) is same and torch.equal(near.own, far.own) is same


def test_memory_stays_linear() -> None:
    """The largest tensor of a forward is no larger than the keys of one group: never tokens x tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, Tensor):
                    self.size = max(self.size, x.numel())
            return out

    count, side = 7, 16  # 192 tokens per chunk, 1,344 per sequence and copy
    transformer = model(1)
    layout = causal_layout([plan_for(None, range(count))])
    x = draw(1, len(layout), 4, 3, 2 * side // 2, 2 * side // 2)
    with (
        Largest() as largest,
        torch.no_grad(),
        attending_causal(transformer, layout, (8, 8), [0] * len(layout), "fused"),
    ):
        transformer(x, torch.full((len(layout),), 500.0), draw(2, 1, 5, 8), return_dict=False)
    tokens = len(layout) * 192
    assert largest.size <= 3 * tokens * 32  # the feed-forward's width or the rotated keys; tokens**2 is 20 times that
    assert largest.size < tokens**2 / 10


# Words and the outside


def test_processors_are_put_back_and_backends_kept() -> None:
    transformer = model()
    layers = [layer for block in transformer.blocks for layer in (block.attn1, block.attn2)]
    for layer in layers:
        layer.processor._attention_backend = "native"
    before = [layer.processor for layer in layers]
    layout = causal_layout([plan_for(None, range(2))])
    with pytest.raises(RuntimeError, match="stop"), attending_causal(transformer, layout, GRID):
        assert all(layer.processor._attention_backend == "native" for layer in layers)
        raise RuntimeError("stop")
    assert all(a is b.processor for a, b in zip(before, layers, strict=True))


@pytest.mark.parametrize(("keys", "batch"), [(1, 1), (70, 5), (2100, 2)])
def test_kernels_agree(keys: int, batch: int) -> None:
    q, k, v = draw(1, batch, 600, 2, 8), draw(2, batch, keys, 2, 8), draw(3, batch, keys, 2, 8)
    plain, fused, auto = (attend(q, k, v, kernel) for kernel in ("plain", "fused", "auto"))
    assert torch.allclose(plain, fused, atol=1e-5)
    assert torch.allclose(auto, fused, atol=1e-5)


def test_mistakes_are_told() -> None:
    plan, transformer = causal_plan(range(3)), model(1)
    sees = torch.zeros(2, 6, dtype=torch.bool)
    own = torch.arange(6).view(2, 3)
    with pytest.raises(ValueError, match="must be teacher or diffusion"):
        causal_layout([plan], forcing="both")
    with pytest.raises(ValueError, match="leave targets out"):
        causal_layout([plan], [[1]], "diffusion")
    for wanted in ([], [3], [1, 1], [2, 1], [-1]):
        with pytest.raises(ValueError, match="Targets are chunks from 0 to 2"):
            causal_layout([plan], [wanted])
    with pytest.raises(ValueError, match="same number of frames"):
        causal_layout([plan, causal_plan(range(3), chunk=1)])
    with pytest.raises(ValueError, match="relative ids, or shorter"):
        causal_layout([causal_plan([0, 7])], limit=21)
    causal_layout([causal_plan([0, 6]), causal_plan([0, 7], window=12, sink=3, ids="relative")], limit=21)
    with pytest.raises(ValueError, match="earlier chunks only"):
        masked_plan(sees | True, torch.arange(6), own)
    with pytest.raises(ValueError, match="takes ids"):
        masked_plan(sees, torch.arange(5), own)
    with pytest.raises(ValueError, match="absolute or relative"):
        causal_plan(range(3), ids="other")
    with pytest.raises(ValueError, match="timeline"):
        causal_plan([3, 2])
    with pytest.raises(ValueError, match="window must be at least 5"):
        causal_plan(range(3), window=4, sink=2)
    with pytest.raises(ValueError, match="relative ids, fixed rates"):
        plan_for(MemRoPE(adaptive=True), range(3))
    layout = causal_layout([plan])
    with pytest.raises(ValueError, match="kernel must be"), attending_causal(transformer, layout, GRID, kernel="x"):
        pass
    with pytest.raises(ValueError, match="one text for each"), attending_causal(transformer, layout, GRID, [0]):
        pass
    with pytest.raises(ValueError, match="has 5 elements, the batch 2"), attending_causal(transformer, layout, GRID):
        transformer(chunks(1, 2), torch.zeros(2), draw(3, 2, 5, 8))
