"""Every policy against a memory that keeps everything and computes by hand what the papers say."""

import cmath

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from longtake.memory import DeepForcing, Memory, MemoryPolicy, MemRoPE, Sliding

LAYERS, HEADS, DIM, GRID = 2, 2, 12, (2, 1)
TOKENS = GRID[0] * GRID[1]
FEW = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def make(policy: MemoryPolicy, chunk: int = 3, batch: int = 1, **options: object) -> Memory:
    return Memory(policy, num_layers=LAYERS, heads=HEADS, head_dim=DIM, grid=GRID, batch=batch, chunk=chunk, **options)  # type: ignore[arg-type]


def draw(chunk: int, batch: int, seed: int) -> Tensor:
    """Queries, keys, values of one chunk for all layers: [3, layers, batch, chunk * tokens, heads, dim]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, LAYERS, batch, chunk * TOKENS, HEADS, DIM, generator=generator)


def attend(memory: Memory, qkv: Tensor) -> Tensor:
    """One forward's attention of every layer: [layers, batch, tokens, heads, dim]."""
    outputs = []
    for layer in range(LAYERS):
        query, key, value = qkv[:, layer]
        memory.policy.observe(memory, layer, query, key)
        query, (key, value) = memory.query(query), memory.update(layer, key, value)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2).float() for x in (query, key, value)))
        outputs.append(out.transpose(1, 2))
    return torch.stack(outputs)


def step(memory: Memory, index: int, batch: int = 1) -> Tensor:
    """A whole chunk: a noisy forward and a clean one with keys and values of its own. Returns both outputs."""
    memory.begin_chunk()
    noisy = attend(memory, draw(memory.chunk, batch, 2 * index))
    with memory.recording():
        clean = attend(memory, draw(memory.chunk, batch, 2 * index + 1))
    return torch.stack([noisy, clean])


# The oracle: float64, lists of frames, complex numbers, no slots.


