"""Conversion: from every published layout to a folder that makes the same video, or to nothing at all."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from longtake import LongTakePipeline, load
from longtake.checkpoints.convert import SETTINGS, convert
from longtake.checkpoints.layout import is_diffusers, is_original
from longtake.checkpoints.original import (
    load_original_components,
    load_text_encoder,
    load_vae,
    text_config,
    vae_config,
)
from longtake.checkpoints.published import load_transformer
from longtake.checkpoints.sources import LoraFile

from .conftest import ENVIRONMENT
from .helpers_checkpoints import (
    HEAD_DIM,
    LAYOUTS,
    Payload,
    add_parts,
    longlive,
    lora_pairs,
    published_module,
    published_vae,
    self_forcing,
    small_text_encoder,
    small_vae,
    wan_folder,
    wan_weights,
)
from .helpers_pipeline import PROMPT, build, make

SECONDS = 1.2  # two chunks, so that memory shows


def video(pipe: LongTakePipeline) -> Tensor:
    return make(pipe, PROMPT, seconds=SECONDS, height=32, width=32, output_type="pt")


@cache
def original() -> LongTakePipeline:
    """A pipeline of parts as Wan2.1 has them, but for the sizes."""
    base = build()
    torch.manual_seed(5)
    text_encoder = small_text_encoder(len(base.tokenizer))
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, text_dim=16, freq_dim=16, ffn_dim=32
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.15)
    pipe = LongTakePipeline(
        base.tokenizer, text_encoder, small_vae(), FlowMatchEulerDiscreteScheduler(shift=5.0), transformer.eval()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def original_folder(folder: Path) -> Path:
    """The same as an original Wan folder."""
    pipe = original()
    path = wan_folder(pipe.transformer, folder)
    add_parts(path, pipe.tokenizer, pipe.text_encoder, pipe.vae)
    return path


@pytest.fixture(scope="module")
def source() -> LongTakePipeline:
    return build()


@pytest.fixture(scope="module")
def components(source: LongTakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with other weights in its transformer."""
    folder = tmp_path_factory.mktemp("components") / "diffusers"
    build(seed=1).save_pretrained(folder)
    for part in ("text_encoder", "vae"):
        getattr(source, part).save_pretrained(folder / part)
    return folder


@pytest.fixture(scope="module")
def expected(source: LongTakePipeline) -> Tensor:
    return video(source)


