"""LoRAs in every style they are published in: fused against unfused, and against diffusers' own loader."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.checkpoints.lora import attach, fuse, read_lora
from longtake.checkpoints.published import load_transformer
from longtake.checkpoints.sources import LoraFile, parse_lora

from .helpers_checkpoints import HEAD_DIM, LAYOUTS, Payload, lora_pairs, published_module
from .helpers_pipeline import build

RANK = 3
Pairs = Mapping[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    return build().transformer


@pytest.fixture(scope="module")
def pairs(transformer: WanTransformer3DModel) -> dict[str, tuple[Tensor, Tensor]]:
    found = lora_pairs(transformer, RANK)
    assert len(found) == 20  # as LongLive's: ten in each of two blocks
    return found


def output(model: WanTransformer3DModel) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    x, text = torch.randn(1, 4, 3, 4, 6, generator=generator), torch.randn(1, 5, 128, generator=generator)
    dtype = model.blocks[0].attn2.to_k.weight.dtype
    with torch.no_grad():
        return model(x.to(dtype), torch.tensor([500.0]), text.to(dtype), return_dict=False)[0].float()


def by_hand(transformer: WanTransformer3DModel, pairs: Pairs, factor: float) -> dict[str, Tensor]:
    """The fused weights, in float64."""
    weights = {name: x.double() for name, x in transformer.state_dict().items()}
    for name, (down, up) in pairs.items():
        weights[f"{name}.weight"] += factor * up.double() @ down.double()
    return weights


def close(model: WanTransformer3DModel, expected: Mapping[str, Tensor]) -> bool:
    found = model.state_dict()
    return all(torch.allclose(found[name].double(), x, atol=1e-6) for name, x in expected.items())


def peft_style(pairs: Pairs, path: Path, adapter: str = "", inside: str = "") -> Path:
    """LongLive's ``lora.pt``."""
    state = {}
    for name, (down, up) in pairs.items():
        module = published_module(name).replace(".", f".{inside}", 2) if inside else published_module(name)
        state[f"base_model.model.{module}.lora_A{adapter}.weight"] = down
        state[f"base_model.model.{module}.lora_B{adapter}.weight"] = up
    critic = {name: torch.ones_like(x) for name, x in state.items()}
    torch.save({"generator_lora": state, "critic_lora": critic}, path)
    return path


