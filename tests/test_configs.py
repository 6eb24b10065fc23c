"""Configuration files of MemRoPE, LongLive and Self-Forcing: what they become, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import yaml

from longtake import LongTakePipeline
from longtake.configs import Config, read_config, told
from longtake.memory import Memory, MemRoPE, Sliding, parse_memory
from longtake.parity import policy_of
from longtake.plan import frames_in
from longtake.promptfiles import plain
from longtake.record import Recording
from longtake.sampling import FewStepSchedule
from longtake.video import probe
from longtake.yamlfile import MOST_BYTES, read_yaml
from tests.conftest import ENVIRONMENT, Cli

CONFIGS = Path(__file__).parent / "data" / "configs"
PROMPT = "a red ball rolls over a meadow"
MEMROPE = CONFIGS / "longlive_memrope_60s.yaml"

# By hand, from the papers' and released codes' settings.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    # file: policy, latents, frames, seed, kind, key in the checkpoint, checkpoint, LoRA
    "longlive_memrope_60s": (
        MemRoPE(3, 4, 0.01, 0.1, first_eviction="released"),
        *(240, 957, 0, "lora", "generator", "checkpoints/longlive_base.pt", "checkpoints/lora.pt"),
    ),
    "longlive_memrope_480s": (
        MemRoPE(3, 4, 0.01, 0.1, first_eviction="released"),
        *(1920, 7677, 0, "lora", "generator", "checkpoints/longlive_base.pt", "checkpoints/lora.pt"),
    ),
    "selfforcing_memrope_30s": (
        MemRoPE(3, 4, 0.01, 0.1, first_eviction="released"),
        *(120, 477, 0, "ema", "generator_ema", "checkpoints/self_forcing_dmd.pt", None),
    ),
    "selfforcing_memrope_60s": (
        MemRoPE(3, 4, 0.01, 0.1, first_eviction="released"),
        *(240, 957, 0, "ema", "generator_ema", "checkpoints/self_forcing_dmd.pt", None),
    ),
    "selfforcing_eviction_60s": (
        Sliding(21, 1, "relative"),
        *(240, 957, 0, "ema", "generator_ema", "checkpoints/self_forcing_dmd.pt", None),
    ),
    "longlive_inference": (
        Sliding(12, 3, "absolute"),
        *(
            120,
            477,
            0,
            "lora",
            "generator",
            "longlive_models/models/longlive_base.pt",
            "longlive_models/models/lora.pt",
        ),
    ),
    "longlive_inference_infinity": (
        Sliding(12, 3, "relative"),
        *(
            1920,
            7677,
            0,
            "lora",
            "generator",
            "longlive_models/models/longlive_base.pt",
            "longlive_models/models/lora.pt",
        ),
    ),
    "self_forcing_dmd": (
        Sliding(21, 0, "absolute"),
        *(21, 81, 0, "regular", "generator", "checkpoints/ode_init.pt", None),
    ),
}


@pytest.fixture(autouse=True)
def _somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def write(data: Any, name: str = "config.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def changed(base: Path = MEMROPE, /, **changes: Any) -> dict[str, Any]:
    """The settings of a file with some changed; names of model_kwargs and adapter with __, None to remove."""
    data: dict[str, Any] = yaml.safe_load(base.read_text())
    for key, value in changes.items():
        *groups, name = key.split("__")
        holder = data
        for group in groups:
            holder = holder.setdefault(group, {})
        if value is None:
            holder.pop(name, None)
        else:
            holder[name] = value
    return data


def sentence(path: Path) -> str:
    """What a file is refused with: one sentence."""
    with pytest.raises(ValueError) as caught:
        read_config(path)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 400, text
    return text


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published(name: str) -> None:
    policy, latents, frames, seed, kind, key, checkpoint, lora = PUBLISHED[name]
    config = read_config(CONFIGS / f"{name}.yaml")
    assert parse_memory(config.memory, config.chunk) == policy
    assert (config.latents, config.frames, config.seed, config.kind) == (latents, frames, seed, kind)
    assert (config.key, config.checkpoint) == (key, Path(checkpoint))
    assert (config.lora and (config.lora.path, config.lora.scale)) == (lora and (Path(lora), 1.0))
    assert (config.steps, config.shift, config.chunk, config.samples) == ((1000, 750, 500, 250), 5.0, 3, 1)
    assert (config.height, config.width, config.model_name) == (None, None, "Wan2.1-T2V-1.3B")
    assert len(told(config)) <= len(config.notes)


def test_all_samples_are_tested() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(PUBLISHED)


def test_known_models() -> None:
    """Where the files are not here, the published models have names; with other weights they have none."""
    names = {name: read_config(CONFIGS / f"{name}.yaml").named for name in PUBLISHED}
    assert names["longlive_memrope_60s"] == names["longlive_inference"] == "longlive"
    assert names["selfforcing_memrope_60s"] == "self-forcing" and names["self_forcing_dmd"] is None
    self_forcing = CONFIGS / "selfforcing_memrope_60s.yaml"
    assert read_config(write(changed(self_forcing, use_ema=False))).named is None
    assert read_config(write(changed(lora_ckpt="my/style.pt"))).named is None
    assert read_config(write(changed(adapter__alpha=128))).named is None
    assert read_config(write(changed(adapter=None))).named is None


@pytest.mark.parametrize(
    ("kwargs", "spec"),
    [
        (
            {"local_attn_size": 12, "sink_size": 3, "recent_size": 4, "compression_method": "ema"},
            {"policy": "memrope", "capacity": 12, "sink": 3, "alpha_long": 0.01, "alpha_short": 0.1},
        ),
        (
            {"local_attn_size": 15, "sink_size": 2, "compression_method": "ema", "ema_alpha_long": 0.02}
            | {"ema_alpha_short": 0.3, "ema_adaptive": True},
            {"policy": "memrope", "capacity": 15, "sink": 2, "alpha_long": 0.02, "alpha_short": 0.3, "adaptive": True},
        ),
        (
            {"local_attn_size": 12, "sink_size": 3, "compression_method": "ema", "use_block_rope": False},
            {"policy": "memrope", "capacity": 12, "sink": 3, "rope": "absolute"},
        ),
        (
            {"local_attn_size": 12, "sink_size": 1, "compression_method": "eviction"},
            {"policy": "sliding", "capacity": 12, "sink": 1, "rope": "relative"},
        ),
        ({"local_attn_size": 9}, {"policy": "sliding", "capacity": 9, "sink": 0, "rope": "absolute"}),
    ],
)
def test_as_the_recordings(kwargs: dict[str, Any], spec: dict[str, Any]) -> None:
    """The settings of recorded runs of the released code, as a configuration: the policy that replays those runs."""
    config = read_config(write(changed(model_kwargs={"timestep_shift": 5.0, **kwargs})))
    assert parse_memory(config.memory, config.chunk) == policy_of({"chunk": 3, **spec})


@pytest.mark.parametrize("sink", [0, 3, 4])
def test_the_whole_video(sink: int) -> None:
    """local_attn_size -1: of all frames so far, the sinks and the newest, 21 in all, at their own numbers."""
    import torch

    for method in ("eviction", "ema"):
        kwargs = {"local_attn_size": -1, "sink_size": sink, "compression_method": method}
        config = read_config(write(changed(model_kwargs=kwargs)))
        memory = Memory(parse_memory(config.memory), num_layers=1, heads=1, head_dim=12, grid=(1, 1))
        newest: deque[int] = deque(maxlen=21 - sink)
        for chunk in range(12):
            memory.begin_chunk()
            for frame in range(3 * chunk, 3 * chunk + 3):
                if frame >= sink:
                    newest.append(frame)
            expected = [*range(min(sink, 3 * chunk + 3)), *newest]
            places = memory.policy.layout(memory)
            assert [place.frame for place in places] == [place.id for place in places] == expected, (method, chunk)
            with memory.recording():
                memory.update(0, *2 * (torch.zeros(1, 3, 1, 12),))
        assert "model_kwargs.local_attn_size" in dict(config.notes)


@pytest.mark.parametrize("shift", [1.0, 3, 5.0, 8.0])
def test_warped_steps_are_those_of_the_scheduler(shift: float) -> None:
    """The released code looks the steps up in a table of 1000 shifted timesteps, counted from the noisy end."""
    table = [1 - index / 1000 for index in range(1000)]
    table = [1000 * shift * sigma / (1 + (shift - 1) * sigma) for sigma in table]
    listed = [1000, 937, 833, 625, 250, 1]
    config = read_config(write(changed(denoising_step_list=listed, model_kwargs__timestep_shift=shift)))
    schedule = FewStepSchedule.from_steps(config.steps, config.shift)
    assert schedule.timesteps.tolist() == pytest.approx([table[1000 - step] for step in listed], rel=1e-6)


def test_steps_as_they_are() -> None:
    config = read_config(write(changed(denoising_step_list=[1000, 757, 522], warp_denoising_step=False)))
    assert FewStepSchedule.from_steps(config.steps, config.shift).timesteps.tolist() == [1000, 757, 522]


def test_the_shift_where_none_is_given() -> None:
    """That of the released wrapper, and a note, as no published model was made with it."""
    config = read_config(write(changed(model_kwargs__timestep_shift=None)))
    assert config.shift == 8.0 and "model_kwargs.timestep_shift" in dict(config.notes)


def test_a_last_step_of_0_is_left_out() -> None:
    config = read_config(write(changed(denoising_step_list=[1000, 500, 0])))
    assert config.steps == (1000, 500) and "denoising_step_list" in dict(config.notes)


def test_frames_are_those_of_the_decoder(tiny: LongTakePipeline) -> None:
    import torch

    for latents in (1, 2, 7):
        config = read_config(write(changed(num_output_frames=latents)))
        with torch.no_grad():
            video = tiny.vae.decode(torch.zeros(1, 4, latents, 4, 4)).sample
        assert video.shape[2] == config.frames == frames_in(config.seconds, 16)


def test_length_survives_milliseconds() -> None:
    """Lengths are kept to the millisecond elsewhere; no frame may get lost by that."""
    from longtake.prompts import parse_duration

    for latents in (*range(1, 200), 1920, 14400, 126_489_600):
        config = read_config(write(changed(num_output_frames=latents)))
        assert frames_in(parse_duration(config.seconds), 16) == 1 + 4 * (latents - 1)


def test_size_is_the_models_unless_said() -> None:
    config = read_config(write(changed(latent_h=44, latent_w=78)))
    assert (config.height, config.width) == (352, 624)


def test_every_key_is_read_or_told_of() -> None:
    for name in PUBLISHED:
        data = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        told_of = dict(read_config(CONFIGS / f"{name}.yaml").notes)
        assert "Not known, and not read." not in told_of.values()
        for key in ("long_video_mode", "vae_chunk_size", "lr", "wandb_key", "negative_prompt", "global_sink"):
            assert (key in told_of) == (key in data), key
        read = {"seed", "data_path", "num_samples", "inference_iter", "generator_ckpt", "context_noise", "use_ema"}
        assert not read & set(told_of)


def test_unknown_keys_are_named() -> None:
    config = read_config(write(changed(flux_capacitor=1.21, model_kwargs__mla_attn_layers="0,1", adapter__foo=[1])))
    unknown = [key for key, text in config.notes if text == "Not known, and not read."]
    assert sorted(unknown) == ["adapter.foo", "flux_capacitor", "model_kwargs.mla_attn_layers"]
    assert any(line.startswith(", ".join(unknown)) for line in told(config))


def test_what_the_released_code_ignores() -> None:
    """recent_size is what is left of local_attn_size; a LoRA without adapter is not read."""
    config = read_config(write(changed(model_kwargs__recent_size=9)))
    assert parse_memory(config.memory) == MemRoPE(first_eviction="released")
    assert "4, not 9" in dict(config.notes)["model_kwargs.recent_size"]
    config = read_config(write(changed(adapter=None)))
    assert config.lora is None and config.kind == "regular" and "lora_ckpt" in dict(config.notes)
    config = read_config(write(changed(lora_ckpt=None)))
    assert config.lora is None and config.kind == "lora" and "adapter" in dict(config.notes)
    config = read_config(write(changed(adapter__alpha=64)))
    assert config.lora is not None and config.lora.scale == 0.25


REFUSED = [
    ({"denoising_step_list": "1000"}, "denoising_step_list", "[1000, 750, 500, 250]"),
    ({"denoising_step_list": []}, "denoising_step_list", "[1000, 750, 500, 250]"),
    ({"denoising_step_list": [0]}, "denoising_step_list", "[0]"),
    ({"denoising_step_list": [250, 500]}, "denoising_step_list", "[250, 500]"),
    ({"denoising_step_list": [1001]}, "denoising_step_list", "at most 1000"),
    ({"denoising_step_list": [1000, 0.5]}, "denoising_step_list", "whole numbers"),
    ({"denoising_step_list": [1000, True]}, "denoising_step_list", "whole numbers"),
    ({"denoising_step_list": [float("nan")]}, "denoising_step_list", "nan"),
    ({"denoising_step_list": [float("inf")]}, "denoising_step_list", "inf"),
    ({"denoising_step_list": list(range(1000, 900, -1))}, "denoising_step_list", "[1000, 999"),
    ({"denoising_step_list": None}, "no denoising_step_list", "[1000, 750, 500, 250]"),
    ({"warp_denoising_step": "yes please"}, "warp_denoising_step", "true or false"),
    ({"warp_denoising_step": None}, "warp_denoising_step", "true"),
    ({"num_frame_per_block": 0}, "num_frame_per_block", "from 1 to 1000"),
    ({"num_frame_per_block": True}, "num_frame_per_block", "a whole number"),
    ({"num_output_frames": "60s"}, "num_output_frames", "'60s'"),
    ({"num_output_frames": 0}, "num_output_frames", "0"),
    ({"num_output_frames": 10**12}, "num_output_frames", "126489600"),
    ({"seed": 0.5}, "seed", "0.5"),
    ({"seed": 2**63}, "seed", "whole number"),
    ({"num_samples": 0}, "num_samples", "1"),
    ({"use_ema": 1}, "use_ema", "true or false"),
    ({"save_with_index": "no way"}, "save_with_index", "true or false"),
    ({"inference_iter": -2}, "inference_iter", "-1"),
    ({"generator_ckpt": 5}, "generator_ckpt", "a text"),
    ({"generator_ckpt": ""}, "generator_ckpt", "not empty"),
    ({"generator_ckpt": "a\0b"}, "generator_ckpt", "a text"),
    ({"data_path": ["a", "b"]}, "data_path", "['a', 'b']"),
    ({"output_folder": {"a": 1}}, "output_folder", "a text"),
    ({"latent_h": 61}, "latent_h", "even"),
    ({"latent_w": -4}, "latent_w", "-4"),
    ({"latent_channels": 48}, "latent_channels", "16"),
    ({"context_noise": 100}, "context_noise", "0"),
    ({"context_noise": False}, "context_noise", "false"),
    ({"independent_first_frame": True}, "independent_first_frame", "false"),
    ({"model_kwargs": 3}, "model_kwargs", "a group of keys"),
    ({"model_kwargs": [1]}, "model_kwargs", "[1]"),
    ({"adapter": "lora"}, "adapter", "a group of keys"),
    ({"adapter__type": "dora"}, "adapter.type", "lora"),
    ({"adapter__rank": 0}, "adapter.rank", "1"),
    ({"adapter__alpha": float("inf")}, "adapter.alpha", "a number above 0"),
    ({"model_kwargs__local_attn_size": 7}, "local_attn_size", "at least 8 (sink_size 3 + two averages + "),
    ({"model_kwargs__local_attn_size": [12, 21]}, "local_attn_size", "[12, 21]"),
    ({"model_kwargs__local_attn_size": 0}, "local_attn_size", "-1"),
    ({"model_kwargs__local_attn_size": None}, "local_attn_size", "12"),
    ({"model_kwargs__local_attn_size": -1, "model_kwargs__sink_size": 19}, "local_attn_size", "22"),
    ({"model_kwargs__sink_size": -1}, "sink_size", "from 0"),
    ({"model_kwargs__sink_size": 3.5}, "sink_size", "3.5"),
    ({"model_kwargs__recent_size": "four"}, "recent_size", "'four'"),
    ({"model_kwargs__compression_method": "cluster"}, "compression_method", "ema or eviction"),
    ({"model_kwargs__compression_method": 3}, "compression_method", "3"),
    ({"model_kwargs__ema_alpha_long": 0}, "ema_alpha_long", "above 0"),
    ({"model_kwargs__ema_alpha_short": 1.5}, "ema_alpha_short", "at most 1"),
    ({"model_kwargs__ema_alpha_short": float("nan")}, "ema_alpha_short", "nan"),
    ({"model_kwargs__ema_adaptive": "on demand"}, "ema_adaptive", "true or false"),
    ({"model_kwargs__use_block_rope": 1}, "use_block_rope", "true or false"),
    ({"model_kwargs__timestep_shift": 0}, "timestep_shift", "0"),
    ({"model_kwargs__timestep_shift": 1000}, "timestep_shift", "100"),
    ({"model_kwargs__model_name": 14}, "model_name", "14"),
    ({"seed": "${oc.env:SEED}"}, "seed", "only ${key} and ${key.inner}"),
    ({"seed": "${seed}"}, "seed", "stands for itself"),
    ({"seed": "${nowhere}"}, "seed", "there is no key nowhere"),
    ({"seed": "${seed.inner}"}, "seed", "there is no key seed.inner"),
    ({"data_path": "${adapter}"}, "data_path", "not a plain value"),
    ({"data_path": "${data_path}x"}, "data_path", "stands for itself"),
    ({"seed": "???"}, "seed", "???"),
    ({"denoising_step_list": [1000, "${nowhere}"]}, "denoising_step_list", "no key nowhere"),
]


@pytest.mark.parametrize(("changes", "key", "accepted"), REFUSED)
def test_refused(changes: dict[str, Any], key: str, accepted: str) -> None:
    text = sentence(write(changed(**changes)))
    assert text.startswith("config.yaml") and key in text and accepted in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("- 1\n- 2\n", "a list"),
        ("memrope", "a single value"),
        ("seed: [1, 2", "not a YAML file"),
        ("seed: 1\n\tsample: 2", "line 2"),
        ("seed: 1: 2", "not a YAML file"),
        ("seed: 0\nother: 1\nseed: 1\n", "the key 'seed' twice, again in line 3"),
        ("model_kwargs: {sink_size: 1, sink_size: 2}", "'sink_size' twice"),
        ("1: 2", "not a name"),
        ("? [a]\n: 2", "not a name"),
        ("a: &x 1\nseed: *x\n", "the alias *x"),
        ("a: &x [1, 1]\nb: &y [*x, *x]\nc: [*y, *y]\n", "alias"),
        ("seed: !!python/object/apply:os.getpid []\n", "the tag !!python/object/apply:os.getpid"),
        ("seed: !!python/name:os.system ''\n", "tag"),
        ("seed: !secret x\n", "the tag !secret"),
        ("seed: !!int x\n", "the tag !!int"),
        ("seed: 1\n---\nseed: 2\n", "not a YAML file"),
        ("seed: " + 6000 * "9", "too long to be one"),
        ("[" * 50_000, "nested too deeply"),
        ("seed: 0\n#" + MOST_BYTES * "x", "100 kB"),
        ("foo: 1\nbar: baz\n", "has none of their keys"),
    ],
)
def test_no_configuration(text: str, says: str) -> None:
    assert says in sentence(write(text))


def test_no_configuration_at_all(tmp_path: Path) -> None:
    assert "no file nowhere.yaml" in sentence(Path("nowhere.yaml"))
    Path("folder.yaml").mkdir()
    assert "not a file" in sentence(Path("folder.yaml"))
    Path("image.yaml").write_bytes(bytes(range(256)))
    assert "not text in UTF-8" in sentence(Path("image.yaml"))
    Path("zero.yaml").write_bytes(b"seed: \0")
    assert "not a YAML file" in sentence(Path("zero.yaml"))


def test_numbers_as_omegaconf_reads_them() -> None:
    data = read_yaml(write("a: 1e-5\nb: 2.0e-06\nc: -3E+2\nd: 2024-01-02\ne: 1_000\nf: 1e\n"))
    assert data == {"a": 1e-5, "b": 2e-6, "c": -300.0, "d": "2024-01-02", "e": 1000, "f": "1e"}


def test_interpolation() -> None:
    data = changed(
        seed="${base.seed}",
        output_folder="out/${name}_${base.seed}",
        name="run_${base.name}",
        base={"seed": 7, "name": "a"},
        wandb_key="${oc.env:NOT_READ}",
    )
    config = read_config(write(data))
    assert config.seed == 7 and config.output_folder == Path("out/run_a_7")


def test_interpolation_does_not_explode() -> None:
    chain = {f"a{i}": f"${{a{i + 1}}}" for i in range(2000)}
    assert "stands for itself" in sentence(write(changed(**chain, seed="${a0}")))
    data = changed(a0=50 * "x", **{f"a{i + 1}": f"${{a{i}}}${{a{i}}}" for i in range(40)}, data_path="${a40}")
    assert "too long" in sentence(write(data))


def leaves(data: dict[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in data.items():
        found += [(key,), *((key, inner) for inner in value)] if isinstance(value, dict) else [(key,)]
    return found


WRONG = (
    None,
    "",
    "x",
    3.7,
    -5,
    0,
    10**30,
    True,
    [],
    [1],
    {},
    {"a": 1},
    float("nan"),
    float("inf"),
    "\x1f",
    "${x}",
    "???",
)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_anything_gives_a_configuration_or_a_sentence(name: str) -> None:
    """Every key removed in turn, and given every kind of value: never anything but a valid result or one sentence."""
    base: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    made = refused = 0
    for keys in leaves(base):
        for value in ("removed", *WRONG):
            data: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in base.items()}
            holder: Any = data if len(keys) == 1 else data[keys[0]]
            if value == "removed":
                del holder[keys[-1]]
            else:
                holder[keys[-1]] = value
            path = write(yaml.dump(data, Dumper=yaml.CSafeDumper if hasattr(yaml, "CSafeDumper") else yaml.SafeDumper))
            try:
                config = read_config(path)
            except ValueError as error:
                text = str(error)
                assert text.endswith(".") and "\n" not in text and text.isprintable(), text
                assert keys[-1] in text or keys[0] in text, text
                refused += 1
            else:
                parse_memory(config.memory, config.chunk)
                FewStepSchedule.from_steps(config.steps, config.shift)
                assert config.frames == 4 * config.latents - 3 and all(told(config))
                made += 1
    assert made > 10 and refused > 10


def models(root: Path) -> None:
    for name in ("longlive_base.pt", "lora.pt", "self_forcing_dmd.pt"):
        path = root / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "checkpoints" / "Wan2.1-T2V-1.3B").mkdir()


def test_files_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the current folder, as the original does it, and from anywhere by where the file lies."""
    config = write(changed(), "project/configs/longlive/memrope_60s.yaml")
    models(tmp_path / "project")
    sources = read_config(config).sources()
    root = tmp_path / "project" / "checkpoints"
    assert (sources.transformer, sources.key) == (root / "longlive_base.pt", "generator")
    assert sources.components == root / "Wan2.1-T2V-1.3B"
    assert [(lora.path, lora.scale) for lora in sources.loras] == [(root / "lora.pt", 1.0)]
    models(tmp_path)
    assert read_config(config).sources().transformer == Path("checkpoints/longlive_base.pt")
    monkeypatch.chdir(tmp_path / "project")
    assert read_config(Path("configs/longlive/memrope_60s.yaml")).sources().loras[0].path == Path("checkpoints/lora.pt")
    absolute = write(changed(generator_ckpt=str(tmp_path / "checkpoints" / "self_forcing_dmd.pt")), "x.yaml")
    assert read_config(absolute).checkpoint == tmp_path / "checkpoints" / "self_forcing_dmd.pt"


