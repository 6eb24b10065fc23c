"""The four ways in which a prompt changes, against a take written out by hand: frames in a list, nothing clever."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from longtake.memory import Memory, MemRoPE, Sliding, parse_memory
from longtake.pipeline import LongTakePipeline
from longtake.prompts import CHANGES, parse_script
from longtake.sampling import chunk_noise
from tests.helpers_pipeline import FPS, OTHER, PROMPT, build, run, same

MEMORIES = ("memrope", "self-forcing", "longlive", "infinity-rope")
ROWS, COLUMNS, DIM, CHUNK = 2, 3, 12, 3
SHAPE = (1, 4, CHUNK, 4, 6)
SIGMAS = [5 * s / (1 + 4 * s) for s in (1, 0.75, 0.5, 0.25)]
THIRD = "a green star in the snow"


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


# By hand: float64, one rotation per frame, no slots.


def turned(frame: Tensor, index: int) -> Tensor:
    """One frame's queries or keys [tokens, heads, DIM], rotated to a time, by rows and by columns."""
    out = torch.empty_like(frame)
    for token in range(ROWS * COLUMNS):
        pairs = []
        for position in (index, token // COLUMNS, token % COLUMNS):
            pairs += [torch.tensor(position / 10000 ** (2 * i / 4)) for i in range(2)]
        angle = torch.stack(pairs).double()
        even, odd = frame[token, :, 0::2], frame[token, :, 1::2]
        out[token, :, 0::2] = even * angle.cos() - odd * angle.sin()
        out[token, :, 1::2] = even * angle.sin() + odd * angle.cos()
    return out


Frame = dict[int, tuple[Tensor, Tensor]]  # by layer: un-rotated keys, and values


class HandAttention(WanAttnProcessor):
    """Self-attention of one layer to what its :class:`HandTake` holds."""

    def __init__(self, take: HandTake, layer: int) -> None:
        super().__init__()
        self.take, self.layer = take, layer

    def __call__(self, attn: Any, hidden: Tensor, encoder: Any = None, mask: Any = None, rotary: Any = None) -> Tensor:
        query, key, value = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
        query, key, value = (x[0].double().view(CHUNK, ROWS * COLUMNS, -1, DIM) for x in (query, key, value))
        take = self.take
        for frame, *pair in zip(take.current, key, value, strict=True):
            frame[self.layer] = (pair[0], pair[1])
        past = [(frame[self.layer], index) for frame, index in take.attended]
        now = [(frame[self.layer], index) for frame, index in zip(take.current, take.ids, strict=True)]
        keys = torch.cat([turned(k, index) for (k, _), index in past + now])
        values = torch.cat([v for (_, v), _ in past + now])
        queries = torch.cat([turned(q, index) for q, index in zip(query, take.ids, strict=True)])
        weights = torch.einsum("qhd,khd->hqk", queries, keys).div(DIM**0.5).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, values).flatten(1)[None].to(hidden.dtype)
        projected: Tensor = attn.to_out[0](out)
        return projected


