"""Rollouts for training: that they are what inference makes, and that their gradients are right."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.checkpoints import load
from longtake.memory import MemoryPolicy, MemRoPE, Sliding, parse_memory
from longtake.memory.frozen import frozen
from longtake.memory.policy import LONG, Update
from longtake.memory.split import SplitMemory
from longtake.pipeline import LongTakePipeline
from longtake.sampling import FewStepSchedule, chunk_noise
from longtake.training.critic import critic_from
from longtake.training.dmd import DMD
from longtake.training.flow import WanFlow
from longtake.training.selfforcing import Clip, Rollout, Switch, image_latent, shared_exit
from tests.helpers_pipeline import FPS, OTHER, PROMPT, run
from tests.helpers_pipeline import build as build_pipeline
from tests.helpers_training import draw
from tests.test_attention import build, text

SCHEDULE = FewStepSchedule.from_steps()
SMALL = {"sliding": Sliding(6, 1, "relative"), "memrope": MemRoPE(1, 1, 0.3, 0.6), "absolute": Sliding(7, 2)}
"""Memories that overflow at the third chunk."""
POLICIES = pytest.mark.parametrize("policy", SMALL.values(), ids=SMALL)


def rollout(model: WanTransformer3DModel, policy: MemoryPolicy, batch: int = 2, **settings: Any) -> Rollout:
    return Rollout(model, policy, SCHEDULE, text(batch=batch), range(7, 7 + batch), 4, 6, **settings)


def gradients(model: WanTransformer3DModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def closest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of two sets of gradients, over the largest gradient."""
    assert found.keys() == expected.keys() and found
    scale = max(float(x.abs().max()) for x in expected.values())
    assert scale > 1e-4
    return max(float((found[name] - x).abs().max()) for name, x in expected.items()) / scale


def judged(clip: Clip) -> Tensor:
    """A loss that no symmetry makes blind."""
    weight = draw(11, *clip.frames.shape)
    return (clip.frames * weight + clip.frames.square()).mean()


# What inference makes


@pytest.fixture(scope="module")
def pocket() -> LongTakePipeline:
    pipe = load("pocket")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("memory", ["memrope", "sliding:window=12,sink=3,ids=relative"])
def test_a_rollout_is_what_the_pipeline_makes(pocket: LongTakePipeline, memory: str) -> None:
    """The shipped model, two clips of a rollout that outgrows its memory: the pipeline's latents."""
    out = pocket(PROMPT, seconds=9.2, memory=memory, seed=3, output_type="latent")
    latents = out.frames  # type: ignore[union-attr]
    policy = parse_memory(memory)
    assert latents.shape[2] == 39 > 3 * policy.capacity(3)
    schedule = FewStepSchedule.from_steps(pocket.config.denoising_steps, pocket.shift)
    for functional, tolerance in ((False, 0.0), (True, 3e-5)):
        made = Rollout(
            pocket.transformer, policy, schedule, pocket.encode_prompt(PROMPT), [3], 8, 8, functional=functional
        )
        one, two = made.clip(3, grad=False), made.clip(3, grad=False)
        assert (one.first, two.first) == (0, 18) and one.frames.shape[2] == two.frames.shape[2] == 21
        assert torch.equal(two.frames[:, :, :3], one.frames[:, :, 18:])
        whole = torch.cat([one.frames, two.frames[:, :, 3:]], 2)
        assert float((whole - latents).abs().max()) <= tolerance
        assert two.supervised.tolist() == [False] * 3 + [True] * 18
    assert latents.std() > 0.3


