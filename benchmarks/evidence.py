"""The study in ``docs/evidence``: every part of its definition is one ``longtake compare``.

    python -m benchmarks.evidence            # the small part, minutes on two cores
    python -m benchmarks.evidence --full     # all other parts, many hours; stop it and go on as you like

Reports go to ``runs/evidence/PART/report.html``; ``--publish docs/evidence`` copies them, without videos.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.comparison.grammar import parse_lengths, parse_memories
from longtake.facts import ModelFacts
from longtake.memory import MEMORIES, parse_memory
from longtake.promptfiles import read_lines
from longtake.yamlfile import Keys, read_yaml

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "docs" / "evidence" / "study.yaml"
SMALL = "small"
_KEYS = {"about", "prompts", "seeds", "seconds", "baseline", "memories"}


@dataclass(frozen=True)
class Part:
    """One comparison: memories by name, and of how much it is made."""

    name: str
    about: str
    memories: Mapping[str, str]
    baseline: str
    prompts: int
    seeds: int
    seconds: str


def read_study(path: Path) -> tuple[Path, list[Part]]:
    """The file of prompts, and the parts.

    Raises:
        ValueError: in one sentence, if the definition is not one.
    """
    data = read_yaml(path)
    prompts = path.parent / (Keys(data, path).text("prompts") or "prompts.txt")
    parts = []
    for name, content in Keys(data, path).group("parts").items():
        keys = Keys(content if isinstance(content, dict) else {}, path)
        if set(keys.data) != _KEYS:
            raise ValueError(f"{path}: the part {name} must have {', '.join(sorted(_KEYS))}, and nothing else.")
        memories = {label: str(spec) for label, spec in keys.group("memories").items()}
        part = Part(
            name,
            keys.text("about") or "",
            memories,
            keys.text("baseline") or "",
            keys.whole("prompts", 1, 1, len(read_lines(prompts))),
            keys.whole("seeds", 1, 1, 100),
            str(keys.value("seconds")),
        )
        parse_lengths(part.seconds)
        parse_memories([f"{label}={spec}" for label, spec in memories.items()])
        if part.baseline not in memories:
            raise ValueError(f"{path}: the baseline {part.baseline!r} of {name} is none of its memories.")
        parts.append(part)
    return prompts, parts


def available(part: Part, facts: ModelFacts, weights: bool) -> tuple[dict[str, str], list[str]]:
    """The memories of a part that can be run, and a sentence for each that cannot."""
    good: dict[str, str] = {}
    missing = []
    for label, spec in part.memories.items():
        name = spec.partition(":")[0]
        if name not in MEMORIES:
            missing.append(f"{part.name}: {label} is left out, as this version has no memory {name!r}.")
        elif parse_memory(spec, facts.chunk).learned and not (weights or facts.may_have_memory):
            missing.append(f"{part.name}: {label} is left out, as the model {facts.name} has no weights for it.")
        else:
            good[label] = spec
    return good, missing


def command(part: Part, memories: Mapping[str, str], prompts: Path, folder: Path, more: Sequence[str]) -> list[str]:
    """What runs a part, as words behind ``longtake``."""
    listed = ";".join(f"{label}={spec}" for label, spec in memories.items())
    return [
        "compare",
        *("--memories", listed, "--baseline", part.baseline, "--prompts", str(prompts)),
        *("--seconds", part.seconds, "--seeds", str(part.seeds), "--out", str(folder / part.name), *more),
    ]


def publish(folder: Path, part: str, target: Path) -> None:
    """Copies a report with the pictures that it links, and the tables as JSON."""
    source, made = folder / part, target / part
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name in ("report.md", "report.json"):
        shutil.copy(source / name, made / name)
    text = (source / "report.md").read_text(encoding="utf-8")
    for linked in re.findall(r"!\[[^\n]*?\]\(([^)\s]+)\)", text):
        (made / linked).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / linked, made / linked)


def run(parts: Sequence[Part], prompts: Path, args: Any) -> int:
    """Runs parts one after the other; returns the worst exit code."""
    weights = bool(args.memory_weights)
    facts = ModelFacts.read(args.model)
    more = ["--model", args.model, "--jobs", str(args.jobs), "--threads", "1", "--sheets", "6"]
    more += ["--memory-weights", str(args.memory_weights)] if weights else []
    worst = 0
    args.out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        memories, missing = available(part, facts, weights)
        print("\n".join([f"{part.name}: {part.about}", *missing]), file=sys.stderr, flush=True)
        if part.baseline not in memories:
            print(f"{part.name}: its baseline is left out, and so all of it.", file=sys.stderr)
            continue
        learned = any(parse_memory(spec, facts.chunk).learned for spec in memories.values())
        options = more if learned or not weights else more[:-2]
        chosen = args.out / f"{part.name}.prompts.txt"
        chosen.write_text("\n".join(read_lines(prompts)[: part.prompts]) + "\n", encoding="utf-8")
        words = command(part, memories, chosen, args.out, options)
        print(f"$ {shlex.join(['longtake', *words])}", file=sys.stderr, flush=True)
        code = subprocess.run([sys.executable, "-m", "longtake.cli", *words]).returncode
        if code >= 128 or code < 0:
            return code
        worst = max(worst, code)
        if args.publish is not None and code in (0, 3):
            publish(args.out, part.name, args.publish)
    return worst


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks.evidence``."""
    from longtake.cli_generate import usable_cores

    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all parts but the small one")
    parser.add_argument("--part", action="append", help="only this part; may be given several times")
    parser.add_argument("--study", type=Path, default=STUDY, help="the definition")
    parser.add_argument("--model", default="pocket", help="a named model or a diffusers folder")
    parser.add_argument("--memory-weights", type=Path, help="weights of Echo's memory; the model's own else")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="videos at a time; one per core by default")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--publish", type=Path, help="copy reports and their pictures into this folder")
    parser.add_argument("--list", action="store_true", help="say what the parts are, and make nothing")
    args = parser.parse_args(arguments)
    try:
        prompts, parts = read_study(args.study)
        names = [part.name for part in parts]
        if unknown := [name for name in args.part or [] if name not in names]:
            raise ValueError(f"The study has no part {unknown[0]!r}; it has {', '.join(names)}.")
        if args.list:
            for part in parts:
                videos = len(part.memories) * part.prompts * part.seeds
                print(f"{part.name}: {videos} videos of {parse_lengths(part.seconds)[-1]:g} s. {part.about}")
            return 0
        wanted = args.part or [name for name in names if (name != SMALL) == args.full]
        return run([part for part in parts if part.name in wanted], prompts, args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