class HandTake:
    """What a take should do, told by what the papers say; the latents it commits are given from outside."""

    def __init__(self, pipe: LongTakePipeline, memory: str, seed: int) -> None:
        self.pipe, self.policy, self.seed = pipe, parse_memory(memory), seed
        self.model = copy.deepcopy(pipe.transformer)
        for layer, block in enumerate(self.model.blocks):
            block.attn1.set_processor(HandAttention(self, layer))
            block.attn2.set_processor(WanAttnProcessor())
        self.past: dict[int, Frame] = {}  # by global index
        self.averages: list[Frame] | None = None
        self.count = 0
        self.latents: list[Tensor] = []
        self.current: list[Frame] = []
        self.attended: list[tuple[Frame, int]] = []
        self.ids: list[int] = []

    def begin(self, cut: bool) -> None:
        policy = self.policy
        local = [index for index in self.past if index >= policy.sink]
        if isinstance(policy, MemRoPE):
            slots = len(self.past) + 2 * (self.averages is not None)
            if slots > policy.sink + 2 + policy.recent:
                self.fold([self.past.pop(index) for index in local[: len(local) - policy.recent]])
        else:
            assert isinstance(policy, Sliding)
            while len(self.past) + CHUNK > policy.window:
                del self.past[local.pop(0)]
        shown = [(frame, index) for index, frame in self.past.items()]
        if self.averages is not None:
            sinks = [pair for pair in shown if pair[1] < policy.sink]
            shown = [*sinks, *((frame, -1) for frame in self.averages), *shown[len(sinks) :]]
        if policy.ids == "relative":
            shown = [(frame, position) for position, (frame, _) in enumerate(shown)]
        first = len(shown) if policy.ids == "relative" else self.count
        self.attended, self.current = shown, [{} for _ in range(CHUNK)]
        self.ids = [first + i + (42 if cut else 0) for i in range(CHUNK)]

    def fold(self, frames: list[Frame]) -> None:
        assert isinstance(self.policy, MemRoPE)
        mean: Frame = {}
        for layer in frames[0]:
            pair = [torch.cat([f[layer][i] for f in frames]).mean(0, keepdim=True) for i in (0, 1)]
            mean[layer] = (pair[0].expand(6, -1, -1), pair[1].expand(6, -1, -1))
        if self.averages is None:
            self.averages = [mean, mean]
            return
        rates = (self.policy.long, self.policy.short)
        self.averages = [
            {n: (old[n][0] + r * (mean[n][0] - old[n][0]), old[n][1] + r * (mean[n][1] - old[n][1])) for n in mean}
            for old, r in zip(self.averages, rates, strict=True)
        ]

    def forward(self, x: Tensor, t: float, text: Tensor) -> Tensor:
        flow: Tensor = self.model(x, torch.tensor([t]), text, return_dict=False)[0]
        return flow

    def commit(self, latents: Tensor, text: Tensor) -> None:
        self.forward(latents, 0.0, text)
        self.past |= {self.count + i: frame for i, frame in enumerate(self.current)}
        self.count += CHUNK

    @torch.no_grad()
    def chunk(self, text: Tensor, change: str | None) -> Tensor:
        """The next chunk's latents; ``change`` is what the new prompt does, None where the prompt stays."""
        if change in ("flush", "cut"):
            kept = [i for i in self.past if i < self.policy.sink] + [self.count - 2, self.count - 1]
            self.past = {i: self.past[i] for i in dict.fromkeys(kept)}
            self.averages = None
        if change == "recache":
            whole = [n for n in (2, 1) if all(self.count - 1 - i in self.past for i in range(n * CHUNK))]
            again = self.latents[-whole[0] :]
            for _ in range(len(again) * CHUNK):
                self.count -= 1
                del self.past[self.count]
            for latents in again:
                self.begin(cut=False)
                self.commit(latents, text)
        self.begin(cut=change == "cut")
        self.text, index = text, len(self.latents)
        x0 = torch.zeros(SHAPE)
        for number, sigma in enumerate(SIGMAS):
            x = (1 - sigma) * x0 + sigma * chunk_noise(self.seed, index, number, SHAPE)
            x0 = x - sigma * self.forward(x, 1000 * sigma, text)
        return x0

    @torch.no_grad()
    def remember(self, latents: Tensor) -> None:
        self.commit(latents, self.text)
        self.latents.append(latents)


PLANS: dict[str, dict[int, tuple[str, str]]] = {
    **{mode: {5: (OTHER, mode)} for mode in CHANGES},
    **{f"early {mode}": {1: (OTHER, mode)} for mode in CHANGES},
    "all of them": {
        2: (OTHER, "recache"), 4: (PROMPT, "cut"), 5: (THIRD, "recache"), 6: (PROMPT, "flush"), 7: (OTHER, "cut"),
        10: (PROMPT, "keep"),
    },
}  # fmt: skip