@pytest.mark.parametrize("memory", ["memrope", "longlive", "infinity-rope"])
@pytest.mark.parametrize("change", ["keep", "recache", "flush", "cut"])
def test_prompts_change_as_in_a_take(memory: str, change: str) -> None:
    pipe = build_pipeline()
    second = (9 + 12 * 4) / FPS  # where the sixth chunk begins
    take = pipe.start(f"{PROMPT} [{second}s] | {OTHER} [9s]", memory=memory, seed=4, on_prompt_change=change)
    latents = torch.cat([c.latents for c in run(take, 9)], 2)
    texts = [pipe.encode_prompt(p) for p in (PROMPT, OTHER)]
    made = Rollout(pipe.transformer, parse_memory(memory), SCHEDULE, texts[0], [4], 4, 6, functional=False)
    clips = [
        made.clip(3, 12, grad=False),
        made.clip(3, 18, switches={5: Switch(texts[1], change)}, grad=False),
    ]
    assert torch.equal(torch.cat([clips[0].frames, clips[1].frames[:, :, 3:]], 2), latents)
    assert [torch.equal(x, texts[1]) for x in clips[1].texts] == [False] + [True] * 4
    assert torch.equal(clips[1].text, texts[1])


@POLICIES
def test_rows_of_a_batch_are_takes_of_their_own(policy: MemoryPolicy) -> None:
    model = build()
    both = Rollout(model, policy, SCHEDULE, torch.cat([text(2), text(3)]), [5, 6], 4, 6).clip(2, 15, grad=False)
    for row, (seed, said) in enumerate(((5, text(2)), (6, text(3)))):
        alone = Rollout(model, policy, SCHEDULE, said, [seed], 4, 6).clip(2, 15, grad=False)
        assert torch.allclose(both.frames[row : row + 1], alone.frames, atol=1e-4)
    assert (both.frames[0] - both.frames[1]).abs().max() > 0.1


def test_an_early_exit_is_the_prediction_of_that_step() -> None:
    """By hand for the first chunk: steps up to the exit, and nothing after it."""
    model, exits = build(), []
    for exit in range(4):
        clip = rollout(model, SMALL["sliding"], batch=1).clip(exit, 6, grad=False)
        memory = memory_for(model, SMALL["sliding"], 4, 6)
        memory.begin_chunk()
        x0 = torch.zeros(1, 4, 3, 4, 6)
        with torch.no_grad(), attending(model, memory):
            for step in range(exit + 1):
                s = SCHEDULE.sigmas[step]
                x = (1 - s) * x0 + s * chunk_noise(7, 0, step, x0.shape)
                x0 = x - s * model(x, torch.tensor([1000 * s]), text(), return_dict=False)[0]
        assert torch.allclose(clip.frames[:, :, :3], x0, atol=1e-5)
        exits.append(clip.frames)
    assert min(float((a - b).abs().max()) for i, a in enumerate(exits) for b in exits[:i]) > 1e-3


# Gradients


@POLICIES
@pytest.mark.parametrize("exit", [0, 2])
def test_gradients_are_those_of_each_chunk_by_itself(policy: MemoryPolicy, exit: int) -> None:
    """Memory as a constant: backward over the whole clip equals a backward in every chunk, before the next begins."""
    model = build()
    clip = rollout(model, policy).clip(exit, 15)
    found = gradients(model, judged(clip))
    model.zero_grad()
    memory = memory_for(model, policy, 4, 6, batch=2, functional=True)
    weight = draw(11, *clip.frames.shape)
    prompt, parts = text(batch=2), []

    def flow(x: Tensor, t: float) -> Tensor:
        out: Tensor = model(x, torch.full((2,), t), prompt, return_dict=False)[0]
        return out

    for index in range(5):
        noises = [torch.cat([chunk_noise(s, index, n, (1, 4, 3, 4, 6)) for s in (7, 8)]) for n in range(exit + 1)]
        with torch.no_grad():
            memory.begin_chunk()
        with attending(model, memory):
            with torch.no_grad():
                x = noises[0]
                for step in range(exit):
                    x0 = x - SCHEDULE.sigmas[step] * flow(x, 1000 * SCHEDULE.sigmas[step])
                    s = SCHEDULE.sigmas[step + 1]
                    x = (1 - s) * x0 + s * noises[step + 1]
            x0 = x - SCHEDULE.sigmas[exit] * flow(x, 1000 * SCHEDULE.sigmas[exit])
            part = x0 * weight[:, :, 3 * index : 3 * index + 3] + x0.square()
            (part.sum() / weight.numel()).backward()
            with torch.no_grad(), memory.recording():
                flow(x0, 0.0)
        parts.append(x0.detach())
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert torch.allclose(clip.frames, torch.cat(parts, 2), atol=1e-4)
    assert closest(found, expected) < 1e-3


