"""Every published layout as a small file, and files that are not what they say."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtake.checkpoints.layout import file_kind
from longtake.checkpoints.published import load_transformer, read_weights, transformer_config
from longtake.checkpoints.weights import read_file

from .helpers_checkpoints import HEAD_DIM, LAYOUTS, Payload, self_forcing, wan_folder, wan_weights
from .helpers_pipeline import build

RECORDINGS = sorted((Path(__file__).parent / "data").glob("*.safetensors"))


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    return build().transformer


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Bit for bit, dtypes too, and buffers that no file holds."""
    a, b = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (one, other))
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def settings(model: WanTransformer3DModel) -> dict[str, Any]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        load_transformer(path, **{"head_dim": HEAD_DIM, **options})
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_weights_it_was_made_from(
    layout: str, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    path = LAYOUTS[layout](transformer, tmp_path)
    loaded = load_transformer(path, head_dim=None if path.is_dir() else HEAD_DIM)
    assert equal(loaded, transformer) and not loaded.training
    assert settings(loaded) == settings(transformer)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda p: p.stem)
def test_recorded_models_load(recording: Path, tmp_path: Path) -> None:
    """The recordings hold weights under published names, written by nobody here."""
    with safe_open(recording, framework="pt") as file:
        names = [n for n in file.keys() if n.startswith("weights.")]  # noqa: SIM118
        weights = {n.removeprefix("weights."): file.get_tensor(n) for n in names}
        settings = json.loads(file.metadata()["spec"])["model"]
    torch.save({"generator": {f"model.{n}": x for n, x in weights.items()}}, tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt", head_dim=settings["attention_head_dim"])
    assert {name: loaded.config[name] for name in settings} == settings
    assert wan_weights(loaded).keys() == weights.keys()
    assert all(torch.equal(x, weights[name]) for name, x in wan_weights(loaded).items())


@pytest.mark.parametrize(("key", "value"), [("generator", 0.5), ("critic", 0.5), (None, None), ("generator_ema", None)])
def test_the_key_says_which_weights(
    key: str | None, value: float | None, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    loaded = load_transformer(self_forcing(transformer, tmp_path), key, head_dim=HEAD_DIM)
    if value is None:
        assert equal(loaded, transformer)
    else:
        assert all((p == value).all() for p in loaded.parameters())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_dtypes_are_those_that_diffusers_gives(
    stored: torch.dtype, wanted: torch.dtype | None, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    weights = {name: x.to(stored) for name, x in wan_weights(transformer).items()}
    torch.save({"generator": weights}, tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt", dtype=wanted, head_dim=HEAD_DIM)
    names = {name: x.to(stored) for name, x in transformer.state_dict().items()}
    (tmp_path / "folder").mkdir()
    transformer.save_config(tmp_path / "folder")
    save_file(names, tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "folder", torch_dtype=wanted or stored)
    assert equal(loaded, theirs)


def test_mixed_dtypes_lose_nothing(transformer: WanTransformer3DModel, tmp_path: Path) -> None:
    weights = wan_weights(transformer)
    weights["head.head.weight"] = weights["head.head.weight"].bfloat16()
    torch.save(weights, tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt", head_dim=HEAD_DIM)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.blocks[0].attn1.to_q.weight, transformer.blocks[0].attn1.to_q.weight)


def test_the_loaded_model_is_the_same_function(transformer: WanTransformer3DModel, tmp_path: Path) -> None:
    loaded = load_transformer(LAYOUTS["krea"](transformer, tmp_path), head_dim=HEAD_DIM)
    x, text = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 5, 128)
    t = torch.tensor([500.0])
    with torch.no_grad():
        one, other = (m(x, t, text, return_dict=False)[0] for m in (loaded, transformer))
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        ({"width": 1536, "ffn": 8960, "layers": 30}, 12),  # Wan2.1-T2V-1.3B
        ({"width": 5120, "ffn": 13824, "layers": 40}, 40),  # Wan2.1-T2V-14B, Krea Realtime
    ],
)
def test_sizes_of_the_published_models_are_told_from_shapes(sizes: dict[str, int], heads: int) -> None:
    expected = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": sizes["ffn"],
        "num_layers": sizes["layers"],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    }
    with torch.device("meta"):
        model = WanTransformer3DModel(**expected)
    assert model.patch_embedding.weight.shape[0] == sizes["width"]
    assert transformer_config(model.state_dict()) == expected


def test_what_shapes_do_not_tell_comes_from_a_similar_model(transformer: WanTransformer3DModel, tmp_path: Path) -> None:
    path = LAYOUTS["longlive"](transformer, tmp_path)
    like = {"num_attention_heads": 2, "attention_head_dim": HEAD_DIM, "rope_max_seq_len": 77, "num_layers": 30}
    loaded = load_transformer(path, like=like)
    assert loaded.config.rope_max_seq_len == 77 and loaded.config.num_layers == 2
    assert equal(
        torch.nn.ModuleList(loaded.blocks), torch.nn.ModuleList(transformer.blocks)
    )  # the tables of angles are shorter
    other = {**like, "num_attention_heads": 4}
    assert "24 does not divide into attention heads of 128" in refused(path, like=other, head_dim=None)


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.ffn.0.weight"), "lacks blocks.1.ffn.0.weight"),
        (lambda w: w.pop("patch_embedding.weight"), "patch_embedding.weight is missing"),
        (lambda w: [w.pop(n) for n in list(w) if n.startswith("blocks.0.")], "lacks blocks.0.cross_attn.k.bias"),
        (lambda w: [w.pop(n) for n in list(w) if "cross_attn" in n], "and 17 more"),
        (lambda w: w.update({"blocks.0.extra": torch.zeros(1)}), "unexpected blocks.0.extra"),
        (lambda w: w.update({"blocks.9999.norm3.weight": torch.zeros(1)}), "of 10000 layers, 3 are there"),
        (lambda w: w.update({"blocks.7.foo": torch.zeros(1)}), "unexpected blocks.7.foo"),
        (lambda w: [w.pop(n) for n in ("patch_embedding.weight", "head.head.weight")], "head.head.weight, patch_"),
        (lambda w: w.update({"head.head.bias": torch.zeros(3)}), "head.head.bias [3] instead of [16]"),
        (lambda w: w.update({"time_embedding.0.weight": torch.zeros(3)}), "must have 2 dimensions"),
        (lambda w: w.update({"head.head.bias": torch.zeros(16, dtype=torch.int8)}), "head.head.bias (int8)"),
        (lambda w: w.update({"head.head.bias": torch.zeros(16).to(torch.float8_e4m3fn)}), "(float8_e4m3fn)"),
        (lambda w: w.update({"head.head.bias": torch.zeros(16).to_sparse()}), "no weights: head.head.bias"),
        (lambda w: w.update({"model.head.head.bias": torch.zeros(16)}), "head.head.bias twice"),
        (lambda w: w.update({"note": "hello"}), "no weights: note"),
        (
            lambda w: [w.clear(), w.update({"query_memory_encoder.query_init": torch.zeros(1)})],
            "is a learned memory and not a model",
        ),
        (lambda w: w.update({"img_emb.proj.0.weight": torch.zeros(1)}), "only text-to-video"),
        (lambda w: w.update({"patch_embedding.weight": torch.zeros(24, 36, 1, 2, 2)}), "takes 36 channels and gives 4"),
        (lambda w: w.update({"vace_blocks.0.x": torch.zeros(1)}), "VACE"),
        (lambda w: w.update({"blocks.0.ffn.0.lora_A.weight": torch.zeros(1)}), "is a LoRA"),
    ],
)
def test_weights_that_are_not_exactly_right_are_named(
    change: Change, message: str, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    weights = wan_weights(transformer)
    change(weights)
    torch.save(weights, tmp_path / "model.pt")
    assert message in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "input_blocks.0.0.weight"),
        (["double_blocks.0.img_attn.qkv.weight"], "holds no Wan transformer"),
        (["token_embedding.weight", "blocks.0.attn.q.weight"], "is a text encoder"),
        (["encoder.conv1.weight", "decoder.conv1.weight"], "is an autoencoder"),
        ([], "holds no weights"),
    ],
)
def test_other_families_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.pt")
    assert message in refused(tmp_path / "model.pt")