@pytest.mark.parametrize("plan", list(PLANS))
@pytest.mark.parametrize("memory", MEMORIES)
def test_each_way_is_what_it_is_by_hand(pipe: LongTakePipeline, memory: str, plan: str) -> None:
    take, hand = pipe.start(PROMPT, memory, seed=3), HandTake(pipe, memory, seed=3)
    prompt, worst = PROMPT, 0.0
    for index in range(12 if plan == "all of them" else 9):
        change = None
        if index in PLANS[plan]:
            prompt, change = PLANS[plan][index]
            take.say(prompt, change)
        expected = hand.chunk(pipe.encode_prompt(prompt), change)
        made = take.next_chunk()
        assert made.prompt == prompt
        worst = max(worst, (made.latents - expected).abs().max().item())
        hand.remember(made.latents)
    assert worst < 2e-4
    assert made.latents.std() > 0.1


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_ways_differ(pipe: LongTakePipeline, memory: str) -> None:
    made = {}
    for mode in CHANGES:
        take = pipe.start(PROMPT, memory)
        before = run(take, 6)
        take.say(OTHER, mode)
        made[mode] = take.next_chunk().latents
        assert same(before, run(pipe.start(PROMPT, memory), 6))
    for i, one in enumerate(CHANGES):
        for other in CHANGES[:i]:
            # This one holds no more than a flush leaves, even when nothing is flushed.
            alike = memory == "infinity-rope" and {one, other} == {"keep", "flush"}
            assert ((made[one] - made[other]).abs().max() < 1e-4) == alike, (one, other)