@POLICIES
@pytest.mark.parametrize("memory_grad", ["none", "update", "full"])
def test_checkpointing_changes_neither_loss_nor_gradients(policy: MemoryPolicy, memory_grad: str) -> None:
    """Backward runs blocks again when the memory has moved on by chunks, evicted, averaged, changed its prompt, gone to
    another rollout, and is bound no more."""
    model = build()
    switches = {2: Switch(text(9, batch=2), "recache"), 4: Switch(text(10, batch=2), "cut")}
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        # Two clips: the second one's past has been made before, and the first one's graph ends there.
        made = rollout(model, policy, memory_grad=memory_grad)
        first = made.clip(1, 9, switches={2: switches[2]})
        second = made.clip(1, 12, switches={4: switches[4]})
        rollout(model, policy).clip(3, 6, grad=False)
        loss = judged(first) + judged(second)
        results.append((loss.detach(), gradients(model, loss)))
    assert torch.equal(results[0][0], results[1][0])
    assert closest(results[1][1], results[0][1]) < 1e-6


def test_checkpointing_of_a_memory_in_parts() -> None:
    model = build()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        made = rollout(model, SMALL["memrope"], memory_grad="full")
        parts = [
            memory_for(build(num_layers=1), SMALL["memrope"], 4, 6, batch=2, functional=True) for _ in model.blocks
        ]
        made.memory = SplitMemory(parts)  # type: ignore[arg-type]
        results.append(gradients(model, judged(made.clip(1, 15))))
    whole = gradients(model, judged(rollout(model, SMALL["memrope"], memory_grad="full").clip(1, 15)))
    assert closest(results[1], results[0]) < 1e-6
    assert closest(results[0], whole) < 1e-4


def test_a_frozen_memory_stays() -> None:
    model = build()
    memory = memory_for(model, SMALL["memrope"], 4, 6, functional=True)
    key = draw(0, 1, 18, 2, 12)
    with pytest.raises(RuntimeError, match="No chunk is open"):
        frozen(memory)
    seen = []
    for index in range(5):
        memory.begin_chunk()
        seen.append((frozen(memory), memory.query(key), *memory.update(1, key, key)))
        with torch.no_grad(), attending(model, memory), memory.recording():
            model(draw(index, 1, 4, 3, 4, 6), torch.zeros(1), text())
    memory.change_prompt("cut")
    memory.reset()
    for view, *expected in seen:
        assert all(
            torch.equal(a, b) for a, b in zip((view.query(key), *view.update(1, key, key)), expected, strict=True)
        )
    assert len({view.update(1, key, key)[0].shape for view, *_ in seen}) > 1
    inplace = memory_for(model, SMALL["memrope"], 4, 6)
    inplace.begin_chunk()
    with pytest.raises(RuntimeError, match="writes in place"):
        frozen(inplace)


@contextmanager
def everything_in_float64() -> Iterator[None]:
    """diffusers' Wan computes norms and residuals in float32 whatever its weights are: too coarse for differences."""
    plain = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = plain  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "policy",
    [Sliding(6, 1, "relative"), Sliding(7, 2), MemRoPE(1, 1, 0.3, 0.6, "position")],
    ids=["relative", "absolute", "memrope"],
)
def test_gradients_are_finite_differences(policy: MemoryPolicy) -> None:
    """Seven chunks, evicting from the third on, with gradients through everything that is remembered."""
    model = build(num_layers=2).double()
    direction = [draw(i, *p.shape).double() for i, p in enumerate(model.parameters())]

    def loss() -> Tensor:
        return judged(rollout(model, policy, batch=1, memory_grad="full").clip(0, 21))

    with everything_in_float64():
        value = loss()
        found = gradients(model, value)
        along = sum(float((found[n] * d).sum()) for (n, _), d in zip(model.named_parameters(), direction, strict=True))
        around = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for p, d in zip(model.parameters(), direction, strict=True):
                    p.add_(d, alpha=step)
                around.append(float(loss()))
    expected = (around[0] - around[1]) / 2e-6
    assert abs(expected) > 1e-2
    assert along == pytest.approx(expected, rel=1e-5)


