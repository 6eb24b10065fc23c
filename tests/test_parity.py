"""Recorded runs of the published pipelines, replayed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file

from longtake.checkpoints.wan import wan_to_diffusers
from longtake.memory import MemRoPE, Sliding
from longtake.parity import policy_of, replay

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["selfforcing_rolling", "infinity_rope", "memrope_ema"])
def test_published_pipelines_are_reproduced(name: str) -> None:
    result = replay(DATA / f"{name}.safetensors")
    assert result.max_abs_diff < 1e-4
    assert result.chunks in (10, 13)


def _altered(tmp_path: Path, drop: str = "", **changes: Any) -> Path:
    with safe_open(DATA / "memrope_ema.safetensors", framework="pt") as file:
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
