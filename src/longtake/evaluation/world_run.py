"""Runs the memory benchmark of the pocket world on a model, and writes what it scored.

    python -m longtake.evaluation.world_run --memory memrope --count 8 --out memrope.json
    python -m longtake.evaluation.world_run --truth --out truth.json       # what the readers allow
    python -m longtake.evaluation.world_run --strangers --out chance.json  # what no memory at all scores

Every task is written when it is done, and the same command goes on with the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.evaluation.world import Generate

_USUAL = (
    *("away-2", "away-5", "away-15", "away-60", "occlusion", "aside-5", "aside-15"),
    *("elsewhere-2", "elsewhere-5", "elsewhere-15", "elsewhere-60", "identity-60", "changes", "motion"),
)
"""Without ``--only``: what takes a minute of video or less."""
FORMAT = 1


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By task and score: the mean over the tasks of that name, and of how many; what cannot be told is left out."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for score, value in row["scores"].items():
            if value is not None and not math.isnan(value):
                values.setdefault(row["task"], {}).setdefault(score, []).append(value)
    return {
        task: {score: {"mean": sum(v) / len(v), "count": len(v)} for score, v in scores.items()}
        for task, scores in values.items()
    }


def run(
    generate: Generate,
    about: Mapping[str, Any],
    only: Sequence[str],
    count: int,
    seed: int,
    out: Path,
    level: str = "plain",
) -> dict[str, Any]:
    """Runs tasks one after the other, and writes the file after each; tasks that it holds already are not run again.

    Raises:
        ValueError: if the file is of other settings, or a task is none.
    """
    from longtake.evaluation.world import make_tasks, run_task

    about = {"format": FORMAT, **about, "seed": seed, "level": level}
    rows = _begun(out, about)
    done = {(row["task"], row["number"]) for row in rows}
    for task in make_tasks(count, seed, only, level):
        if (task.name, task.number) in done:
            continue
        scores = run_task(task, generate)
        known = {name: None if math.isnan(value) else round(value, 6) for name, value in scores.items()}
        rows.append({"task": task.name, "number": task.number, "away": task.away, "scores": known})
        found = {**about, "means": summarise(rows), "rows": rows}
        partial = out.with_name(out.name + ".part")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(partial, out)
        print(f"{task.name} {task.number}: {_words(known)}", flush=True)
    return {**about, "means": summarise(rows), "rows": rows}


def _begun(out: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    try:
        found = json.loads(out.read_text())
        rows: list[dict[str, Any]] = found["rows"]
        same = {key: found.get(key) for key in about} == dict(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{out} is no file of this benchmark: choose another --out.") from None
    if not same:
        raise ValueError(f"{out} is of another model, memory, seed or level: choose another --out.")
    return rows


def _words(scores: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items() if value is not None)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m longtake.evaluation.world_run", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="the file of scores, .json")
    parser.add_argument("--model", default="pocket", help="a model of the pocket world, a name or a folder")
    parser.add_argument("--memory", default="memrope", help="what is remembered, see longtake memories")
    parser.add_argument("--truth", action="store_true", help="no model: score rendered video")
    parser.add_argument("--strangers", action="store_true", help="no model: score rendered video without a memory")
    parser.add_argument("--only", help="tasks, separated by commas, or all; by default those of up to a minute")
    parser.add_argument(
        "--level", default="plain", help="of the scenes: calm for a model that was trained on calm ones"
    )
    parser.add_argument("--count", type=int, default=4, help="tasks of each name, 1 to 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks and of all noise, 0 to 1000000")
    parser.add_argument("--size", type=int, default=128, help="of rendered pictures, 32 to 512")
    parser.add_argument("--device", default="cpu", help="of the model")
    args = parser.parse_args()
    for name, low, high in (("count", 1, 1000), ("seed", 0, 1_000_000), ("size", 32, 512)):
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} must be from {low} to {high}, not {getattr(args, name)}.")
    if args.out.suffix != ".json" or not args.out.parent.is_dir():
        parser.error(f"--out must be a .json file in a folder that is there, not {args.out}.")
    if args.truth and args.strangers:
        parser.error("Give --truth or --strangers, not both.")
    from longtake.pocket.world.tasks import tasks_of

    try:
        there = tasks_of(args.level)
        usual = tuple(name for name in _USUAL if name in there)
        only = there if args.only == "all" else tuple(args.only.split(",")) if args.only else usual
        for name in only:
            if name not in there:
                parser.error(f"A task of level {args.level} is one of {', '.join(there)}, not {name}.")
        generate, about = _maker(args)
        run(generate, about, only, args.count, args.seed, args.out, args.level)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{args.out} cannot be written: {error.strerror or error}.")


def _maker(args: argparse.Namespace) -> tuple[Generate, dict[str, Any]]:
    from longtake.evaluation.world_makers import Rendered, Strangers, Takes

    if args.truth or args.strangers:
        kind = Rendered if args.truth else Strangers
        return kind(args.size), {"model": "truth" if args.truth else "strangers", "size": args.size}
    from longtake import load
    from longtake.memory import parse_memory

    policy = parse_memory(args.memory)
    pipe = load(args.model, device=args.device)
    return Takes(pipe, policy, args.seed), {"model": args.model, "memory": policy.spec()}


if __name__ == "__main__":
    main()
