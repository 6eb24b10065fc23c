"""Deep Forcing against the published rule done token by token, in float64 and complex numbers, without slots."""

import cmath
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.memory import DeepForcing, Memory, MemoryPolicy, Sliding, parse_memory
from longtake.plan import memory_layout
from longtake.training.sequence import plan_sequence
from tests.helpers_pipeline import build
from tests.test_memory import DIM, FEW, GRID, LAYERS, TOKENS, attend, draw, make, step

ALL = [DeepForcing(9, 2, 8, 4), DeepForcing(13, 2, 8, 4, ids="released", reuse=2), DeepForcing(12, 0, 6, 3, reuse=1),
       DeepForcing(8, 1, 7, 5, ids="released"), DeepForcing(11, 3, 7, 4)]  # fmt: skip
every_policy = pytest.mark.parametrize("policy", ALL, ids=lambda policy: policy.spec())


@dataclass(frozen=True)
class Token:
    """One key and value of one layer, and where it comes from. ``time``: the id it is attended at."""

    frame: int
    place: int
    key: Tensor  # [heads, dim], un-rotated
    value: Tensor
    time: int
    picked: int = 0


def turn(x: Tensor, time: int, place: int) -> Tensor:
    """Rotate [heads, dim] by one position in time and space."""
    phases = []
    for position, dim in ((time, 4), (place // GRID[1], 4), (place % GRID[1], 4)):
        phases += [cmath.exp(1j * position / 10000 ** (2 * i / dim)) for i in range(dim // 2)]
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.tensor(phases, dtype=torch.complex128)).flatten(-2)


class ByHand:
    """One layer of one take: lists of tokens, in order of time, as the paper (or the released code) says."""

    def __init__(self, policy: DeepForcing, chunk: int) -> None:
        self.policy, self.chunk = policy, chunk
        self.sinks: list[Token] = []
        self.picked: list[Token] = []
        self.rest: list[Token] = []
        self.clean: dict[int, Tensor] = {}  # un-rotated queries of a frame's commit, [tokens, heads, dim]
        self.frame = 0
        self.shift = 0  # of the sinks, released

    def forward(self, qkv: Tensor, first: bool) -> Tensor:
        """Attention of one forward, ``qkv``: [3, chunk * tokens, heads, dim]; ``first``: of its chunk."""
        queries = qkv[0].double().unflatten(0, (self.chunk, TOKENS))
        now = [Token(self.frame + i, place, *qkv[1:, i * TOKENS + place].double(), time=0)
               for i in range(self.chunk) for place in range(TOKENS)]  # fmt: skip
        past = self.sinks + self.picked + self.rest
        if first and len(past) + len(now) > self.policy.window * TOKENS:
            self.compress(queries)
        self.number(now)
        shown = [*self.sinks, *self.picked, *self.rest, *(replace(t, time=t.time + self.begin) for t in now)]
        keys = torch.stack([turn(t.key, t.time, t.place) for t in shown])
        values = torch.stack([t.value for t in shown])
        turned = torch.stack(
            [turn(queries[t.frame - self.frame, t.place], t.time, t.place) for t in shown[-len(now) :]]
        )
        weights = (torch.einsum("qhd,khd->hqk", turned, keys) / DIM**0.5).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values)

    def number(self, now: list[Token]) -> None:
        """Temporal ids of everything, ``now`` relative to ``begin``."""
        for i, token in enumerate(now):
            now[i] = replace(token, time=i // TOKENS)
        if self.policy.ids == "released":
            self.sinks = [replace(t, time=t.frame + self.shift) for t in self.sinks]
            self.rest = [replace(t, time=t.frame) for t in self.rest]
            self.begin = self.frame
            return
        for number, token in enumerate(self.sinks):
            self.sinks[number] = replace(token, time=number // TOKENS)
        for number, token in enumerate(self.picked):
            self.picked[number] = replace(token, time=self.policy.sink + number // TOKENS)
        before = (len(self.sinks) + len(self.picked)) // TOKENS
        for number, token in enumerate(self.rest):
            self.rest[number] = replace(token, time=before + number // TOKENS)
        self.begin = before + len(self.rest) // TOKENS

    def compress(self, queries: Tensor) -> None:
        policy = self.policy
        kept = policy.recent - self.chunk
        frames = sorted({t.frame for t in self.rest})
        recent = frames[len(frames) - kept :]
        self.number([])
        looking = [turn(self.clean[t.frame][t.place], t.time, t.place) for t in self.rest if t.frame in recent]
        looking += [turn(queries[i, p], self.begin + i, p) for i in range(self.chunk) for p in range(TOKENS)]
        candidates = self.picked + [t for t in self.rest if t.frame not in recent]
        scores = []
        for token in candidates:
            key = turn(token.key, token.time, token.place)
            scores.append(sum(float((query * key).sum()) for query in looking))
        worn = [bool(policy.reuse) and t.picked >= policy.reuse for t in candidates]
        order = sorted(range(len(candidates)), key=lambda j: (worn[j], -scores[j]))[: policy.chosen * TOKENS]
        self.picked = [replace(candidates[j], picked=candidates[j].picked + 1) for j in sorted(order)]
        self.rest = [t for t in self.rest if t.frame in recent]
        if policy.ids == "released":
            # Published: the sinks' first id is the chunk's first less the frames that are kept, the chunk's among them.
            self.shift = self.frame - policy.budget

    def commit(self, qkv: Tensor) -> None:
        for i in range(self.chunk):
            frame = self.frame + i
            part = qkv[:, i * TOKENS : (i + 1) * TOKENS].double()
            self.clean[frame] = part[0]
            tokens = [Token(frame, place, part[1, place], part[2, place], frame) for place in range(TOKENS)]
            (self.sinks if frame < self.policy.sink else self.rest).extend(tokens)
        self.frame += self.chunk


class Layers:
    """All layers and takes of a batch by hand."""

    def __init__(self, policy: DeepForcing, chunk: int = 3, batch: int = 1) -> None:
        self.chunk, self.batch = chunk, batch
        self.all = [[ByHand(policy, chunk) for _ in range(batch)] for _ in range(LAYERS)]

    def step(self, index: int) -> Tensor:
        outputs = []
        for number, seed in enumerate((2 * index, 2 * index + 1)):
            qkv = draw(self.chunk, self.batch, seed)
            outputs.append(torch.stack([
                torch.stack([hand.forward(qkv[:, layer, b], number == 0) for b, hand in enumerate(hands)])
                for layer, hands in enumerate(self.all)
            ]))  # fmt: skip
            if number:
                for layer, hands in enumerate(self.all):
                    for b, hand in enumerate(hands):
                        hand.commit(qkv[:, layer, b])
        return torch.stack(outputs)


def check(policy: DeepForcing, chunk: int, batch: int, chunks: int, functional: bool) -> Memory:
    memory, hands = make(policy, chunk, batch, functional=functional), Layers(policy, chunk, batch)
    for index in range(chunks):
        assert (step(memory, index, batch) - hands.step(index)).abs().max() < 2e-5
        assert memory.used <= memory.capacity
    return memory


@settings(FEW, max_examples=40)
@given(st.integers(1, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 4),
       st.sampled_from(["relative", "released"]), st.sampled_from([0, 1, 2, 7]), st.integers(1, 2), st.integers(5, 9),
       st.booleans())  # fmt: skip
def test_the_published_rule(
    chunk: int, sink: int, chosen: int, recent: int, spare: int, ids: str, reuse: int, batch: int, chunks: int,
    functional: bool,
) -> None:  # fmt: skip
    recent = min(recent + chunk, 2 * chunk)
    budget = sink + chosen + recent
    check(DeepForcing(budget + spare, sink, budget, recent, ids, reuse), chunk, batch, chunks, functional)


@pytest.mark.parametrize("name", ["deep-forcing", "deep-forcing-released"])
def test_the_published_sizes_attend_to_16_and_19_frames_in_turn(name: str) -> None:
    policy = parse_memory(name)
    assert isinstance(policy, DeepForcing)
    memory, hands, used = make(policy), Layers(policy), []
    for index in range(14):
        assert (step(memory, index) - hands.step(index)).abs().max() < 2e-5
        used.append(memory.used)
    assert used == [3, 6, 9, 12, 15, 18, 21, 16, 19, 16, 19, 16, 19, 16]
    ids = [(place.role, place.id, place.frame) for place in memory.layout()]
    # After chunk 13 (frames 39 to 41): contiguous in the paper, in the released code with sinks from 39 - 16 on.
    first, between, last = (0, [10, 11], 12) if name == "deep-forcing" else (23, [None, None], 38)
    assert ids[:10] == [("sink", first + i, i) for i in range(10)]
    assert ids[10:12] == [("memory", index, None) for index in between]
    assert ids[12:] == [("recent", last + i, 38 + i) for i in range(4)]


def test_ids_stay_within_those_of_training() -> None:
    """No id of what a chunk attends to, in 40 chunks, is beyond the window that the model knows: 0 to 20."""
    memory, seen = make(DeepForcing()), set()
    for index in range(40):
        memory.begin_chunk()
        seen |= {place.id for place in memory.layout()}
        with memory.recording():
            attend(memory, draw(3, 1, index))
    assert seen == {*range(21)}


@every_policy
def test_what_is_looked_at_stays(policy: DeepForcing) -> None:
    """Of tokens made to be looked at by everything later, each layer keeps its own, for as long as they may be kept."""
    memory = make(policy)
    marked = [(policy.sink, 0), (policy.sink + 1, 1)]  # frame, place: one for each layer

    def tokens(index: int) -> Tensor:
        qkv = 0.01 * draw(3, 1, index)
        qkv[0, ..., -1] = 1.0  # the slowest channel in space: hardly turned
        for layer, (frame, place) in enumerate(marked):
            if frame // 3 == index:
                at = (frame % 3) * TOKENS + place
                qkv[1, layer, :, at, :, -1] = 9.0
                qkv[2, layer, :, at] = 7.0 + layer
        return qkv

    held = []
    for index in range(14):
        memory.begin_chunk()
        attend(memory, tokens(index))
        with memory.recording():
            attend(memory, tokens(index))
        values = memory.values[:, :, : memory.used].flatten(1, 3)
        held.append([bool((values[layer] == 7.0 + layer).all(-1).all(-1).any()) for layer in range(LAYERS)])
        assert not bool((values[0] == 8.0).all(-1).all(-1).any()) or index < 6
    if policy.chosen and policy.reuse == 0:
        assert held[-1] == [True, True]
    else:
        assert policy.chosen == 0 or held[5] == [True, True]
        assert held[-1] == [False, False]


def test_the_control_without_compression_is_a_window_with_ten_sinks() -> None:
    assert parse_memory("deep-sink") == Sliding(21, 10, "relative")


@every_policy
@pytest.mark.parametrize("functional", [False, True])
def test_a_chunk_that_has_begun_and_not_looked_yet_can_be_saved(policy: DeepForcing, functional: bool) -> None:
    memory = make(policy, functional=functional)
    for index in range(9):
        step(memory, index)
        memory.begin_chunk()
        other = make(policy, functional=functional)
        other.load_state_dict(*memory.state_dict())
        assert other.open
        for one in (memory, other):
            with one.recording():
                attend(one, draw(3, 1, 99 + index))
        assert torch.equal(step(memory, index), step(other, index))


def test_a_forward_that_stopped_halfway_cannot_be_saved() -> None:
    policy = DeepForcing(9, 2, 8, 4)
    memory = make(policy)
    for index in range(3):
        step(memory, index)
    memory.begin_chunk()
    qkv = draw(3, 1, 0)
    policy.observe(memory, 0, qkv[0, 0], qkv[1, 0])
    with pytest.raises(RuntimeError, match="in the middle of a forward"):
        memory.state_dict()
    with pytest.raises(RuntimeError, match="let its policy observe"):
        memory.update(1, qkv[1, 1], qkv[2, 1])


@pytest.mark.parametrize("change", ["flush", "cut"])
@every_policy
def test_after_a_new_prompt_it_chooses_afresh(policy: DeepForcing, change: str) -> None:
    """What is forgotten has no say: other tokens between the sinks and the last two frames lead to the same video."""
    outputs = []
    for different in (0, 1000):
        memory = make(policy)
        for index in range(9):
            whole = index < 2 or index == 8  # sinks, and the last two frames with their queries
            step(memory, index if whole else index + different)
        memory.change_prompt(change)
        outputs.append(torch.stack([step(memory, index) for index in range(20, 27)]))
        assert max(place.frame or 0 for place in memory.layout()) == 47
    assert torch.equal(*outputs)


@every_policy
def test_gradients_reach_what_was_chosen_and_nothing_else(policy: DeepForcing) -> None:
    """... of a chunk's second forward, from the keys and values of every frame that is held."""
    memory, inputs = make(policy, functional=True), []
    for index in range(8):
        memory.begin_chunk()
        qkv = draw(3, 1, 2 * index).requires_grad_()
        inputs.append(qkv)
        with memory.recording():
            attend(memory, qkv)
    held = memory.values[:, :, : memory.used].detach().flatten(1, 3)
    memory.begin_chunk()
    before = memory.used
    for number in range(2):
        out = attend(memory, draw(3, 1, 100 + number))
    assert before == memory.used
    kept = memory.values.detach()[:, :, : memory.used - 3].flatten(1, 3)
    out.sum().backward()
    for x in inputs:
        assert x.grad is not None
        for layer in range(LAYERS):
            for token, value in zip(x.grad[2, layer].flatten(0, 1), x[2, layer].detach().flatten(0, 1), strict=True):
                among = bool((kept[layer] == value).all(-1).all(-1).any())
                assert bool(token.abs().sum() > 0) == among
                assert not among or bool((held[layer] == value).all(-1).all(-1).any())


@pytest.mark.parametrize("name", ["deep-forcing", "deep-forcing-released"])
def test_its_slots_in_words(name: str) -> None:
    words = "10 sink + 2 chosen + 1 to 4 recent + 3 current = 16 to 19 frames"
    assert memory_layout(parse_memory(name), 3) == words
    assert memory_layout(DeepForcing(9, 0, 8, 3), 3) == "5 chosen + 3 current = 8 frames"


def test_teacher_forcing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"whole frames, not deep-forcing\.$"):
        plan_sequence(DeepForcing(), range(3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("deep-forcing:budget=13", r"budget must be at least 14 \(10 sink and 4 recent frames\), not 13"),
        ("deep-forcing:window=15", "window must be at least the budget, 16, not 15"),
        ("deep-forcing:recent=2", "recent must be at least a chunk, 3 frames, not 2"),
        ("deep-forcing:reuse=-1", "reuse must be a whole number"),
        ("deep-forcing:ids=unified", "ids must be relative or released"),
        ("deep-forcing-released:variant=1", "accepted are window, sink, budget, recent, ids, reuse"),
    ],
)
def test_bad_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_memory(spec)


def test_a_state_of_other_settings_is_refused() -> None:
    memory = make(ALL[1])
    for index in range(7):
        step(memory, index)
    state = memory.state_dict()
    for other in (make(replace(ALL[1], reuse=0)), make(Sliding(13, 2))):
        with pytest.raises(ValueError, match="This state is not of a memory with"):
            other.load_state_dict(*state)


@pytest.mark.parametrize("ids", ["relative", "released"])
def test_gradient_checkpointing_sees_the_memory_that_the_forward_saw(ids: str) -> None:
    """Gradients of a chunk's forwards, with and without it, after the memory has moved on."""
    policy = DeepForcing(8, 1, 7, 4, ids=ids, reuse=2 * (ids == "released"))
    pipe = build()
    transformer = pipe.transformer
    torch.manual_seed(0)
    latents = torch.randn(9, 1, 4, 3, 8, 12)
    text = torch.randn(1, 5, 128)
    gradients = []
    for checkpointing in (False, True):
        transformer.zero_grad()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
            transformer.train()
        memory = memory_for(transformer, policy, 8, 12, functional=True)
        total = torch.zeros(())
        for index, x in enumerate(latents):
            memory.begin_chunk()
            for t in (800.0, 400.0):
                with attending(transformer, memory):
                    out = transformer(x, torch.tensor([t]), text, return_dict=False)[0]
                if index > 3:
                    total = total + (out**2).mean()
            with attending(transformer, memory), memory.recording():
                transformer(x, torch.tensor([0.0]), text, return_dict=False)
        total.backward()
        gradients.append([p.grad.clone() for p in transformer.parameters() if p.grad is not None])
    transformer.disable_gradient_checkpointing()
    assert len(gradients[0]) > 20
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_policies_that_do_not_look_are_not_asked() -> None:
    """No other policy has anything beside its slots, and its ``observe`` is the base's, which does nothing."""
    for policy in (Sliding(9, 1), parse_memory("memrope"), parse_memory("longlive")):
        assert type(policy).observe is MemoryPolicy.observe
        assert make(policy).chosen is None