def test_files_that_are_missing(tmp_path: Path) -> None:
    def says(config: Config) -> str:
        with pytest.raises(ValueError) as caught:
            config.sources()
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
        return str(caught.value)

    config = read_config(write(changed()))
    text = says(config)
    assert "generator_ckpt is checkpoints/longlive_base.pt" in text and "--model longlive" in text
    models(tmp_path)
    (tmp_path / "checkpoints" / "lora.pt").unlink()
    assert "lora_ckpt is checkpoints/lora.pt" in says(config)
    (tmp_path / "checkpoints" / "lora.pt").touch()
    assert config.components is None
    assert "checkpoints/Wan2.1-T2V-1.3B or wan_models/Wan2.1-T2V-1.3B" in says(config)
    assert config.sources(Path("wan")).components == Path("wan")
    (tmp_path / "checkpoints" / "Wan2.1-T2V-1.3B").rename(tmp_path / "wan_models")
    assert says(config)
    base = read_config(write(changed(generator_ckpt=None, adapter=None)))
    assert base.sources(Path("wan")).transformer == Path("wan") and base.sources(Path("wan")).key is None
    assert "generator_ckpt" in dict(base.notes)
    assert "generator_ckpt" in says(read_config(write(changed(generator_ckpt=5000 * "x"))))


