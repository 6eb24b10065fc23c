"""``longtake compare``, the first half: from what was typed to a comparison, or to a refusal. Loads no torch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.checkpoints.choice import place_of
from longtake.checkpoints.memory_file import memory_path
from longtake.checkpoints.sources import parse_lora
from longtake.cli_compare_job import with_options
from longtake.cli_prepare import Job as Planned
from longtake.cli_prepare import Request, asked_for, check_words, prepare
from longtake.cli_progress import warn
from longtake.comparison.definition import Comparison, read_definition
from longtake.comparison.files import sha256_of
from longtake.comparison.grammar import Entry, parse_lengths, parse_memories, parse_seeds
from longtake.evaluation.features import check_features
from longtake.evaluation.settings import Boundaries, Settings
from longtake.facts import ModelFacts
from longtake.memory import parse_memory
from longtake.plan import count, format_bytes
from longtake.promptfiles import read_prompts
from longtake.prompts import parse_duration, parse_script

LARGE = 10**8  # bytes of a snapshot that is not kept for a finished video


@dataclass(frozen=True)
class CompareRequest:
    """What was typed; ``options`` are those of ``longtake generate``, by the names of its request."""

    out: Path
    memories: tuple[str, ...] = ()
    prompts: Path | None = None
    seconds: str = "60"
    seeds: str = "1"
    baseline: str | None = None
    weights: tuple[str, ...] = ()
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    window: str = "2s"
    features: str = "fixed"
    jobs: int = 1
    ray: str | None = None
    sheets: int | None = None
    report_only: bool = False
    quiet: bool = False


def define(request: CompareRequest, folder: Path) -> Comparison:
    """What was asked for, with everything settled that can be settled without the model.

    Raises:
        ValueError, OSError: in one sentence, for everything that cannot work.
    """
    entries = parse_memories(request.memories)
    for entry in entries:
        parse_memory(entry.memory, 1)
    lengths, seeds = parse_lengths(request.seconds), parse_seeds(request.seeds)
    if request.prompts is None:
        raise ValueError("Which prompts? --prompts takes a file with one per line.")
    scripts = list(dict.fromkeys(prompt for prompt in read_prompts(request.prompts) if prompt.strip()))
    weights = _weights(request.weights, entries)
    check_features(request.features)

    def planned(entry: Entry, script: str) -> Planned:
        given = weights.get(entry.label)
        bare = Request(script, folder / "none.mp4", f"{lengths[-1]:.3f}", memory=entry.memory)
        return prepare(with_options(bare, request.model, given, request.options))

    plans = [planned(entry, scripts[0]) for entry in entries]
    first = plans[0]
    facts = ModelFacts.read(asked_for(first.request, {}))
    warnings = [text for plan in plans for text in plan.warnings]
    for script in scripts[1:]:
        warnings += check_words(parse_script(script, lengths[-1]), facts)
    size = facts.chunk * facts.temporal
    comparison = Comparison(
        model=place_of(request.model or "pocket"),
        signature=facts.signature(),
        entries=tuple(entries),
        baseline=chosen_baseline(request.baseline, entries),
        scripts=tuple(scripts),
        seeds=tuple(seeds),
        lengths=tuple(lengths),
        height=first.plan.height,
        width=first.plan.width,
        fps=facts.fps,
        chunk=max(1, facts.chunk // facts.patch[0]),
        settings=Settings(
            window=parse_duration(request.window),
            chunk=Boundaries(size - facts.temporal + 1, size),
            decoder=Boundaries(1, facts.temporal),
            features=request.features,
        ),
        options=request.options,
        weights=weights,
        weights_sha256=_fingerprints(entries, weights, facts),
    )
    before = read_definition(folder)
    if before is not None:
        comparison.check_continues(before, folder)
    _check_room(comparison, plans, folder)
    for warning in dict.fromkeys(warnings):
        warn(warning)
    return comparison


def absolute_lora(text: str) -> str:
    with contextlib.suppress(ValueError):  # which is said later
        lora = parse_lora(text)
        return text.replace(str(lora.path), str(lora.path.expanduser().absolute()), 1)
    return text


def chosen_baseline(name: str | None, entries: Sequence[Entry]) -> str:
    labels = [entry.label for entry in entries]
    if name is None:
        return labels[0]
    if name not in labels:
        raise ValueError(f"--baseline must be one of the memories, {', '.join(labels)}; not {name!r}.")
    return name


def _weights(given: Sequence[str], entries: Sequence[Entry]) -> dict[str, str]:
    """Of every learned memory, by label, as far as they are given."""
    learned = [entry.label for entry in entries if parse_memory(entry.memory, 1).learned]
    found: dict[str, str] = {}
    general: str | None = None
    for text in given:
        label, equals, path = text.partition("=")
        if equals and label in [entry.label for entry in entries]:
            if label not in learned:
                raise ValueError(f"--memory-weights are for learned memories, and {label!r} is none.")
            found[label] = str(Path(path).expanduser().absolute())
        elif general is not None:
            raise ValueError(
                f"--memory-weights has {text!r} after {general!r}: say NAME=PATH for the memory that it is for."
            )
        else:
            general = text
    if general is not None:
        if not learned:
            raise ValueError("--memory-weights are for learned memories (echo), and there is none in --memories.")
        found = {label: str(Path(general).expanduser().absolute()) for label in learned} | found
    return found


def _fingerprints(entries: Sequence[Entry], weights: dict[str, str], facts: ModelFacts) -> dict[str, str]:
    """Hashes of memory weights by label, so that videos of older ones are not taken for those of new ones."""
    found: dict[str, str] = {}
    for entry in entries:
        if parse_memory(entry.memory, 1).learned:
            given = weights.get(entry.label)
            path = facts.memory_file if given is None else memory_path(Path(given))
            if path is not None:
                found[entry.label] = sha256_of([path])
    return found


def _check_room(comparison: Comparison, plans: Sequence[Planned], folder: Path) -> None:
    """Refuses what the disk has no room for in the end."""
    videos = len(comparison.scripts) * len(comparison.seeds)
    needed = sum(
        videos * (plan.plan.video_bytes + (plan.plan.snapshot_bytes if plan.plan.snapshot_bytes <= LARGE else 0))
        for plan in plans
    )
    there = sum(path.stat().st_size for path in (folder / "videos").rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise ValueError(
            f"{count(videos * len(plans), 'video')} need about {format_bytes(needed)} on the disk of {folder}, where "
            f"{format_bytes(free)} are free: ask for fewer --seconds, or choose another --out."
        )