def test_only_the_full_way_sends_gradients_into_earlier_chunks() -> None:
    model, reach = build(), {}
    for way in ("none", "update", "full"):
        made = rollout(model, SMALL["memrope"], memory_grad=way)
        seen: list[Tensor] = []

        def keep(module: Any, args: Any, out: Any, seen: list[Tensor] = seen) -> None:
            if args[1][0] == SCHEDULE.timesteps[1]:
                out[0].retain_grad()
                seen.append(out[0])

        hook = model.register_forward_hook(keep)
        made.clip(1, 15).frames[:, :, -3:].square().mean().backward()
        hook.remove()
        reach[way] = [x.grad is not None and bool(x.grad.abs().max() > 0) for x in seen]
    assert reach["none"] == reach["update"] == [False] * 4 + [True]
    assert reach["full"] == [True] * 5


@dataclass(frozen=True)
class Learned(Sliding):
    """One memory token with a scale that is learned: what a trained memory needs of a rollout."""

    window: int = 7
    ids: str = "relative"
    scale: Any = None

    def begin_chunk(self, memory: Any) -> Update:
        update = super().begin_chunk(memory)
        if not update.evict:
            return update
        keys, values = (x[:, :, list(update.evict)].mean(2) for x in (memory.keys, memory.values))
        evict = [*update.evict]
        if LONG not in memory.tags:  # its own slot
            evict.append(next(s for s, tag in enumerate(memory.tags) if tag >= 0 and s not in evict))
        return Update(evict, {LONG: (self.scale * keys.float(), self.scale * values.float())})

    def on_prompt_change(self, memory: Any, mode: str) -> Update:
        if mode != "flush" or LONG not in memory.tags:
            return super().on_prompt_change(memory, mode)
        key, value = memory.averages[LONG]
        return Update(tokens={LONG: (self.scale * key, self.scale * value)})


@pytest.mark.parametrize(("way", "learns"), [("none", False), ("update", True)])
def test_a_prompt_change_is_an_update_too(way: str, learns: bool) -> None:
    model, scale = build(), torch.nn.Parameter(torch.tensor(1.0))
    policy = Learned(scale=scale)
    stream = rollout(model, policy, memory_grad=way)
    stream.clip(1, 12, grad=False)
    clip = stream.clip(1, 6, switches={4: Switch(text(9, batch=2), "flush")})
    assert LONG in stream.memory.tags
    judged(clip).backward()
    assert (scale.grad is not None and bool(scale.grad != 0)) == learns