def test_videos(tmp_path: Path) -> None:
    prompts = write("a dog\n\na cat | [sad] [10s]\na cow\n", "prompts/MovieGenVideoBench_extended.txt")
    config = read_config(write(changed(num_samples=2, seed=5)))
    made = config.items()
    assert [(item.index, item.sample, item.seed, item.path.name) for item in made] == [
        (index, sample, 5 + sample, f"rank0-{index}-{sample}_lora.mp4") for index in (0, 2, 3) for sample in (0, 1)
    ]
    assert {item.path.parent for item in made} == {Path("outputs/longlive_60s")}
    assert [item.script for item in config.items(2, 3)] == [r"a cat \| [sad] \[10s]"] * 2
    other = write("a fox [5s] | a hen [5s]\n", "other.txt")
    assert [item.script for item in config.items(prompts_file=other)] == ["a fox [5s] | a hen [5s]"] * 2
    assert config.items(folder=Path("x"))[0].path == Path("x/rank0-0-0_lora.mp4")
    assert prompts.exists() and not Path("outputs").exists()


def test_videos_named_after_prompts() -> None:
    write("a dog runs\n", "short.txt")
    write("a dog runs over a wide meadow at noon\n", "long.txt")
    data = changed(save_with_index=False, data_path="short.txt", extended_prompt_path="long.txt")
    (item,) = read_config(write(data)).items()
    assert item.path.name == "rank0-a dog runs-0.mp4" and item.script == "a dog runs over a wide meadow at noon"
    write("one\ntwo\n", "long.txt")
    with pytest.raises(ValueError, match=r"long\.txt has 2 lines and short\.txt has 1.*\.$"):
        read_config(write(data)).items()