def turn(x: Tensor, index: int) -> Tensor:
    """Rotate one frame [layers, batch, tokens, heads, dim] by its time id, in space too."""
    phases = torch.zeros(TOKENS, 1, DIM // 2, dtype=torch.complex128)
    for token in range(TOKENS):
        angles = []
        for position, dim in ((index, 4), (token // GRID[1], 4), (token % GRID[1], 4)):
            angles += [position / 10000 ** (2 * i / dim) for i in range(dim // 2)]
        phases[token, 0] = torch.tensor([cmath.exp(1j * angle) for angle in angles])
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * phases).flatten(-2)


class Everything:
    """Keeps all frames of a take; decides anew in every chunk what the policy would show."""

    def __init__(self, policy: MemoryPolicy, chunk: int) -> None:
        self.policy, self.chunk = policy, chunk
        self.frames: list[Tensor] = []  # [2 (key, value), layers, batch, tokens, heads, dim]
        self.averages: list[Tensor] | None = None
        self.folded: list[int] = []

    def shown(self) -> list[tuple[Tensor, int | None]]:
        """Past frames with their ids (None: keys are rotated already)."""
        policy, count = self.policy, len(self.frames)
        if isinstance(policy, Sliding):
            room = policy.window - self.chunk
            if count <= room:
                kept = list(range(count))
            else:
                kept = [*range(policy.sink), *range(count - (room - policy.sink), count)]
            return [(self.frames[f], i if policy.ids == "relative" else f) for i, f in enumerate(kept)]
        assert isinstance(policy, MemRoPE)
        alone = {"both": [-1, -2], "long": [-1], "short": [-2]}[policy.averages]
        if count + self.chunk <= policy.sink + len(alone) + policy.recent + self.chunk:
            return [(frame, i) for i, frame in enumerate(self.frames)]
        self.fold(policy, count)
        assert self.averages is not None
        kept = [*range(policy.sink), *alone, *range(count - policy.recent, count)]
        shown: list[tuple[Tensor, int | None]] = []
        for position, frame in enumerate(kept):
            content = self.frames[frame] if frame >= 0 else self.averages[-frame - 1]
            relative = policy.ids == "relative"
            shown.append((content, position if relative else (frame if frame >= 0 else None)))
        return shown

    def fold(self, policy: MemRoPE, count: int) -> None:
        first = self.averages is None
        begin = policy.sink if first else self.folded[-1] + 1
        if first and policy.first_eviction == "released":
            begin += 2 if policy.averages == "both" else 1
        leaving = list(range(begin, count - policy.recent))
        self.folded += leaving
        contents = []
        for index in leaving:
            key, value = self.frames[index].double()
            contents.append(torch.stack([turn(key, index) if policy.ids == "absolute" else key, value]))
        mean = sum(contents) / len(contents)
        assert isinstance(mean, Tensor)
        if policy.pooling == "global" and not policy.adaptive:
            mean = mean.mean(3, keepdim=True).expand_as(mean)
        if self.averages is None:
            self.averages = [mean, mean]
            return
        long, short = self.averages
        rate: float | Tensor = policy.short
        if policy.adaptive:
            motion = ((mean[0] - short[0]) ** 2).sum(-1).sqrt().mean(-1)
            motion = motion / (motion.max(-1, keepdim=True).values + 1e-8)
            rate = 0.1 * policy.short + motion * (5 - 0.1) * policy.short
            if policy.first_eviction == "fold":
                rate = torch.minimum(rate, torch.ones(()))
            rate = rate[None, ..., None, None]
        self.averages = [long + policy.long * (mean - long), short + rate * (mean - short)]

    def run(self, index: int, batch: int) -> Tensor:
        past = self.shown()
        count = len(self.frames)
        relative = self.policy.ids == "relative"
        own = [len(past) + i if relative else count + i for i in range(self.chunk)]
        outputs = []
        for seed in (2 * index, 2 * index + 1):
            qkv = draw(self.chunk, batch, seed).double().unflatten(3, (self.chunk, TOKENS))
            now = [qkv[1:, :, :, i] for i in range(self.chunk)]
            shown = [*past, *zip(now, own, strict=True)]
            key = torch.cat([x[0].double() if i is None else turn(x[0], i) for x, i in shown], 2)
            value = torch.cat([x[1].double() for x, _ in shown], 2)
            query = torch.cat([turn(qkv[0, :, :, i], own[i]) for i in range(self.chunk)], 2)
            weights = (torch.einsum("lbqhd,lbkhd->lbhqk", query, key) / DIM**0.5).softmax(-1)
            outputs.append(torch.einsum("lbhqk,lbkhd->lbqhd", weights, value))
        self.frames += now
        return torch.stack(outputs)


def check(policy: MemoryPolicy, chunk: int, batch: int, chunks: int, functional: bool) -> None:
    memory, oracle = make(policy, chunk, batch, functional=functional), Everything(policy, chunk)
    for index in range(chunks):
        expected = oracle.run(index, batch)
        assert (step(memory, index, batch) - expected).abs().max() < 2e-5
        assert memory.used <= memory.capacity == policy.capacity(chunk)


@FEW
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 9), st.sampled_from(["absolute", "relative"]),
       st.integers(1, 2), st.integers(1, 9), st.booleans())  # fmt: skip
def test_sliding(chunk: int, sink: int, spare: int, ids: str, batch: int, chunks: int, functional: bool) -> None:
    check(Sliding(sink + chunk + spare, sink, ids), chunk, batch, chunks, functional)


@FEW
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 6), st.sampled_from(["absolute", "relative"]),
       st.sampled_from(["global", "position"]), st.booleans(), st.sampled_from(["fold", "released"]),
       st.sampled_from([(0.01, 0.1), (0.3, 0.7)]), st.sampled_from(["both", "long", "short"]),
       st.integers(1, 2), st.integers(1, 9), st.booleans())  # fmt: skip
