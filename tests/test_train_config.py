"""A training configuration: what is accepted, and what people are told about the rest."""

import dataclasses
from pathlib import Path

import pytest

from longtake.training.config import CONFIGS, STAGES, Config, load_config, reference
from longtake.training.network import rate_factor
from longtake.training.sections import Optimization
from longtake.training.settings import build, to_plain


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: {layers: 2}", "there is no key modle; did you mean model?"),
        ("model: {layer: 2}", "there is no key model.layer; did you mean model.layers?"),
        ("zzz: 1", "there is no key zzz; the keys here are name, model,"),
        ("dmd: {critic: {lrr: 1}}", "there is no key dmd.critic.lrr; did you mean dmd.critic.lr?"),
        ("model: 3", "model must be a group of keys, not 3"),
        ("model: {layers: 2.0}", "model.layers must be a whole number from 1 to 200, not 2.0"),
        ("model: {layers: true}", "model.layers must be a whole number from 1 to 200, not true"),
        ("model: {layers: 0}", "model.layers must be a whole number from 1 to 200, not 0"),
        ("model: {layers: null}", "model.layers must be a whole number from 1 to 200, not null"),
        ("teacher: {lr: fast}", "teacher.lr must be a number from 0 to 10, not 'fast'"),
        ("teacher: {lr: .nan}", "teacher.lr must be a number from 0 to 10, not nan"),
        ("teacher: {betas: [0.9]}", "teacher.betas must be a list of 2, each a number from 0 to 0.999999, not [0.9]"),
        ("teacher: {betas: 0.9}", "teacher.betas must be a list of 2"),
        (
            "teacher: {schedule: linear}",
            "teacher.schedule must be constant, linear-decay or cosine-decay, not",
        ),
        ("run: {compile: 1}", "run.compile must be true or false, not 1"),
        ("run: {stages: [zork]}", "run.stages has 'zork'; the stages are autoencoder,"),
        ("data: {source: prompts}", "data.path must be given if data.source is prompts"),
        ("model: {height: 5}", "model.height must be a multiple of model.patch, 2; 5 is not"),
        ("model: {frames: 20}", "model.frames must be a multiple of model.chunk, 3; 20 is not"),
        ("model: {head_dim: 13}", "model.head_dim must be a multiple of 2, for rotations; 13 is not"),
        ("model: {text: components}", "neither model.components nor model.checkpoint is set"),
        ("run: {batch: 6, accumulate: 4}", "run.batch must be a multiple of run.accumulate, 4; 6 is not"),
        (
            "teacher: {batch: 5}\nrun: {accumulate: 2}",
            "teacher.batch must be a multiple of run.accumulate, 2",
        ),
        ("teacher: {steps: 3, minutes: 2}", "teacher has both steps and minutes"),
        ("dmd: {frames: 22}", "dmd.frames must be a multiple of model.chunk, 3; 22 is not"),
        ("dmd: {min_step: 900, max_step: 100}", "dmd.min_step must not be above dmd.max_step"),
        ("long: {overlap: 21}", "long.overlap must be less than long.clip_frames, 21"),
        ("- 1", "is a list, and settings are lines like"),
        ("", "is empty"),
        ("model: [", "is not a YAML file"),
    ],
)
def test_a_bad_configuration_is_one_sentence_that_names_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    message = str(caught.value)
    assert said in message and message.startswith(str(path)) and "\n" not in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.layers", "--set is written like model.layers=6"),
        ("=3", "--set is written like model.layers=6"),
        ("model..layers=3", "--set is written like model.layers=6"),
        ("model.layers=x", "--set model.layers=x: model.layers must be a whole number"),
        ("model.layers=[", "has no value that can be read"),
        ("model.layers=!!python/object:os.system {}", "uses the tag"),
        ("model.lairs=3", "did you mean model.layers?"),
    ],
)
def test_a_bad_change_is_one_sentence(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        load_config("tiny", [change])
    assert said in str(caught.value)


def test_changes_go_over_the_file_in_order() -> None:
    config = load_config("tiny", ["model.layers=3", "model.layers=4", "dmd.critic.betas=[0, 0.5]", "teacher.ema=null"])
    assert (config.model.layers, config.dmd.critic.betas, config.teacher.ema) == (4, (0.0, 0.5), None)
    assert config.model.heads == load_config("tiny").model.heads


def test_a_budget_of_the_other_kind_is_instead_of_the_one_in_the_file() -> None:
    teacher = load_config("tiny", ["teacher.minutes=3"]).teacher
    assert (teacher.steps, teacher.minutes) == (None, 3.0)


def test_a_file_goes_before_a_name_and_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"one of .*pocket-cpu.*tiny.*wan-1\.3b"):
        load_config("small")


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIGS.glob("*.yaml")))
def test_shipped_configurations_are_good_and_have_budgets_for_their_stages(name: str) -> None:
    config = load_config(name)
    for stage in config.run.stages or STAGES:
        section = config.stage(stage)
        assert (section.steps is None) != (section.minutes is None), stage
    assert build(Config, to_plain(config), "back") == config


def test_the_gpu_configuration_keeps_every_stage_to_ten_minutes() -> None:
    config = load_config("pocket-gpu")
    assert all((config.stage(name).minutes or 99) <= 10 for name in config.run.stages or STAGES)


def test_the_wan_configuration_has_the_published_hyper_parameters() -> None:
    config = load_config("wan-1.3b")
    dmd = config.dmd
    assert (config.batch("dmd"), dmd.steps, dmd.lr, dmd.critic.lr, dmd.betas) == (64, 400, 2e-6, 4e-7, (0.0, 0.999))
    assert (dmd.generator_every, dmd.clip, dmd.critic.clip, dmd.weight_decay) == (5, 10, 10, 0.01)
    assert (dmd.ema, dmd.ema_start, dmd.guidance, dmd.min_step, dmd.max_step) == (0.99, 200, 4, 20, 980)
    assert (config.long.steps, config.long.lr, config.long.critic.lr, config.long.ema) == (3000, 1e-5, 2e-6, None)


def test_the_reference_in_the_documentation_is_that_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "train.md").read_text()
    assert reference() in page


def test_schedules_are_what_they_say() -> None:
    constant = Optimization(warmup_steps=4)
    assert [rate_factor(constant, step, 0.9) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    line = dataclasses.replace(constant, warmup_steps=0, schedule="linear-decay", decay_from=0.2)
    factors = [rate_factor(line, 5, progress) for progress in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    assert factors == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0])
    wave = dataclasses.replace(line, schedule="cosine-decay", decay_from=0.0)
    assert [rate_factor(wave, 5, p) for p in (0, 1 / 3, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])
    both = dataclasses.replace(line, warmup_steps=10)
    assert rate_factor(both, 4, 0.6) == pytest.approx(0.25)
