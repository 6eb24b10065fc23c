"""The stages after the teacher, and those of the pocket world: they learn, they resume, processes change nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from longtake.pocket.world import caption, render
from longtake.pocket.world.words import MAX_WORDS, split_words
from longtake.training.autoencoder_stage import _corner
from longtake.training.causal_stage import few_step_takes
from longtake.training.clip_vae import encode_clip
from longtake.training.config import CONFIGS, Config, load_config
from longtake.training.exporting import export
from longtake.training.keyed import generator
from longtake.training.models import text_embedder, trained_transformer
from longtake.training.registry import make_stage, stage_names
from longtake.training.run import Run
from longtake.training.text_stage import ATTRIBUTES, TEXT_TOKENS, captioned, world_tokenizer
from longtake.training.world_check import read_takes
from longtake.training.worlddata import (
    WorldClips,
    WorldSource,
    as_input,
    clip_number,
    measured,
    middles,
    new_vae,
    scene_of,
    trained_vae,
)
from longtake.training.worldsequences import CHUNKS, WorldSequences
from longtake.video import probe
from tests.conftest import Cli
from tests.helpers_pipeline import build
from tests.helpers_train import assert_resumes, column, saved, tiny, train
from tests.test_train_command import side_by_side

WORLD = ("data.source=world", "model.text=stage", "model.text_dim=16", "text_encoder.width=16", "data.level=plain")
SMALL = (*WORLD, "data.cache=8", "data.reuse=1000", "autoencoder.base_dim=4", "autoencoder.decoder_base_dim=4")


def config(*changes: str) -> Config:
    return tiny(*changes)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages up to `dmd` are finished, with few steps."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("teacher", "causal", "consistency", "dmd"):
        train(make_stage(name, config()), folder)
    return folder


def copy_of(begun: Path, folder: Path, *stages: str) -> Path:
    """The checkpoints of some stages, in a folder of their own."""
    folder.mkdir()
    for file in begun.glob("*.pt"):
        if file.name.rpartition("-")[0] in stages:
            (folder / file.name).symlink_to(file)
    return folder


# They learn


def losses_at(run: Run, steps: int = 6) -> dict[str, float]:
    """Mean losses on the data and noise of the first steps: the same for the same run, whatever it has learned."""
    sums: dict[str, float] = {}
    for step in range(steps):
        for name, loss in run.stage.step(run, step).items():
            sums[name] = sums.get(name, 0.0) + float(loss) / steps
        for network in run.networks.values():
            network.zero_grad()
    return sums


def learned(stage: str, settings: Config, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Losses before and after training."""
    run = Run(make_stage(stage, settings), settings, folder)
    run.open()
    before = losses_at(run)
    assert run.train()
    return before, losses_at(run)


@pytest.mark.parametrize(
    ("stage", "names", "changes"),
    [
        ("causal", ("later", "first"), ()),
        ("causal", ("later",), ("causal.forcing=diffusion", "causal.first_chunks=0")),
        ("consistency", ("consistency",), ()),
        ("consistency", ("ode",), ("consistency.method=ode",)),
    ],
)
def test_fifty_steps_lower_the_loss(
    stage: str, names: tuple[str, ...], changes: tuple[str, ...], begun: Path, tmp_path: Path
) -> None:
    folder = copy_of(begun, tmp_path / "run", *(("teacher",) if stage == "causal" else ("teacher", "causal")))
    settings = config(f"{stage}.steps=50", f"{stage}.lr=1e-2", "data.clips=4", "data.held_out=1", *changes)
    before, after = learned(stage, settings, folder)
    assert set(names) <= set(before)
    assert all(after[name] < 0.9 * before[name] for name in names), (before, after)


