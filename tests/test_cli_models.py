"""Published checkpoints on the command line: files, folders, LoRAs, names, devices, pictures and many prompts."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from longtake import LongTakePipeline, load
from longtake.cli import app
from longtake.facts import ModelFacts
from longtake.sheet import contact_sheet
from longtake.video import probe, read_frames
from tests.conftest import Cli, cli_command
from tests.helpers_checkpoints import (
    add_parts,
    longlive,
    lora_pairs,
    self_forcing,
    small_text_encoder,
    small_vae,
    wan_folder,
)
from tests.helpers_hub import closed_port, environment, folder_content, serve, write_registry
from tests.helpers_pipeline import build
from tests.test_cli import refused

PROMPT = "a red ball rolls over a meadow"


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


@pytest.fixture(scope="module")
def folder(pipe: LongTakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(pipe: LongTakePipeline, folder: Path) -> Path:
    """The same transformer, as Self-Forcing was published; there are other weights in the file, too."""
    return self_forcing(pipe.transformer, folder.parent)


@pytest.fixture(scope="module")
def lora(pipe: LongTakePipeline, folder: Path) -> Path:
    """LoRA weights under diffusers' names."""
    tensors = {}
    for name, (down, up) in lora_pairs(pipe.transformer, only=r"blocks\.\d+\.attn1\..*").items():
        tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    save_file(tensors, folder.parent / "style.safetensors")
    return folder.parent / "style.safetensors"


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Here:
    """Runs the command line in this process, which saves the seconds that its imports take."""

    def __call__(self, *arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Result(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Here()
    torch.set_num_threads(threads)


def made(
    cli: Cli | Here,
    out: Path,
    *arguments: str | Path,
    seconds: float = 1,
    prompt: str | None = PROMPT,
    dtype: str = "float32",
) -> bytes:
    """The bytes of a video that the command makes."""
    words = [] if prompt is None else [prompt]
    options = [] if "--resume" in arguments else ["--dtype", dtype]
    result = cli("generate", *words, "--seconds", str(seconds), "--out", out, *options, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out.absolute()), result.stdout
    return out.read_bytes()


def test_checkpoint_file_makes_the_same_video(
    cli: Cli, here: Here, tmp_path: Path, folder: Path, checkpoint: Path
) -> None:
    """As the folder it was made from; the weights beside them, which would make another, are not taken."""
    one = made(here, tmp_path / "folder.mp4", "--model", folder)
    parts = ("--components", folder)
    assert made(cli, tmp_path / "file.mp4", "--model", checkpoint, *parts) == one
    assert made(here, tmp_path / "key.mp4", "--model", f"{checkpoint}#generator_ema", *parts) == one
    assert made(here, tmp_path / "other.mp4", "--model", f"{checkpoint}#generator", *parts) != one


def test_converted_folder_makes_the_same_video(here: Here, tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    result = here("convert", checkpoint, tmp_path / "converted", "--components", folder)
    assert result.returncode == 0 and result.stdout.strip() == str(tmp_path / "converted"), result.stderr
    one = made(here, tmp_path / "folder.mp4", "--model", folder)
    assert made(here, tmp_path / "converted.mp4", "--model", tmp_path / "converted") == one


def test_original_wan_folder(here: Here, tmp_path: Path, pipe: LongTakePipeline) -> None:
    """With everything in it, it is a model by itself, and gives a checkpoint its other parts."""
    torch.manual_seed(5)
    config = {**pipe.transformer.config, "in_channels": 16, "out_channels": 16, "text_dim": 16}
    transformer = type(pipe.transformer).from_config(config).eval()
    original = wan_folder(transformer, tmp_path)
    add_parts(original, pipe.tokenizer, small_text_encoder(len(pipe.tokenizer)), small_vae())
    size = ("--height", "32", "--width", "48")
    one = made(here, tmp_path / "one.mp4", "--model", original, *size)
    (tmp_path / "sub").mkdir()
    path = longlive(transformer, tmp_path / "sub")
    assert made(here, tmp_path / "two.mp4", "--model", path, "--components", original, *size) == one


def test_lora(here: Here, tmp_path: Path, folder: Path, lora: Path) -> None:
    """Changes the video, by its scale; a take made with one goes on with it unasked, and with nothing else."""
    plain = made(here, tmp_path / "plain.mp4", "--model", folder)
    full = made(here, tmp_path / "full.mp4", "--model", folder, "--lora", lora)
    none = made(here, tmp_path / "none.mp4", "--model", folder, "--lora", f"{lora}:0")
    halves = made(here, tmp_path / "h.mp4", "--model", folder, "--lora", f"{lora}:0.5", "--lora", f"{lora}:0.5")
    assert none == plain and full != plain and halves != plain
    a, b = (torch.tensor(list(read_frames(tmp_path / name))[-1]).float() for name in ("full.mp4", "h.mp4"))
    assert (a - b).abs().mean() < 2  # the same weights up to rounding

    longer = made(here, tmp_path / "longer.mp4", "--model", folder, "--lora", lora, seconds=2)
    assert made(here, tmp_path / "full.mp4", "--resume", seconds=2, prompt=None) == longer
    result = here("generate", "--resume", "--seconds", "3", "--out", tmp_path / "full.mp4", "--lora", f"{lora}:0.5")
    assert result.returncode == 2 and "another model" in result.stderr, result.stderr


def test_checkpoint_take_goes_on(here: Here, tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    """From another folder, without being told again what it was made with."""
    options = ("--model", checkpoint, "--components", folder, "--on-change", "cut")
    longer = made(here, tmp_path / "longer.mp4", *options, seconds=2)
    made(here, tmp_path / "take.mp4", *options)
    assert made(here, tmp_path / "take.mp4", "--resume", seconds=2, prompt=None) == longer


def test_split_over_devices(here: Here, tmp_path: Path, folder: Path) -> None:
    """`cpu,cpu` runs the code that several GPUs do, and makes the same video; a split take goes on unsplit."""
    one = made(here, tmp_path / "one.mp4", "--model", folder, seconds=2)
    two = made(here, tmp_path / "two.mp4", "--model", folder, "--devices", "cpu,cpu", seconds=2)
    assert one == two
    made(here, tmp_path / "half.mp4", "--model", folder, "--devices", "cpu,cpu")
    assert made(here, tmp_path / "half.mp4", "--resume", "--device", "cpu", seconds=2, prompt=None) == one


def test_named_model_downloads_itself(tmp_path: Path, folder: Path, checkpoint: Path, cli: Cli, here: Here) -> None:
    """On its first use; after that, no hub is needed, and a broken-off take goes on."""
    repos = {"me/model": {"model.pt": checkpoint.read_bytes()}, "me/base": folder_content(folder)}
    with serve(repos) as hub:
        parts: dict[str, Any] = {"repo": "me/base", "revision": hub.commit("me/base")}
        for part in ("transformer", "vae", "text_encoder"):
            parts[part] = json.loads((folder / part / "config.json").read_text())
        parts["files"] = ["model_index.json", "vae/*", "tokenizer/*", "text_encoder/*", "transformer/config.json"]
        entry: dict[str, Any] = {"transformer": hub.file("me/model", "model.pt"), "base": "small", "size": [32, 48]}
        entry["memory"] = "sliding:window=6,sink=1,ids=relative"
        env = environment(hub, tmp_path, write_registry(tmp_path / "models.yaml", {"mine": entry}, {"small": parts}))
        arguments = ("generate", PROMPT, "--model", "mine", "--dtype", "float32", "--seconds", "1")
        result = cli(*arguments, "--out", "first.mp4", env=env)
        assert result.returncode == 0, result.stderr
        assert "me/model" in result.stderr and "are free" in result.stderr  # said before it is fetched
        assert "sliding:window=6,sink=1,ids=relative" in result.stderr  # the model's own default
    env["HF_ENDPOINT"] = closed_port()
    result = cli(*arguments, "--out", "second.mp4", env=env)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "second.mp4").read_bytes()
    memory = ("--memory", "sliding:window=6,sink=1,ids=relative")
    assert made(here, tmp_path / "third.mp4", "--model", folder, *memory) == (tmp_path / "first.mp4").read_bytes()
    shutil.rmtree(tmp_path / "hf")
    result = cli(*arguments, "--out", "fourth.mp4", env=env)
    assert result.returncode == 2 and "does not answer" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "fourth.mp4").exists()


def test_named_model_with_other_parts(here: Here, tmp_path: Path, folder: Path, checkpoint: Path, pipe: Any) -> None:
    """`--components` takes the place of the base, of which then nothing is fetched."""
    repos = {"me/model": {"model.pt": checkpoint.read_bytes()}}
    with serve(repos) as hub:
        parts = {"repo": "me/nothing", "revision": "0" * 40, "files": ["vae/*"]}
        parts |= {"transformer": json.loads((folder / "transformer" / "config.json").read_text())}
        entry = {"transformer": hub.file("me/model", "model.pt"), "base": "small", "size": [32, 48]}
        env = environment(hub, tmp_path, write_registry(tmp_path / "models.yaml", {"mine": entry}, {"small": parts}))
        command = cli_command("generate", PROMPT, "--model", "mine", "--components", folder, "--dtype", "float32")
        command += ["--seconds", "1", "--out", "one.mp4"]
        result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        assert not [r for r in hub.requests if "nothing" in r.path]
    assert (tmp_path / "one.mp4").read_bytes() == made(here, tmp_path / "two.mp4", "--model", folder)


def test_settings_of_folders(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a registry entry says holds; a scheduler that is Wan's own is not the few-step model's."""
    facts = ModelFacts.read(str(folder))
    assert (facts.shift, facts.size, facts.fps) == (5.0, (32, 48), 16)
    said = {"folder": str(folder), "shift": 8, "denoising_steps": [1000, 500], "chunk": 2}
    monkeypatch.setenv("LONGTAKE_MODELS", str(write_registry(tmp_path / "models.yaml", {"mine": said})))
    mine = ModelFacts.read("mine")
    assert (mine.shift, mine.denoising_steps, mine.chunk, mine.size) == (8.0, (1000, 500), 2, (32, 48))
    loaded = load("mine")
    assert loaded.shift == 8.0 and list(loaded.config.denoising_steps) == [1000, 500]
    wan = shutil.copytree(folder, tmp_path / "wan")
    index = json.loads((wan / "model_index.json").read_text())
    (wan / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanPipeline"}))
    (wan / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "UniPCMultistepScheduler", "flow_shift": 3}'
    )
    assert ModelFacts.read(str(wan)).shift == 5.0


def test_moved_files_are_the_same_model(here: Here, tmp_path: Path, folder: Path, checkpoint: Path, lora: Path) -> None:
    """Weights are known by their content, wherever they lie; also in a folder with # in its name."""
    made(here, tmp_path / "take.mp4", "--model", checkpoint, "--components", folder, "--lora", lora)
    place = tmp_path / "c#"
    place.mkdir()
    moved = ["--model", shutil.copy(checkpoint, place / "m.pt"), "--lora", shutil.copy(lora, place / "l.safetensors")]
    again = ("--resume", *moved, "--components", shutil.copytree(folder, place / "parts"))
    longer = made(here, tmp_path / "take.mp4", *again, seconds=2, prompt=None)
    arguments = ("--model", checkpoint, "--components", folder, "--lora", lora)
    assert longer == made(here, tmp_path / "other.mp4", *arguments, seconds=2)


def test_prompt_file_with_several_models(here: Here, tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    """A video that was begun goes on with its own model, and the others are made with the one that is asked for."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue box at night\n")
    other = ("--model", f"{checkpoint}#generator", "--components", folder, "--dtype", "float32")
    arguments = ("generate", "--prompts", "prompts.txt", "--out", "all")
    assert here(*arguments, *other, "--seconds", "1", "--end", "1").returncode == 0
    result = here(*arguments, "--seconds", "2", "--model", folder, "--dtype", "float32")
    assert result.returncode == 2 and "another model" in result.stderr  # said, not mixed up
    result = here(*arguments, "--seconds", "2", "--start", "1", "--model", folder, "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    (tmp_path / "more").mkdir()
    result = here(*arguments[:3], "--out", "more", *other, "--seconds", "1", "--end", "1")
    result = here(*arguments[:3], "--out", "more", "--seconds", "1")  # the second one with the pocket model
    assert result.returncode == 0, result.stderr
    second = tmp_path / "more" / "001-a-blue-box-at-night.mp4"
    assert second.read_bytes() == (made(here, tmp_path / "pocket.mp4", prompt="a blue box at night", dtype="auto"))
    result = here(*arguments, "--resume", "--overwrite")
    assert result.returncode == 2 and "give one of them" in result.stderr
    result = here(*arguments[:3], "--out", "a/b/c", "--model", "unknown")
    assert result.returncode == 2 and not (tmp_path / "a").exists()


def test_picture_and_video(here: Here, tmp_path: Path, folder: Path) -> None:
    """A take begins with the picture, or goes on after the video and has only what comes after it."""
    first = made(here, tmp_path / "first.mp4", "--model", folder, seconds=2)
    picture = list(read_frames(tmp_path / "first.mp4"))[-1]
    contact_sheet([picture], 1, [""]).save(tmp_path / "picture.png")
    image = made(here, tmp_path / "image.mp4", "--model", folder, "--image", tmp_path / "picture.png")
    after = made(here, tmp_path / "after.mp4", "--model", folder, "--continue-from", tmp_path / "first.mp4")
    assert len({first, image, after}) == 3
    assert probe(tmp_path / "image.mp4").frames == probe(tmp_path / "after.mp4").frames == 16
    longer = made(
        here, tmp_path / "longer.mp4", "--model", folder, "--continue-from", tmp_path / "first.mp4", seconds=2
    )
    assert made(here, tmp_path / "after.mp4", "--resume", seconds=2, prompt=None) == longer
    result = here("generate", "--resume", "--seconds", "3", "--image", "picture.png", "--out", "after.mp4")
    assert result.returncode == 2 and "leave it out" in result.stderr


def test_prompt_file(here: Here, tmp_path: Path, folder: Path) -> None:
    """A video per line, which are those that the lines alone make; what is finished stays, and what is not goes on."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\na blue box at night\n")
    arguments = ("generate", "--prompts", "prompts.txt", "--model", folder, "--dtype", "float32", "--out", "all")
    result = here(*arguments, "--seconds", "1", "--end", "1")
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 1, result.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").iterdir()}
    result = here(*arguments, "--seconds", "1")
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 1, result.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    videos = sorted((tmp_path / "all").glob("*.mp4"))
    assert [path.name[:3] for path in videos] == ["000", "002"]
    one = made(here, tmp_path / "one.mp4", "--model", folder, prompt="a blue box at night")
    assert videos[1].read_bytes() == one
    result = here(*arguments, "--seconds", "2", "--quiet")
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 2, result.stderr
    assert videos[0].read_bytes() == made(here, tmp_path / "two.mp4", "--model", folder, seconds=2)
    result = here(*arguments, "--seconds", "2", "--start", "7")
    assert result.returncode == 2 and result.stderr.startswith("Error: --start must be")


def test_published_configuration(here: Here, tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    """Runs as it is; the video is the one of the same settings given by hand."""
    config = (Path(__file__).parent / "data" / "configs" / "selfforcing_memrope_60s.yaml").read_text()
    config = config.replace("num_output_frames: 240", "num_output_frames: 18")
    config = config.replace("prompts/MovieGenVideoBench_extended.txt", "prompts.txt")
    config = config.replace("checkpoints/self_forcing_dmd.pt", str(checkpoint)) + "latent_h: 4\nlatent_w: 6\n"
    (tmp_path / "memrope.yaml").write_text(config)
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue box at night\n")
    result = here("generate", "--config", "memrope.yaml", "--components", folder, "--dtype", "float32", "--end", "1")
    assert result.returncode == 0, result.stderr
    video = tmp_path / "outputs" / "selfforcing_60s" / "rank0-0-0_ema.mp4"
    assert result.stdout.strip() == str(video) and probe(video).frames == 1 + 4 * 17
    assert "vae_chunk_size" in result.stderr  # means nothing here, which is said
    policy = ("--memory", "memrope:first_eviction=released")
    seconds = (1 + 4 * 17) / 16
    parts = ("--model", checkpoint, "--components", folder)
    by_hand = made(here, tmp_path / "hand.mp4", *parts, *policy, seconds=seconds)
    default = made(here, tmp_path / "default.mp4", *parts, seconds=seconds)
    assert video.read_bytes() == by_hand != default


def test_refusals(tmp_path: Path, folder: Path, checkpoint: Path) -> None:
    """One sentence each, before anything heavy is loaded."""
    (tmp_path / "notes.txt").write_text("nothing")
    model = ("--model", folder)
    for arguments, says in (
        (("--model", "no-such-model"), "self-forcing"),
        (("--model", "notes.txt"), "not a checkpoint"),
        (("--components", tmp_path), "lacks"),
        ((*model, "--lora", "none.pt"), "There is no LoRA"),
        ((*model, "--lora", f"{checkpoint}:much"), "must be a number"),
        ((*model, "--lora", f"{checkpoint}:1e99"), "from -100 to 100"),
        ((*model, "--lora", "notes.txt"), "file of LoRA weights"),
        ((*model, "--device", "gpu"), "not a device"),
        ((*model, "--device", "cpu", "--devices", "cpu,cpu"), "give one of them"),
        ((*model, "--devices", "cpu,cpu", "--offload", "group"), "one device"),
        ((*model, "--offload", "all"), "must be one of"),
        ((*model, "--quantize", "int3"), "must be one of"),
        ((*model, "--image", "none.png"), "no picture"),
        ((*model, "--image", "notes.txt"), "not a picture"),
        ((*model, "--image", "a.png", "--continue-from", "a.mp4"), "give one of them"),
        ((*model, "--start", "3"), "--prompts"),
        ((*model, "--on-change", "jump"), "keep, recache, flush, cut"),
    ):
        error = refused("generate", PROMPT, *arguments, cwd=tmp_path)
        assert says in error, error
    assert "exclude each other" in refused("generate", PROMPT, "--prompts", "notes.txt", cwd=tmp_path)
    assert "no file of prompts" in refused("generate", "--prompts", "none.txt", cwd=tmp_path)
    (tmp_path / "lines.txt").write_text("a red ball\n\na red ball [1s] | a blue ball [9s]\n")
    several = ("--prompts", "lines.txt", *model, "--seconds", "1")
    assert "is the folder" in refused("generate", *several, "--out", "notes.txt", cwd=tmp_path)
    assert "is the folder" in refused("generate", *several, "--out", "new.mp4", cwd=tmp_path)
    assert "Line 3 of the prompts: " in refused("generate", *several, cwd=tmp_path)
    assert not list(tmp_path.glob("*.mp4")) and not (tmp_path / "takes").exists()
    assert "none.yaml" in refused("generate", "--config", "none.yaml", cwd=tmp_path)


def test_devices_that_are_not_there(here: Here, tmp_path: Path, folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this computer has a GPU")
    for option in (("--device", "cuda:3"), ("--devices", "cuda:0,cpu")):
        result = here("generate", PROMPT, "--model", folder, *option, "--seconds", "1")
        assert result.returncode == 2 and "There is no device cuda" in result.stderr, result.stderr
        assert not list(tmp_path.glob("take*"))


def test_lora_of_another_model(here: Here, tmp_path: Path, lora: Path) -> None:
    result = here("generate", PROMPT, "--lora", lora, "--seconds", "1")
    assert result.returncode == 2 and "another model" in result.stderr and "Traceback" not in result.stderr
    assert "cannot be loaded" not in result.stderr  # nothing is wrong with the model
    assert not list(tmp_path.glob("take*"))


def test_a_lora_as_model(here: Here, tmp_path: Path, lora: Path, folder: Path) -> None:
    torch.save({"generator_lora": load_file(lora)}, tmp_path / "lora.pt")
    for path in (lora, tmp_path / "lora.pt"):
        result = here("generate", PROMPT, "--model", path, "--components", folder, "--seconds", "1")
        assert result.returncode == 2 and "is a LoRA and not a model" in result.stderr, result.stderr


def test_parts_that_are_each_in_order(here: Here, tmp_path: Path, folder: Path) -> None:
    """An autoencoder of other latents, a text encoder of another width, weights that are no numbers."""
    for part, key, value, says in (
        ("vae", "z_dim", 8, "latents of 4 channels, its autoencoder gives 8"),
        ("text_encoder", "d_model", 12, "its text encoder gives 12"),
    ):
        other = tmp_path / part
        shutil.copytree(folder, other)
        config = json.loads((other / part / "config.json").read_text())
        (other / part / "config.json").write_text(json.dumps({**config, key: value}))
        result = here("generate", PROMPT, "--model", other, "--seconds", "1")
        assert result.returncode == 2 and says in result.stderr, result.stderr
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (file,) = (broken / "transformer").glob("*.safetensors")
    for number in (math.nan, -math.inf):
        weights = {name: x.clone() for name, x in load_file(file).items()}
        weights["blocks.1.ffn.net.2.weight"][3, 1] = number
        save_file(weights, file)
        result = here("generate", PROMPT, "--model", broken, "--seconds", "1")
        assert result.returncode == 2 and "not all finite numbers: blocks.1.ffn.net.2.weight." in result.stderr
    assert not list(tmp_path.glob("take*"))


def test_convert_by_name(here: Here, tmp_path: Path, folder: Path) -> None:
    """What the registry knows by name, with its settings."""
    result = here("convert", "pocket", "mine")
    assert result.returncode == 0, result.stderr
    made(here, tmp_path / "a.mp4", "--model", "mine", seconds=1)
    made(here, tmp_path / "b.mp4", seconds=1)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert "--overwrite" in here("convert", "pocket", "mine").stderr


def test_a_misspelt_change_is_told(here: Here, folder: Path) -> None:
    result = here("generate", f"{PROMPT} [1s] | [cutt] {PROMPT} [1s]", "--model", folder, "--on-change", "flush")
    assert result.returncode == 0 and "did you mean [cut]?" in result.stderr
    assert "Change   flush" in result.stderr


def test_models_and_download_commands(here: Here) -> None:
    result = here("models", "--json")
    assert result.returncode == 0 and "krea-realtime" in result.stdout, result.stderr
    result = here("download", "pocket")
    assert result.returncode == 0, result.stderr
    result = here("download", "nothing")
    assert result.returncode == 2 and "known by name" in result.stderr


def test_load_in_python(folder: Path, checkpoint: Path, lora: Path, pipe: LongTakePipeline) -> None:
    """The same by the library: files, LoRA weights and the pipeline's settings."""
    loaded = load(f"{checkpoint}#generator_ema", components=folder, loras=[f"{lora}:0.5"])
    for (name, a), b in zip(
        pipe.transformer.state_dict().items(), loaded.transformer.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b) != (".attn1.to_" in name and name.endswith("weight")), name
    assert loaded.config.fps == pipe.config.fps and list(loaded.config.default_size) == [32, 48]
