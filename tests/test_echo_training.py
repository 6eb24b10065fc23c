"""Echo-Infinity's memory under autograd: which weights have gradients when, that they are right, and where they end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.memory import Echo, MemoryEncoder, parse_memory
from longtake.training.selfforcing import Rollout, Switch
from tests.helpers_pipeline import FPS, OTHER, PROMPT, random_memory, run
from tests.helpers_pipeline import build as build_pipeline
from tests.helpers_training import draw
from tests.test_attention import build, text
from tests.test_selfforcing import SCHEDULE, closest, everything_in_float64, gradients, judged

RELEASED = "after_first_forward"
SMALL = Echo(frames=2, past=3, sink=1)
"""The third chunk is the first that something leaves the window for, and the first with ids for the memory."""


def encoder_of(policy: Echo = SMALL, **config: Any) -> MemoryEncoder:
    return random_memory(2, 12, **{"frames": policy.frames, **config}).requires_grad_(True)


def rollout(model: Any, encoder: MemoryEncoder, policy: Echo = SMALL, batch: int = 2, **settings: Any) -> Rollout:
    settings = {"memory_grad": "update", **settings}
    return Rollout(model, policy, SCHEDULE, text(batch=batch), range(7, 7 + batch), 4, 6, encoder=encoder, **settings)


def reached(encoder: MemoryEncoder) -> dict[str, bool]:
    """Which parts have a gradient that is not zero."""
    parts: dict[str, bool] = {}
    for name, p in encoder.named_parameters():
        part = ".".join(name.split(".")[:3]) if name.startswith("layers") else name.split(".")[0]
        parts[part] = parts.get(part, False) or (p.grad is not None and bool(p.grad.abs().max() > 0))
    return parts


EVERY = {"query_init", "connector_proj", "gate_linear", "to_k", "to_v", "norm_k_out"}
EVERY |= {f"layers.{i}.{part}" for i in (0, 1) for part in ("norm1", "norm2", "q", "o", "norm_q", "ffn")}
READ = {"to_k", "to_v", "norm_k_out"}
"""What makes keys and values of the state: has gradients whenever the memory is attended to."""


@pytest.mark.parametrize("exit", [0, 1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("update", ["chunk_start", RELEASED])
def test_every_exit_has_gradients_but_with_the_released_timing(exit: int, checkpointing: bool, update: str) -> None:
    """The released update is a part of the first forward, which has gradients only if it is the last."""
    policy = Echo(2, 3, 1, update=update)
    model, encoder = build().requires_grad_(False), encoder_of()
    if checkpointing:
        model.enable_gradient_checkpointing()
    clip = rollout(model, encoder, policy).clip(exit, 15)
    clip.frames[:, :, 9:].square().mean().backward()
    found = {part for part, yes in reached(encoder).items() if yes}
    assert set(reached(encoder)) == EVERY
    assert found == (EVERY if update == "chunk_start" or exit == 0 else READ)
    assert all(p.grad is None for p in model.parameters())


def test_without_memory_gradients_the_memory_has_none() -> None:
    model, encoder = build(), encoder_of()
    judged(rollout(model, encoder, memory_grad="none").clip(1, 15)).backward()
    assert not any(reached(encoder).values())


def test_a_loss_two_chunks_after_an_eviction_reaches_what_took_it_in() -> None:
    model, encoder = build(), encoder_of()
    taken: list[Tensor] = []

    def keep(module: Any, arguments: Any, state: Tensor) -> None:
        state.retain_grad()
        taken.append(state)

    encoder.register_forward_hook(keep)
    clip = rollout(model, encoder).clip(2, 15)  # chunks 2, 3 and 4 have an update each
    clip.frames[:, :, 12:].square().mean().backward()
    assert len(taken) == 3
    grads = [x.grad for x in taken]
    assert all(g is not None and g.abs().max() > 1e-9 for g in grads)
    # By the first update alone: its own gradient, sent on to what made it.
    encoder.zero_grad()
    again = rollout(model, encoder)
    again.clip(2, 9)
    state = taken[3]
    assert again.memory.learned is not None and not again.memory.learned.state.requires_grad  # type: ignore[union-attr]
    assert torch.allclose(state, taken[0], atol=1e-5)
    assert grads[0] is not None
    state.backward(grads[0])
    found = {part for part, yes in reached(encoder).items() if yes}
    assert {"query_init", "gate_linear", "layers.0.q", "layers.1.q", "layers.0.o", "connector_proj"} <= found


def test_gradients_end_where_the_state_is_detached() -> None:
    model, encoder = build(), encoder_of()
    states: list[Tensor] = []

    def keep(module: Any, arguments: Any, state: Tensor) -> None:
        state.retain_grad()
        states.append(state)

    encoder.register_forward_hook(keep)
    stream = rollout(model, encoder)
    first, second = stream.clip(1, 15), stream.clip(1, 12)
    assert len(states) == 6
    second.frames[:, :, 3:].square().mean().backward()
    parts = reached(encoder)
    assert not parts["query_init"] and parts["gate_linear"] and parts["layers.0.q"] and parts["connector_proj"]
    assert all(state.grad is None for state in states[:3]) and all(state.grad is not None for state in states[3:])
    encoder.zero_grad()
    first.frames.square().mean().backward()
    assert reached(encoder)["query_init"]


@pytest.mark.parametrize("config", [{}, {"groups": 2}, {"normalize_keys": False}], ids=["one", "groups", "no norm"])
@pytest.mark.parametrize("update", ["chunk_start", RELEASED])
def test_gradients_are_finite_differences(config: dict[str, Any], update: str) -> None:
    """Of all weights of the memory at once, over six chunks with four updates, through all that is remembered."""
    policy = Echo(2, 3, 1, update=update)
    model, encoder = build().double().requires_grad_(False), encoder_of(**config).double()
    direction = [draw(i, *p.shape).double() for i, p in enumerate(encoder.parameters())]

    def loss() -> Tensor:
        return judged(rollout(model, encoder, policy, batch=1, memory_grad="full").clip(0, 18))

    with everything_in_float64():
        loss().backward()
        pairs = list(zip(encoder.parameters(), direction, strict=True))
        assert all(p.grad is not None for p, _ in pairs)
        along = sum(float((p.grad * d).sum()) for p, d in pairs if p.grad is not None)
        around = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for p, d in pairs:
                    p.add_(d, alpha=step)
                around.append(float(loss()))
    expected = (around[0] - around[1]) / 2e-6
    assert abs(expected) > 1e-3
    assert along == pytest.approx(expected, rel=1e-4)


def test_a_prompt_change_that_starts_afresh_learns_too() -> None:
    """In a later clip, where the initial queries have no part in the state any more."""
    reach = {}
    for change in ("keep", "recache"):
        model, encoder = build(), encoder_of()
        stream = rollout(model, encoder)
        stream.clip(1, 15, grad=False)
        clip = stream.clip(1, 12, switches={6: Switch(text(9, batch=2), change)})
        clip.frames[:, :, 6:].square().mean().backward()
        reach[change] = reached(encoder)["query_init"]
    assert reach == {"keep": False, "recache": True}


@pytest.mark.parametrize("memory_grad", ["none", "update", "full"])
@pytest.mark.parametrize("update", ["chunk_start", RELEASED])
@pytest.mark.parametrize("exit", [0, 1])
def test_checkpointing_changes_neither_loss_nor_gradients(memory_grad: str, update: str, exit: int) -> None:
    """Blocks run again in backward, when the memory has moved on by chunks and clips; one more forward of a chunk would
    change it."""
    policy = Echo(2, 3, 1, update=update)
    switches = {3: Switch(text(9, batch=2), "recache"), 6: Switch(text(10, batch=2), "cut")}
    results = []
    for checkpointing in (False, True):
        model, encoder = build(), encoder_of()
        if checkpointing:
            model.enable_gradient_checkpointing()
        made = rollout(model, encoder, policy, memory_grad=memory_grad)
        first = made.clip(exit, 15, switches={3: switches[3]})
        second = made.clip(exit, 12, switches={6: switches[6]})
        rollout(model, encoder, policy).clip(3, 6, grad=False)
        loss = judged(first) + judged(second)
        found = gradients(model, loss)
        found |= {f"memory.{name}": p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
        results.append((loss.detach(), found))
    assert torch.equal(results[0][0], results[1][0])
    assert closest(results[1][1], results[0][1]) < 1e-6
    assert any(name.startswith("memory.") for name in results[0][1]) == (memory_grad != "none")


@pytest.mark.parametrize(
    "memory", ["echo", f"echo:update={RELEASED},past=9", "echo:past=3,recache=keep", "echo:static=true"]
)
@pytest.mark.parametrize("change", ["keep", "recache", "flush", "cut"])
def test_prompts_change_as_in_a_take(memory: str, change: str) -> None:
    pipe = build_pipeline()
    second = (9 + 12 * 5) / FPS  # where the seventh chunk begins
    take = pipe.start(f"{PROMPT} [{second}s] | {OTHER} [19s]", memory=memory, seed=4, on_prompt_change=change)
    latents = torch.cat([c.latents for c in run(take, 10)], 2)
    texts = [pipe.encode_prompt(p) for p in (PROMPT, OTHER)]
    for functional, tolerance in ((False, 0.0), (True, 1e-4)):
        made = Rollout(
            pipe.transformer, parse_memory(memory), SCHEDULE, texts[0], [4], 4, 6, functional=functional,
            encoder=pipe.memory_encoder,
        )  # fmt: skip
        clips = [
            made.clip(3, 12, grad=False),
            made.clip(3, 21, switches={6: Switch(texts[1], change)}, grad=False),
        ]
        whole = torch.cat([clips[0].frames, clips[1].frames[:, :, 3:]], 2)
        assert float((whole - latents).abs().max()) <= tolerance


def test_a_stream_goes_on_from_its_state() -> None:
    model, encoder = build(), encoder_of()
    stream = rollout(model, encoder)
    stream.clip(1, 15, grad=False)
    saved = stream.state_dict()
    other = rollout(model, encoder)
    other.load_state_dict(saved)
    assert torch.equal(stream.clip(1, 12, grad=False).frames, other.clip(1, 12, grad=False).frames)


def test_new_weights_are_seen_by_the_next_clip() -> None:
    """The state goes on; what attention sees of it is made by the weights as they are now."""
    model, encoder = build(), encoder_of()
    stream = rollout(model, encoder)
    stream.clip(1, 15, grad=False)
    saved = stream.state_dict()
    with torch.no_grad():
        encoder.to_v.weight.mul_(-1)
    after = stream.clip(1, 12, grad=False).frames
    fresh = rollout(model, encoder)
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.clip(1, 12, grad=False).frames, after)
    with torch.no_grad():
        encoder.to_v.weight.mul_(-1)
    before = rollout(model, encoder)
    before.load_state_dict(saved)
    assert not torch.allclose(before.clip(1, 12, grad=False).frames, after, atol=1e-3)


@pytest.mark.parametrize("update", ["chunk_start", RELEASED])
@pytest.mark.parametrize("functional", [False, True])
def test_the_host_asks_the_device_nothing(update: str, functional: bool) -> None:
    """On a device without numbers: what would wait for one raises, and so does what mixes devices."""
    model, encoder = build().to("meta"), encoder_of().to("meta")
    stream = rollout(model, encoder, Echo(2, 3, 1, update=update), functional=functional)
    for _ in range(2):
        clip = stream.clip(1, switches={stream.index + 2: Switch(text(batch=2), "recache")}, grad=functional)
    assert clip.frames.device.type == "meta"
    assert stream.memory.learned is not None and stream.memory.learned.state.device.type == "meta"  # type: ignore[union-attr]