def test_the_ids_of_a_cut() -> None:
    """Infinity-RoPE's released code: for one chunk, 0, 1, 2 and 45, 46, 47; then 0 to 5 as ever."""

    def ids(memory: Memory) -> list[int | None]:
        return [place.id for place in memory.layout()]

    def commit(memory: Memory) -> None:
        with memory.recording():
            memory.update(0, *torch.randn(2, 1, 3, 1, 6))

    for spec, cut, after in (
        ("infinity-rope", [0, 1, 2, 45, 46, 47], [0, 1, 2, 3, 4, 5]),
        ("memrope", [0, 1, 2, 3, 4, 47, 48, 49], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("longlive", [0, 1, 2, 16, 17, 60, 61, 62], [0, 1, 2, 16, 17, 18, 19, 20, 21, 22, 23]),
        ("self-forcing", [16, 17, 60, 61, 62], [16, 17, 18, 19, 20, 21, 22, 23]),
    ):
        memory = Memory(parse_memory(spec), num_layers=1, heads=1, head_dim=6, grid=(1, 1))
        for _ in range(6):
            memory.begin_chunk()
            commit(memory)
        memory.change_prompt("cut")
        memory.begin_chunk()
        assert ids(memory) == cut
        memory.change_prompt("keep")  # weights that changed, say: still the same chunk
        assert ids(memory) == cut
        commit(memory)
        memory.begin_chunk()
        assert ids(memory) == after


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_memory_saved_at_a_cut_goes_on(memory: str, moment: str) -> None:
    """Bit for bit: saved when the cut is announced, and within its chunk."""

    def make() -> Memory:
        return Memory(parse_memory(memory), num_layers=1, heads=1, head_dim=6, grid=(2, 1))

    def forward(memory: Memory, seed: int) -> Tensor:
        query, key, value = torch.randn(3, 1, 6, 1, 6, generator=torch.Generator().manual_seed(seed))
        keys, values = memory.update(0, key, value)
        scores = torch.einsum("bqhd,bkhd->bhqk", memory.query(query), keys).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", scores, values)

    one = make()
    for seed in range(7):
        one.begin_chunk()
        with one.recording():
            forward(one, seed)
    one.change_prompt("cut")
    if moment == "within":
        one.begin_chunk()
        forward(one, 50)
    other = make()
    other.load_state_dict(*one.state_dict())
    assert other.cut and other.open == (moment == "within")
    for seed in range(60, 66):
        outputs = []
        for memory_ in (one, other):
            if not memory_.open:
                memory_.begin_chunk()
            with memory_.recording():
                outputs.append(forward(memory_, seed))
            assert not memory_.cut
        assert torch.equal(*outputs)
    tensors, counters = one.state_dict()
    for odd in (2, -1, True, "0", None):
        with pytest.raises(ValueError, match="This state is not"):
            make().load_state_dict(tensors, {**counters, "cut": odd})  # type: ignore[dict-item]


# In a script


@pytest.mark.parametrize("mode", CHANGES)
def test_a_segment_has_its_own_way(pipe: LongTakePipeline, mode: str) -> None:
    others = [m for m in CHANGES if m != mode]
    expected = run(pipe.start(f"{PROMPT} [2s] | {OTHER} [9s]", on_prompt_change=mode), 6)
    for default in others:
        take = pipe.start(f"{PROMPT} [2s] | [{mode}] {OTHER} [9s]", on_prompt_change=default)
        assert same(run(take, 6), expected)
        assert not same(run(pipe.start(f"{PROMPT} [2s] | {OTHER} [9s]", on_prompt_change=default), 6), expected)


def test_a_change_asked_for_happens_once_even_if_the_prompt_stays(pipe: LongTakePipeline) -> None:
    plain = run(pipe.start(PROMPT), 7)
    made = run(pipe.start(f"{PROMPT} [2s] | [cut] {PROMPT} [9s]"), 7)
    said = pipe.start(PROMPT)
    chunks = run(said, 3)
    said.say(f"  {PROMPT} ", "cut")
    chunks += run(said, 4)
    assert same(made[:3], plain[:3])
    assert (made[3].latents - plain[3].latents).abs().max() > 1e-3
    assert same(made, chunks)
    # not again with a script that says what holds already
    steered = pipe.start(f"{PROMPT} [2s] | [cut] {PROMPT} [9s]")
    chunks = run(steered, 5)
    steered.steer(f"{PROMPT} [2s] | [cut] {PROMPT} [90s]")
    assert same([*chunks, *run(steered, 2)], made)


def test_saying_is_steering(pipe: LongTakePipeline) -> None:
    said, written = pipe.start(PROMPT), pipe.start(PROMPT)
    chunks, others = run(said, 3), run(written, 3)
    said.say(OTHER, "flush")
    written.steer(f"{PROMPT} [1s] | {PROMPT} [1s] | [flush] {OTHER}")
    chunks += run(said, 2)
    others += run(written, 2)
    assert same(chunks, others)
    for number in range(40):  # what is said does not pile up
        said.say(f"{(PROMPT, OTHER)[number % 2]}")
    assert len(said.script.segments) == 2
    assert said.next_chunk().prompt == OTHER


def test_before_the_first_chunk_there_is_nothing_to_change(pipe: LongTakePipeline) -> None:
    take = pipe.start(PROMPT)
    take.say(OTHER, "cut")
    assert same(run(take, 3), run(pipe.start(OTHER), 3))


def test_what_cannot_be_said_leaves_the_take_as_it_was(pipe: LongTakePipeline) -> None:
    take = pipe.start(PROMPT)
    run(take, 2)
    script = take.script
    for prompt, change, says in (
        ("zxcv qwerty", None, "knows no word"),
        ("  ", None, "needs a prompt"),
        (OTHER, "jump", "keep, recache, flush, cut"),
    ):
        with pytest.raises(ValueError, match=says):
            take.say(prompt, change)
        with pytest.raises(ValueError, match="first segment"):
            take.steer("[cut] a red ball")
        assert take.script is script
    take.say("[cut] a blue box")  # taken as it is
    assert take.next_chunk().prompt == "[cut] a blue box"


def test_a_change_survives_a_snapshot(pipe: LongTakePipeline) -> None:
    """Said and not yet done, for a take that is resumed before the next chunk."""
    for mode in CHANGES:
        take = pipe.start(PROMPT)
        run(take, 5)
        take.say(OTHER, mode)
        again = type(take).from_state(pipe, *take.state())
        assert again.script == take.script == parse_script(take.script.format())
        assert same(run(again, 3), run(take, 3))
    assert take.seconds_done == (9 + 7 * 12) / FPS