@pytest.mark.parametrize(("way", "learns"), [("none", False), ("update", True), ("full", True)])
@pytest.mark.parametrize("exit", [0, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_learned_memory_has_gradients_at_every_exit(way: str, learns: bool, exit: int, checkpointing: bool) -> None:
    """Against differences where the derivative is a whole one: at the first exit, with gradients through commits."""
    model = build()
    if checkpointing:
        model.enable_gradient_checkpointing()
    scale = torch.nn.Parameter(torch.tensor(1.0))
    policy = Learned(scale=scale)

    def loss() -> Tensor:
        return judged(rollout(model, policy, memory_grad=way).clip(exit, 18))

    loss().backward()
    assert (scale.grad is not None) == learns
    if scale.grad is None:
        return
    assert abs(float(scale.grad)) > 1e-5
    if way == "full" and exit == 0:
        with torch.no_grad():
            scale += 1e-2
            above = float(loss())
            scale -= 2e-2
            difference = (above - float(loss())) / 2e-2
        assert float(scale.grad) == pytest.approx(difference, rel=0.02, abs=1e-5)


def test_the_last_chunks_only() -> None:
    model = build()
    whole = rollout(model, SMALL["memrope"]).clip(1, 15)
    last = rollout(model, SMALL["memrope"], grad_chunks=2).clip(1, 15)
    assert torch.equal(whole.frames, last.frames)
    assert whole.supervised.tolist() == [True] * 15
    assert last.supervised.tolist() == [False] * 9 + [True] * 6
    late = torch.cat([torch.zeros(9), torch.ones(6)]).view(1, 1, 15, 1, 1)
    # The first chunks are constants now: a loss on all frames gives what a loss on the last gave.
    assert (
        closest(gradients(model, last.frames.square().mean()), gradients(model, (whole.frames.square() * late).mean()))
        < 1e-6
    )


# A stream


@pytest.mark.parametrize("policy", [SMALL["memrope"], SMALL["absolute"]], ids=["memrope", "absolute"])
@pytest.mark.parametrize("memory_grad", ["none", "full"])
def test_a_stream_goes_on_over_iterations(policy: MemoryPolicy, memory_grad: str) -> None:
    model = build()
    stream = rollout(model, policy, memory_grad=memory_grad)
    reference = rollout(model, policy).clip(2, 21 + 2 * 18, grad=False).frames
    for number in range(3):
        clip = stream.clip(2)
        start = 18 * number
        assert clip.first == start and torch.allclose(clip.frames, reference[:, :, start : start + 21], atol=1e-4)
        assert clip.supervised.tolist() == [number == 0] * 3 + [True] * 18
        masked = clip.frames * clip.supervised.view(1, 1, -1, 1, 1)
        loss = masked.square().mean()
        model.zero_grad()
        loss.backward()
        assert not stream.memory.keys.requires_grad
        assert not any(x.requires_grad for pair in stream.memory.averages.values() for x in pair)  # type: ignore[union-attr]
    assert stream.index == 19 and stream._past.shape[2] == 21


@POLICIES
def test_what_is_remembered_may_be_smaller_than_the_weights(policy: MemoryPolicy) -> None:
    """Weights in float32 and a memory in bfloat16, under autocast: half the bytes, nearly the same video, gradients."""
    model = build()
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        take = rollout(model, policy, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            clip = take.clip(3, 18)
        assert clip.frames.dtype == torch.float32
        made[dtype] = take.memory.nbytes, clip.frames.detach(), gradients(model, judged(clip))
    (large, frames, grads), (small, others, found) = made[torch.float32], made[torch.bfloat16]
    assert small < 0.56 * large  # ids and positions are as large as before
    assert (others - frames).abs().mean() < 0.1 * frames.abs().mean()
    assert closest(found, grads) < 0.2


def test_new_weights_are_seen_by_the_next_clip() -> None:
    """The keys of the prompt are cached within a clip; after an optimizer's step they must be computed anew."""
    model = build()
    stream = rollout(model, SMALL["sliding"])
    stream.clip(1, 6, grad=False)
    state = stream.memory.state_dict()  # type: ignore[union-attr]
    with torch.no_grad():
        for block in model.blocks:
            block.attn2.to_v.weight.mul_(-1)
    after = stream.clip(1, 6, overlap=0, grad=False).frames
    fresh = rollout(model, SMALL["sliding"])
    fresh.memory.load_state_dict(*state)
    fresh.index = 2
    assert torch.equal(fresh.clip(1, 6, overlap=0, grad=False).frames, after)


def test_without_gradients_nothing_has_a_graph() -> None:
    model = build()
    assert not rollout(model, SMALL["memrope"]).clip(1, 9, grad=False).frames.requires_grad
    with torch.no_grad():
        assert not rollout(model, SMALL["memrope"], memory_grad="full").clip(1, 9).frames.requires_grad
    with pytest.raises(RuntimeError, match="functional=True"):
        rollout(model, SMALL["memrope"], functional=False).clip(1, 9)


def test_the_image_latent_of_the_overlap() -> None:
    pipe = build_pipeline()
    made = Rollout(pipe.transformer, SMALL["sliding"], SCHEDULE, pipe.encode_prompt(PROMPT), [1], 4, 6)
    first = made.clip(1, 12, grad=False)
    second = made.clip(1, 12, grad=False, reencode=functools.partial(image_latent, pipe.vae))
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1) for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    with torch.no_grad():
        video = pipe.vae.decode(first.frames[:, :, :10] * std + mean).sample
        assert video.shape[2] == 1 + 4 * 9
        moments = pipe.vae.encode(video[:, :, -1:].clamp(-1, 1)).latent_dist.mean
    assert torch.allclose(second.frames[:, :, :1], (moments - mean) / std, atol=1e-5)
    assert (second.frames[:, :, :1] - first.frames[:, :, 9:10]).abs().max() > 1e-2
    assert torch.equal(second.frames[:, :, 1:3], first.frames[:, :, 10:])


def test_exits_are_shared_and_uniform() -> None:
    drawn = [shared_exit(5, i, 4) for i in range(4000)]
    assert drawn[:12] == [1, 0, 3, 0, 1, 0, 0, 3, 3, 2, 1, 3]  # of another process, once
    assert drawn == [shared_exit(5, i, 4) for i in range(4000)]
    assert drawn != [shared_exit(6, i, 4) for i in range(4000)]
    for step in range(4):
        assert drawn.count(step) == pytest.approx(1000, abs=110)  # four standard deviations
    follows = [drawn[i + 1] for i in range(3999) if drawn[i] == 0]
    assert follows.count(0) / len(follows) == pytest.approx(0.25, abs=0.06)
    with pytest.raises(ValueError, match="at least one step"):
        shared_exit(0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit": 4}, "exit is a step"),
        ({"exit": -1}, "exit is a step"),
        ({"frames": 10}, "whole chunks of 3, not 10"),
        ({"frames": 0}, "whole chunks"),
        ({"switches": {7: Switch(text(batch=2))}}, "makes the chunks 0 to 6; a switch at 7"),
        ({"switches": {2: Switch(text(batch=2), "fade")}}, "one of keep, recache, flush, cut, not 'fade'"),
        ({"switches": {2: Switch(text(batch=3))}}, r"embedding \[1 or 2, tokens, 8\]"),
    ],
)
def test_clips_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    made = rollout(build(), SMALL["sliding"])
    with pytest.raises(ValueError, match=message):
        made.clip(**{"exit": 0, **settings})
    assert made.index == 0 and made.memory.frame == 0


def test_rollouts_that_cannot_be() -> None:
    model = build()
    for settings, message in (
        ({"memory_grad": "some"}, "none, update, full"),
        ({"grad_chunks": 0}, "1 or more"),
        ({"keep": -1}, "0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            rollout(model, SMALL["sliding"], **settings)
    with pytest.raises(ValueError, match="one take per seed"):
        rollout(model, SMALL["sliding"], batch=0)
    made = rollout(model, SMALL["sliding"], keep=2)
    made.clip(0, 6, grad=False)
    with pytest.raises(ValueError, match="overlap is 0 to 2"):
        made.clip(0, 6, overlap=3)


@pytest.mark.parametrize(("memory_grad", "checkpointing"), [("none", False), ("full", True)])
def test_the_host_asks_the_device_nothing(memory_grad: str, checkpointing: bool) -> None:
    """On a device without numbers: what would wait for one raises, and so does what mixes devices."""
    model = build().to("meta")
    critic = critic_from(model)
    if checkpointing:
        model.enable_gradient_checkpointing()
    stream = rollout(model, SMALL["memrope"], memory_grad=memory_grad)
    generator, dmd = torch.Generator(), DMD()
    with pytest.raises(RuntimeError):
        stream.text.sum().item()
    for _ in range(2):
        clip = stream.clip(2, switches={stream.index + 2: Switch(text(), "recache")})
        real = WanFlow(model, 3.0, text(3).to("meta"))
        out = dmd.loss(clip.frames, clip.text, real, WanFlow(critic), generator, supervised=clip.supervised)
        out.loss.backward()
        dmd.critic_loss(clip.frames, clip.text, WanFlow(critic), generator).backward()
    assert {x.device.type for x in (out.loss, clip.frames, clip.supervised, clip.text)} == {"meta"}
    assert all(p.grad is not None for m in (model, critic) for p in m.blocks.parameters())