def test_a_key_that_is_not_there_is_refused_with_those_that_are(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    path = self_forcing(transformer, tmp_path)
    assert "it has critic, generator, generator_ema" in refused(path, key="generatr")
    assert "leave the key out" in refused(LAYOUTS["krea"](transformer, tmp_path), key="generator")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS"),
        (b"<!DOCTYPE html><html>Not found</html>", "is not a checkpoint"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF"),
        (b"PK\x03\x04 and nothing more", "damaged or cut short"),
        (b"\x80\x02 and nothing more", "damaged or cut short"),
        (b"\x80\x02K\x05.", "damaged or cut short"),
        ((100).to_bytes(8, "little") + b'{"a":', "damaged or cut short"),
        ((6).to_bytes(8, "little") + b'{"a":1', "damaged or cut short"),
    ],
)
def test_files_that_are_no_checkpoints(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    assert message in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("layout", ["longlive", "krea", "old_pickle"])
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9, 0.9999])
def test_a_file_that_is_cut_short(
    layout: str, share: float, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    path = LAYOUTS[layout](transformer, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(12, int(len(whole) * share))])
    assert "damaged or cut short" in refused(path)


def test_a_safetensors_file_may_begin_like_a_pickle(transformer: WanTransformer3DModel, tmp_path: Path) -> None:
    """One in 32 does: the low byte of its header's length is 0x80."""
    found = 0
    for length in range(300):
        path = tmp_path / "model.safetensors"
        save_file(wan_weights(transformer), path, metadata={"note": "x" * length})
        if path.read_bytes()[:1] == b"\x80":
            found += 1
            assert file_kind(path) == "safetensors" and read_file(path)[1] == {"note": "x" * length}
    assert found