def test_memrope(
    chunk: int, sink: int, recent: int, ids: str, pooling: str, adaptive: bool, first: str,
    rates: tuple[float, float], averages: str, batch: int, chunks: int, functional: bool,
) -> None:  # fmt: skip
    adaptive = adaptive and averages != "long"
    if adaptive and first == "released":
        rates = (rates[0], min(rates[1], 0.2))  # beyond it, differences of rounding grow: see below
    policy = MemRoPE(
        sink, recent, *rates, pooling=pooling, adaptive=adaptive, ids=ids, first_eviction=first, averages=averages
    )
    check(policy, chunk, batch, chunks, functional)


@pytest.mark.parametrize("first", ["fold", "released"])
def test_adaptive_rates_are_held_to_one_except_as_released(first: str) -> None:
    """At short=0.5 the fastest position moves at 2.5: past its target and, in the released code, away from it."""
    policy = MemRoPE(1, 1, 0.1, 0.5, adaptive=True, first_eviction=first)
    memory, oracle, overshot = make(policy), Everything(policy, 3), False
    for index in range(6):
        before = None if oracle.averages is None else oracle.averages[1]
        expected = oracle.run(index, 1)
        assert torch.allclose(step(memory, index).double(), expected, atol=1e-4)
        if oracle.averages is None:
            continue
        for tag, average in zip((-2, -3), oracle.averages, strict=True):
            held = torch.stack([x.double() for x in memory.averages[tag]])
            assert torch.allclose(held, average, rtol=1e-4, atol=1e-4)
        if before is not None:
            target = torch.stack(oracle.frames[oracle.folded[-1] - 2 : oracle.folded[-1] + 1]).double().mean(0)
            overshot |= bool(((oracle.averages[1] - target) * (before - target)).sum(-1).min() < -1e-3)
    assert overshot == (first == "released")


@FEW
@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 5), st.integers(1, 12))
def test_every_evicted_frame_is_folded_once(chunk: int, sink: int, recent: int, chunks: int) -> None:
    """Frame f's value is the unit vector f, so an average of values is the list of its weights."""
    heads, dim, policy = 4, 16, MemRoPE(sink, recent)
    memory = Memory(policy, num_layers=1, heads=heads, head_dim=dim, grid=(1, 1), chunk=chunk)
    groups: list[int] = []
    for index in range(chunks):
        before = memory.used
        memory.begin_chunk()
        if memory.frame + chunk > memory.capacity:
            groups.append(before - sink - recent if not groups else chunk)
        value = torch.eye(heads * dim)[index * chunk : (index + 1) * chunk].view(1, chunk, heads, dim)
        with memory.recording():
            memory.update(0, torch.zeros_like(value), value)
    if not groups:
        assert not memory.averages
        return
    for (_, average), rate in ((memory.averages[-2], policy.long), (memory.averages[-3], policy.short)):
        expected = torch.zeros(heads * dim, dtype=torch.float64)
        frame = sink
        for number, size in enumerate(groups):
            weight = (1 - rate) ** (len(groups) - 1 - number) * (rate if number else 1)
            expected[frame : frame + size] = weight / size
            frame += size
        assert frame == (chunks - 1) * chunk - recent
        assert torch.allclose(average.double().flatten(), expected, atol=1e-6)
        assert average.sum().item() == pytest.approx(1, abs=1e-5)


def test_layout_of_a_full_memrope() -> None:
    memory = make(MemRoPE())
    for index in range(6):
        step(memory, index)
    memory.begin_chunk()
    layout = memory.layout()
    roles = ["sink"] * 3 + ["long", "short"] + ["recent"] * 4 + ["current"] * 3
    assert [(place.role, place.id) for place in layout] == list(zip(roles, range(12), strict=True))
    assert [place.frame for place in layout] == [0, 1, 2, None, None, 14, 15, 16, 17, 18, 19, 20]


