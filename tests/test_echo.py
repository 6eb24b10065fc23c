"""Echo-Infinity's memory against one that keeps every frame and computes by hand what the paper and its code say."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.checkpoints.memory_weights import build_encoder, encoder_config
from longtake.memory import Echo, Learned, Memory, MemoryEncoder, MemoryPolicy, Sliding, parse_memory
from longtake.memory.change import change_prompt
from longtake.parity import _build, policy_of, replay
from longtake.sampling import FewStepSchedule
from tests.helpers_pipeline import random_memory
from tests.test_memory import DIM, FEW, GRID, HEADS, LAYERS, TOKENS, attend, draw, make, step, turn
from tests.test_parity import DATA

WIDTH = HEADS * DIM
RELEASED = "after_first_forward"


def encoder_for(policy: Echo, **config: Any) -> MemoryEncoder:
    return random_memory(HEADS, DIM, **{"grid": GRID, "frames": policy.frames, **config})


def make_echo(policy: Echo, chunk: int = 3, batch: int = 1, encoder: MemoryEncoder | None = None, **o: Any) -> Memory:
    memory = make(policy, chunk, batch, **o)
    Learned(encoder or encoder_for(policy), [memory])
    return memory


def state_of(memory: Memory) -> Tensor | None:
    assert memory.learned is not None
    return memory.learned.state


# By hand, in float64


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class HandEncoder:
    """One group's update and what attention sees of it, written out from published names."""

    def __init__(self, encoder: MemoryEncoder, group: int) -> None:
        w = {name: x.double() for name, x in encoder.state_dict().items()}
        if encoder.groups > 1:
            names = {"query_init": "query_inits", "connector_proj": "connector_projs", "gate_linear": "gate_linears"}
            names |= {name: f"{name}_groups" for name in ("to_k", "to_v", "norm_k_out")}
            for single, plural in names.items():
                for name, x in list(w.items()):
                    if name == f"{plural}.{group}" or name.startswith(f"{plural}.{group}."):
                        w[single + name[len(f"{plural}.{group}") :]] = x
        self.w = w

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def start(self, batch: int) -> Tensor:
        return self.w["query_init"].repeat(batch, 1, 1)

    def candidate(self, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """State ``[batch, tokens, width]``, keys and values ``[batch, evicted tokens, heads, dim]``."""
        x = state
        for layer in ("layers.0", "layers.1"):
            query = norm(
                self.linear(f"{layer}.q", norm(x, self.w[f"{layer}.norm1.weight"])), self.w[f"{layer}.norm_q.weight"]
            )
            scores = torch.einsum("bqhd,bkhd->bhqk", query.unflatten(-1, (HEADS, -1)), keys) / keys.shape[-1] ** 0.5
            read = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values).flatten(2)
            x = x + self.linear(f"{layer}.o", read)
            inner = gelu(self.linear(f"{layer}.ffn.0", norm(x, self.w[f"{layer}.norm2.weight"])))
            x = x + self.linear(f"{layer}.ffn.2", inner)
        x = self.linear("connector_proj.2", gelu(self.linear("connector_proj.0", x)))
        return norm(x, self.w["connector_proj.3.weight"])

    def update(self, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        candidate = self.candidate(state, keys, values)
        gate = 1 / (1 + torch.exp(-self.linear("gate_linear", torch.cat([state, candidate], -1))))
        return gate * state + (1 - gate) * candidate

    def seen(self, state: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.linear("to_k", state)
        if "norm_k_out.weight" in self.w:
            keys = norm(keys, self.w["norm_k_out.weight"])
        return keys.unflatten(-1, (HEADS, -1)), self.linear("to_v", state).unflatten(-1, (HEADS, -1))


class HandEcho:
    """Keeps all frames of a take; decides anew in every chunk what is shown, and at which ids."""

    def __init__(self, policy: Echo, encoder: MemoryEncoder, chunk: int, batch: int) -> None:
        self.policy, self.chunk, self.batch = policy, chunk, batch
        self.groups = [HandEncoder(encoder, i) for i in range(encoder.groups)]
        self.frames: list[Tensor] = []  # [2 (key, value), layers, batch, tokens, heads, dim]
        self.gone = policy.sink  # frames before this one are sinks, or have left the window
        self.states: list[Tensor] | None = None

    def learn(self, first: int, end: int) -> None:
        keys, values = (torch.cat([frame[i, -1] for frame in self.frames[first:end]], 1).double() for i in (0, 1))
        states = self.states or [group.start(self.batch) for group in self.groups]
        self.states = [g.update(s, keys, values) for g, s in zip(self.groups, states, strict=True)]

    def memory_frames(self, first_local: int) -> list[tuple[Tensor, Tensor, int]]:
        """Keys and values ``[layers, batch, tokens, heads, dim]`` of every memory frame, with their ids."""
        policy, states = self.policy, self.states
        if states is None and (policy.static or policy.prior):
            states = [group.start(self.batch) for group in self.groups]
        start = first_local - policy.frames
        if states is None or start < policy.sink:
            return []
        pairs = [group.seen(state) for group, state in zip(self.groups, states, strict=True)]
        of_layer = [pairs[layer * len(pairs) // LAYERS] for layer in range(LAYERS)]
        keys, values = (
            torch.stack([pair[i] for pair in of_layer]).unflatten(2, (policy.frames, TOKENS)) for i in (0, 1)
        )
        return [(keys[:, :, i], values[:, :, i], start + i) for i in range(policy.frames)]

    def run(self, index: int) -> Tensor:
        policy, count = self.policy, len(self.frames)
        window = max(count - policy.past, min(self.gone, count), 0)
        leaving = (self.gone, window) if window > self.gone else None
        self.gone = max(self.gone, window)
        if leaving and not policy.static and policy.update == "chunk_start":
            self.learn(*leaving)
        newest = min(count + self.chunk - 1, policy.max_id)
        own = [newest - self.chunk + 1 + i for i in range(self.chunk)]
        local = list(range(max(window, policy.sink), count))
        first_local = own[0] - len(local)
        if count < policy.sink:  # the chunk's own frames are sinks as well: all ids are natural
            own, first_local = [count + i for i in range(self.chunk)], 0
        past = [(*self.frames[i], i) for i in range(min(policy.sink, count))]
        past += [(*self.frames[i], first_local + n) for n, i in enumerate(local)]
        outputs = []
        for number in (0, 1):
            qkv = draw(self.chunk, self.batch, 2 * index + number).double().unflatten(3, (self.chunk, TOKENS))
            now = [qkv[1:, :, :, i] for i in range(self.chunk)]
            shown = [*past, *self.memory_frames(first_local), *((*x, i) for x, i in zip(now, own, strict=True))]
            key = torch.cat([turn(k, i) for k, _, i in shown], 2)
            value = torch.cat([v.double() for _, v, _ in shown], 2)
            query = torch.cat([turn(qkv[0, :, :, i], own[i]) for i in range(self.chunk)], 2)
            weights = (torch.einsum("lbqhd,lbkhd->lbhqk", query, key) / DIM**0.5).softmax(-1)
            outputs.append(torch.einsum("lbhqk,lbkhd->lbqhd", weights, value))
            if number == 0 and leaving and not policy.static and policy.update == RELEASED:
                self.learn(*leaving)
        self.frames += now
        return torch.stack(outputs)


def check(policy: Echo, chunk: int, batch: int, chunks: int, functional: bool, **config: Any) -> list[Tensor | None]:
    encoder = encoder_for(policy, **config)
    memory = make_echo(policy, chunk, batch, encoder, functional=functional)
    hand, states = HandEcho(policy, encoder, chunk, batch), []
    for index in range(chunks):
        expected = hand.run(index)
        assert (step(memory, index, batch) - expected).abs().max() < 5e-5
        state = state_of(memory)
        assert (state is None) == (hand.states is None)
        if state is not None and hand.states is not None:
            assert state.dtype == torch.float32
            assert (state - torch.stack(hand.states)).abs().max() < 2e-4
        states.append(None if state is None else state.clone())
        assert memory.used <= memory.capacity == policy.capacity(chunk)
    return states


@FEW
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 7), st.integers(1, 4), st.integers(0, 6), st.booleans(),
       st.sampled_from(["chunk_start", RELEASED]), st.sampled_from(["", "static", "prior"]), st.integers(1, 2),
       st.integers(1, 2), st.integers(1, 11), st.booleans())  # fmt: skip
def test_any_memory_is_what_it_is_by_hand(
    chunk: int, sink: int, past: int, frames: int, spare: int, normalize: bool, update: str, way: str, groups: int,
    batch: int, chunks: int, functional: bool,
) -> None:  # fmt: skip
    most = sink + frames + past + chunk - 1 + spare
    policy = Echo(frames, past, sink, most, update, way == "static", way == "prior")
    check(policy, chunk, batch, chunks, functional, groups=groups, normalize_keys=normalize)


# Ids: the tables of the released configuration, and of the paper's figure


def traced(memory: Memory) -> dict[str, list[int | None]]:
    places = memory.layout()
    return {role: [p.id for p in places if p.role == role] for role in ("sink", "memory", "recent", "current")}


def rows(text: str) -> list[dict[str, list[int]]]:
    """``sinks | memory | past | current`` as "first-last", a dash for none."""

    def ids(cell: str) -> list[int]:
        first, _, last = cell.strip().partition("-")
        return list(range(int(first), int(last) + 1)) if first else []

    names = ("sink", "memory", "recent", "current")
    return [dict(zip(names, map(ids, line.split("|")), strict=True)) for line in text.strip().splitlines()]


MATURE = "0-2|9-11|12-17|18-20"
RELEASED_TABLE = f"""
-|-|-|0-2
0-2|-|-|3-5
0-2|-|3-5|6-8
0-2|-|3-8|9-11
0-2|3-5|6-11|12-14
0-2|6-8|9-14|15-17
{MATURE}
{MATURE}
{MATURE}
"""
PAPER_TABLE = """
-|-|-|0-2
0-2|-|-|3-5
0-2|-|3-5|6-8
0-2|-|3-8|9-11
0-2|-|3-11|12-14
0-2|3-5|6-14|15-17
0-2|6-8|9-17|18-20
0-2|6-8|9-17|18-20
0-2|6-8|9-17|18-20
"""


def moved_on(memory: Memory, chunk: int) -> None:
    """As if that many chunks had been made."""
    further = chunk * memory.chunk - memory.frame
    memory.tags = [tag + further if tag >= memory.policy.sink else tag for tag in memory.tags]
    memory.frame += further


@pytest.mark.parametrize(
    ("policy", "table"),
    [
        (Echo(), RELEASED_TABLE),
        (Echo(past=9), PAPER_TABLE),
        (Sliding(12, 3, "unified"), RELEASED_TABLE),
        (Sliding(15, 3, "unified"), PAPER_TABLE),
    ],
    ids=["released", "paper", "control", "control of the paper's"],
)
def test_ids_are_those_of_the_tables(policy: MemoryPolicy, table: str) -> None:
    memory = make_echo(policy) if isinstance(policy, Echo) else make(policy)
    expected = rows(table)
    for row in expected if policy.learned else [{**row, "memory": []} for row in expected]:
        memory.begin_chunk()
        assert traced(memory) == row
        with memory.recording():
            attend(memory, draw(3, 1, 0))
    moved_on(memory, 1_000_000)
    memory.begin_chunk()
    assert traced(memory) == (expected[-1] if policy.learned else {**expected[-1], "memory": []})
    assert [p.frame for p in memory.layout() if p.role == "current"] == [3_000_000, 3_000_001, 3_000_002]


def test_with_the_released_timing_the_first_forward_of_all_sees_no_memory() -> None:
    memory = make_echo(Echo(update=RELEASED))
    for index, row in enumerate(rows(RELEASED_TABLE)):
        memory.begin_chunk()
        assert traced(memory) == ({**row, "memory": []} if index == 4 else row)
        attend(memory, draw(3, 1, 0))
        before = state_of(memory)
        attend(memory, draw(3, 1, 1))
        assert traced(memory) == row
        assert (state_of(memory) is before) == (index < 4)
        after = state_of(memory)
        with memory.recording():
            attend(memory, draw(3, 1, 2))
        assert state_of(memory) is after  # once per chunk


def test_up_to_the_largest_id_the_control_is_longlive() -> None:
    one, other = make(Sliding(12, 3, "unified")), make(parse_memory("longlive"))
    for index in range(12):
        same = torch.equal(step(one, index), step(other, index))
        assert same == (index < 7)  # frames 0 to 20


def test_ids_that_are_anchored_anew_change_nothing_but_rounding() -> None:
    one, other = make(Sliding(12, 0, "unified")), make(Sliding(12, 0, "absolute"))
    for index in range(14):
        assert torch.allclose(step(one, index), step(other, index), atol=2e-5)
    assert [p.id for p in one.layout()] != [p.id for p in other.layout()]


# What is taken in, and how


@dataclass
class Reader:
    """Sees which frames an encoder is given: their values are their numbers."""

    seen: list[list[int]]

    def __call__(self, module: Any, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        self.seen.append(arguments[2][0, ::TOKENS, 0, 0].round().int().tolist())


@pytest.mark.parametrize("update", ["chunk_start", RELEASED])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(("past", "sink"), [(6, 3), (9, 3), (4, 1), (0, 0)])
def test_every_frame_is_taken_in_once_when_it_leaves(update: str, functional: bool, past: int, sink: int) -> None:
    policy, reader = Echo(1, past, sink, update=update), Reader([])
    encoder = encoder_for(policy)
    encoder.register_forward_hook(reader)
    memory = make_echo(policy, encoder=encoder, functional=functional)
    for index in range(100):
        memory.begin_chunk()
        number = torch.arange(3.0).repeat_interleave(TOKENS)[None, :, None, None] + 3 * index
        value = number.expand(1, 3 * TOKENS, HEADS, DIM)
        for _ in range(2):
            for layer in range(LAYERS):
                memory.update(layer, torch.zeros_like(value), value)
        with memory.recording():
            for layer in range(LAYERS):
                memory.update(layer, torch.zeros_like(value), value)
    assert [frame for frames in reader.seen for frame in frames] == list(range(sink, 297 - past))
    assert all(len(frames) == 3 for frames in reader.seen[1:])


@pytest.mark.parametrize("bias", [1e4, -1e4])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_gate_that_is_shut_keeps_the_state_and_an_open_one_takes_the_candidate(bias: float, groups: int) -> None:
    encoder = encoder_for(Echo(), groups=groups)
    gates = [encoder.gate_linear] if groups == 1 else list(encoder.gate_linears)
    for gate in gates:
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.constant_(gate.bias, bias)
    state = torch.randn(groups, 2, 3 * TOKENS, WIDTH)
    keys, values = torch.randn(2, 2, 5, HEADS, DIM)
    made = encoder(state, keys, values)
    hands = [HandEncoder(encoder, i) for i in range(groups)]
    candidate = torch.stack(
        [h.candidate(s.double(), keys.double(), values.double()) for h, s in zip(hands, state, strict=True)]
    )
    assert (candidate - state).abs().max() > 0.1
    if bias > 0:
        assert torch.equal(made, state)
    else:
        assert torch.allclose(made.double(), candidate, atol=1e-4)


def test_a_new_gate_retains_most() -> None:
    encoder = MemoryEncoder(HEADS, DIM, grid=GRID)
    assert torch.equal(encoder.gate_linear.bias, torch.full((WIDTH,), 2.0))
    assert float(encoder.query_init.detach().std()) == pytest.approx(0.014, rel=0.2)
    assert not encoder.trained


@pytest.mark.parametrize("way", [{"static": True}, {"prior": True}])
def test_initial_queries_alone(way: dict[str, bool]) -> None:
    policy = Echo(update=RELEASED, **way)
    states = check(policy, 3, 1, 8, False)
    assert [state is None for state in states] == ([True] * 8 if policy.static else [True] * 4 + [False] * 4)
    plain, other = make_echo(replace(policy, static=False, prior=False)), make_echo(policy)
    differ = [bool((step(plain, index)[0] - step(other, index)[0]).abs().max() > 1e-4) for index in range(7)]
    # Chunk 4 is the first with ids for a memory; with updates to come, its first forward is the only one that differs.
    assert differ == ([False] * 4 + [True] * 3 if policy.static else [False] * 4 + [True] + [False] * 2)


@torch.inference_mode()
def test_a_state_in_float32_moves_where_bfloat16_would_stand_still() -> None:
    """A gate that retains all but a thousandth: bfloat16 stays near the first state, a quarter of an hour in."""
    encoder = encoder_for(Echo()).bfloat16()
    torch.nn.init.zeros_(encoder.gate_linear.weight)
    torch.nn.init.constant_(encoder.gate_linear.bias, 7.0)
    pair = torch.randn(2, 1, 3 * TOKENS, HEADS, DIM, generator=torch.Generator().manual_seed(0))
    state = rounded = first = encoder.initial()
    for _ in range(1200):
        state = encoder(state, *pair)
        rounded = encoder(rounded, *pair).bfloat16().float()
    assert (state - first).abs().mean() > 5 * (rounded - first).abs().mean()


@torch.inference_mode()
def test_a_day_of_updates_stays_bounded() -> None:
    """One update per chunk of 0.75 s, 115,200 of them: candidates are normalised, and a gate is a convex mean."""
    policy = Echo(1)
    encoder = MemoryEncoder(1, 6, frames=1, grid=(1, 1), depth=1)
    encoder.requires_grad_(False)
    bound = float(encoder.connector_proj[3].weight.abs().max()) * 6**0.5
    state, largest = encoder.initial(), torch.zeros(())
    pairs = torch.randn(64, 2, 1, policy.frames, 1, 6, generator=torch.Generator().manual_seed(0))
    for index in range(115_200):
        state = encoder(state, *pairs[index % 64])
        if index % 64 == 0:
            largest = torch.maximum(largest, state.abs().max())
    assert bool(state.isfinite().all()) and 0.1 < float(largest) <= bound * 1.001


# Prompt changes


def committed(memory: Memory, latents: Tensor) -> None:
    """What stands for a forward here: keys and values are the latents' own numbers."""
    with memory.recording():
        attend(memory, latents)


@pytest.mark.parametrize("past", [6, 9])
@pytest.mark.parametrize("recache", ["reset", "keep"])
def test_a_new_prompt_starts_afresh_from_the_window_or_keeps_what_is_there(past: int, recache: str) -> None:
    policy = Echo(past=past, recache=recache)
    encoder = encoder_for(policy)
    memory = make_echo(policy, encoder=encoder)
    for index in range(9):
        memory.begin_chunk()
        committed(memory, draw(3, 1, index))
    before = state_of(memory)
    chunks = policy.recached(3)
    assert chunks == past // 3 + 1
    again = [draw(3, 1, 100 + i) for i in range(chunks)]
    seen: list[list[str]] = []

    def commit(latents: Tensor) -> None:
        seen.append([place.role for place in memory.layout()])
        committed(memory, latents)

    change_prompt(memory, "recache", again, commit)
    assert memory.frame == 27 and len(seen) == chunks
    assert sorted(tag for tag in memory.tags if tag >= 0) == [0, 1, 2, *range(24 - past, 27)]
    assert all("memory" in roles for roles in seen) == (recache == "keep")
    state = state_of(memory)
    assert state is not None
    if recache == "keep":
        assert state is before
    else:
        keys, values = (
            torch.cat([qkv[i, -1].double() for qkv in again], 1) for i in (1, 2)
        )  # all of the window at once, as read again
        hand = HandEncoder(encoder, 0)
        assert (state[0] - hand.update(hand.start(1), keys, values)).abs().max() < 1e-4
    memory.begin_chunk()
    assert [place.role for place in memory.layout()].count("memory") == 3


@pytest.mark.parametrize("mode", ["flush", "cut"])
def test_a_flush_forgets_the_memory_too(mode: str) -> None:
    memory, fresh = make_echo(Echo()), make_echo(Echo())
    for index in range(9):
        step(memory, index)
    memory.change_prompt(mode)
    assert state_of(memory) is None and memory.used == 5
    memory.begin_chunk()
    assert [place.role for place in memory.layout()] == ["sink"] * 3 + ["recent"] * 2 + ["current"] * 3
    assert [place.id for place in memory.layout()][-1] == 20 + (42 if mode == "cut" else 0)
    committed(memory, draw(3, 1, 1))
    for index in range(3):
        step(memory, 20 + index)
    assert state_of(memory) is not None
    memory.reset()  # nothing of what was is left
    assert all(torch.equal(step(memory, i), step(fresh, i)) for i in range(8))


def test_keep_keeps() -> None:
    memory, other = make_echo(Echo()), make_echo(Echo())
    for index in range(9):
        if index == 6:
            memory.change_prompt("keep")
        assert torch.equal(step(memory, index), step(other, index))


# State


@pytest.mark.parametrize("update", ["chunk_start", RELEASED])
@pytest.mark.parametrize("chunks", [0, 4, 5, 8])
@pytest.mark.parametrize("within", ["", "begun", "first forward", "second forward"])
def test_a_restored_memory_continues_bit_for_bit(update: str, chunks: int, within: str) -> None:
    policy = Echo(update=update)
    encoder = encoder_for(policy)
    memory = make_echo(policy, encoder=encoder)
    for index in range(chunks):
        step(memory, index)
    if within:
        memory.begin_chunk()
        for _ in range(("begun", "first forward", "second forward").index(within)):
            attend(memory, draw(3, 1, 7))
    other = make_echo(policy, encoder=encoder)
    step(other, 3)
    other.load_state_dict(*memory.state_dict())
    for index in range(50, 56):
        for one in (memory, other):
            if not one.open:
                one.begin_chunk()
        assert torch.equal(attend(memory, draw(3, 1, index)), attend(other, draw(3, 1, index)))
        assert memory.layout() == other.layout()
        for one in (memory, other):
            committed(one, draw(3, 1, index + 100))
        states = state_of(memory), state_of(other)
        assert states[0] is states[1] is None or torch.equal(*states)  # type: ignore[arg-type]


def test_a_state_of_another_memory_is_refused() -> None:
    memory = make_echo(Echo(update=RELEASED))
    for index in range(6):
        step(memory, index)
    memory.begin_chunk()
    tensors, counters = memory.state_dict()
    assert counters["due"] == 1 and {"learned.state", "learned.keys", "learned.values"} <= set(tensors)
    fresh = make_echo(Echo(update=RELEASED))
    for broken in (
        {"learned.state": torch.zeros(1, 1, 3 * TOKENS, WIDTH + 1)},
        {"learned.state": torch.zeros(2, 1, 3 * TOKENS, WIDTH)},
        {"learned.keys": torch.zeros(1, 3 * TOKENS, HEADS, DIM + 1)},
        {"learned.keys": torch.zeros(1, 3 * TOKENS - 1, HEADS, DIM)},
    ):
        with pytest.raises(ValueError, match="This state is not"):
            fresh.load_state_dict({**tensors, **broken}, counters)
    for due in (0, 3, -1, "1", True):
        with pytest.raises(ValueError, match="This state is not"):
            fresh.load_state_dict(tensors, {**counters, "due": due})  # type: ignore[dict-item]
    without = {name: x for name, x in tensors.items() if name != "learned.values"}
    with pytest.raises(ValueError, match="This state is not"):
        fresh.load_state_dict(without, counters)
    for policy in (Echo(frames=2), Echo()):
        with pytest.raises(ValueError, match="This state is not"):
            make_echo(policy).load_state_dict(tensors, counters)
    with pytest.raises(ValueError, match="This state is not"):
        make(Sliding(15, 3, "unified")).load_state_dict(tensors, counters)
    assert fresh.frame == 0 and not fresh.open


def test_nothing_grows() -> None:
    memory = make_echo(Echo())
    sizes = []
    for index in range(12):
        step(memory, index)
        sizes.append(memory.nbytes)
    assert len(set(sizes[5:])) == 1


# Bad input


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("echo:frames=10", "10 memory and 6 past frames and a chunk of 3 need the ids 0 to 21, and max_id is 20"),
        ("echo:frames=0", "frames must be a whole number of frames, 1 or more"),
        ("echo:past=-1", "past must be"),
        ("echo:update=never", "update must be chunk_start or after_first_forward"),
        ("echo:recache=some", "recache must be reset or keep"),
        ("echo:static=perhaps", "static must be true or false"),
        ("echo:ids=absolute", "unknown setting 'ids'"),
        ("sliding:window=22,sink=3,ids=unified", "22 frames have the ids 0 to 21, and max_id is 20"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_memory(spec)
    assert str(error.value).endswith(".")


def test_as_many_memory_frames_as_there_are_ids() -> None:
    assert parse_memory("echo:frames=9").capacity(3) == 21
    assert parse_memory("echo:frames=1,past=9,max_id=15").capacity(3) == 16
    assert parse_memory("sliding:window=21,sink=3,ids=unified").capacity(3) == 21
    policy = Echo(2, 9, 3, 30, RELEASED, True, True, "keep")
    assert parse_memory(policy.spec()) == policy


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"frames": 2}, "have 2 memory frames: ask for echo:frames=2, not 3"),
        ({"grid": (3, 1)}, "pictures of 3x1 tokens per frame, not 2x1"),
        ({"grid": 3}, "pictures of 3 tokens per frame, not 2"),
        ({"num_layers": 30}, "a transformer of 30 layers, not 2"),
        ({"groups": 3}, "have 3 groups, more than the 2 layers"),
    ],
)
def test_weights_for_something_else_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_echo(Echo(), encoder=encoder_for(Echo(), **config))