def test_what_is_not_there_or_a_folder(tmp_path: Path) -> None:
    assert "There is nothing at" in refused(tmp_path / "model.pt")
    assert "folder without weights" in refused(tmp_path, head_dim=None)
    (tmp_path / "list.pt").write_bytes(b"")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "no weights by name" in refused(tmp_path / "list.pt")
    torch.save({1: torch.zeros(1)}, tmp_path / "list.pt")
    assert "no weights by name" in refused(tmp_path / "list.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["top", "set", "name"])
def test_a_hostile_pickle_does_not_run(
    where: str, zipped: bool, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    weights: dict[Any, Any] = {**wan_weights(transformer)}
    if where == "top":
        content: Any = Payload(proof)
    elif where == "set":
        content = {"generator": {**weights, "blocks.0.ffn.0.weight": Payload(proof)}}
    else:
        content = {"generator": weights, "config": Payload(proof)}
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "could run code" in refused(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # it would have
    assert proof.is_dir()


def test_a_bare_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Payload(proof)))
    refused(path)
    assert not proof.exists()


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        file.writestr("hello.txt", "hello")
    assert "damaged or cut short, or not a checkpoint of tensors" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3}, "num_layers (3, in the weights 2)"),
        ({"ffn_dim": "32"}, "ffn_dim ('32', in the weights 32)"),
        ({"dim": 23}, "multiple of num_heads"),
        ({"model_type": "i2v"}, "only text-to-video"),
        ({"eps": "small"}, "a small number as eps"),
        ({"_class_name": "UNet2DConditionModel"}, "of a UNet2DConditionModel"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(
    changes: dict[str, Any], message: str, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    folder = wan_folder(transformer, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert message in refused(folder, head_dim=None)


def test_a_shard_that_is_missing_is_named(transformer: WanTransformer3DModel, tmp_path: Path) -> None:
    folder = wan_folder(transformer, tmp_path)
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert "lacks diffusion_pytorch_model-00002-of-00002.safetensors" in refused(folder)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert "outside its folder" in refused(folder)
    index.write_text("{")
    assert "is not a JSON object" in refused(folder)


def test_weights_stay_in_the_file_until_they_are_used(tmp_path: Path) -> None:
    """The file changes, and the tensor with it: it was never copied."""
    path = tmp_path / "model.pt"
    torch.save({"big": torch.full((1 << 16,), 7.0)}, path)
    weights = read_weights(path)
    data = path.read_bytes()
    start = data.index(torch.full((1 << 16,), 7.0).numpy().tobytes())
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(torch.full((1 << 16,), 9.0).numpy().tobytes())
    assert (weights["big"] == 9).all()
