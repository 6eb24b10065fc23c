"""Recorded runs of the published pipelines, replayed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file

from longtake.checkpoints.wan import wan_to_diffusers
from longtake.memory import Echo, MemRoPE, Sliding
from longtake.parity import policy_of, replay

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["selfforcing_rolling", "infinity_rope", "memrope_ema"])
def test_published_pipelines_are_reproduced(name: str) -> None:
    result = replay(DATA / f"{name}.safetensors")
    assert result.max_abs_diff < 1e-4
    assert result.chunks in (10, 13)


def _altered(tmp_path: Path, drop: str = "", of: str = "memrope_ema", **changes: Any) -> Path:
    with safe_open(DATA / f"{of}.safetensors", framework="pt") as file:
        spec = json.loads(file.metadata()["spec"])
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != drop}  # noqa: SIM118
    path = tmp_path / "altered.safetensors"
    save_file(tensors, path, metadata={"spec": json.dumps({**spec, **changes})})
    return path


def test_settings_matter(tmp_path: Path) -> None:
    assert replay(_altered(tmp_path, alpha_short=0.3)).max_abs_diff > 2e-4
    assert replay(_altered(tmp_path, pooling="position")).max_abs_diff > 2e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "elephant"}, "not supported yet; supported are sliding, memrope"),
        ({"colour": 3}, "Unknown settings for memrope: colour"),
        ({"rope": "sideways"}, "ids must be relative or absolute"),
        ({"capacity": 7}, "recent must be a whole number"),
        ({"sink": "three"}, "sink must be a whole number"),
        ({"chunk": 2}, "no whole number of chunks of 2"),
        ({"model": {"num_layerz": 2}}, "Unknown model settings: num_layerz"),
        ({"drop": "weights.head.modulation"}, "scale_shift_table"),
        ({"drop": "renoise"}, "it has no renoise"),
    ],
)
def test_bad_recordings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(_altered(tmp_path, **changes))


def _put(tmp_path: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """The recording with other tensors."""
    path = _altered(tmp_path, **changes)
    with safe_open(path, framework="pt") as file:
        metadata, kept = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({**kept, **tensors}, path, metadata=metadata)
    return path


def _sentence(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        replay(path)
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 600
    return text


MODEL = {"num_attention_heads": 4, "attention_head_dim": 24, "in_channels": 16, "out_channels": 16}
MODEL |= {"text_dim": 32, "freq_dim": 64, "ffn_dim": 192, "num_layers": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"chunk": chunk}, "chunk must be a whole number") for chunk in (0, -3, True, 1.5, None, [3])),
        *(({"policy": policy}, "not supported yet") for policy in (None, 3, ["memrope"], {"a": 1})),
        *(({"model": model}, "model must be an object") for model in (None, [], "wan", 3)),
        *(({"rope": rope}, "ids must be") for rope in (None, ["relative"], 3)),
        ({"alpha_long": "fast"}, "long must be a rate"),
        ({"alpha_long": None}, "long must be a rate"),
        ({"adaptive": "yes"}, "adaptive must be"),
        ({"pooling": {}}, "pooling must be"),
        ({"model": {**MODEL, "num_layers": 3}}, "weights of 2 layers"),
        ({"model": {**MODEL, "num_layers": 10**12}}, "weights of 2 layers"),
        ({"model": {**MODEL, "num_layers": "two"}}, "num_layers must be a whole number"),
        ({"model": {**MODEL, "ffn_dim": 0}}, "ffn_dim must be a whole number"),
        ({"model": {**MODEL, "ffn_dim": 10**9}}, "do not fit the model settings"),
        ({"model": {**MODEL, "ffn_dim": 64}}, "do not fit the model settings"),
        ({"model": {**MODEL, "self": 1}}, "Unknown model settings: self"),
        ({"model": {**MODEL, "patch_size": 2}}, "patch_size must be three sizes"),
        ({"model": {**MODEL, "patch_size": [1, 2]}}, "patch_size must be three sizes"),
        ({"model": {**MODEL, "patch_size": [1, 3, 2]}}, "do not fit|do not divide"),
        ({"model": {**MODEL, "eps": "small"}}, "eps must be"),
        ({"model": {**MODEL, "qk_norm": 3}}, "qk_norm must be"),
        ({"model": {**MODEL, "qk_norm": "sideways"}}, "qk_norm must be"),
        ({"model": {**MODEL, "attention_head_dim": 23}}, "No transformer|do not fit"),
        ({"model": {**MODEL, "cross_attn_norm": "yes"}}, "cross_attn_norm must be"),
        ({"model": {**MODEL, "image_dim": 8}}, "text-to-video"),
        ({"model": {**MODEL, "rope_max_seq_len": 2}}, "rope_max_seq_len"),
        ({"model": {**MODEL, "out_channels": 8}}, "out_channels"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert re.search(message, _sentence(_altered(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, torch.zeros(()), f"{name} must") for name in ("noise", "renoise", "text", "timesteps", "latents")),
        *((name, torch.zeros(2, 3), f"{name} must") for name in ("noise", "renoise", "text", "timesteps", "latents")),
        *((name, torch.zeros(2, 3).long(), f"{name} must") for name in ("noise", "renoise", "text", "latents")),
        ("noise", torch.zeros(2, 39, 16, 4, 6), r"noise must be \[1, frames, 16"),
        ("noise", torch.zeros(1, 39, 8, 4, 6), r"noise must be \[1, frames, 16"),
        ("noise", torch.zeros(1, 0, 16, 4, 6), r"noise must be \[1, frames, 16"),
        ("latents", torch.zeros(1, 39, 16, 4, 8), "latents must be like noise"),
        ("renoise", torch.zeros(38, 3, 16, 4, 6), r"renoise must be \[39, 3, 16, 4, 6\]"),
        ("renoise", torch.zeros(39, 3, 16, 6, 4), r"renoise must be \[39, 3, 16, 4, 6\]"),
        ("text", torch.zeros(1, 8, 31), r"text must be \[1, tokens, 32\]"),
        ("text", torch.zeros(1, 0, 32), r"text must be \[1, tokens, 32\]"),
        ("timesteps", torch.tensor([float("nan")]), "timesteps must fall"),
        ("timesteps", torch.tensor([1000.0, 500.0]), "renoise must be"),
        ("weights.head.modulation", torch.zeros(1, 2, 96).long(), "floating-point"),
        ("weights.head.modulation", torch.zeros(1, 2, 95), "scale_shift_table"),
        ("weights.nothing", torch.zeros(1), "Not weights of a Wan transformer"),
    ],
)
def test_bad_tensors_are_refused_in_one_sentence(tmp_path: Path, name: str, value: torch.Tensor, message: str) -> None:
    assert re.search(message, _sentence(_put(tmp_path, {name: value})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_frames": "three"}, "frames must be a whole number"),
        ({"memory_frames": None}, "frames must be a whole number"),
        ({"memory_frames": 4}, "a memory of 18 tokens, which are no whole frames"),
        ({"memory_frames": 2}, "pictures of 9 tokens per frame, not 6"),
        ({"max_id": 13}, "need the ids 0 to 14, and max_id is 13"),
        ({"max_id": 20.5}, "max_id must be a whole number"),
        ({"capacity": 5}, "past must be a whole number"),
        ({"normalize_memory_k": True}, "lacks norm_k_out.weight"),
        ({"normalize_memory_k": "no"}, "normalize_memory_k must be true or false"),
        ({"update": "never"}, "update must be chunk_start or after_first_forward"),
        ({"update": ["a"]}, "update must be a word"),
        ({"rope": "absolute"}, "must have relative ids"),
        ({"pooling": "global"}, "Unknown settings for echo: pooling"),
        ({"drop": "memory.query_init"}, "holds no learned memory"),
        ({"drop": "memory.to_v.bias"}, "lacks to_v.bias"),
    ],
)
def test_bad_recordings_of_echo_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert re.search(message, _sentence(_altered(tmp_path, of="echo_long", **changes)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("memory_states", torch.zeros(()), "memory_states must be"),
        ("memory_states", torch.zeros(12, 1, 18, 96).long(), "memory_states must be"),
        ("memory_states", torch.zeros(12, 1, 18, 95), r"must be \[1, 18, 96\]"),
        ("memory.nothing", torch.zeros(1), "unexpected nothing"),
        ("memory.to_v.bias", torch.zeros(95), "to_v.bias"),
        ("memory.to_v.bias", torch.full((96,), float("inf")), "not all finite"),
    ],
)
def test_bad_memories_are_refused(tmp_path: Path, name: str, value: torch.Tensor, message: str) -> None:
    assert re.search(message, _sentence(_put(tmp_path, {name: value}, of="echo_long")))


def test_settings_of_a_learned_memory_matter(tmp_path: Path) -> None:
    for changes in ({"update": "chunk_start"}, {"max_id": 15}, {"capacity": 15}):
        assert replay(_altered(tmp_path, of="echo_long", **changes)).max_abs_diff > 1.5e-4
    with safe_open(DATA / "echo_long.safetensors", framework="pt") as file:
        query = file.get_tensor("memory.query_init")
    assert replay(_put(tmp_path, {"memory.query_init": -query}, of="echo_long")).max_abs_diff > 1.5e-4
    path = _put(tmp_path, {"memory_states": torch.zeros(13, 1, 18, 96)}, of="echo_long")
    assert replay(path).state_diff == float("inf")  # there are 12 updates
    # A norm that is not used may be there, as it may be in released weights.
    path = _put(tmp_path, {"memory.norm_k_out.weight": torch.ones(96)}, of="echo_long")
    assert replay(path).max_abs_diff < 1e-4
    path = _put(tmp_path, {"memory.norm_k_out.weight": torch.ones(96)}, of="echo_long", normalize_memory_k=True)
    assert replay(path).max_abs_diff > 1.5e-4


def test_latents_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    odd = {"noise": torch.zeros(1, 3, 16, 5, 6), "latents": torch.zeros(1, 3, 16, 5, 6)}
    assert "patches" in _sentence(_put(tmp_path, {**odd, "renoise": torch.zeros(3, 3, 16, 5, 6)}))


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recording"):
        replay(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not a recording"):
        replay(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="no 'spec'"):
        replay(tmp_path / "plain.safetensors")


def test_every_setting_of_a_recording_is_used() -> None:
    spec = {"policy": "memrope", "capacity": 16, "sink": 4, "chunk": 2, "alpha_long": 0.02, "alpha_short": 0.2}
    spec |= {"pooling": "position", "adaptive": True, "rope": "absolute"}
    assert policy_of(spec) == MemRoPE(4, 8, 0.02, 0.2, "position", True, "absolute", "released")
    assert policy_of({"policy": "sliding", "capacity": 12, "sink": 1, "rope": "relative"}) == Sliding(12, 1, "relative")
    spec = {"policy": "echo", "capacity": 14, "sink": 2, "chunk": 3, "memory_frames": 1, "max_id": 30}
    assert policy_of({**spec, "update": "chunk_start"}) == Echo(1, 9, 2, 30)
    assert policy_of({"policy": "echo"}) == Echo(update="after_first_forward")


def test_names_cover_an_image_model_too() -> None:
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, image_dim=8,
        added_kv_proj_dim=24, pos_embed_seq_len=4,
    )  # fmt: skip
    attention = [f"{x}.{kind}" for x in "qkvo" for kind in ("weight", "bias")] + ["norm_q.weight", "norm_k.weight"]
    image = ["k_img.weight", "k_img.bias", "v_img.weight", "v_img.bias", "norm_k_img.weight"]
    pairs = ["ffn.0", "ffn.2", "norm3"]
    block = [f"self_attn.{x}" for x in attention] + [f"cross_attn.{x}" for x in attention + image]
    block += [f"{x}.{kind}" for x in pairs for kind in ("weight", "bias")] + ["modulation"]
    top = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    top += ["time_projection.1", "head.head"] + [f"img_emb.proj.{i}" for i in (0, 1, 3, 4)]
    keys = [f"blocks.0.{x}" for x in block] + [f"{x}.{kind}" for x in top for kind in ("weight", "bias")]
    keys += ["head.modulation", "img_emb.emb_pos"]
    converted = wan_to_diffusers({key: torch.zeros(1) for key in keys})
    assert set(converted) == set(model.state_dict())


def test_unknown_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.self_attn\.z\.weight"):
        wan_to_diffusers({"blocks.0.self_attn.z.weight": torch.zeros(1), "head.head.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"model\.head\.head\.bias and 1 more|and 1 more"):
        wan_to_diffusers({f"model.{key}": torch.zeros(1) for key in ("a", "b", "c", "head.head.bias")})
