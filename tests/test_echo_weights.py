"""Weights of a learned memory: adapters, published files of every layout, folders, and the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake import LongTakePipeline, load
from longtake.checkpoints import load_registry
from longtake.checkpoints.memory_file import KEY, saved_config
from longtake.checkpoints.memory_weights import load_memory, published_memory, save_memory
from longtake.checkpoints.published import load_transformer
from longtake.checkpoints.registry import HubFile
from longtake.memory import MemoryEncoder
from tests.helpers_checkpoints import HEAD_DIM, lora_pairs, published_module, wan_weights
from tests.helpers_hub import write_registry
from tests.helpers_pipeline import PROMPT, build, random_memory, run, same
from tests.test_cli import refused
from tests.test_cli_models import Here, made
from tests.test_published import equal


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Here()


def alike(one: MemoryEncoder | None, other: MemoryEncoder | None) -> bool:
    assert one is not None and other is not None
    return one.config == other.config and one.trained == other.trained and equal(one, other)


def memory_weights(encoder: MemoryEncoder) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in encoder.state_dict().items()}


# Adapters


@pytest.mark.parametrize("config", [{}, {"groups": 2}, {"normalize_keys": False, "num_layers": 2, "frames": 1},
                                    {"grid": 6, "depth": 1}])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_is_the_same(config: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    encoder = random_memory(2, 12, **config).to(dtype)
    file = save_memory(encoder, tmp_path / "a", "a card")
    assert alike(load_memory(tmp_path / "a", 2), encoder) and alike(load_memory(file, 99), encoder)
    assert (tmp_path / "a" / "README.md").read_text() == "a card"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["README.md", "memory.safetensors"]
    assert load_memory(file, 2, dtype=torch.float32).dtype == torch.float32
    told = saved_config(file)
    assert told is not None and told["config"] == json.loads(json.dumps(encoder.config)) and told["trained"]
    with safe_open(file, "pt") as saved:  # the published names
        single, several = {"query_init", "gate_linear.weight"}, {"query_inits.1", "gate_linears.1.weight"}
        assert (several if "groups" in config else single) <= set(saved.keys())


def test_a_pipeline_saves_and_loads_its_memory(pipe: LongTakePipeline, tmp_path: Path) -> None:
    other = build()
    other.memory_encoder = None
    pipe.save_memory(tmp_path / "memory", "a tiny model", "Not trained at all: random.")
    card = (tmp_path / "memory" / "README.md").read_text()
    assert card.startswith("---\n") and "a tiny model" in card and "width 24 in 2 heads and 2 layers" in card
    assert "2606.04527" in card and "Not trained at all: random." in card
    other.load_memory(tmp_path / "memory")
    assert alike(other.memory_encoder, pipe.memory_encoder)
    assert same(run(pipe.start(PROMPT, "echo"), 8), run(other.start(PROMPT, "echo"), 8))
    other.memory_encoder = random_memory(2, 12, seed=5)
    assert not same(run(pipe.start(PROMPT, "echo"), 8), run(other.start(PROMPT, "echo"), 8))


def test_the_memory_is_a_part_of_a_saved_pipeline(pipe: LongTakePipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "with")
    for other in (LongTakePipeline.from_pretrained(tmp_path / "with"), load(str(tmp_path / "with"))):
        assert alike(other.memory_encoder, pipe.memory_encoder)
    assert load(str(tmp_path / "with"), torch.bfloat16).memory_encoder.dtype == torch.bfloat16
    shutil.rmtree(tmp_path / "with" / "memory")
    for other in (LongTakePipeline.from_pretrained(tmp_path / "with"), load(str(tmp_path / "with"))):
        assert other.memory_encoder is None
        with pytest.raises(ValueError, match="is learned and needs trained weights for this model"):
            other.start(PROMPT, "echo")
        assert len(run(other.start(PROMPT), 1)) == 1
    with pytest.raises(ValueError, match="no learned memory to save"):
        other.save_memory(tmp_path / "none")


def test_untrained_weights_make_no_video(pipe: LongTakePipeline, tmp_path: Path) -> None:
    other = build()
    other.memory_encoder = MemoryEncoder(2, 12, grid=(2, 3))
    with pytest.raises(ValueError, match="are untrained and can make no video"):
        other.start(PROMPT, "echo")
    other.save_memory(tmp_path)
    assert "Untrained" in (tmp_path / "README.md").read_text()
    pipe = build()
    assert not pipe.load_memory(tmp_path).trained
    with pytest.raises(ValueError, match="are untrained"):
        pipe.start(PROMPT, "echo")


@pytest.mark.parametrize(
    ("config", "heads", "head_dim", "message"),
    [
        ({}, 2, 24, "width 48 in 2 heads, not 24 in 2"),
        ({}, 4, 6, "width 24 in 4 heads, not 24 in 2"),
        ({"num_layers": 3}, 2, 12, "3 layers, not 2"),
    ],
)
def test_weights_for_another_model_are_refused(
    config: dict[str, Any], heads: int, head_dim: int, message: str, tmp_path: Path
) -> None:
    pipe = build()
    before = pipe.memory_encoder
    save_memory(random_memory(heads, head_dim, **config), tmp_path, "")
    with pytest.raises(ValueError, match=message):
        pipe.load_memory(tmp_path)
    assert pipe.memory_encoder is before


def test_pictures_of_another_size_are_refused(pipe: LongTakePipeline) -> None:
    with pytest.raises(ValueError, match="pictures of 2x3 tokens per frame, not 3x2: ask for the size"):
        pipe.start(PROMPT, "echo", height=48, width=32)
    with pytest.raises(ValueError, match="have 3 memory frames: ask for echo:frames=3, not 1"):
        pipe.start(PROMPT, "echo:frames=1")


def test_a_snapshot_knows_its_memory_weights(tmp_path: Path) -> None:
    pipe, other = build(), build()
    take = pipe.start(PROMPT, "echo")
    run(take, 6)
    take.snapshot(tmp_path / "a")
    other.memory_encoder = random_memory(2, 12, seed=5)
    with pytest.raises(ValueError, match="made with other memory weights"):
        other.resume(tmp_path / "a")
    other.memory_encoder = None
    with pytest.raises(ValueError, match="needs trained weights"):
        other.resume(tmp_path / "a")
    # A take without a learned memory does not care.
    plain = pipe.start(PROMPT)
    run(plain, 2)
    plain.snapshot(tmp_path / "b")
    assert same(run(other.resume(tmp_path / "b"), 2), run(plain, 2))


# Published files


def _generator(pipe: LongTakePipeline, prefix: str = "model.") -> dict[str, Tensor]:
    return {prefix + name: x for name, x in wan_weights(pipe.transformer).items()}


def _memory(encoder: MemoryEncoder, prefix: str = "model.query_memory_encoder.") -> dict[str, Tensor]:
    return {prefix + name: x for name, x in memory_weights(encoder).items()}


def _wrong(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(x, 0.5) for name, x in weights.items()}


def echo_infinity(pipe: LongTakePipeline, folder: Path) -> Path:
    """``echo_infinity.pt``: the generator's keys and the memory's among them; and the critic."""
    assert pipe.memory_encoder is not None
    generator = {**_generator(pipe), **_memory(pipe.memory_encoder)}
    torch.save({"generator": generator, "critic": _wrong(_generator(pipe)), "step": 400}, folder / "echo_infinity.pt")
    return folder / "echo_infinity.pt"


def averaged(pipe: LongTakePipeline, folder: Path) -> Path:
    """With the averaged weights to be taken (``#generator_ema``), which have no memory: that is the generator's."""
    assert pipe.memory_encoder is not None
    generator = {**_wrong(_generator(pipe)), **_memory(pipe.memory_encoder)}
    torch.save({"generator": generator, "generator_ema": _generator(pipe)}, folder / "averaged.pt")
    return folder / "averaged.pt"


def wrapped(pipe: LongTakePipeline, folder: Path) -> Path:
    """As FSDP leaves names."""
    assert pipe.memory_encoder is not None
    prefix = "model._fsdp_wrapped_module."
    memory = _memory(pipe.memory_encoder, f"{prefix}query_memory_encoder._fsdp_wrapped_module.")
    torch.save({"generator": {**_generator(pipe, prefix), **memory}}, folder / "wrapped.pt")
    return folder / "wrapped.pt"


def bare(pipe: LongTakePipeline, folder: Path) -> Path:
    assert pipe.memory_encoder is not None
    save_file(
        {**_generator(pipe, ""), **_memory(pipe.memory_encoder, "query_memory_encoder.")}, folder / "bare.safetensors"
    )
    return folder / "bare.safetensors"


def long_variant(pipe: LongTakePipeline, folder: Path, encoder: MemoryEncoder) -> Path:
    """A LoRA of the generator, and beside it the memory that was trained with it."""
    lora = {}
    for name, (down, up) in lora_pairs(pipe.transformer, only=r"blocks\.\d+\.attn[12]\..*").items():
        stem = f"base_model.model.{published_module(name)}"
        lora |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    content = {"generator_lora": lora, "critic_lora": _wrong(lora), "query_memory_encoder": memory_weights(encoder)}
    torch.save(content, folder / "echo_infinity_long.pt")
    return folder / "echo_infinity_long.pt"


LAYOUTS: dict[str, Callable[[LongTakePipeline, Path], Path]] = {
    f.__name__: f for f in (echo_infinity, averaged, wrapped, bare)
}


@pytest.fixture(scope="module")
def folder(pipe: LongTakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other parts of the model, and another memory that is not to be taken when a checkpoint has one."""
    path = tmp_path_factory.mktemp("parts") / "whole"
    other = build()
    other.memory_encoder = None
    other.save_pretrained(path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_model_and_the_memory(
    layout: str, pipe: LongTakePipeline, folder: Path, tmp_path: Path
) -> None:
    path = LAYOUTS[layout](pipe, tmp_path)
    assert equal(load_transformer(path, head_dim=HEAD_DIM), pipe.transformer)
    loaded = load(str(path), components=folder)
    assert equal(loaded.transformer, pipe.transformer)
    assert loaded.memory_encoder is not None and loaded.memory_encoder.trained
    assert equal(loaded.memory_encoder, pipe.memory_encoder)  # type: ignore[arg-type]
    assert loaded.memory_encoder.config == {**pipe.memory_encoder.config, "num_layers": None}  # type: ignore[union-attr]
    assert same(run(loaded.start(PROMPT, "echo"), 7), run(pipe.start(PROMPT, "echo"), 7))
    # Also as memory weights for a model that has none.
    plain = load(str(folder))
    assert plain.memory_encoder is None and equal(plain.load_memory(path), loaded.memory_encoder)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_long_variant_brings_its_own_memory(
    normalize: bool, pipe: LongTakePipeline, folder: Path, tmp_path: Path
) -> None:
    encoder = random_memory(2, 12, seed=9, normalize_keys=normalize)
    path, lora = echo_infinity(pipe, tmp_path), long_variant(pipe, tmp_path, encoder)
    loaded = load(str(path), components=folder, loras=[str(lora)])
    assert equal(loaded.memory_encoder, encoder) and loaded.memory_encoder.normalize_keys == normalize  # type: ignore
    alone = load_transformer(path, head_dim=HEAD_DIM)
    assert not equal(loaded.transformer, alone)
    given = save_memory(random_memory(2, 12, seed=3), tmp_path / "given", "")
    chosen = load(str(path), components=folder, loras=[str(lora)], memory_weights=given)
    assert equal(chosen.memory_encoder, random_memory(2, 12, seed=3))  # type: ignore[arg-type]


def test_a_model_of_the_registry(
    pipe: LongTakePipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the entry ``echo-infinity`` says it, with the hub's cache filled by hand, and with an adapter beside it."""
    entry = {"repo": "Echo-Team/Echo-Infinity", "path": "echo_infinity.pt"}
    cache = tmp_path / "cache" / "models--Echo-Team--Echo-Infinity"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    (cache / "snapshots" / ("a" * 40)).mkdir(parents=True)
    echo_infinity(pipe, cache / "snapshots" / ("a" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    built_in = load_registry()["echo-infinity"]
    assert built_in.transformer == built_in.memory_weights == HubFile(**entry, about=5950000000)
    model: dict[str, Any] = {"transformer": entry, "memory_weights": entry, "key": "generator", "base": "tiny"}
    model |= {"size": [32, 48], "memory": built_in.memory}
    apart = {**model, "memory_weights": str(pipe.save_memory(tmp_path / "apart").parent)}
    config = json.loads((folder / "transformer" / "config.json").read_text())
    registry = write_registry(
        tmp_path / "models.yaml",
        {"echo-infinity": model, "apart": apart},
        {"tiny": {"folder": str(folder), "transformer": config}},
    )
    monkeypatch.setenv("LONGTAKE_MODELS", str(registry))
    for name in ("echo-infinity", "apart"):
        loaded = load(name)
        assert equal(loaded.transformer, pipe.transformer) and equal(loaded.memory_encoder, pipe.memory_encoder)  # type: ignore


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("gate_linear.weight"), "lacks gate_linear.weight"),
        (lambda w: w.update({"mu_proj.weight": torch.zeros(3, 3)}), "has unexpected mu_proj.weight"),
        (lambda w: w.update({"to_k.bias": torch.zeros(3)}), r"has to_k.bias \[3\] instead of \[24\]"),
        (lambda w: w.update({"to_k.bias": torch.full((24,), float("nan"))}), "not all finite numbers: to_k.bias"),
        (lambda w: w.update({"to_k.bias": torch.zeros(24).long()}), r"to_k.bias \(int64\)"),
        (lambda w: w.pop("query_init"), "holds no learned memory"),
        (lambda w: w.update({"query_init": torch.zeros(1, 17, 24)}), "17 tokens, which are no whole frames of 6"),
        (lambda w: w.update({"query_init": torch.zeros(1, 18, 25)}), "2 attention heads do not fit"),
        (lambda w: w.update({"query_init": torch.zeros(18, 24)}), "holds no learned memory"),
    ],
)
def test_memory_weights_that_are_not_exactly_right_are_named(
    change: Callable[[dict[str, Tensor]], Any], message: str, pipe: LongTakePipeline, tmp_path: Path
) -> None:
    assert pipe.memory_encoder is not None
    weights = memory_weights(pipe.memory_encoder)
    change(weights)
    torch.save({"query_memory_encoder": weights}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as error:
        load_memory(tmp_path / "x.pt", 2, (2, 3))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_files_that_are_no_memories(pipe: LongTakePipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is nothing at"):
        pipe.load_memory(tmp_path / "none")
    with pytest.raises(ValueError, match="has no memory weights in it"):
        pipe.load_memory(tmp_path)
    torch.save({"generator": _generator(pipe)}, tmp_path / "plain.pt")
    assert published_memory(tmp_path / "plain.pt") == {}
    with pytest.raises(ValueError, match="it has no query_memory_encoder"):
        pipe.load_memory(tmp_path / "plain.pt")
    file = save_memory(random_memory(2, 12), tmp_path / "saved", "")
    tensors, data = load_file(file), saved_config(file)
    assert data is not None
    for broken, message in (
        ({**data, "format": 9}, "another version"),
        ({**data, "trained": "yes"}, "does not say what"),
        ({**data, "config": {**data["config"], "heads": 0}}, "does not say what"),
        ({**data, "config": {**data["config"], "grid": [2, 3, 4]}}, "does not say what"),
        ({**data, "config": {"heads": 2}}, "does not say what"),
        ({**data, "config": {**data["config"], "heads": 1, "head_dim": 12}}, "instead of"),
    ):
        save_file(tensors, tmp_path / "broken.safetensors", metadata={KEY: json.dumps(broken)})
        with pytest.raises(ValueError, match=message):
            pipe.load_memory(tmp_path / "broken.safetensors")
    (tmp_path / "short.safetensors").write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="damaged or cut short"):
        pipe.load_memory(tmp_path / "short.safetensors")


# The command line


def test_generate_with_given_weights(here: Here, folder: Path, pipe: LongTakePipeline, tmp_path: Path) -> None:
    """With settings and without, from a file and a folder, stopped and continued: the same video."""
    weights = pipe.save_memory(tmp_path / "memory").parent
    model = ("--model", folder, "--memory-weights", weights)
    whole = made(here, tmp_path / "a.mp4", *model, "--memory", "echo", seconds=5)
    assert made(here, tmp_path / "b.mp4", "--model", folder, "--memory-weights", weights / "memory.safetensors",
                seconds=5) == whole  # fmt: skip
    assert made(here, tmp_path / "c.mp4", "--model", folder, seconds=5) != whole
    made(here, tmp_path / "d.mp4", *model, "--memory", "echo", seconds=4)
    assert made(here, tmp_path / "d.mp4", "--resume", seconds=5, prompt=None) == whole
    path = echo_infinity(pipe, tmp_path)
    assert made(here, tmp_path / "e.mp4", "--model", path, "--components", folder, "--memory", "echo",
                seconds=5) == whole  # fmt: skip
    result = here("convert", path, tmp_path / "converted", "--components", folder)
    assert result.returncode == 0, result.stderr
    assert made(here, tmp_path / "f.mp4", "--model", tmp_path / "converted", "--memory", "echo", seconds=5) == whole


def test_generate_with_the_pocket_model(here: Here, tmp_path: Path) -> None:
    save_memory(random_memory(8, 32, (4, 4), frames=1, num_layers=12), tmp_path / "wrong", "")
    config = json.loads((Path(load_pocket_folder()) / "transformer" / "config.json").read_text())
    heads, dim, layers = (config[name] for name in ("num_attention_heads", "attention_head_dim", "num_layers"))
    step = 64 // (8 * config["patch_size"][1])
    save_memory(random_memory(heads, dim, (step, step), frames=1, num_layers=layers), tmp_path / "memory", "")
    result = here("generate", PROMPT, "--memory", "echo:frames=1", "--memory-weights", "memory", "--seconds", "4",
                  "--out", "a.mp4")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "3 sink + 1 memory + 6 recent + 3 current = 13 frames" in result.stderr
    result = here("generate", PROMPT, "--memory", "echo:frames=1", "--memory-weights", "wrong", "--out", "b.mp4")
    assert result.returncode == 2 and "transformer of" in result.stderr and not (tmp_path / "b.mp4").exists()


def load_pocket_folder() -> Path:
    from longtake.checkpoints import load_registry

    folder = load_registry()["pocket"].folder
    assert folder is not None
    return folder


def test_refusals(tmp_path: Path, folder: Path) -> None:
    """One sentence each, before anything heavy is loaded."""
    cases: dict[str, dict[str, Any]] = {
        "wide": {"heads": 2, "head_dim": 24},
        "deep": {"heads": 2, "head_dim": 12, "num_layers": 30},
        "large": {"heads": 2, "head_dim": 12, "grid": (30, 52)},
        "good": {"heads": 2, "head_dim": 12},
    }
    for name, config in cases.items():
        save_memory(random_memory(**config), tmp_path / name, "")
    untrained = random_memory(2, 12)
    untrained.trained = False
    save_memory(untrained, tmp_path / "untrained", "")
    (tmp_path / "notes.txt").write_text("nothing")
    model = ("--model", folder, "--memory", "echo")
    for arguments, says in (
        (model, "no trained weights of it"),
        (("--memory", "echo"), "no trained weights of it for the model pocket"),
        ((*model, "--memory-weights", "wide"), "width 48 in 2 heads, not 24 in 2"),
        ((*model, "--memory-weights", "deep"), "30 layers, not 2"),
        ((*model, "--memory-weights", "large"), "30x52 tokens per frame, not 2x3"),
        ((*model, "--memory-weights", "good", "--width", "64"), "2x3 tokens per frame, not 2x4"),
        ((*model, "--memory-weights", "untrained"), "untrained"),
        ((*model, "--memory-weights", "none"), "nothing at"),
        ((*model, "--memory-weights", "notes.txt"), "not a checkpoint"),
        ((*model, "--memory-weights", "."), "no memory weights in it"),
        (("--model", folder, "--memory", "echo:frames=1", "--memory-weights", "good"), "ask for echo:frames=3, not 1"),
        (("--model", folder, "--memory", "echo:frames=10", "--memory-weights", "good"), "max_id is 20"),
    ):
        error = refused("generate", PROMPT, *arguments, cwd=tmp_path)
        assert says in error, error


def test_what_only_loading_tells_is_refused_too(
    here: Here, folder: Path, pipe: LongTakePipeline, tmp_path: Path
) -> None:
    """A checkpoint without a memory."""
    torch.save({"generator": _generator(pipe)}, tmp_path / "plain.pt")
    result = here("generate", PROMPT, "--model", "plain.pt", "--components", folder, "--memory", "echo")
    assert result.returncode == 2 and "needs trained weights" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.glob("take*"))


def test_the_page_makes_a_memory_for_the_pocket_model() -> None:
    page = Path(__file__).parent.parent / "docs" / "echo.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "MemoryEncoder(" in block]
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)
    pipe, encoder = names["pipe"], names["encoder"]
    encoder.trained, pipe.memory_encoder = True, encoder
    (chunk,) = run(pipe.start(PROMPT, "echo:frames=1"), 1)
    assert chunk.video.isfinite().all()