@pytest.mark.parametrize("stage", ["dmd", "long"])
def test_fifty_steps_teach_the_critic_what_the_generator_makes(stage: str, begun: Path, tmp_path: Path) -> None:
    """With a generator that stays, so that its clips are fixed data."""
    folder = copy_of(begun, tmp_path / "run", "teacher", "causal", "consistency", *["dmd"] * (stage == "long"))
    settings = config(
        f"{stage}.steps=50", f"{stage}.lr=0", f"{stage}.critic.lr=1e-2", "data.clips=4", "data.held_out=1"
    )
    before, after = learned(stage, settings, folder)
    assert after["critic"] < 0.95 * before["critic"], (before, after)


def test_fifty_steps_lower_the_loss_of_the_autoencoder(tmp_path: Path) -> None:
    settings = config(*SMALL, "autoencoder.steps=50", "autoencoder.crop=16", "autoencoder.lr=1e-2")
    before, after = learned("autoencoder", settings, tmp_path)
    assert after["rebuilt"] < 0.8 * before["rebuilt"] and after["psnr"] > before["psnr"] + 0.5, (before, after)


def test_the_decoder_learns_alone_and_later_stages_get_it(tmp_path: Path) -> None:
    settings = config(*SMALL, "autoencoder.steps=10", "autoencoder.crop=16", "autoencoder.lr=1e-2")
    train(make_stage("autoencoder", settings), tmp_path)
    run = Run(make_stage("teacher", settings), settings, tmp_path)
    begun = trained_vae(run, settings).state_dict()

    settings = config(*SMALL, "decoder.steps=50", "decoder.crop=16", "decoder.lr=1e-2")
    before, after = learned("decoder", settings, tmp_path)
    assert after["rebuilt"] < 0.9 * before["rebuilt"], (before, after)
    tuned = trained_vae(run, settings)
    made = make_stage("decoder", settings)
    opened = Run(made, settings, tmp_path, for_export=True)
    opened.open()
    exported = made.outputs(opened)["vae"]
    assert exported.config == tuned.config  # and so the latents have the same scale
    for name, weights in tuned.state_dict().items():
        of_decoder = name.startswith(("decoder.", "post_quant_conv."))
        assert torch.equal(exported.state_dict()[name], weights)
        assert of_decoder or torch.equal(begun[name], weights)
    assert not torch.equal(begun["decoder.conv_in.weight"], tuned.state_dict()["decoder.conv_in.weight"])


def test_fifty_steps_lower_the_loss_of_the_text_encoder(tmp_path: Path) -> None:
    settings = config(*WORLD, "text_encoder.steps=50", "text_encoder.batch=16", "text_encoder.lr=1e-2")
    before, after = learned("text_encoder", settings, tmp_path)
    assert after["told"] < 0.8 * before["told"], (before, after)


def test_a_published_model_is_distilled_from_prompts_alone(tmp_path: Path) -> None:
    """As `wan-1.3b` does it, with a folder as diffusers saves it: LoRA weights, image latents, long takes; and what
    comes out is a model like the first."""
    pipe = build()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("".join(f"a red ball rolls {i}\n" for i in range(6)))
    folder, config_of = tmp_path / "run", pipe.transformer.config
    names = {key: str(tmp_path / "model") for key in ("checkpoint", "teacher", "critic")}
    settings = load_config(
        "wan-1.3b",
        (
            *(f"model.{key}={value}" for key, value in names.items()),
            *("model.channels=4", f"model.text_dim={config_of.text_dim}", "model.height=4", "model.width=6"),
            *("model.lora_rank=2", "data.held_out=1", f"data.path={tmp_path / 'prompts.txt'}", "long.frames=39"),
            *("run.batch=2", "run.device=cpu", "run.precision=fp32", "run.sample_every=0", "run.tensorboard=false"),
            *("dmd.steps=2", "dmd.generator_every=1", "dmd.ema_start=0", "long.steps=3", "long.generator_every=1"),
            *("dmd.lr=1e-2", "long.lr=1e-2"),
        ),
    )
    for stage in ("dmd", "long"):
        run = train(make_stage(stage, settings), folder)
        assert all("lora" in name for name in run.networks["transformer"].parameters)
        assert not any("lora" in name for name in run.networks["critic"].parameters)
    export(folder, tmp_path / "out", dtype=torch.float32)
    made = WanTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer")
    before = pipe.transformer.state_dict()
    assert set(made.state_dict()) == set(before)
    changed = [name for name, x in made.state_dict().items() if not torch.equal(x, before[name])]
    assert changed and all(name.startswith("blocks.") for name in changed)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_stage_of_a_configuration_that_comes_with_longtake_accepts_it(name: str) -> None:
    settings = load_config(name)
    for stage in stage_names(settings):
        made = make_stage(stage, settings)
        made.check_config()
        assert set(made.needs()) <= set(stage_names())


