"""The stages after the teacher, and those of the pocket world: they learn, they resume, processes change nothing."""

from pathlib import Path

import pytest
import torch

from longtake.pocket.world import caption, render
from longtake.pocket.world.words import MAX_WORDS, split_words
from longtake.training.autoencoder_stage import AutoencoderStage
from longtake.training.clip_vae import encode_clip
from longtake.training.config import Config, load_config
from longtake.training.keyed import generator
from longtake.training.registry import make_stage
from longtake.training.text_stage import ATTRIBUTES, TEXT_TOKENS, captioned, world_tokenizer
from longtake.training.world_check import read_takes
from longtake.training.worlddata import (
    HELD_OUT,
    WARM,
    WorldClips,
    WorldSource,
    as_input,
    clip_number,
    measured,
    new_vae,
    scene_of,
)
from longtake.training.worldsequences import CHUNKS, WorldSequences
from tests.helpers_train import column, differences, saved, tiny, train

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


@pytest.mark.parametrize(
    ("stage", "name", "changes"),
    [
        ("causal", "later", ()),
        ("causal", "first", ()),
        ("causal", "later", ("causal.forcing=diffusion",)),
        ("consistency", "consistency", ()),
        ("consistency", "ode", ("consistency.method=ode",)),
        ("dmd", "critic", ("dmd.critic.lr=3e-3",)),
        ("long", "critic", ("long.critic.lr=3e-3",)),
    ],
)
def test_fifty_steps_lower_the_loss(
    stage: str, name: str, changes: tuple[str, ...], begun: Path, tmp_path: Path
) -> None:
    folder = copy_of(begun, tmp_path / "run", "teacher", "causal", "consistency", "dmd")
    for file in folder.glob(f"{stage}-*"):
        file.unlink()
    settings = config(f"{stage}.steps=50", f"{stage}.lr=3e-3", "data.clips=4", "data.held_out=1", *changes)
    train(make_stage(stage, settings), folder)
    losses = column(folder, name, stage)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_fifty_steps_lower_the_loss_of_the_autoencoder(tmp_path: Path) -> None:
    settings = config(*SMALL, "autoencoder.steps=50", "autoencoder.crop=16", "autoencoder.lr=5e-3")
    train(make_stage("autoencoder", settings), tmp_path)
    losses = column(tmp_path, "rebuilt", "autoencoder")
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_fifty_steps_lower_the_loss_of_the_text_encoder(tmp_path: Path) -> None:
    settings = config(*WORLD, "text_encoder.steps=50", "text_encoder.batch=16", "text_encoder.lr=1e-2")
    train(make_stage("text_encoder", settings), tmp_path)
    losses = column(tmp_path, "told", "text_encoder")
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


# They go on


@pytest.mark.parametrize("stage", ["causal", "consistency", "dmd", "long"])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(stage: str, begun: Path, tmp_path: Path) -> None:
    """`long` holds rollouts with memories from step to step, and is stopped in the middle of them."""
    before = {"causal": ["teacher"], "consistency": ["teacher", "causal"]}
    stages = before.get(stage, ["teacher", "causal", "consistency"] + ["dmd"] * (stage == "long"))
    changes = ("long.steps=5", "run.accumulate=2") if stage == "long" else (f"{stage}.steps=5",)
    whole, stopped = (copy_of(begun, tmp_path / name, *stages) for name in ("whole", "stopped"))
    settings = config(*changes)
    train(make_stage(stage, settings), whole)
    train(make_stage(stage, settings), stopped, stop=iter([False, True] + [False] * 9).__next__)
    assert saved(stopped, stage)["step"] == 2
    train(make_stage(stage, settings), stopped)
    first, second = saved(whole, stage), saved(stopped, stage)
    for state in (first, second):
        state.pop("minutes", None)
    assert differences(first, second) == []


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
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    number = clip_number(13, 4, 8, 2)
    start = int(torch.randint(16 * 3600, (), generator=generator(0, "clip frames", number)))
    truth = render(scene_of(number, "plain"), torch.arange(start, start + 9), (32, 32)).video[0]
    assert (one[0].float() / 255 - truth).abs().max() < 0.003
    assert scene_of(HELD_OUT, "plain") is not None and one[1].float().mean() > 0


@pytest.fixture(scope="module")
def source() -> WorldSource:
    torch.manual_seed(0)
    settings = config(*SMALL)
    vae = measured(new_vae(settings).requires_grad_(False).eval(), settings, clips=4, frames=9)
    return WorldSource(vae, settings, 6, 4)


def test_a_take_from_the_middle_is_what_the_whole_take_has_there(source: WorldSource) -> None:
    """Latent k shows the frames 4k - 3 to 4k, wherever the encoder began."""
    scene = scene_of(3, "plain")
    whole = source.take([scene], [20], None)
    late = source.take([scene], [4], 4 * 16 - 3)
    assert (late - whole[16:]).abs().max() < 0.02 * whole.std()
    assert (late - whole[15:19]).abs().max() > 0.1 * whole.std()
    frames = render(scene, torch.arange(1 + 4 * 5), (32, 32)).video
    latents = encode_clip(source.vae, frames.transpose(1, 2) * 2 - 1)[0][0].transpose(0, 1)
    assert torch.allclose(whole[:6] * source.std + source.mean, latents, atol=1e-4)


def test_a_cut_is_where_a_chunk_ends(source: WorldSource) -> None:
    """Until the cut nothing of the second scene is seen, and from it on nothing of the first."""
    one, other = scene_of(3, "plain"), scene_of(4, "plain")
    plain, cut = source.take([one], [6], None), source.take([one, other], [3, 6], None)
    assert torch.allclose(plain[:3], cut[:3], atol=1e-4) and (plain[3:] - cut[3:]).abs().max() > 0.1


def test_sequences_are_of_both_kinds_and_their_captions_fit(source: WorldSource) -> None:
    sequences = WorldSequences(source, source.config, 4, 0.5, 2)
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
        ("text_encoder", "text_encoder.width=24", "must be model.text_dim, 16"),
        ("dmd", "dmd.frames=42", "any number of times 18"),
        ("long", "long.frames=60", "like 75"),
        ("dmd", "dmd.memories=[elephant]", "memrope, sliding"),
        ("causal", "causal.memories=['memrope:adaptive=true']", "fixed rates"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(stage: str, change: str, says: str) -> None:
    base = () if change.startswith("data.source") else WORLD
    with pytest.raises(ValueError, match=says):
        made = make_stage(stage, load_config("tiny", (*base, "autoencoder.crop=16", change)))
        made.check_config()


def test_crops_are_near_subjects() -> None:
    from longtake.training.autoencoder_stage import _corner

    cover = torch.zeros(3, 1, 64, 64, dtype=torch.uint8)
    cover[:, :, 40:60, 4:20] = 255
    corners = [_corner(cover, 24, torch.Generator().manual_seed(i)) for i in range(200)]
    hit = sum(top < 60 and top + 24 > 40 and left < 20 for top, left in corners)
    assert hit > 150 and all(0 <= top <= 40 and 0 <= left <= 40 for top, left in corners)


def test_pictures_go_in_as_they_are(tmp_path: Path) -> None:
    assert issubclass(AutoencoderStage, object) and WARM >= 7
    video = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    assert as_input(video).flatten().tolist() == pytest.approx([-1, 1, 128 / 127.5 - 1])
