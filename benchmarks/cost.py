"""What a second of video costs, by stage, early and late in a take.

    python -m benchmarks.cost --memories memrope,sliding --dtype bfloat16,float32

For every memory and dtype a take runs to each of the chunks asked for; around each of them every stage is timed, see
``benchmarks.stages``. A cost that does not grow shows as equal rows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, machine, resident_mb, write_results
from benchmarks.stages import PROMPT, STAGES, clock, spread, timed_chunk


@dataclass
class Row:
    """One take at one length. Times in milliseconds per chunk: [median, half the range of the middle half]."""

    memory: str
    dtype: str
    chunk: int
    measured: int
    stages: dict[str, tuple[float, float]]
    total_ms: float
    frames_per_second: float
    real_time: float
    rss_mb: float


def measure(pipe: Any, memory: str, at: list[int], window: int) -> list[Row]:
    """Runs one take and measures ``window`` chunks around each chunk of ``at`` (so that its middle is there)."""
    from longtake.video import VideoWriter

    take = pipe.start(PROMPT, memory)
    fps, frames_per_chunk = pipe.config.fps, take.size * take.decoder.temporal
    now = clock(take.memory.device)
    rows: list[Row] = []
    windows = [(max(1, chunk - window // 2), chunk) for chunk in sorted(at)]
    with tempfile.TemporaryDirectory() as folder:
        writer = VideoWriter(Path(folder) / "cost.mp4", width=take.width, height=take.height, fps=fps)
        with writer:
            for first, chunk in windows:
                times: list[dict[str, float]] = []
                while take.index < first + window:
                    made = timed_chunk(take, writer, now)
                    if take.index > first:
                        times.append(made)
                total = statistics.median(sum(row.values()) for row in times)
                speed = 1000 * frames_per_chunk / total
                rows.append(
                    Row(
                        memory,
                        str(pipe.transformer.dtype).removeprefix("torch."),
                        chunk,
                        len(times),
                        {name: spread([row[name] for row in times]) for name in STAGES},
                        round(total, 2),
                        round(speed, 2),
                        round(speed / fps, 3),
                        round(resident_mb(), 1),
                    )
                )
    return rows


def table(rows: list[Row]) -> Any:
    """The rows as a rich table."""
    from rich.table import Table

    made = Table(title="Milliseconds per chunk: median ± half the middle half's range")
    for name in ("memory", "dtype", "chunk", *STAGES, "all", "frames/s", "x real time", "RAM MB"):
        made.add_column("update" if name == "memory" and made.columns else name, justify="right", no_wrap=True)
    for row in rows:
        stages = [f"{row.stages[name][0]:.1f} ±{row.stages[name][1]:.1f}" for name in STAGES]
        ends = [f"{row.total_ms:.1f}", f"{row.frames_per_second:.1f}", f"{row.real_time:.2f}", f"{row.rss_mb:.0f}"]
        made.add_row(row.memory, row.dtype, str(row.chunk), *stages, *ends)
    return made


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m benchmarks.cost``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from longtake.memory import MEMORIES, parse_memory

    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a named model or a diffusers folder")
    parser.add_argument("--memories", default=";".join(MEMORIES), help="separated by ; (or , without settings)")
    parser.add_argument("--chunks", default="20,200,2000", help="where to measure")
    parser.add_argument("--dtype", default="float32,bfloat16", help="float32, bfloat16 or both, separated by commas")
    parser.add_argument("--window", type=int, default=30, help="chunks measured around each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; one per core by default")
    parser.add_argument("--json", type=Path, default=RESULTS / "cost.json", help="where the numbers go")
    parser.add_argument("--quick", action="store_true", help="chunks 5 and 10, 4 measured: to see that it works")
    args = parser.parse_args(arguments)
    try:
        memories = args.memories.split(";" if ";" in args.memories or ":" in args.memories else ",")
        for memory in memories:
            parse_memory(memory)
        at, window = ([5, 10], 4) if args.quick else ([int(c) for c in args.chunks.split(",")], args.window)
        dtypes = args.dtype.split(",")
        if min(at) < 1 or window < 1:
            raise ValueError("--chunks and --window must be whole numbers from 1 on.")
        if not set(dtypes) <= {"float32", "bfloat16"}:
            raise ValueError(f"--dtype must be float32, bfloat16 or both, not {args.dtype}.")
        args.json.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    import torch
    from rich.console import Console

    from longtake import load
    from longtake.quiet import quieten_libraries

    quieten_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(width=None if Console().is_terminal else 160)
    info = {**machine(torch.get_num_threads()), "model": args.model, "device": args.device}
    rows: list[Row] = []
    for dtype in dtypes:
        pipe = load(args.model, getattr(torch, dtype), args.device)
        measure(pipe, memories[0], [2], 2)  # warm-up
        for memory in memories:
            console.print(f"{memory}, {dtype} ...", style="dim")
            rows += measure(pipe, memory, at, window)
            # after every take: a long run that is stopped has not run for nothing
            write_results(args.json, info, [asdict(row) for row in rows])
    console.print(table(rows))
    console.print(f"Written to {args.json}")


if __name__ == "__main__":
    main()
