"""Named models: what the built-in registry says, and the user's own file."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from longtake.checkpoints import registry
from longtake.checkpoints.registry import BaseInfo, HubFile, ModelInfo, bases, find_info, load_registry
from longtake.memory import MemoryEncoder, parse_memory

BUILT_IN = ["pocket", "self-forcing", "longlive", "causal-forcing", "krea-realtime", "echo-infinity"]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the user's file that has none yet."""
    monkeypatch.delenv("LONGTAKE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "longtake" / "models.yaml"
    path.parent.mkdir(parents=True)
    return path


def test_built_in() -> None:
    models = load_registry()
    assert list(models) == BUILT_IN and all(models[name].name == name for name in models)
    for info in models.values():
        assert info.license and info.source and info.description and "\n" not in info.description
        assert parse_memory(info.memory, info.chunk) is not None
        assert info.denoising_steps == (1000, 750, 500, 250) and info.shift == 5 and info.chunk == 3
        assert (info.folder is None) == (info.base is not None)
        for file in info.hub_files:
            # Of Echo-Infinity's repository the commits are not known where this list is kept.
            assert file.pinned == (info.name != "echo-infinity") and not file.is_folder
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert {name: info.key for name, info in models.items() if info.key} == {
        "self-forcing": "generator_ema",
        "longlive": "generator",
        "causal-forcing": "generator",
        "echo-infinity": "generator",
    }
    echo = models["echo-infinity"]
    assert echo.memory_weights == echo.transformer and len(echo.hub_files) == 1
    assert [(lora.key, lora.scale) for lora in models["longlive"].loras] == [("generator_lora", 1.0)]
    assert find_info("pocket").ships and not any(models[name].ships for name in BUILT_IN[1:])
    with pytest.raises(ValueError, match=r"^There is no model 'sora'; known by name are pocket, self-forcing, .*\.$"):
        find_info("sora")


def test_pocket_is_its_folder() -> None:
    info = find_info("pocket")
    assert info.folder is not None
    index = json.loads((info.folder / "model_index.json").read_text())
    assert list(info.size) == index["default_size"] and list(info.denoising_steps) == index["denoising_steps"]
    assert (info.fps, info.chunk) == (index["fps"], index["chunk_frames"])
    assert info.shift == json.loads((info.folder / "scheduler" / "scheduler_config.json").read_text())["shift"]
    with safe_open(info.folder / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert info.parameters == sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize("name", ["wan-1.3b", "wan-14b"])
def test_configurations_are_of_the_files(name: str) -> None:
    """Models built from the configurations have as many weights as the files have bytes."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    base = bases()[name]
    text = {key: value for key, value in base.text_encoder.items() if key != "architectures"}
    with torch.device("meta"):
        parts = {
            "transformer": WanTransformer3DModel.from_config(dict(base.transformer)),
            "vae": AutoencoderKLWan.from_config(dict(base.vae)),
            "text_encoder": UMT5EncoderModel(UMT5Config(**text)),
        }
    count = {part: sum(p.numel() for p in model.parameters()) for part, model in parts.items()}

    using = [info for info in load_registry().values() if info.base == name]
    assert using
    for info in using:
        assert info.parameters == count["transformer"]
        assert isinstance(info.transformer, HubFile)
        width = 2 if name == "wan-14b" else 4  # Krea's file is bfloat16, the others float32
        size = info.transformer.size or info.transformer.about
        with torch.device("meta"):
            memory = MemoryEncoder(12, 128) if info.memory_weights else torch.nn.Identity()
        count["memory"] = sum(p.numel() for p in memory.parameters())
        assert size == pytest.approx(width * (count["transformer"] + count["memory"]), rel=1e-3)
    for part in ("vae", "text_encoder"):
        weights = [f for f in base.files if f.path.startswith(part) and f.path.endswith(".safetensors")]
        if weights:
            assert sum(f.size or 0 for f in weights) == pytest.approx(4 * count[part], rel=1e-3)
    assert base.bytes == pytest.approx(4 * (count["vae"] + count["text_encoder"]), rel=2e-3)
    assert all(f.repo == base.repo and f.pinned for f in base.files)
    assert not any(f.matches("transformer/diffusion_pytorch_model-00001-of-00002.safetensors") for f in base.files)


def test_needs_no_torch() -> None:
    code = (
        "import sys; from longtake.checkpoints import registry, hub; registry.load_registry(); "
        "print([hub.plan(i, ask=False).missing > 0 for i in registry.load_registry().values()], 'torch' in sys.modules)"
    )
    environment = {**os.environ, "HF_HOME": "/nowhere/at/all"}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[False, True, True, True, True, True] False"


def test_own_file(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list(load_registry()) == BUILT_IN
    own.write_text(
        """
models:
  pocket: {folder: ~/other, description: mine, size: [32, 64]}
  tuned:
    transformer: weights/tuned.pt
    base: wan-1.3b
    key: generator
    loras: [{file: /abs/style.safetensors, scale: 0.5}, {file: {repo: me/lora, path: a/b.pt}, key: generator_lora}]
    denoising_steps: [1000, 500]
    shift: 3
    memory: memrope:recent=7
  diffusers: {transformer: {repo: me/wan, path: transformer/*, revision: v2}, base: local}
bases:
  local: {folder: ../parts}
"""
    )
    models = load_registry()
    assert list(models) == [*BUILT_IN, "tuned", "diffusers"]
    assert (models["pocket"].folder, models["pocket"].size) == (Path.home() / "other", (32, 64))
    assert not models["pocket"].ships
    tuned = models["tuned"]
    assert tuned.transformer == own.parent / "weights" / "tuned.pt"
    assert (tuned.denoising_steps, tuned.shift, tuned.memory) == ((1000.0, 500.0), 3.0, "memrope:recent=7")
    assert [lora.file for lora in tuned.loras] == [Path("/abs/style.safetensors"), HubFile("me/lora", "a/b.pt")]
    assert [lora.scale for lora in tuned.loras] == [0.5, 1.0]
    assert models["diffusers"].transformer == HubFile("me/wan", "transformer/*", "v2")
    assert not models["diffusers"].hub_files[0].pinned
    assert bases()["local"].folder == own.parent.parent / "parts"
    assert tuned.origin == own

    # Another file, named by the environment, takes the place of the usual one; changes are seen.
    other = tmp_path / "other.yaml"
    other.write_text("models: {mine: {folder: x}}")
    monkeypatch.setenv("LONGTAKE_MODELS", str(other))
    assert list(load_registry()) == [*BUILT_IN, "mine"]
    other.write_text("models: {mine-too: {folder: x}}")
    assert list(load_registry()) == [*BUILT_IN, "mine-too"]
    monkeypatch.setenv("LONGTAKE_MODELS", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match=r"^LONGTAKE_MODELS names the file .*none.yaml, which is not there\.$"):
        load_registry()


def _model(**values: Any) -> dict[str, Any]:
    return {"models": {"bad": {"folder": "x", **values}}}


def _weights(**values: Any) -> dict[str, Any]:
    return {"models": {"bad": {"base": "wan-1.3b", "transformer": {"repo": "a/b", "path": "c.pt", **values}}}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_model(fps="fast"), "'bad' has fps: 'fast', and accepted is a whole number"),
        (_model(fps=0), "fps: 0"),
        (_model(fps=True), "fps: true"),
        (_model(chunk=1.5), "chunk: 1.5"),
        (_model(size=[480]), "[height, width]"),
        (_model(size="480x832"), "[height, width]"),
        (_model(shift=-1), "a number above 0"),
        (_model(shift=math.nan), "a number above 0"),
        (_model(denoising_steps=[250, 1000]), "falling list"),
        (_model(denoising_steps=[]), "falling list"),
        (_model(denoising_steps=["many"]), "falling list"),
        (_model(description=["a"]), "a line of text"),
        (_model(license=""), "a line of text"),
        (_model(colour="red"), "unknown key 'colour'; accepted are description"),
        (_model(transformer="y.pt", base="wan-1.3b"), "either a 'folder'"),
        (_model(loras="x.pt"), "a list of files"),
        (_model(loras=[{"key": "a"}]), "a LoRA of the model 'bad' lacks 'file'"),
        (_model(loras=[{"file": "a", "scale": "big"}]), "scale: 'big'"),
        ({"models": {"bad": {}}}, "either a 'folder'"),
        ({"models": {"bad": {"transformer": "y.pt"}}}, "needs a 'base', which may be wan-1.3b, wan-14b"),
        ({"models": {"bad": {"transformer": "y.pt", "base": "sd"}}}, "has the base 'sd', and known are wan-1.3b"),
        ({"models": {"bad": "a text"}}, "'bad' must have lines"),
        ({"models": {"bad/name": {"folder": "x"}}}, "'bad/name'"),
        ({"models": ["bad"]}, "models must have lines"),
        ({"model": {}}, "unknown key 'model'; accepted are models, bases"),
        (_weights(repo="nothing"), "owner/name"),
        (_weights(repo="../../etc"), "owner/name"),
        (_weights(path="../c.pt"), "a file of the repository"),
        (_weights(path="/etc/passwd"), "a file of the repository"),
        (_weights(sha256="abc"), "64 digits"),
        (_weights(size="5 GB"), "a whole number"),
        (_weights(url="http"), "unknown key 'url'; accepted are path, size, sha256, about, repo, revision"),
        ({"bases": {"bad": {"repo": "a/b"}}}, "the base 'bad' lacks 'files'"),
        ({"bases": {"bad": {"files": ["vae/*"]}}}, "the base 'bad' lacks 'repo'"),
        ({"bases": {"bad": {"repo": "a/b", "files": [{"path": "x", "repo": "c/d"}]}}}, "unknown key 'repo'"),
        ({"bases": {"bad": {"repo": "a/b", "files": ["vae/*"], "vae": []}}}, "vae: []"),
    ],
)
def test_bad_own_file(own: Path, content: dict[str, Any], says: str) -> None:
    own.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        load_registry()
    message = str(caught.value)
    assert message.startswith(f"{own}: ") and message.endswith(".") and "\n" not in message
    assert "bad" in message or "models" in message


@pytest.mark.parametrize("content", ["models: [", "- a\n- b\n", "models: !!python/object:os.system {}\n", "\x00", ""])
def test_no_yaml(own: Path, content: str) -> None:
    own.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(own))) as caught:
        load_registry()
    assert "\n" not in str(caught.value)
    own.unlink()
    own.mkdir()
    assert list(load_registry()) == BUILT_IN  # a folder of that name is no file of models


def test_types() -> None:
    """What others rely on."""
    assert isinstance(find_info("longlive"), ModelInfo) and isinstance(bases()["wan-14b"], BaseInfo)
    assert registry.default_user_file().name == "models.yaml"