def test_weights_of_another_width_are_refused() -> None:
    for heads, dim in ((HEADS, 24), (1, 2 * DIM), (4, DIM)):
        with pytest.raises(ValueError, match=f"width {heads * dim} in {heads} heads, not {WIDTH} in {HEADS}"):
            make_echo(Echo(), encoder=random_memory(heads, dim, GRID))


def test_a_learned_memory_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="needs trained weights"):
        Learned(None, [make(Echo())])
    with pytest.raises(RuntimeError, match="is learned"):
        make(Echo()).begin_chunk()


# The published pipeline


def test_the_published_pipeline_is_reproduced() -> None:
    result = replay(DATA / "echo_long.safetensors")
    assert result.max_abs_diff < 1e-4
    assert result.chunks == 16
    assert result.state_diff is not None and result.state_diff < 1e-3  # it grows; one by one it does not, see below


@torch.no_grad()
def test_every_recorded_update_is_reproduced() -> None:
    """Each from the recorded state before it, with keys and values of recorded latents: no differences add up."""
    with safe_open(DATA / "echo_long.safetensors", framework="pt") as file:
        spec = json.loads(file.metadata()["spec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    policy, transformer = policy_of(spec), _build(spec, tensors)
    assert isinstance(policy, Echo) and policy == Echo(update=RELEASED)
    weights = {name[len("memory.") :]: x for name, x in tensors.items() if name.startswith("memory.")}
    encoder = build_encoder(weights, encoder_config(weights, 4, None, 3, "it"), "it")
    memory = memory_for(transformer, policy, 4, 6, encoder=encoder)
    assert isinstance(memory, Memory) and memory.learned is not None
    states = list(tensors["memory_states"])
    schedule = FewStepSchedule(tensors["timesteps"])
    for chunk in range(16):
        latents = tensors["latents"][:, 3 * chunk : 3 * chunk + 3].transpose(1, 2)
        memory.begin_chunk()
        with attending(transformer, memory):
            transformer(latents, schedule.timesteps[:1], tensors["text"], return_dict=False)
            with memory.recording():
                transformer(latents, torch.zeros(1), tensors["text"], return_dict=False)
        if chunk >= 4:
            recorded = states.pop(0)
            state = memory.learned.state
            assert state is not None and (state[0] - recorded).abs().max() < 5e-5
            memory.learned.state = recorded[None].clone()
            memory.learned._seen = None
    assert not states
