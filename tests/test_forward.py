"""The fast path against the plain one: the same bits, less work, no waiting, nothing that grows."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from longtake.cli import app
from longtake.forward import Fast, Plain, forwards
from longtake.operations import forward_operations
from longtake.parity import replay
from longtake.pipeline import LongTakePipeline
from longtake.take import Take
from tests.helpers_pipeline import ALL_MEMORIES, PROMPT, SCRIPT, build, latents, run, same

DATA = Path(__file__).parent / "data"
RECORDINGS = ["memrope_ema", "echo_long"]  # tests/test_parity.py has all of them, by the path that is taken by itself


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


def start(pipe: LongTakePipeline, path: str, prompt: str, memory: str, **settings: Any) -> Take:
    pipe.forward_path = path
    return pipe.start(prompt, memory, **settings)


@pytest.mark.parametrize(
    ("memory", "dtype"),
    [(memory, torch.float32) for memory in ALL_MEMORIES]
    + [(memory, torch.bfloat16) for memory in ("memrope", "echo", "deep-forcing")],
    ids=str,
)
def test_the_same_bits(memory: str, dtype: torch.dtype) -> None:
    """Twelve chunks, with new prompts on the way."""
    pipe = build().to(dtype)
    pipe.attention = "native"  # which is the plain path's, whatever is best on this machine
    made = []
    for path, kind in (("plain", Plain), ("fast", Fast)):
        take = start(pipe, path, SCRIPT, memory, on_prompt_change="recache")
        made.append(latents(take, 12))
        assert type(take._held) is kind
    assert all(torch.equal(plain, fast) for plain, fast in zip(*made, strict=True))


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("path", ["plain", "fast"])
def test_recordings_pass_on_both(name: str, path: str) -> None:
    assert replay(DATA / f"{name}.safetensors", forward_path=path).max_abs_diff < 1e-4


def test_parity_says_which_path(capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(app)
    for path, code in (("plain", 0), ("sideways", 2)):
        assert (
            command.main(["parity", str(DATA / "infinity_rope.safetensors"), "--path", path], standalone_mode=False)
            == code
        )
    assert "auto, fast, plain, not 'sideways'" in capsys.readouterr().err


def test_no_operation_in_vain(pipe: LongTakePipeline) -> None:
    """A chunk of a full memory computes exactly the products that it needs, by the closed form."""
    take = start(pipe, "fast", PROMPT, "memrope")
    latents(take, 6)
    keys = take.memory.capacity * take.memory.tokens
    text = take.begin()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        take.commit(take.denoise(text), text)
    sizes = (pipe.transformer.config, 3 * take.memory.tokens, keys, text.shape[1])
    needed = 4 * forward_operations(*sizes).total + forward_operations(*sizes, commit=True).total
    assert counter.get_total_flops() == needed


@pytest.mark.parametrize(
    ("path", "memory"),
    [
        ("plain", "memrope"),
        ("fast", "memrope:recent=1"),
        ("fast", "memrope:recent=1,adaptive=true"),
        ("fast", "echo:past=0,update=after_first_forward"),
    ],
)
def test_the_loop_never_reads_what_the_device_computes(path: str, memory: str) -> None:
    """On a device that has no numbers, only shapes: whatever asked for one would fail, as on a GPU it would wait."""
    pipe = build(layers=1, denoising_steps=[1000, 500])
    text = pipe.encode_prompt(PROMPT).to("meta")
    pipe.encode_prompt = lambda prompt: text  # type: ignore[method-assign]
    assert pipe.memory_encoder is not None
    for part in (pipe.transformer, pipe.vae, pipe.memory_encoder):
        part.to("meta")
    take = start(pipe, path, PROMPT, memory)
    video = run(take, 5)[-1].video
    assert video.device.type == "meta" and video.shape == (12, 3, 32, 48)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        video.cpu()


class Allocations(TorchDispatchMode):
    """Counts tensors that operations return in memory of their own, by size."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {
            x.untyped_storage()._cdata for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        }
        out = func(*args, **kwargs)
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                self.made[x.untyped_storage().nbytes()] += 1
        return out


