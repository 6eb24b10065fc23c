"""A memory in parts against the undivided one: the same bits, the same snapshots."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longtake.attention import attending, memory_for
from longtake.memory import MemRoPE, Sliding, parse_memory
from longtake.memory.split import SplitMemory
from longtake.memory.store import Memory
from longtake.pipeline import LongTakePipeline
from longtake.placement import place, split_transformer
from tests.helpers_pipeline import ALL_MEMORIES, OTHER, PROMPT, SCRIPT, build, run, same

LAYERS = 5
CHUNKS = 9  # past the filling of every memory with settings of its own, and two changes of prompt


@pytest.fixture(scope="module")
def whole() -> LongTakePipeline:
    return build(layers=LAYERS)


@pytest.fixture(scope="module")
def split() -> LongTakePipeline:
    pipe = build(layers=LAYERS)
    place(pipe, ("cpu", "cpu", "cpu"))
    return pipe


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CASES = [(memory, "keep") for memory in ALL_MEMORIES] + [
    (memory, change) for memory in (*ALL_MEMORIES[-8:], "echo") for change in ("recache", "flush", "cut")
]


@pytest.mark.parametrize(("memory", "change"), CASES)
def test_split_take_is_the_undivided_one_bit_for_bit(
    whole: LongTakePipeline, split: LongTakePipeline, memory: str, change: str
) -> None:
    one, other = (pipe.start(SCRIPT, memory, on_prompt_change=change) for pipe in (whole, split))
    assert isinstance(other.memory, SplitMemory)
    assert [len(part.prompt) for part in other.memory.parts] == [2, 2, 1]
    assert same(run(one, CHUNKS), run(other, CHUNKS))
    assert one.memory.layout() == other.memory.layout()
    assert one.memory.nbytes == other.memory.nbytes


@pytest.mark.parametrize(
    "memory",
    [
        "memrope:recent=2",
        "memrope:recent=1,adaptive=true",
        "longlive",
        "deep-forcing-released:window=9,sink=2,budget=8",
    ],
)
def test_snapshots_move_between_splits(
    whole: LongTakePipeline, split: LongTakePipeline, tmp_path: Path, memory: str
) -> None:
    straight = run(whole.start(SCRIPT, memory), 8)
    for first, second in ((whole, split), (split, whole)):
        take = first.start(SCRIPT, memory)
        run(take, 5)
        take.snapshot(tmp_path / "a.snapshot")
        assert same(run(second.resume(tmp_path / "a.snapshot"), 3), straight[5:])


def test_state_of_a_split_memory_is_that_of_the_undivided_one(whole: LongTakePipeline, split: LongTakePipeline) -> None:
    states = []
    for pipe in (whole, split):
        take = pipe.start(PROMPT, "memrope:recent=1,pooling=position")
        run(take, 4)
        states.append(take.memory.state_dict())
    (tensors, counters), (parts, others) = states
    assert counters == others and set(tensors) == set(parts) and any("average" in name for name in tensors)
    assert all(torch.equal(tensors[name], parts[name]) for name in tensors)


def pair(chunk: int = 3) -> tuple[SplitMemory, Memory]:
    sizes = {"heads": 2, "head_dim": 12, "grid": (2, 3), "chunk": chunk}
    policy = MemRoPE(recent=1)
    parts = [Memory(policy, num_layers=n, **sizes) for n in (2, 1)]  # type: ignore[arg-type]
    return SplitMemory(parts), Memory(policy, num_layers=3, **sizes)  # type: ignore[arg-type]


def fill(memory: SplitMemory | Memory, chunks: int) -> list[torch.Tensor]:
    """Chunks of random keys and values, the same for every memory; what attention would see, all layers."""
    seen = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(chunks):
        memory.begin_chunk()
        with memory.recording():
            for layer in range(3):
                key, value, query = torch.randn(3, 1, 3 * 6, 2, 12, generator=generator)
                seen += [x.clone() for x in (*memory.update(layer, key, value), memory.query(query))]
    return seen


def test_interface_by_hand() -> None:
    split, whole = pair()
    assert all(torch.equal(a, b) for a, b in zip(fill(split, 5), fill(whole, 5), strict=True))
    for memory in (split, whole):
        memory.rewind(3)
        memory.change_prompt("flush")
    assert split.layout() == whole.layout() and split.used == whole.used and split.frame == whole.frame
    assert torch.equal(split.rotated(torch.ones(6, 2, 12), 7), whole.rotated(torch.ones(6, 2, 12), 7))
    assert all(torch.equal(a, b) for a, b in zip(fill(split, 3), fill(whole, 3), strict=True))
    split.detach()
    split.reset()
    assert split.frame == split.used == 0 and not split.open and split.prompt == (None, None, None)


def test_offers_all_that_a_memory_offers() -> None:
    split, whole = pair()
    # Tensors of all layers, which no device need have room for; tables and choices, which every part has of its own.
    inner = {"keys", "values", "averages", "rope", "chosen"}
    for name in {n for n in (*dir(whole), *vars(whole)) if not n.startswith("_")} - inner:
        assert hasattr(split, name), name
        if callable(getattr(whole, name)):
            signatures = [inspect.signature(getattr(memory, name)) for memory in (split, whole)]
            assert signatures[0].parameters == signatures[1].parameters, name
        elif name != "prompt":
            assert getattr(split, name) == getattr(whole, name), name


def test_an_incomplete_recording_leaves_the_chunk_open_in_every_part() -> None:
    split, _ = pair()
    split.begin_chunk()
    with pytest.raises(RuntimeError, match="Nothing was recorded"), split.recording():
        split.update(2, *torch.zeros(2, 1, 18, 2, 12))
    assert all(part.open and part.frame == 0 for part in split.parts)
    with split.recording():
        for layer in range(3):
            split.update(layer, *torch.zeros(2, 1, 18, 2, 12))
    assert all(not part.open and part.frame == 3 for part in split.parts)


@pytest.mark.parametrize("layers", [2, 4])
def test_a_state_with_other_layers_is_refused_and_nothing_changes(layers: int) -> None:
    split, whole = pair()
    fill(split, 4)
    fill(whole, 4)
    before = split.state_dict()
    tensors, counters = whole.state_dict()
    wrong = {k: v if k == "tags" else torch.cat([v, v])[:layers] for k, v in tensors.items()}
    with pytest.raises(ValueError, match="3 layers"):
        split.load_state_dict(wrong, counters)
    after = split.state_dict()
    assert before[1] == after[1] and all(torch.equal(before[0][k], after[0][k]) for k in before[0])


def test_parts_must_be_alike() -> None:
    sizes = {"num_layers": 1, "heads": 2, "head_dim": 12, "grid": (2, 3)}
    with pytest.raises(ValueError, match="same policy"):
        SplitMemory([Memory(MemRoPE(), **sizes), Memory(Sliding(), **sizes)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same policy"):
        SplitMemory([])


def test_functional_memory_splits_too() -> None:
    """Under autograd: the loss of a chunk reaches the parameters in the same way."""
    grads = []
    for count in (1, 2):
        transformer = build(layers=2).transformer
        split_transformer(transformer, ["cpu"] * count)
        memory = memory_for(transformer, parse_memory("memrope:recent=1"), 4, 6, functional=True)
        assert isinstance(memory, SplitMemory) == (count == 2)
        x, text = torch.ones(1, 4, 3, 4, 6), torch.ones(1, 5, 128)
        total = torch.zeros(())
        for _ in range(4):
            memory.begin_chunk()
            with attending(transformer, memory), memory.recording():
                total = total + transformer(x, torch.zeros(1), text, return_dict=False)[0].square().mean()
        total.backward()
        grads.append(transformer.blocks[0].attn1.to_k.weight.grad)
    assert torch.equal(*grads) and grads[0].abs().sum() > 0


def test_policies_that_choose_by_layer_cannot_be_split() -> None:
    class ByLayer(Sliding):
        def begin_chunk(self, memory):  # type: ignore[no-untyped-def]
            update = super().begin_chunk(memory)
            if memory.keys.shape[0] == 1 and update.evict:
                update.evict = [max(memory.tags)]
            return update

    policy = ByLayer(window=6, sink=1)
    sizes = {"heads": 2, "head_dim": 12, "grid": (2, 3)}
    memory = SplitMemory([Memory(policy, num_layers=n, **sizes) for n in (2, 1)])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cannot be split"):
        fill(memory, 4)


def test_other_prompts_fill_the_cache_of_every_part(split: LongTakePipeline) -> None:
    take = split.start(PROMPT)
    run(take, 1)
    before = take.memory.prompt
    assert all(pair is not None for pair in before)
    take.memory.change_prompt()
    assert take.memory.prompt == (None,) * LAYERS
    other = split.start(OTHER)
    run(other, 1)
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(before, other.memory.prompt, strict=True))