def loaded(folder: Path) -> LongTakePipeline:
    pipe = load(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_makes_the_video_it_was_made_from(
    layout: str, source: LongTakePipeline, components: Path, expected: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = LAYOUTS[layout](source.transformer, tmp_path / "in")
    out = tmp_path / "out"
    made = convert(path, out, components=components, settings={"default_size": [32, 48]})
    assert made.whole and made.dtype == "float32"
    assert made.parameters == sum(p.numel() for p in source.transformer.parameters())
    pipe = loaded(out)
    assert torch.equal(video(pipe), expected)
    assert pipe.fingerprint() == source.fingerprint()
    (tmp_path / "any").touch()
    usual = (tmp_path / "any").stat().st_mode
    assert all(file.stat().st_mode == usual for file in out.rglob("*") if file.is_file())
    (tmp_path / "any").unlink()
    assert left(tmp_path) == ["in", "out"]


def test_an_original_folder_is_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    folder = original_folder(tmp_path / "in")
    assert is_original(folder) and not is_diffusers(folder)
    out = tmp_path / "out"
    assert convert(folder, out).whole
    assert is_diffusers(out) and not is_original(out)
    pipe = loaded(out)
    assert torch.equal(video(pipe), video(original()))
    assert pipe.shift == 5.0 and pipe.config.default_size == [480, 832]


def test_a_checkpoint_beside_an_original_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    folder = original_folder(tmp_path / "in")
    path = self_forcing(original().transformer, tmp_path / "in")
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()  # not needed; but its config.json tells the size of the heads
    convert(path, tmp_path / "out", components=folder)
    assert torch.equal(video(loaded(tmp_path / "out")), video(original()))


def test_parts_of_the_original_folder_are_the_same_functions(tmp_path: Path) -> None:
    pipe = original()
    tokenizer, text_encoder, vae = load_original_components(original_folder(tmp_path))
    assert tokenizer(PROMPT)["input_ids"] == pipe.tokenizer(PROMPT)["input_ids"]
    assert not text_encoder.training and not vae.training
    assert text_encoder.shared.weight is text_encoder.encoder.embed_tokens.weight
    ids = torch.randint(0, len(pipe.tokenizer), (2, 200), generator=torch.Generator().manual_seed(0))
    clip = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (e(input_ids=ids).last_hidden_state for e in (text_encoder, pipe.text_encoder))
        assert torch.equal(one, other) and one.std() > 0.01
        for a, b in zip(vae.state_dict().values(), pipe.vae.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        latents = vae.encode(clip).latent_dist.mode()
        assert torch.equal(latents, pipe.vae.encode(clip).latent_dist.mode())
        assert torch.equal(vae.decode(latents).sample, pipe.vae.decode(latents).sample)
    assert dict(vae.config)["latents_mean"] == dict(AutoencoderKLWan(base_dim=4).config)["latents_mean"]


def test_dtypes_of_the_original_parts(tmp_path: Path) -> None:
    folder = original_folder(tmp_path)
    path = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save({n: x.bfloat16() for n, x in torch.load(path, weights_only=True).items()}, path)
    _, text_encoder, vae = load_original_components(folder)
    assert text_encoder.dtype is torch.bfloat16 and vae.dtype is torch.float32
    _, text_encoder, vae = load_original_components(folder, torch.float16)
    text_encoder.save_pretrained(tmp_path / "text")
    theirs = UMT5EncoderModel.from_pretrained(tmp_path / "text", dtype=torch.float16)
    assert {n: x.dtype for n, x in theirs.named_parameters()} == {
        n: x.dtype for n, x in text_encoder.named_parameters()
    }
    assert vae.dtype is torch.float16


def test_real_sizes_are_told_from_shapes() -> None:
    """UMT5-XXL and the autoencoder of Wan2.1, by the names and shapes of their published files."""
    block = {
        "attn.q": (4096, 4096),
        "attn.k": (4096, 4096),
        "attn.v": (4096, 4096),
        "attn.o": (4096, 4096),
        "pos_embedding.embedding": (32, 64),
        "norm1": (4096,),
        "ffn.gate.0": (10240, 4096),
        "ffn.fc1": (10240, 4096),
        "ffn.fc2": (4096, 10240),
        "norm2": (4096,),
    }
    with torch.device("meta"):
        weights = {f"blocks.{i}.{n}.weight": torch.empty(shape) for i in range(24) for n, shape in block.items()}
        weights["token_embedding.weight"] = torch.empty(256384, 4096)
        weights["norm.weight"] = torch.empty(4096)
        config = text_config(weights)
        model = UMT5EncoderModel(config)
        real = AutoencoderKLWan()
    expected = {
        "vocab_size": 256384,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_decoder_layers": 24,
        "num_heads": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert sum(p.numel() for p in model.parameters()) == sum(x.numel() for x in weights.values()) == 5680910336

    told = vae_config({published_vae(n): x for n, x in real.state_dict().items()})
    with torch.device("meta"):
        model = AutoencoderKLWan(**told)
    settings = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (model, real)]
    assert settings[0] == settings[1]


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t5", lambda w: w.pop("blocks.1.attn.q.weight"), "lacks blocks.1.attn.q.weight"),
        ("t5", lambda w: w.pop("norm.weight"), "lacks"),
        ("t5", lambda w: w.pop("blocks.0.ffn.fc1.weight"), "blocks.0.ffn.fc1.weight is missing"),
        ("t5", lambda w: w.update({"decoder.x": torch.zeros(1)}), "unexpected decoder.x"),
        ("t5", lambda w: w.update({"norm.weight": torch.zeros(3)}), "norm.weight [3] instead of [16]"),
        ("t5", lambda w: w.clear() or w.update({"x": torch.zeros(1)}), "is not the text encoder"),
        ("vae", lambda w: w.pop("decoder.middle.0.residual.2.weight"), "lacks decoder.mid_block.resnets.0.conv1"),
        ("vae", lambda w: w.update({"encoder.x": torch.zeros(1)}), "unexpected encoder.x"),
        ("vae", lambda w: w.update({"conv2.weight": torch.zeros(48, 48, 1, 1, 1)}), "latents of 48 channels"),
        ("vae", lambda w: w.update({"decoder.conv1.bias": torch.zeros(3)}), "[3] instead of [16]"),
        ("vae", lambda w: w.clear() or w.update({"x": torch.zeros(1)}), "is not the autoencoder"),
    ],
)
def test_parts_that_are_not_exactly_right_are_named(name: str, change: Change, message: str, tmp_path: Path) -> None:
    folder = original_folder(tmp_path)
    path = folder / {"t5": "models_t5_umt5-xxl-enc-bf16.pth", "vae": "Wan2.1_VAE.pth"}[name]
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)
    with pytest.raises(ValueError) as error:
        (load_text_encoder if name == "t5" else load_vae)(path)
    text = str(error.value)
    assert message in text and text.endswith(".") and "\n" not in text