def test_limit() -> None:
    """The original goes on until it has made the prompt whose number inference_iter is."""
    write("a\nb\nc\nd\n", "prompts/MovieGenVideoBench_extended.txt")
    for inference_iter, end, expected in ((-1, None, 4), (0, None, 1), (2, None, 3), (2, 2, 2), (2, -1, 3), (9, 3, 3)):
        config = read_config(write(changed(inference_iter=inference_iter)))
        assert len(config.items(end=end)) == expected
    assert [item.index for item in read_config(write(changed(inference_iter=1))).items(3)] == [3]


def test_videos_refused() -> None:
    config = read_config(write(changed(data_path=None, output_folder=None)))
    write("a\n", "p.txt")
    for arguments, says in (
        ({}, "--out"),
        ({"folder": Path("x")}, "--prompts"),
        ({"folder": Path("x"), "prompts_file": Path("nowhere.txt")}, "no file of prompts nowhere.txt"),
        ({"folder": Path("x"), "prompts_file": Path("p.txt"), "start": 1}, "--start"),
    ):
        with pytest.raises(ValueError, match=rf"{says}.*\.$"):
            config.items(**arguments)  # type: ignore[arg-type]


def test_nothing_heavy_is_loaded() -> None:
    code = f"""
import sys
from longtake.configs import read_config
read_config({str(MEMROPE)!r})
print(*[name for name in ("torch", "diffusers", "transformers", "safetensors", "av", "numpy") if name in sys.modules])
"""
    made = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == ""