# They go on


@pytest.mark.parametrize("stage", ["causal", "consistency", "dmd", "long"])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(stage: str, begun: Path, tmp_path: Path) -> None:
    """`long` holds rollouts with memories from step to step, and is stopped in the middle of them."""
    before = {"causal": ["teacher"], "consistency": ["teacher", "causal"]}
    stages = before.get(stage, ["teacher", "causal", "consistency"] + ["dmd"] * (stage == "long"))
    changes = ("long.steps=5", "run.accumulate=2") if stage == "long" else (f"{stage}.steps=5",)
    whole, stopped = (copy_of(begun, tmp_path / name, *stages) for name in ("whole", "stopped"))
    assert_resumes(stage, config(*changes), whole, stopped)


@pytest.mark.parametrize("stage", ["causal", "dmd"])
def test_checkpointing_changes_nothing(stage: str, begun: Path, tmp_path: Path) -> None:
    rows = []
    for name, changes in (("plain", ()), ("checkpointed", ("run.checkpointing=true",))):
        folder = copy_of(begun, tmp_path / name, "teacher", "causal", "consistency")
        for file in folder.glob(f"{stage}-*"):
            file.unlink()
        train(make_stage(stage, config(f"{stage}.steps=4", *changes)), folder)
        rows.append(column(folder, "critic" if stage == "dmd" else "later", stage))
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


@pytest.mark.parametrize("stage", ["causal", "consistency", "dmd"])
def test_two_processes_make_the_run_of_one(stage: str, begun: Path, tmp_path: Path) -> None:
    """With weights, optimizers and frozen teachers split between them (FSDP2)."""
    before = {
        "causal": ["teacher"],
        "consistency": ["teacher", "causal"],
        "dmd": ["teacher", "consistency"],
    }[stage]
    one, two = (copy_of(begun, tmp_path / name, *before) for name in ("one", "two"))
    train(make_stage(stage, config(f"{stage}.steps=3")), one)
    changes = ["--set", "run.tensorboard=false", "--steps", "3"]
    side_by_side(2, "train", stage, "--config", "tiny", "--folder", str(two), *changes)
    for name in {"causal": ("later", "first"), "consistency": ("consistency",)}.get(stage, ("critic",)):
        assert column(two, name, stage) == pytest.approx(column(one, name, stage), abs=1e-5)
    first, second = (saved(folder, stage)["networks"]["transformer"] for folder in (one, two))
    for name, weight in first["average"].items():
        assert torch.allclose(weight, second["average"][name], atol=2e-5, rtol=0), name


@pytest.mark.parametrize("stage", ["consistency", "autoencoder"])
def test_parts_of_a_batch_change_nothing(stage: str, begun: Path, tmp_path: Path) -> None:
    """One after the other in one process, or side by side in two (the autoencoder, which is not split)."""
    folders = [copy_of(begun, tmp_path / name, "teacher", "causal") for name in ("whole", "parts", "two")]
    changes = ["run.batch=4", f"{stage}.steps=4", "data.cache=8"]
    changes += [*SMALL, "autoencoder.crop=32", "autoencoder.whole_every=2"] if stage == "autoencoder" else []
    train(make_stage(stage, config(*changes)), folders[0])
    train(make_stage(stage, config(*changes, "run.accumulate=2")), folders[1])
    words = [word for change in (*changes, "run.tensorboard=false") for word in ("--set", change)]
    side_by_side(2, "train", stage, "--config", "tiny", "--folder", str(folders[2]), *words)
    name = "rebuilt" if stage == "autoencoder" else "consistency"
    rows = [column(folder, name, stage) for folder in folders]
    assert rows[1] == pytest.approx(rows[0], abs=1e-4) and rows[2] == pytest.approx(rows[0], abs=1e-4)


