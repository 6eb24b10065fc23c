"""LoRA adapters in training: what is trained, and that a saved one is the same for every reader."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open

from longtake.checkpoints.lora import attach, fuse, read_lora
from longtake.memory import MemRoPE
from longtake.sampling import FewStepSchedule
from longtake.training.dmd import DMD
from longtake.training.flow import WanFlow
from longtake.training.lora import add_lora, lora_parameters, save_lora
from longtake.training.selfforcing import Rollout
from tests.helpers_checkpoints import lora_pairs
from tests.helpers_pipeline import build as build_pipeline
from tests.helpers_training import draw
from tests.test_attention import build, text
from tests.test_lora import output

RANK, ALPHA = 3, 7.0


def trained() -> tuple[WanTransformer3DModel, WanTransformer3DModel]:
    """A model, and its copy with an adapter after some steps of distillation on rollouts."""
    torch.manual_seed(0)
    plain = build_pipeline().transformer
    model = copy.deepcopy(plain)
    add_lora(model, RANK, ALPHA)
    optimizer = torch.optim.Adam(lora_parameters(model), lr=0.02)
    critic, generator = copy.deepcopy(plain), torch.Generator().manual_seed(1)
    said = draw(2, 1, 5, 128)
    model.enable_gradient_checkpointing()
    for seed in range(3):
        rollout = Rollout(model, MemRoPE(1, 1), FewStepSchedule.from_steps(), said, [seed], 4, 6)
        clip = rollout.clip(seed, 15)
        DMD().loss(clip.frames, said, lambda x, s, t: 2 * x, WanFlow(critic), generator).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.disable_gradient_checkpointing()
    return plain, model


def test_every_linear_layer_of_the_blocks_and_nothing_else() -> None:
    model = build()
    expected = sorted(n for n, m in model.blocks.named_modules() if isinstance(m, torch.nn.Linear))
    assert len(expected) == 20 and sorted(lora_pairs(model, RANK)) == [f"blocks.{n}" for n in expected]
    count, before = sum(p.numel() for p in model.parameters()), WanFlow(model)(*inputs())
    assert add_lora(model, RANK) == 20
    assert torch.equal(WanFlow(model)(*inputs()), before)  # until it is trained
    chosen = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(chosen) == 40 and all(".lora_" in n and n.startswith("blocks.") for n in chosen)
    assert len(lora_parameters(model)) == 40
    added = sum(RANK * (x.shape[0] + x.shape[1]) for x in (m.weight for m in build().blocks.modules() if is_linear(m)))
    assert sum(p.numel() for p in lora_parameters(model)) == added == sum(p.numel() for p in model.parameters()) - count


def is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return draw(0, 1, 4, 3, 4, 6), torch.tensor([0.5]), text()


def test_only_the_adapter_learns(tmp_path: Path) -> None:
    plain, model = trained()
    old = plain.state_dict()
    for name, weight in model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(weight, old[name.replace(".base_layer", "")]), name
        elif "lora_B" in name:
            assert weight.abs().max() > 0, name
    assert not torch.allclose(output(model), output(plain), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_is_the_same_for_every_reader(dtype: torch.dtype, tmp_path: Path) -> None:
    plain, model = trained()
    plain, model = plain.to(dtype), model.to(dtype)
    path = tmp_path / "lora.safetensors"
    save_lora(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]
    expected = output(model)
    tolerance = 1e-4 if dtype is torch.float32 else 0.1
    assert (expected - output(plain)).abs().max() > 2 * tolerance
    fused, attached = copy.deepcopy(plain), copy.deepcopy(plain)
    assert fuse(fused, path) == attach(attached, path) == 20
    assert torch.allclose(output(fused), expected, atol=tolerance)
    assert torch.allclose(output(attached), expected, atol=tolerance)
    assert {layer.alpha for layer in read_lora(path).layers.values()} == {ALPHA}
    theirs = build_pipeline()
    theirs.transformer = copy.deepcopy(plain)
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert torch.allclose(output(theirs.transformer), expected, atol=tolerance)


def test_the_same_seed_makes_the_same_adapter(tmp_path: Path) -> None:
    torch.manual_seed(1)
    for name in ("a", "b"):
        model = build()
        add_lora(model, RANK, ALPHA, seed=3)
        save_lora(model, tmp_path / f"{name}.safetensors")
        torch.randn(3)
    contents = []
    for name in ("a", "b"):
        with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
            contents.append((file.metadata(), {key: file.get_tensor(key) for key in file.keys()}))  # noqa: SIM118
    assert contents[0][0] == contents[1][0] and len(contents[0][1]) == 40
    assert all(torch.equal(x, contents[1][1][key]) for key, x in contents[0][1].items())
    other = build()
    add_lora(other, RANK, ALPHA, seed=4)
    start = lora_parameters(other)[0]
    assert json.loads(contents[0][0]["lora_adapter_metadata"])["transformer.lora_alpha"] == ALPHA
    assert not torch.equal(contents[0][1]["transformer.blocks.0.attn1.to_q.lora_A.weight"], start)
    assert 0.5 < float(start.detach().abs().max()) * 24**0.5 <= 1


def test_training_can_be_taken_up_again(tmp_path: Path) -> None:
    """Two adapters in one model: each is saved by itself, and trained by itself."""
    model = build()
    add_lora(model, RANK, name="first")
    with torch.no_grad():
        for p in lora_parameters(model, "first"):
            p.add_(0.1)
    assert add_lora(model, 2, name="second") == 20
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"second"}
    save_lora(model, tmp_path / "first.safetensors", "first")
    save_lora(model, tmp_path / "second.safetensors", "second")
    ranks = [{x.rank for x in read_lora(tmp_path / f"{n}.safetensors").layers.values()} for n in ("first", "second")]
    assert ranks == [{RANK}, {2}]


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    model = build()
    for rank, alpha in ((0, 1.0), (4, 0.0), (4, -1.0)):
        with pytest.raises(ValueError, match="rank is 1 or more"):
            add_lora(model, rank, alpha)
    with pytest.raises(ValueError, match="no adapter 'default'; it has none"):
        save_lora(model, tmp_path / "x.safetensors")
    for name in ("train", "a.b", ""):
        with pytest.raises(ValueError, match="cannot be called"):
            add_lora(model, 2, name=name)
    add_lora(model, 2)
    with pytest.raises(ValueError, match="already"):
        add_lora(model, 2)
    with pytest.raises(ValueError, match=r"\.safetensors file, not to 'x.pt'"):
        save_lora(model, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no adapter 'other'; it has default"):
        lora_parameters(model, "other")
    (tmp_path / "there.safetensors").mkdir()
    with pytest.raises(OSError):
        save_lora(model, tmp_path / "there.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["there.safetensors"]
