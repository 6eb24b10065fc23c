"""Two files of results side by side: what is faster, by how much, and whether that is more than the spread.

    python -m benchmarks.compare before.json after.json

Rows belong together if they say the same of what was measured (model, size, memory, dtype, ...). A ratio above 1 means
that the second file is faster. It is marked where the two differ by less than their spreads together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# What says which measurement a row is; benchmarks differ in which of these they have.
KEYS = ("config", "size", "memory", "dtype", "device", "decoder", "way", "chunk", "settings")
ASIDE = ("load", "cpus")  # of the machine, what may differ without a word


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine and the rows of a file of results.

    Raises:
        ValueError: if it is none, in one sentence.
    """
    try:
        data = json.loads(path.read_text())
        machine, rows = data["machine"], data["rows"]
        if not all(isinstance(row["stages"], dict) for row in rows):
            raise TypeError
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} has no results with stages in it, as benchmarks.chunk and benchmarks.cost write."
        ) from None
    return machine, rows


def identity(row: dict[str, Any], keys: tuple[str, ...] = KEYS) -> str:
    """What a row is of."""
    return json.dumps({key: row[key] for key in keys if key in row}, sort_keys=True)


def pairs(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of the same; of the same but for how it was done (``way``, ``settings``), if there are none.

    Raises:
        ValueError: if no rows belong together.
    """
    for keys in (KEYS, tuple(key for key in KEYS if key not in ("way", "settings"))):
        found = {identity(row, keys): row for row in reversed(other)}
        made = [(row, found[identity(row, keys)]) for row in one if identity(row, keys) in found]
        if made:
            return made
    raise ValueError("The two files have no rows in common: they measured other things.")


def timings(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Milliseconds by name, with spreads: the stages, and all together."""
    whole = row.get("chunk_ms", (row.get("total_ms"), 0.0))
    return {**{name: tuple(value) for name, value in row["stages"].items()}, "all": tuple(whole)}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m benchmarks.compare``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    args = parser.parse_args(arguments)
    try:
        (first, one), (second, other) = read(args.one), read(args.other)
        both = pairs(one, other)
    except ValueError as error:
        parser.error(str(error))
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160)
    for row, same in both:
        title = ", ".join(str(row[key]) for key in KEYS if key in row and key != "settings")
        if row.get("way") != same.get("way"):
            title += f" against {same['way']}"
        made = Table(title=title)
        for name in ("ms per chunk", args.one.name, args.other.name, "ratio"):
            made.add_column(name, justify="right", no_wrap=True)
        after = timings(same)
        for name, (middle, half) in timings(row).items():
            if name not in after or not middle or not after[name][0]:
                continue
            ratio = f"{middle / after[name][0]:.2f}"
            unsure = abs(middle - after[name][0]) <= half + after[name][1]
            cells = (f"{a:.1f} ±{b:.1f}" for a, b in ((middle, half), after[name]))
            made.add_row(name, *cells, f"{ratio} (within the spread)" if unsure else ratio)
        console.print(made)
    for name in sorted({*first, *second} - {*ASIDE}):
        if first.get(name) != second.get(name):
            console.print(f"Not the same {name}: {first.get(name)} and {second.get(name)}.", highlight=False)


if __name__ == "__main__":
    main()