def test_absolute_ids_go_on_for_ever() -> None:
    memory = make(Sliding(9, 0))
    memory.frame = 9_999_999
    other = make(Sliding(9, 0))
    for index in range(5):
        assert torch.allclose(step(memory, index), step(other, index), atol=2e-5)
    assert [place.id for place in memory.layout()][-1] == 9_999_999 + 14


POLICIES = [Sliding(8, 1), Sliding(9, 0, "relative"), MemRoPE(), MemRoPE(2, 3, pooling="position", ids="absolute"),
            MemRoPE(adaptive=True, first_eviction="released"), MemRoPE(recent=5, averages="short"),
            DeepForcing(9, 2, 8, 4), DeepForcing(8, 1, 7, 5, ids="released", reuse=2)]  # fmt: skip
# How many slots are in use with a full memory: this policy keeps fewer than it has.
KEPT = {policy: policy.budget if isinstance(policy, DeepForcing) else policy.capacity(3) for policy in POLICIES}
all_policies = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.spec())


@all_policies
def test_nothing_grows(policy: MemoryPolicy) -> None:
    memory = make(policy)

    def held() -> list[object]:
        tensors = [memory.keys, memory.values, memory._turned, *(x for pair in memory.averages.values() for x in pair)]
        return [memory.nbytes, *((x.data_ptr(), x.shape) for x in tensors)]

    shapes = []
    for index in range(12):
        step(memory, index)
        if index == 6:
            full = held()
        if index > 6:
            assert held() == full
            memory.begin_chunk()
            qkv = draw(3, 1, 0)[:, 0]
            policy.observe(memory, 0, *qkv[:2])
            shapes.append(memory.update(0, *qkv[1:])[0].shape)
            with memory.recording():
                attend(memory, draw(3, 1, 1))
    assert set(shapes) == {(1, KEPT[policy] * TOKENS, HEADS, DIM)}