def test_loras_and_dtype(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    pairs = lora_pairs(source.transformer)
    state = {}
    for name, (down, up) in pairs.items():
        module = published_module(name)
        state[f"base_model.model.{module}.lora_A.weight"], state[f"base_model.model.{module}.lora_B.weight"] = down, up
    (tmp_path / "in").mkdir()
    torch.save({"generator_lora": state}, tmp_path / "in" / "lora.pt")
    path, loras = longlive(source.transformer, tmp_path / "in"), [LoraFile(tmp_path / "in" / "lora.pt", 0.5)]
    made = convert(path, tmp_path / "out", components=components, loras=loras, dtype=torch.bfloat16)
    assert made.dtype == "bfloat16"
    direct = load_transformer(path, dtype=torch.bfloat16, head_dim=HEAD_DIM, loras=loras)
    saved = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == direct.state_dict().keys()
    assert all(x.dtype is saved[n].dtype and torch.equal(x, saved[n]) for n, x in direct.state_dict().items())
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        assert {x.dtype for x in load_file(tmp_path / "out" / f"{part}.safetensors").values()} == {torch.bfloat16}
    pipe = load(str(tmp_path / "out"), dtype=torch.bfloat16)
    for name, x in direct.state_dict().items():
        assert torch.equal(pipe.transformer.state_dict()[name], x), name


def test_bfloat16_is_kept_as_it_is(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    torch.save({n: x.bfloat16() for n, x in wan_weights(source.transformer).items()}, tmp_path / "in.pt")
    assert convert(tmp_path / "in.pt", tmp_path / "out", components=components).dtype == "bfloat16"
    saved = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, x in source.transformer.state_dict().items():
        assert torch.equal(saved[name].float(), x.bfloat16().float())
    for part in ("vae", "text_encoder", "tokenizer"):
        for file in (components / part).iterdir():
            assert (tmp_path / "out" / part / file.name).read_bytes() == file.read_bytes()


def test_a_transformer_alone(source: LongTakePipeline, expected: Tensor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = LAYOUTS["wan_folder"](source.transformer, tmp_path / "in")
    assert not convert(path, tmp_path / "out").whole
    assert left(tmp_path / "out") == ["model_index.json", "scheduler", "transformer"]
    parts = {name: getattr(source, name) for name in ("tokenizer", "text_encoder", "vae")}
    pipe = LongTakePipeline.from_pretrained(tmp_path / "out", **parts)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(video(pipe), expected)


def test_settings_are_given_or_kept_or_self_forcings(
    source: LongTakePipeline, components: Path, tmp_path: Path
) -> None:
    given = {"denoising_steps": [1000, 500], "chunk_frames": 2, "fps": 8, "default_size": [32, 64], "shift": 3.0}
    path = longlive(source.transformer, tmp_path)
    convert(path, tmp_path / "one", components=components, settings=given)
    convert(tmp_path / "one", tmp_path / "two", settings={"fps": 12})
    convert(path, tmp_path / "three", components=components)
    own = {**SETTINGS, "default_size": [32, 48]}  # the components' folder is one that Longtake wrote
    for name, wanted in {"one": given, "two": {**given, "fps": 12}, "three": own}.items():
        pipe = loaded(tmp_path / name)
        assert {n: pipe.config[n] for n in given if n != "shift"} | {"shift": pipe.shift} == wanted
    with pytest.raises(ValueError, match=r"Unknown settings: step; accepted are .*\.$"):
        convert(path, tmp_path / "four", settings={"step": 3})


def refused(source: Path, out: Path, **options: Any) -> str:
    """The sentence; and everything beside ``out`` is as it was."""
    before = left(out.parent)
    with pytest.raises(ValueError) as error:
        convert(source, out, **options)
    assert left(out.parent) == before
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 500
    return text


def test_what_cannot_be_converted_leaves_nothing(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = wan_weights(source.transformer)
    weights.pop("head.head.weight")
    torch.save(weights, tmp_path / "missing.pt")
    assert "head.head.weight is missing" in refused(tmp_path / "missing.pt", out, components=components)
    torch.save({"generator": Payload(tmp_path / "ran")}, tmp_path / "hostile.pt")
    assert "could run code" in refused(tmp_path / "hostile.pt", out, components=components)
    path = longlive(source.transformer, tmp_path)
    assert "There is nothing" in refused(tmp_path / "nothing.pt", out)
    assert "There is no folder" in refused(path, out, components=tmp_path / "nothing")
    assert "lacks text_encoder/config.json" in refused(path, out, components=tmp_path)
    assert "attention heads of 128" in refused(path, out)
    bad = tmp_path / "lora.pt"
    torch.save({"generator_lora": {"blocks.0.x.lora_A.weight": torch.ones(2, 2)}}, bad)
    assert "only a part" in refused(path, out, components=components, loras=[LoraFile(bad)])
    assert "There is nothing" in refused(path, out, loras=[LoraFile(tmp_path / "nothing.pt")])
    with pytest.raises(ValueError, match="cannot be made"):
        convert(path, path / "out")
    assert "it has generator" in refused(path, out, key="generatr")


def test_parts_of_another_model_are_refused(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    path = longlive(original().transformer, tmp_path)
    assert "text encoder" in refused(path, tmp_path / "out", components=components)
    folder = original_folder(tmp_path)
    (folder / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    assert "models_t5_*.pth" in refused(path, tmp_path / "out", components=folder)
    other = small_text_encoder(len(source.tokenizer), width=20)
    add_parts(folder, source.tokenizer, other, small_vae())
    assert "it gives 20 channels, the transformer takes 16" in refused(path, tmp_path / "out", components=folder)


def test_nothing_is_overwritten_unasked(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    path, out = longlive(source.transformer, tmp_path), tmp_path / "out"
    convert(path, out, components=components)
    (out / "old").touch()
    assert "exists already" in refused(path, out, components=components)
    assert (out / "old").exists()
    convert(path, out, components=components, overwrite=True)
    assert not (out / "old").exists() and is_diffusers(out)
    assert left(tmp_path) == ["longlive_base.pt", "out"]
    torch.save({"generator": {}}, tmp_path / "bad.pt")
    refused(tmp_path / "bad.pt", out, components=components, overwrite=True)
    assert is_diffusers(out)
    mine = tmp_path / "pictures"
    mine.mkdir()
    (mine / "cat.png").touch()
    assert "no folder of a model" in refused(path, mine, components=components, overwrite=True)
    assert "no folder of a model" in refused(path, path.parent / "bad.pt", components=components, overwrite=True)
    assert "what is read" in refused(path, tmp_path, components=components, overwrite=True)
    assert "what is read" in refused(out, out, overwrite=True)
    assert "what is read" in refused(path, components, components=components, overwrite=True)


def test_a_full_disk_is_said_before(
    source: LongTakePipeline, components: Path, tmp_path: Path, small_disk: Path
) -> None:
    path = longlive(source.transformer, tmp_path)
    text = refused(path, small_disk / "out", components=components)
    assert "are free" in text


def test_a_disk_that_fills_up_leaves_nothing(
    source: LongTakePipeline, components: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = longlive(source.transformer, tmp_path)
    plenty = shutil.disk_usage(tmp_path)._replace(free=1 << 40)
    monkeypatch.setattr("shutil.disk_usage", lambda path: plenty)  # as if it filled up while this is writing
    text = refused(path, small_disk / "out", components=components)
    assert "could not be written" in text and "nothing is left of it" in text


RUN = "import sys; from longtake.cli_convert import convert_command as run; from pathlib import Path; "


def command(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN + code], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )


def test_a_killed_conversion_leaves_no_folder(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    path, out = longlive(source.transformer, tmp_path), tmp_path / "out"
    code = (
        "import longtake.checkpoints.convert as c, time; "
        "c._flush = lambda folder: (print('written', flush=True), time.sleep(60)); "
        f"c.convert(Path({str(path)!r}), Path('out'), components=Path({str(components)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", RUN + code], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists() and len(left(tmp_path)) > 1
    convert(path, out, components=components)  # and the next one cleans up
    assert left(tmp_path) == ["longlive_base.pt", "out"]


def test_an_interrupted_command_leaves_no_folder(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    path = longlive(source.transformer, tmp_path)
    code = (
        "import longtake.checkpoints.convert as c, time; "
        "c._flush = lambda folder: (print('written', flush=True), time.sleep(60)); "
        f"sys.exit(run(Path({str(path)!r}), Path('out'), components=Path({str(components)!r})))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", RUN + code],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped; nothing was written." in errors and "Traceback" not in errors
    assert left(tmp_path) == ["longlive_base.pt"]


def test_the_command(source: LongTakePipeline, components: Path, tmp_path: Path) -> None:
    path = self_forcing(source.transformer, tmp_path)
    done = command(f"sys.exit(run(Path({path.name!r}), Path('out'), components=Path({str(components)!r})))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((tmp_path / "out").absolute()) and "weights in float32" in done.stderr
    steps = ["Reading the transformer ...", "Writing the transformer ...", "Writing the other parts ..."]
    assert done.stderr.splitlines()[:3] == steps
    again = command(f"sys.exit(run(Path({path.name!r}), Path('out'), components=Path({str(components)!r})))", tmp_path)
    assert again.returncode == 2 and again.stderr == (
        "Error: out exists already; choose another name, or overwrite it (--overwrite).\n"
    )
    assert left(tmp_path) == ["out", "self_forcing_dmd.pt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("Path('nothing.pt'), Path('out')", "There is nothing at nothing.pt"),
        ("Path('empty.pt'), Path('out')", "empty.pt is empty"),
        ("Path('page.pt'), Path('out')", "is not a checkpoint"),
        ("Path('.'), Path('out')", "folder without weights"),
        ("Path('good.pt'), Path('out'), dtype='int3'", "--dtype must be one of keep, float32, bfloat16, not 'int3'"),
        ("Path('good.pt'), Path('out'), loras=['x.pt:0.5']", "There is no LoRA at 'x.pt:0.5'"),
        ("Path('good.pt'), Path('out'), components=Path('.')", "lacks text_encoder/config.json"),
        ("Path('good.pt'), Path('good.pt')", "must not be, or hold, what is read"),
        ("Path('good.pt'), Path('empty.pt/out')", "cannot be made"),
    ],
)
def test_bad_arguments_are_refused_before_torch(arguments: str, message: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "good.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "page.pt").write_text("<html>")
    done = command(f"code = run({arguments}); print('torch' in sys.modules, code)", tmp_path)
    assert done.stdout == "False 2\n"
    assert message in done.stderr and done.stderr.endswith(".\n") and done.stderr.count("\n") == 1
    assert left(tmp_path) == ["empty.pt", "good.pt", "page.pt"]


def test_the_text_encoders_default_configuration_is_of_its_time() -> None:
    """What is relied on where nothing is said: a changed default would change what text means."""
    config = UMT5Config()
    assert (config.relative_attention_num_buckets, config.relative_attention_max_distance) == (32, 128)
    assert json.loads(json.dumps(config.dense_act_fn)) == "gelu_new"