def test_a_configuration_makes_its_videos(cli: Cli, tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    """Every prompt its video, as when it is made by itself; once made, they are left alone."""
    write(changed(CONFIGS / "selfforcing_memrope_60s.yaml", num_output_frames=22, output_folder="out"))
    write(f"{PROMPT}\n\na blue box | at night\n", "prompts/MovieGenVideoBench_extended.txt")
    command = ["generate", "--config", "config.yaml", "--model", tiny_folder, "--dtype", "float32", "-q"]
    made = cli(*command)
    assert made.returncode == 0, made.stderr
    first, second = tmp_path / "out" / "rank0-0-0_ema.mp4", tmp_path / "out" / "rank0-2-0_ema.mp4"
    assert made.stdout.split() == [str(first), str(second)]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".mp4", ".snapshot"}
    assert probe(first).frames == probe(second).frames == 85
    for path, prompt in ((first, PROMPT), (second, "a blue box | at night")):
        take = tiny.start(plain(prompt), MemRoPE(first_eviction="released"), 0)
        assert Recording.start(take, tmp_path / "one.mp4").run(85 / 16)
        assert (tmp_path / "one.mp4").read_bytes() == path.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = cli(*command)
    assert again.returncode == 0 and not again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_a_configuration_sets_the_sampler(cli: Cli, tiny: LongTakePipeline, tiny_folder: Path, tmp_path: Path) -> None:
    """Steps as they are, and chunks of two: the video of a pipeline that was built so."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    kwargs = {"local_attn_size": 6, "sink_size": 1, "timestep_shift": 3.0}
    changes = {"denoising_step_list": [1000, 640], "warp_denoising_step": False, "num_frame_per_block": 2, "seed": 9}
    changes |= {"model_kwargs": kwargs, "num_output_frames": 10, "output_folder": "out", "data_path": "p.txt"}
    write(changed(CONFIGS / "longlive_inference.yaml", adapter=None, **changes))
    write(PROMPT + "\n", "p.txt")
    made = cli("generate", "--config", "config.yaml", "--model", tiny_folder, "--dtype", "float32", "-q")
    assert made.returncode == 0, made.stderr
    parts = {**tiny.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)}
    pipe = LongTakePipeline(**parts, denoising_steps=[1000, 640], chunk_frames=2, default_size=(32, 32))
    take = pipe.start(PROMPT, Sliding(6, 1, "absolute"), 9)
    assert Recording.start(take, tmp_path / "own.mp4").run(37 / 16)
    assert (tmp_path / "own.mp4").read_bytes() == (tmp_path / "out" / "rank0-0-0_regular.mp4").read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "one"}, "config.yaml: seed must be a whole number"),
        ({}, "generator_ckpt is checkpoints/longlive_base.pt"),
    ],
)
def test_the_command_line_refuses(cli: Cli, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write(changed(**changes))
    made = cli("generate", "--config", "config.yaml", "-q")
    assert made.returncode == 2 and says in made.stderr and "Traceback" not in made.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_the_page_for_people_who_come_from_there() -> None:
    """It names every key of the published files, and no option that is not there."""
    import typer.main

    from longtake.cli import app

    page = (CONFIGS.parents[2] / "docs" / "from-memrope.md").read_text()
    for path in (MEMROPE, CONFIGS / "selfforcing_memrope_60s.yaml", CONFIGS / "longlive_inference_infinity.yaml"):
        for *_, key in leaves(yaml.safe_load(path.read_text())):
            assert f"`{key}" in page or f".{key}" in page or key in ("context_noise", "model_kwargs", "type"), key
    group = typer.main.get_command(app)
    there = {option for command in group.commands.values() for param in command.params for option in param.opts}  # type: ignore[attr-defined]
    theirs = {"--config_path", "--start_idx", "--end_idx", "--nproc_per_node", "--profile"}
    assert set(re.findall(r"--[a-z_]\w+(?:-\w+)*", page)) <= there | theirs