@all_policies
@pytest.mark.parametrize("chunks", [0, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("functional", [False, True])
def test_a_restored_memory_continues_bit_for_bit(
    policy: MemoryPolicy, chunks: int, dtype: torch.dtype, functional: bool
) -> None:
    memory = make(policy, dtype=dtype, functional=functional)
    for index in range(chunks):
        step(memory, index)
    between, fresh = memory.state_dict(), make(policy, dtype=dtype, functional=functional)
    fresh.load_state_dict(*between)
    memory.begin_chunk()
    attend(memory, draw(3, 1, 5))
    within, late = memory.state_dict(), make(policy, dtype=dtype, functional=functional)
    step(late, 99)
    late.load_state_dict(*within)
    outputs = []
    for copy in (memory, fresh, late):
        if not copy.open:
            copy.begin_chunk()
            attend(copy, draw(3, 1, 5))  # a memory that looks does so in the first forward
        with copy.recording():
            first = attend(copy, draw(3, 1, 50))
        outputs.append([first, *(step(copy, index) for index in range(60, 65))])
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


def test_a_state_of_another_memory_is_refused() -> None:
    memory = make(MemRoPE())
    for index in range(5):
        step(memory, index)
    tensors, counters = memory.state_dict()
    for other in (make(MemRoPE(recent=5)), make(MemRoPE(), batch=2), make(MemRoPE(), dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="This state is not of a memory with"):
            other.load_state_dict(tensors, counters)
    for name in tensors:
        with pytest.raises(ValueError, match="This state is not"):
            make(MemRoPE()).load_state_dict({key: x for key, x in tensors.items() if key != name}, counters)


def test_averages_do_not_stall_in_bfloat16() -> None:
    memory = make(MemRoPE(), dtype=torch.bfloat16)

    def commit(level: float) -> None:
        memory.begin_chunk()
        with memory.recording():
            attend(memory, torch.full((3, LAYERS, 1, 3 * TOKENS, HEADS, DIM), level))

    for _ in range(6):
        commit(1.0)
    for _ in range(302):
        commit(2.0)
    # Two of the commits at level 2 are still recent or current in part: 300 whole groups of it are folded at least.
    average = memory.averages[-2][1]
    assert average.dtype == torch.float32
    assert average.mean().item() == pytest.approx(2 - 0.99**300, abs=0.005)
    slot = memory.values[:, :, memory.tags.index(-2)].float()
    assert (slot - average).abs().max() < 0.01


@all_policies
def test_in_place_and_functional_agree(policy: MemoryPolicy) -> None:
    one, other = make(policy), make(policy, functional=True)
    for index in range(9):
        assert torch.allclose(step(one, index), step(other, index), atol=2e-6)
        if index == 5:
            one.change_prompt("flush")
            other.change_prompt("flush")


@all_policies
def test_flush_keeps_sinks_and_two_frames(policy: MemoryPolicy) -> None:
    memory = make(policy)
    for index in range(7):
        step(memory, index)
    memory.change_prompt("flush")
    assert [place.frame for place in memory.layout()] == [*range(policy.sink), 19, 20]
    for index in range(7, 15):
        step(memory, index)
    assert memory.used == KEPT[policy]


def test_keep_changes_nothing_but_the_prompt() -> None:
    one, other = make(MemRoPE()), make(MemRoPE())
    for index in range(8):
        if index == 6:
            one.prompt[0] = (torch.zeros(1), torch.zeros(1))
            one.change_prompt()
            assert one.prompt == [None] * LAYERS
        assert torch.equal(step(one, index), step(other, index))


@all_policies
def test_rewound_frames_can_be_committed_again(policy: MemoryPolicy) -> None:
    one, other = make(policy), make(policy)
    for index in range(7):
        step(one, index)
        step(other, index)
    one.rewind(3)
    assert one.frame == 18
    step(one, 6)
    for index in range(7, 12):
        assert torch.allclose(step(one, index), step(other, index), atol=2e-6)
    for frames in (-3, 2, 30):
        with pytest.raises(ValueError, match="can be rewound"):
            one.rewind(frames)


def test_steps_out_of_order_are_refused() -> None:
    memory = make(Sliding())
    qkv = draw(3, 1, 0)
    with pytest.raises(RuntimeError, match="begin_chunk"):
        memory.query(qkv[0, 0])
    with pytest.raises(RuntimeError, match="begin_chunk"), memory.recording():
        pass
    memory.begin_chunk()
    with pytest.raises(RuntimeError, match="must be committed"):
        memory.begin_chunk()
    with pytest.raises(RuntimeError, match="Finish the open chunk"):
        memory.change_prompt("flush")
    with pytest.raises(RuntimeError, match="Finish the open chunk"):
        memory.rewind(0)
    with pytest.raises(ValueError, match="takes keys"):
        memory.update(0, qkv[1, 0, :, :-1], qkv[2, 0, :, :-1])
    with pytest.raises(RuntimeError, match="Nothing was recorded"), memory.recording():
        pass
    with pytest.raises(ValueError, match="keep, flush"):
        memory.change_prompt("forget")
    assert memory.open
    with memory.recording():
        attend(memory, qkv)
    assert memory.frame == 3


def test_gradients_reach_the_past() -> None:
    memory = make(MemRoPE(sink=1, recent=1), functional=True)
    inputs = []
    for index in range(5):
        qkv = draw(3, 1, index).requires_grad_()
        inputs.append(qkv)
        memory.begin_chunk()
        with memory.recording():
            out = attend(memory, qkv)
    out.sum().backward()
    assert all(x.grad is not None and x.grad[1:].abs().sum() > 0 for x in inputs)
    memory.detach()
    assert not memory.keys.requires_grad
    assert not memory.averages[-2][0].requires_grad


@pytest.mark.parametrize(("policy", "chunk"), [(Sliding(5, 3), 3), (MemRoPE(), 0)])
def test_sizes_that_do_not_fit_are_refused(policy: MemoryPolicy, chunk: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        make(policy, chunk)