@pytest.mark.parametrize("memory", ["memrope", "longlive", "infinity-rope", "self-forcing", "echo"])
def test_allocations_are_flat(memory: str) -> None:
    """Every chunk of a full memory allocates the same number of bytes; in a few more pieces where its slots are not
    side by side."""
    pipe = build(layers=1)
    take = start(pipe, "fast", PROMPT, memory)
    latents(take, 10)
    sizes, counts = set(), []
    for _ in range(8):
        text = take.begin()
        with Allocations() as counter:
            take.commit(take.denoise(text), text)
        take.index += 1
        sizes.add(sum(size * count for size, count in counter.made.items()))
        counts.append(counter.made.total())
    assert len(sizes) == 1
    assert max(counts) < 1.2 * min(counts)


def test_weights_that_change_are_seen(pipe: LongTakePipeline) -> None:
    """What is kept of a timestep belongs to the weights it was computed with."""
    pipe = build()
    one, other = start(pipe, "plain", PROMPT, "memrope"), start(pipe, "plain", PROMPT, "memrope")
    for take, path in ((one, "plain"), (other, "fast")):
        pipe.forward_path = path
        run(take, 2)
    with torch.no_grad():
        pipe.transformer.condition_embedder.time_proj.weight.mul_(1.5)
        pipe.transformer.blocks[1].scale_shift_table.add_(0.1)
    made = []
    for take, path in ((one, "plain"), (other, "fast")):
        pipe.forward_path = path
        made.append(run(take, 2))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(*made, strict=True))
    before = build()
    before.forward_path = "fast"
    unchanged = run(before.start(PROMPT), 4)[2:]
    assert not torch.allclose(unchanged[0].latents, made[0][0].latents, atol=1e-3)


def test_where_layers_cannot_be_called_one_by_one() -> None:
    """The plain path is taken, or fast is refused in a sentence."""
    from longtake.placement import place

    def offload(pipe: LongTakePipeline) -> None:
        place(pipe, ("cpu",), "model")

    def split(pipe: LongTakePipeline) -> None:
        place(pipe, ("cpu", "cpu"))

    def hook(pipe: LongTakePipeline) -> None:
        pipe.transformer.blocks[0].register_forward_hook(lambda *_: None)

    def compiled(pipe: LongTakePipeline) -> None:
        pipe.transformer.blocks[0]._compiled_call_impl = pipe.transformer.blocks[0].forward

    expected = run(build().start(PROMPT), 2)
    for change, reason in (
        (offload, "hooks"),
        (split, "splitting"),
        (hook, "hooks"),
        (compiled, "compiled as a whole"),
    ):
        pipe = build()
        change(pipe)
        take = pipe.start(PROMPT)
        assert same(run(take, 2), expected) and type(take._held) is Plain
        pipe.forward_path = "fast"
        with pytest.raises(ValueError, match=reason):
            pipe.start(PROMPT).next_chunk()
    pipe = build()
    take = start(pipe, "fast", PROMPT, "memrope")
    run(take, 1)
    with torch.enable_grad(), pytest.raises(ValueError, match="gradients"):
        forwards(pipe.transformer, take.memory, take._times, "fast")
    with pytest.raises(ValueError, match="auto, fast, plain"):
        start(pipe, "slow", PROMPT, "memrope").next_chunk()


def test_hooks_that_come_and_go(pipe: LongTakePipeline) -> None:
    pipe = build()
    take = start(pipe, "auto", PROMPT, "memrope")
    chunks = run(take, 1)
    calls: list[int] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    chunks += run(take, 1)
    handle.remove()
    chunks += run(take, 1)
    assert len(calls) == 5
    assert same(chunks, run(build().start(PROMPT), 3))


def test_a_copied_transformer_is_another_one(pipe: LongTakePipeline) -> None:
    take = start(pipe, "fast", PROMPT, "memrope")
    run(take, 1)
    held = take._held
    run(take, 1)
    assert take._held is held
    assert forwards(copy.deepcopy(pipe.transformer), take.memory, take._times, "plain", held) is not held


def test_names_load_no_torch() -> None:
    code = "import sys, longtake.speed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
