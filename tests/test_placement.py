"""Where parts live must not change what they make: splits, offloading, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from longtake.attention import attending, memory_for
from longtake.memory import parse_memory
from longtake.memory.split import SplitMemory
from longtake.pipeline import LongTakePipeline
from longtake.placement import (
    check_devices,
    check_offload,
    check_quantize,
    device_of,
    even,
    free_memory,
    groups_of,
    parse_devices,
    place,
    present_devices,
    split_transformer,
    with_text_encoder,
)
from tests.helpers_pipeline import PROMPT, SCRIPT, build, refused, run, same

MEMORY = "memrope:recent=1"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sentence(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text
    return text


# Names


def test_names_of_devices() -> None:
    assert parse_devices("cuda:0,cuda:1") == ("cuda:0", "cuda:1")
    assert parse_devices(" CPU , cpu") == ("cpu", "cpu")
    assert parse_devices("mps") == ("mps",)


@pytest.mark.parametrize("text", ["", "cuda:0,", "cuda:x", "gpu", "cuda:-1", "cuda:0;cuda:1", "cpu:0"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_devices(text)
    assert "cuda:N" in sentence(error)


@pytest.mark.parametrize("name", ["cuda:99", "mps"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    if name in present_devices():
        pytest.skip("it is there")
    with pytest.raises(ValueError) as error:
        check_devices(["cpu", name])
    assert name in sentence(error) and "there are" in str(error.value) and "cpu" in str(error.value)
    pipe = build()
    with pytest.raises(ValueError):
        place(pipe, ("cpu", name))
    assert not groups_of(pipe.transformer)


def test_modes_that_do_not_exist_are_refused() -> None:
    for call, word in (
        (lambda: check_offload("disk", ["cpu"]), "none, text, model, group"),
        (lambda: check_offload("model", ["cpu", "cpu"]), "one device"),
        (lambda: check_offload("group", ["cpu", "cpu"]), "one device"),
        (lambda: check_devices([]), "At least one"),
        (lambda: check_quantize("int4"), "fp8 or int8"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert word in sentence(error)


def test_more_devices_than_blocks_are_refused() -> None:
    transformer = build(layers=2).transformer
    for devices, layers in ((["cpu"] * 3, None), (["cpu"] * 2, (2, 0)), (["cpu"] * 2, (1, 2)), (["cpu"] * 2, (2,))):
        with pytest.raises(ValueError) as error:
            split_transformer(transformer, devices, layers)
        assert "2 blocks" in sentence(error)


def test_settings_load_no_torch() -> None:
    code = "import sys, longtake.fit, longtake.placement, longtake.sizes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_free_memory_is_what_the_system_says() -> None:
    psutil = pytest.importorskip("psutil")
    free = free_memory("cpu")
    if free is None:
        pytest.skip("this system does not say")
    assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert free_memory("cuda:99") is None or torch.cuda.device_count() > 99


# Splits


@pytest.mark.parametrize(("layers", "devices"), [(30, 2), (5, 3), (7, 7)])
def test_even(layers: int, devices: int) -> None:
    counts = even(layers, devices)
    assert sum(counts) == layers and max(counts) - min(counts) <= 1 and list(counts) == sorted(counts, reverse=True)


class Watch:
    """What the blocks of a transformer are called with, as it arrives there."""

    def __init__(self, transformer: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        for block in transformer.blocks:
            block.register_forward_pre_hook(lambda _, args: self.calls.append(args))


def test_tensors_follow_the_blocks_and_shared_ones_move_once() -> None:
    """The ``meta`` device has no data, but a place: whatever is not brought there shows."""
    transformer = build(layers=5).transformer
    split_transformer(transformer, ["cpu", "meta"], (2, 3))
    assert groups_of(transformer) == [(2, torch.device("cpu")), (3, torch.device("meta"))]
    watch = Watch(transformer)
    memory = memory_for(transformer, parse_memory(MEMORY), 4, 6, device="cpu")
    assert isinstance(memory, SplitMemory)
    assert [part.device.type for part in memory.parts] == ["cpu", "meta"]
    memory.begin_chunk()
    x, text = torch.ones(1, 4, 3, 4, 6), torch.ones(1, 5, 128)
    # All blocks and the head ran; then the output was to come home, and a tensor without data cannot.
    with pytest.raises(NotImplementedError, match="meta tensor"), torch.no_grad(), attending(transformer, memory):
        transformer(x, torch.zeros(1), text, return_dict=False)
    assert len(watch.calls) == 5
    for index, (hidden, words, time, rotary) in enumerate(watch.calls):
        tensors = (hidden, words, time, *rotary)
        assert {tensor.device.type for tensor in tensors} == {"cpu" if index < 2 else "meta"}
    for group in (watch.calls[:2], watch.calls[2:]):
        for call in group[1:]:
            assert all(a is b for a, b in zip(call[1:3], group[0][1:3], strict=True))
            assert all(a is b for a, b in zip(call[3], group[0][3], strict=True))
    assert transformer.proj_out.weight.device.type == "meta" and transformer.scale_shift_table.device.type == "cpu"
    assert not transformer._longtake_split._moved  # nothing is held when a forward is over, even by an error


def test_output_comes_back_as_it_is_asked_for() -> None:
    whole, split = build(layers=3).transformer, build(layers=3).transformer
    split_transformer(split, ["cpu"] * 3)
    x, text = torch.ones(1, 4, 3, 4, 6), torch.ones(1, 5, 128)
    with torch.no_grad():
        expected = whole(x, torch.zeros(1), text).sample
        by_name = split(hidden_states=x, timestep=torch.zeros(1), encoder_hidden_states=text)
        as_tuple = split(x, torch.zeros(1), text, return_dict=False)
    assert torch.equal(by_name.sample, expected) and torch.equal(as_tuple[0], expected)


def test_a_split_can_be_undone_and_made_anew() -> None:
    transformer = build(layers=4).transformer
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in transformer.modules())
    split_transformer(transformer, ["cpu"] * 4)
    split_transformer(transformer, ["cpu", "cpu"], (1, 3))
    assert [count for count, _ in groups_of(transformer)] == [1, 3]
    split_transformer(transformer, ["cpu"])
    assert groups_of(transformer) == []
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in transformer.modules()) == hooks


def test_lora_works_on_a_split_transformer() -> None:
    torch.manual_seed(1)
    pipes = [build(layers=3), build(layers=3)]
    place(pipes[1], ("cpu", "cpu"))
    for pipe in pipes:
        torch.manual_seed(2)
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    plain = build(layers=3)
    chunks = [run(pipe.start(PROMPT, MEMORY), 3) for pipe in (*pipes, plain)]
    assert same(chunks[0], chunks[1]) and not same(chunks[0], chunks[2])
    assert pipes[0].fingerprint() == pipes[1].fingerprint() != plain.fingerprint()


# Offloading


def placed(devices: tuple[str, ...], offload: str) -> LongTakePipeline:
    pipe = build(layers=3)
    place(pipe, devices, offload)
    return pipe


PLACEMENTS = [
    (("cpu",), "none"),
    (("cpu",), "text"),
    (("cpu",), "model"),
    (("cpu",), "group"),
    (("cpu", "cpu"), "none"),
    (("cpu", "cpu", "cpu"), "text"),
]


@pytest.mark.parametrize(("devices", "offload"), PLACEMENTS)
def test_every_placement_makes_the_same_video_and_snapshots(
    devices: tuple[str, ...], offload: str, tmp_path: Path
) -> None:
    plain, pipe = build(layers=3), placed(devices, offload)
    assert pipe.fingerprint() == plain.fingerprint()
    straight = run(plain.start(SCRIPT, MEMORY), 6)
    take = pipe.start(SCRIPT, MEMORY)
    assert same(run(take, 4), straight[:4])
    assert all(pair is not None for pair in take.memory.prompt)
    assert pipe.fingerprint() == plain.fingerprint()
    take.snapshot(tmp_path / "a.snapshot")
    assert same(run(plain.resume(tmp_path / "a.snapshot"), 2), straight[4:])
    assert same(run(pipe.resume(tmp_path / "a.snapshot"), 2), straight[4:])
    assert pipe.device_of("transformer").type == pipe.device_of("vae").type == "cpu"


def test_group_offloading_hooks_and_memory_go_together() -> None:
    plain, pipe = build(layers=3), build(layers=3)
    here = torch.device("cpu")
    pipe.transformer.enable_group_offload(here, here, "block_level", num_blocks_per_group=1)
    assert pipe.fingerprint() == plain.fingerprint()
    assert same(run(pipe.start(SCRIPT, MEMORY), 5), run(plain.start(SCRIPT, MEMORY), 5))


def test_group_offloading_by_diffusers_own_call_is_seen() -> None:
    """Its blocks wait on one device and compute on another: the memory belongs with the latter."""
    transformer = build(layers=2).transformer
    assert device_of(transformer) == torch.device("cpu")
    # That there is no such device here shows only when a block is sent there.
    there = torch.device("cuda:0")
    transformer.enable_group_offload(there, torch.device("cpu"), "block_level", num_blocks_per_group=1)
    assert device_of(transformer) == there and next(transformer.parameters()).device.type == "cpu"


def test_a_visiting_text_encoder_leaves_as_it_came() -> None:
    from longtake.placement import _visiting

    pipe = build()
    encoder = pipe.text_encoder
    before = [x.data_ptr() for x in encoder.parameters()]
    expected = pipe.encode_prompt(PROMPT)

    def look(device: torch.device) -> set[str]:
        assert device.type == "meta"
        return {x.device.type for x in (*encoder.parameters(), *encoder.buffers())}

    def fail(device: torch.device) -> None:
        raise RuntimeError("in the middle")

    assert _visiting(encoder, torch.device("meta"), look) == {"meta"}
    with pytest.raises(RuntimeError, match="in the middle"):
        _visiting(encoder, torch.device("meta"), fail)
    assert [x.data_ptr() for x in encoder.parameters()] == before
    assert torch.equal(pipe.encode_prompt(PROMPT), expected)


def test_a_waiting_text_encoder_works_where_it_is_if_no_device_has_room() -> None:
    pipe = placed(("cpu", "cpu"), "text")
    assert with_text_encoder(pipe, lambda device: device) == torch.device("cpu")


def test_snapshots_of_another_quantisation_are_refused(tmp_path: Path) -> None:
    from longtake.quantize import quantize

    plain = build(layers=2)
    take = plain.start(PROMPT, MEMORY)
    run(take, 1)
    take.snapshot(tmp_path / "a.snapshot")
    for kind in ("fp8", "int8"):
        pipe = build(layers=2)
        quantize(pipe.transformer, kind)
        assert "other weights" in refused(pipe, tmp_path / "a.snapshot")