def test_takes_are_the_same_however_many_are_made_at_once(tmp_path: Path) -> None:
    made = []
    for batch in (1, 2, 4):
        settings = config(f"run.batch={batch}")
        run = Run(make_stage("causal", settings), settings, tmp_path)
        torch.manual_seed(0)
        module = trained_transformer(settings.model).requires_grad_(False)
        torch.nn.init.normal_(module.proj_out.weight, std=0.1)
        words = text_embedder(settings, run)
        made.append(few_step_takes(run, settings, module, words, ["red", "blue", "green"], "memrope", frames=18))
    assert made[0].shape[:2] == (3, 18) and made[0].std() > 0.1
    assert torch.allclose(made[0], made[1], atol=1e-5) and torch.allclose(made[0], made[2], atol=1e-5)


# The world as data


def test_places_of_the_batch_share_no_clip_and_use_each_as_often_as_asked() -> None:
    batch, window, reuse = 4, 24, 5
    numbers = [
        [clip_number(step * batch + place, batch, window, reuse) for step in range(400)] for place in range(batch)
    ]
    sets = [set(n) for n in numbers]
    assert not any(a & b for i, a in enumerate(sets) for b in sets[i + 1 :])
    for place, own in enumerate(numbers):
        assert all(n % batch == place for n in own)
        newest = [max(0, step // reuse) for step in range(400)]
        assert all(0 <= new - n // batch < window // batch for n, new in zip(own, newest, strict=True))
        assert len(set(own[100:])) > 0.9 * 300 / reuse


def test_clips_follow_from_their_number_and_show_the_world() -> None:
    first, second = (WorldClips(9, (32, 32), "plain", 4, 8, 2) for _ in range(2))
    one, other = first.sample(13), second.sample(13)
    assert torch.equal(one.video, other.video) and torch.equal(one.cover, other.cover)
    number = clip_number(13, 4, 8, 2)
    start = int(torch.randint(16 * 3600, (), generator=generator(0, "clip frames", number)))
    truth = render(scene_of(number, "plain"), torch.arange(start, start + 9), (32, 32)).video[0]
    assert (one.video.float() / 255 - truth).abs().max() < 0.003 and one.cover.float().mean() > 0


@pytest.fixture(scope="module")
def source() -> WorldSource:
    torch.manual_seed(0)
    settings = config(*SMALL)
    vae = measured(new_vae(settings).requires_grad_(False).eval(), settings, clips=4, frames=9)
    return WorldSource(vae, settings, 6, 4, warm=24)  # untrained, its encoder forgets slowly


def test_a_take_from_the_middle_is_what_the_whole_take_has_there(source: WorldSource) -> None:
    """Latent k shows the frames 4k - 3 to 4k, wherever the encoder began."""
    scene = scene_of(3, "plain")
    whole = source.take([scene], [34], None)
    late = source.take([scene], [4], 4 * 30 - 3)
    assert (late - whole[30:]).abs().max() < 0.01 * whole.std()
    assert (late - whole[29:33]).abs().max() > 0.1 * whole.std()
    frames = render(scene, torch.arange(1 + 4 * 5), (32, 32)).video
    latents = encode_clip(source.vae, frames.transpose(1, 2) * 2 - 1)[0][0].transpose(0, 1)
    assert torch.allclose(whole[:6] * source.std + source.mean, latents, atol=1e-4)


def test_half_of_the_clips_begin_anywhere_in_an_hour(source: WorldSource) -> None:
    """Those that begin with the scene show it from its first frame on; which it is follows from the number."""
    openings = []
    for number in range(40):
        latents, scene = source._latents(number)
        openings.append(torch.allclose(latents.float(), source.take([scene], [6], None), atol=0.05))
        if number == 0:
            assert torch.equal(latents, source._latents(number)[0])
    assert 10 <= sum(openings) <= 30


def test_a_cut_is_where_a_chunk_ends(source: WorldSource) -> None:
    """Until the cut nothing of the second scene is seen, and from it on nothing of the first."""
    one, other = scene_of(3, "plain"), scene_of(4, "plain")
    plain, cut = source.take([one], [6], None), source.take([one, other], [3, 6], None)
    assert torch.allclose(plain[:3], cut[:3], atol=1e-4) and (plain[3:] - cut[3:]).abs().max() > 0.1


def test_sequences_are_of_both_kinds_and_their_captions_fit(source: WorldSource) -> None:
    fresh = replace(source.config, data=replace(source.config.data, reuse=1))
    sequences = WorldSequences(source, fresh, 4, 0.5, 2)
    made = [sequences.sequence(i) for i in range(12)]
    assert {len(m.latents) for m in made} == {3 * CHUNKS} and {len(m.captions) for m in made} == {CHUNKS}
    assert {m.timeline[1] == 1 for m in made} == {True, False}
    assert any(len(set(m.captions)) > 1 for m in made) and any(len(set(m.captions)) == 1 for m in made)
    assert all(torch.equal(a.latents, sequences.sequence(i).latents) for i, a in enumerate(made[:3]))
    first, said = sequences.first_chunk(5)
    assert first.shape[0] == 3 and said


def test_captions_are_read_whole_by_the_tokenizer() -> None:
    tokenizer = world_tokenizer()
    for i in range(200):
        text, told = captioned(str(i), "full")
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(split_words(text)) + 1 <= TEXT_TOKENS == MAX_WORDS + 1
        assert tokenizer.unk_token_id not in ids
        assert set(told) <= set(ATTRIBUTES) and all(v in ATTRIBUTES[k] for k, v in told.items())


def test_readers_agree_with_the_truth_and_not_with_something_else() -> None:
    scenes = [scene_of(i, "plain") for i in range(6)]
    frames = torch.stack([render(s, torch.arange(0, 48, 8), 64).video[0] for s in scenes])
    pictures = (frames * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
    said = [caption(s, 0) for s in scenes]
    right, wrong = read_takes(pictures, said), read_takes(pictures, said[1:] + said[:1])
    assert right["color"].passed and right["place"].passed and right["seen"].value > 0.9
    assert wrong["color"].value < right["color"].value and wrong["place"].value < right["place"].value


# Bad input


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ("autoencoder", "autoencoder.crop=20", "multiple of 8"),
        ("autoencoder", "autoencoder.crop=64", "at most 32"),
        ("autoencoder", "autoencoder.frames=26", "like 25"),
        ("autoencoder", "data.source=synthetic", "set data.source to world"),
        ("decoder", "decoder.crop=20", "decoder.crop must be a multiple of 8"),
        ("text_encoder", "text_encoder.width=24", "must be model.text_dim, 16"),
        ("dmd", "dmd.frames=42", "any number of times 18"),
        ("long", "long.frames=60", "like 75"),
        ("dmd", "dmd.memories=[elephant]", "memrope, sliding"),
        ("dmd", "dmd.memories=[echo]", "the stages echo and echo_long train those"),
        ("causal", "causal.memories=['memrope:adaptive=true']", "fixed rates"),
        ("causal", "causal.memories=[causal]", "memrope, sliding"),
        ("causal", "causal.memories=[]", "at least one"),
        ("dmd", "dmd.memories=[]", "at least one"),
        ("long", "long.memories=[]", "at least one"),
        ("dmd", "model.frames=3", "whole chunks of 3 more"),
        ("long", "long.frames=3", "like 75"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(stage: str, change: str, says: str) -> None:
    base = () if change.startswith("data.source") else WORLD
    with pytest.raises(ValueError, match=says):
        made = make_stage(stage, load_config("tiny", (*base, "autoencoder.crop=16", "decoder.crop=16", change)))
        made.check_config()


def test_steps_of_whole_clips_need_parts_of_so_many_samples(tmp_path: Path) -> None:
    settings = config(*SMALL, "autoencoder.crop=16", "run.batch=6")
    with pytest.raises(ValueError, match=r"one sample of 4 is used.*not 6"):
        Run(make_stage("autoencoder", settings), settings, tmp_path).open()


def test_a_stage_before_of_another_size_is_refused(begun: Path, tmp_path: Path) -> None:
    folder = copy_of(begun, tmp_path / "run", "teacher")
    for change in ("model.layers=1", "model.ffn=40", "model.channels=6"):
        settings = config(change)
        run = Run(make_stage("causal", settings), settings, folder)
        with pytest.raises(ValueError, match="transformer of teacher"):
            run.open()


def test_crops_are_near_subjects() -> None:
    cover = torch.zeros(3, 1, 64, 64, dtype=torch.uint8)
    cover[:, :, 40:60, 4:20] = 255
    cover[0, 0, 0, 0] = 1  # pulls the middle of one frame away
    found = middles(cover)
    assert found[1].tolist() == [49.5, 11.5] and found[0].tolist() != [49.5, 11.5]
    assert middles(cover[:, :, :30, 30:]).isnan().all()
    corners = [_corner(found, 24, (64, 64), torch.Generator().manual_seed(i)) for i in range(200)]
    hit = sum(top < 60 and top + 24 > 40 and left < 20 for top, left in corners)
    assert hit > 150 and all(0 <= top <= 40 and 0 <= left <= 40 for top, left in corners)


def test_pictures_go_in_as_they_are() -> None:
    video = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    assert as_input(video).flatten().tolist() == pytest.approx([-1, 1, 128 / 127.5 - 1], abs=1e-6)


def test_from_nothing_to_a_video(tmp_path: Path, cli: Cli) -> None:
    """All stages on the pocket world, tiny, by one command; then an export, which makes a video like any model."""
    steps = ("autoencoder", "decoder", "text_encoder", "teacher", "causal", "consistency", "dmd")
    changes = [
        *SMALL,
        "autoencoder.crop=32",
        "decoder.crop=32",
        "data.held_out=2",
        "run.tensorboard=false",
        "run.precision=bf16",
        f"run.stages=[{','.join(steps)}]",
    ]
    changes += [f"{name}.steps=2" for name in steps]
    words = [word for change in changes for word in ("--set", change)]
    made = cli("train", "pocket", "--config", "tiny", "--folder", tmp_path / "run", *words)
    assert made.returncode == 0, made.stderr
    assert all((tmp_path / "run" / f"{name}.check.json").exists() for name in steps)
    assert {p.name.partition("-")[0] for p in (tmp_path / "run" / "samples").iterdir()} == {*steps} - {"text_encoder"}
    model = tmp_path / "model"
    assert cli("train", "export", "--folder", tmp_path / "run", "--out", model, "--shard-size", "16MB").returncode == 0
    said = "a golden ball rolls on a meadow with a xylophone"
    video = cli("generate", said, "--model", model, "--seconds", "2", "--out", "a.mp4")
    assert video.returncode == 0, video.stderr
    assert "does not know xylophone; it knows" in video.stderr and "32x32 pixels" in video.stderr
    assert probe(tmp_path / "a.mp4").frames == 32
    assert "knows nothing of 'xylophone'" in cli("generate", "xylophone", "--model", model, "--out", "b.mp4").stderr