def longlive(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    return peft_style(pairs, folder / "lora.pt"), 1.0


def longlive_wrapped(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    return peft_style(pairs, folder / "lora.pt", ".default", "_fsdp_wrapped_module."), 1.0


def wan_style(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    state = {}
    for name, (down, up) in pairs.items():
        state[f"diffusion_model.{published_module(name)}.lora_A.weight"] = down
        state[f"diffusion_model.{published_module(name)}.lora_B.weight"] = up
    save_file(state, folder / "lora.safetensors")
    return folder / "lora.safetensors", 1.0


def down_up_alpha(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    state = {}
    for name, (down, up) in pairs.items():
        state[f"diffusion_model.{published_module(name)}.lora_down.weight"] = down
        state[f"diffusion_model.{published_module(name)}.lora_up.weight"] = up
        state[f"diffusion_model.{published_module(name)}.alpha"] = torch.tensor(1.5)
    save_file(state, folder / "lora.safetensors")
    return folder / "lora.safetensors", 1.5 / RANK


def kohya(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    state = {}
    for name, (down, up) in pairs.items():
        flat = "lora_unet_" + published_module(name).replace(".", "_")
        state[f"{flat}.lora_down.weight"] = down
        state[f"{flat}.lora_up.weight"] = up
        state[f"{flat}.alpha"] = torch.tensor(6.0)
    save_file(state, folder / "lora.safetensors")
    return folder / "lora.safetensors", 6.0 / RANK


def diffusers_style(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    state = {}
    for name, (down, up) in pairs.items():
        state[f"transformer.{name}.lora_A.weight"], state[f"transformer.{name}.lora_B.weight"] = down, up
    save_file(state, folder / "lora.safetensors")
    return folder / "lora.safetensors", 1.0


def diffusers_saved(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    """With the metadata that diffusers writes."""
    config = LoraConfig(r=RANK, lora_alpha=12, target_modules=sorted(pairs)).to_dict()
    WanPipeline.save_lora_weights(
        folder,
        transformer_lora_layers={
            f"{n}.lora_{side}.weight": x for n, pair in pairs.items() for side, x in zip("AB", pair, strict=True)
        },
        transformer_lora_adapter_metadata=config,
    )
    (path,) = folder.glob("*.safetensors")
    return path, 12 / RANK


def peft_saved(pairs: Pairs, folder: Path) -> tuple[Path, float]:
    """As PEFT saves an adapter: its configuration lies beside."""
    peft_style(pairs, folder / "peft.pt")
    state = torch.load(folder / "peft.pt", weights_only=True)["generator_lora"]
    save_file(state, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 9, "use_rslora": True, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_model.safetensors", 9 / RANK**0.5


STYLES: dict[str, Callable[[Pairs, Path], tuple[Path, float]]] = {
    f.__name__: f
    for f in (
        longlive,
        longlive_wrapped,
        wan_style,
        down_up_alpha,
        kohya,
        diffusers_style,
        diffusers_saved,
        peft_saved,
    )
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_fused_is_what_the_formula_says(
    style: str, scale: float, transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path
) -> None:
    path, factor = STYLES[style](pairs, tmp_path)
    model = copy.deepcopy(transformer)
    assert fuse(model, path, scale) == len(pairs)
    assert close(model, by_hand(transformer, pairs, scale * factor))
    assert not torch.allclose(output(model), output(transformer), atol=1e-2)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_fused_is_unfused(
    style: str, scale: float, transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path
) -> None:
    path, _ = STYLES[style](pairs, tmp_path)
    fused, unfused = copy.deepcopy(transformer), copy.deepcopy(transformer)
    fuse(fused, path, scale)
    assert attach(unfused, path, scale) == len(pairs)
    assert torch.allclose(output(fused), output(unfused), atol=1e-4)
    unfused.disable_adapters()
    assert torch.equal(output(unfused), output(transformer))


@pytest.mark.parametrize("style", ["wan_style", "down_up_alpha", "kohya", "diffusers_style", "diffusers_saved"])
def test_fused_is_what_diffusers_makes_of_the_file(style: str, pairs: Pairs, tmp_path: Path) -> None:
    path, _ = STYLES[style](pairs, tmp_path)
    theirs, ours = build(), build().transformer
    theirs.load_lora_weights(path.parent, weight_name=path.name)
    fuse(ours, path)
    assert torch.allclose(output(theirs.transformer), output(ours), atol=1e-4)


@pytest.mark.parametrize("style", ["diffusers", "peft"])
def test_alphas_by_layer(style: str, transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path) -> None:
    expected = by_hand(transformer, {n: p for n, p in pairs.items() if n != "blocks.0.ffn.net.2"}, 12 / RANK)
    down, up = pairs["blocks.0.ffn.net.2"]
    expected["blocks.0.ffn.net.2.weight"] += 2 / RANK * up.double() @ down.double()
    if style == "diffusers":
        path, _ = diffusers_saved(pairs, tmp_path)
        with safe_open(path, framework="pt") as file:
            config = json.loads(file.metadata()["lora_adapter_metadata"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config["transformer.alpha_pattern"] = {"blocks.0.ffn.net.2": 2}
        save_file(state, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    else:
        path, _ = peft_saved(pairs, tmp_path)
        config = {"r": RANK, "lora_alpha": 12, "alpha_pattern": {"0.ffn.2": 2}}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = copy.deepcopy(transformer)
    fuse(model, path)
    assert close(model, expected)


def test_several_are_stacked(transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path) -> None:
    one = peft_style(pairs, tmp_path / "one.pt")
    few = lora_pairs(transformer, rank=5, seed=1, only=r"blocks\.1\.(attn1|ffn)\..*")
    other = peft_style(few, tmp_path / "other.pt")
    expected = by_hand(transformer, pairs, 1.0)
    for name, (down, up) in few.items():
        expected[f"{name}.weight"] += -0.3 * up.double() @ down.double()
    model = copy.deepcopy(transformer)
    assert (fuse(model, one), fuse(model, other, -0.3)) == (20, 6)
    assert close(model, expected)
    beside = copy.deepcopy(transformer)
    attach(beside, one, name="one")
    attach(beside, other, -0.3, name="other")
    assert torch.allclose(output(beside), output(model), atol=1e-4)
    file = LAYOUTS["longlive"](transformer, tmp_path)
    loaded = load_transformer(file, head_dim=HEAD_DIM, loras=[LoraFile(one), LoraFile(other, -0.3)])
    assert close(loaded, expected)


def test_loading_rounds_once(transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path) -> None:
    file, lora = LAYOUTS["longlive"](transformer, tmp_path), peft_style(pairs, tmp_path / "lora.pt")
    loaded = load_transformer(file, dtype=torch.bfloat16, head_dim=HEAD_DIM, loras=[LoraFile(lora)])
    exact = copy.deepcopy(transformer)
    fuse(exact, lora)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, exact.state_dict()[name].to(weight.dtype)), name
    assert loaded.blocks[0].attn1.to_q.weight.dtype is torch.bfloat16


def test_bfloat16_is_fused_in_float32(transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path) -> None:
    path = peft_style({n: (a.bfloat16(), b.bfloat16()) for n, (a, b) in pairs.items()}, tmp_path / "lora.pt")
    model = copy.deepcopy(transformer).to(torch.bfloat16)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    fuse(model, path, 0.01)
    for name, (down, up) in pairs.items():
        exact = before[f"{name}.weight"].double() + 0.01 * up.bfloat16().double() @ down.bfloat16().double()
        found = model.state_dict()[f"{name}.weight"]
        assert found.dtype is torch.bfloat16
        # Rounded once: within half a step of the last bit, and a little for float32.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-12).all()


def test_differences_are_added_whole(transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path) -> None:
    path, _ = wan_style(pairs, tmp_path)
    state = load_file(path)
    bias, norm = torch.randn(32), torch.randn(24)
    state["diffusion_model.blocks.0.ffn.0.diff_b"] = bias
    state["diffusion_model.blocks.1.norm3.diff"] = norm
    state["diffusion_model.head.head.diff"] = torch.randn(16, 24)
    save_file(state, path)
    model = copy.deepcopy(transformer)
    assert fuse(model, path, 0.5) == len(pairs) + 3
    assert torch.allclose(model.blocks[0].ffn.net[0].proj.bias, transformer.blocks[0].ffn.net[0].proj.bias + bias / 2)
    assert torch.allclose(model.blocks[1].norm2.weight, transformer.blocks[1].norm2.weight + norm / 2)
    with pytest.raises(ValueError, match="can only be fused"):
        attach(copy.deepcopy(transformer), path)


def test_convolutions_too(transformer: WanTransformer3DModel, tmp_path: Path) -> None:
    down, up = torch.randn(2, 4, 1, 2, 2), torch.randn(24, 2, 1, 1, 1)
    name = "diffusion_model.patch_embedding"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    model = copy.deepcopy(transformer)
    assert fuse(model, tmp_path / "lora.safetensors") == 1
    change = torch.einsum("or,rithw->oithw", up.flatten(1), down)
    assert torch.allclose(model.patch_embedding.weight, transformer.patch_embedding.weight + change, atol=1e-6)


def refused(model: WanTransformer3DModel, path: Path, action: Callable[..., int] = fuse, **options: Any) -> str:
    """The sentence; and no weight has changed."""
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        action(model, path, **options)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("action", [fuse, attach])
def test_a_lora_of_another_model_changes_nothing(
    action: Callable[..., int], transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    wider, deeper = build(heads=3).transformer, build(layers=3).transformer
    path = peft_style(lora_pairs(wider), tmp_path / "wider.pt")
    assert "of another model: in this one, blocks.0.attn1.to_k.weight" in refused(transformer, path, action)
    path = peft_style(lora_pairs(deeper), tmp_path / "deeper.pt")
    assert "this one has no blocks.2.attn1.to_k.weight" in refused(transformer, path, action)
    save_file(
        {"unet.down.lora_A.weight": torch.ones(2, 2), "unet.down.lora_B.weight": torch.ones(2, 2)},
        tmp_path / "sd.safetensors",
    )
    assert "this one has no unet.down.weight" in refused(transformer, tmp_path / "sd.safetensors", action)


Change = Callable[[dict[str, Any]], Any]
FIRST = "base_model.model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{FIRST}.lora_A.weight"), "only a part of blocks.0.attn1.to_q"),
        (lambda s: s.update({"base_model.model.blocks.0.ffn.1.alpha": torch.tensor(1.0)}), "a part of blocks.0.ffn.1"),
        (lambda s: s.update({f"{FIRST}.alpha": torch.tensor(float("nan"))}), "not of a LoRA of Wan"),
        (lambda s: s.update({f"{FIRST}.lora_magnitude_vector": torch.ones(3)}), "is a DoRA"),
        (lambda s: s.update({f"{FIRST}.lokr_w1": torch.ones(3)}), "not of a LoRA of Wan"),
        (lambda s: s.update({f"{FIRST}.lora_A.old.weight": torch.ones(3, 24)}), "of the adapters None, old"),
        (lambda s: s.update({f"{FIRST}.lora_B.weight": torch.ones(24, 7)}), "are of other sizes"),
        (lambda s: s.update({f"{FIRST}.lora_A.weight": torch.ones(24)}), "no size"),
        (lambda s: s.update({f"{FIRST}.lora_A.weight": torch.ones(0, 24)}), "no size"),
        (lambda s: s.update({f"{FIRST}.lora_B.weight": torch.ones(24, 3, dtype=torch.int32)}), "int32"),
        (lambda s: s.update({"rank": 3}), "are no weights: rank"),
        (lambda s: s.clear(), "holds no weights"),
    ],
)
def test_files_that_are_not_quite_loras(
    change: Change, message: str, transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path
) -> None:
    path = peft_style(pairs, tmp_path / "lora.pt")
    content = torch.load(path, weights_only=True)
    change(content["generator_lora"])
    torch.save(content, path)
    assert message in refused(transformer, path)


def test_files_that_are_no_loras(transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path) -> None:
    assert "is not a LoRA" in refused(transformer, LAYOUTS["krea"](transformer, tmp_path))
    path = peft_style(pairs, tmp_path / "lora.pt")
    assert "it has critic_lora, generator_lora" in refused(transformer, path, key="generator")
    assert "must be a number" in refused(transformer, path, scale=float("inf"))
    path.write_bytes(path.read_bytes()[:-50])
    assert "damaged or cut short" in refused(transformer, path)
    torch.save({"generator_lora": Payload(tmp_path / "ran")}, path)
    assert "could run code" in refused(transformer, path)
    assert not (tmp_path / "ran").exists()
    assert "There is nothing at" in refused(transformer, tmp_path / "nothing.pt")


def test_adapters_must_be_off_to_fuse(transformer: WanTransformer3DModel, pairs: Pairs, tmp_path: Path) -> None:
    path = peft_style(pairs, tmp_path / "lora.pt")
    model = copy.deepcopy(transformer)
    attach(model, path)
    assert "before adapters are attached" in refused(model, path)
    assert "already" in refused(model, path, attach)


def test_the_critic_is_not_taken_for_the_generator(pairs: Pairs, tmp_path: Path) -> None:
    path = peft_style(pairs, tmp_path / "lora.pt")
    assert torch.equal(read_lora(path).layers["blocks.0.attn1.to_q"].down, pairs["blocks.0.attn1.to_q"][0])
    critic = read_lora(path, "critic_lora").layers["blocks.0.attn1.to_q"]
    assert (critic.down == 1).all()


def test_a_lora_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b:2.pt", "c.pt:0.5"):
        (tmp_path / name).write_bytes(b"x")
    assert parse_lora("a.pt") == LoraFile(Path("a.pt"))
    assert parse_lora("a.pt:0.25") == LoraFile(Path("a.pt"), 0.25)
    assert parse_lora("a.pt:-1e-1") == LoraFile(Path("a.pt"), -0.1)
    assert parse_lora("b:2.pt") == LoraFile(Path("b:2.pt"))
    assert parse_lora("b:2.pt:3") == LoraFile(Path("b:2.pt"), 3.0)
    assert parse_lora("c.pt:0.5") == LoraFile(Path("c.pt:0.5"))  # such a file exists
    assert parse_lora("c.pt:0.5:2") == LoraFile(Path("c.pt:0.5"), 2.0)
    for text in ("", ":", "z.pt", "z.pt:0.5", "a.pt:", "a.pt:much", "a.pt:nan", "a.pt:inf", ":0.5"):
        with pytest.raises(ValueError, match=r"\.$"):
            parse_lora(text)
