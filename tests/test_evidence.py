"""The study is what its page says, and its command runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from benchmarks.evidence import STUDY, Part, available, read_study

from longtake.facts import ModelFacts
from longtake.memory import MEMORIES, parse_memory
from longtake.pocket.first import words as first_words
from longtake.pocket.world import words as world_words
from tests.conftest import warm

ROOT = Path(__file__).parent.parent


def parts() -> dict[str, Part]:
    return {part.name: part for part in read_study(STUDY)[1]}


def known(part: Part) -> dict[str, str]:
    return {label: spec for label, spec in part.memories.items() if spec.partition(":")[0] in MEMORIES}


def test_memories_of_the_study() -> None:
    for part in parts().values():
        policies = {label: parse_memory(spec) for label, spec in known(part).items()}
        assert part.baseline in policies and len(policies) >= 5
        assert len(set(policies.values())) == len(policies), "no memory is there twice"
        missing = {spec for spec in part.memories.values() if spec.partition(":")[0] not in MEMORIES}
        assert all(spec.startswith(("deep-forcing", "deep-sink")) for spec in missing)


@pytest.mark.parametrize("name", ["equal", "memrope"])
def test_equal_means_equal(name: str) -> None:
    assert {label: parse_memory(spec).capacity(3) for label, spec in known(parts()[name]).items()} == dict.fromkeys(
        known(parts()[name]), 12
    )


def test_prompts_are_read_by_both_worlds() -> None:
    lines = read_study(STUDY)[0].read_text().splitlines()
    assert len(lines) == len(set(lines)) == 12
    for line in lines:
        for words in (first_words, world_words):
            assert not words.unknown_words(line) and not words.words_too_many(line)


def test_what_cannot_be_run_is_named() -> None:
    part = Part("p", "", {"a": "memrope", "b": "elephant:legs=4", "c": "echo"}, "a", 1, 1, "2s")
    good, missing = available(part, ModelFacts.read("pocket"), weights=True)
    assert list(good) == ["a", "c"] and "no memory 'elephant'" in missing[0]


def evidence(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return warm.run("benchmarks.evidence", *arguments, cwd=ROOT)


def test_a_small_study(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red ball rolls over a meadow\na blue ball\n")
    (tmp_path / "study.yaml").write_text(
        "prompts: prompts.txt\nparts:\n  mine:\n    about: A try.\n    prompts: 1\n    seeds: 1\n    seconds: 1s,2s\n"
        "    baseline: plain (6)\n    memories:\n      plain (6): sliding:window=6\n      later: elephant\n"
    )
    options = ("--study", tmp_path / "study.yaml", "--model", tiny_folder, "--out", tmp_path / "out", "--jobs", "1")
    made = evidence(*options, "--full", "--publish", tmp_path / "published")
    assert made.returncode == 0, made.stderr
    assert "mine: later is left out, as this version has no memory 'elephant'." in made.stderr
    assert "$ longtake compare --memories 'plain (6)=sliding:window=6' --baseline 'plain (6)'" in made.stderr
    published = {path.name for path in (tmp_path / "published" / "mine").iterdir()}
    assert published == {"report.md", "report.json", "curves", "results"}
    assert list((tmp_path / "published").rglob("*.jpg")) and not list((tmp_path / "published").rglob("*.mp4"))


def test_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("parts:\n  mine:\n    about: x\n")
    (tmp_path / "prompts.txt").write_text("a\n")
    for arguments, says in (
        (("--part", "x"), "The study has no part 'x'; it has small, native,"),
        (("--study", tmp_path / "nowhere.yaml"), "There is no file"),
        (("--study", tmp_path / "study.yaml"), "the part mine must have about, baseline,"),
    ):
        made = evidence(*arguments)
        assert made.returncode == 2 and says in " ".join(made.stderr.split()) and "Traceback" not in made.stderr
