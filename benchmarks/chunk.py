"""How fast chunks are made, stage by stage and end to end, and how far that is from what the arithmetic allows.

    python -m benchmarks.chunk --config wan-1.3b --device cuda --json h200.json    # random weights, no download
    python -m benchmarks.chunk --config pocket --chunks 40 --naive                 # and the published way

One take runs until its memory is full and everything is warm. Then ``--chunks`` chunks are made as they are for a
file, nothing waiting for anything (frames/s, and how often the host waits for a GPU), and up to 20 more stage by stage,
with a wait for the GPU between stages (so that these times add up to more). ``share`` is what the operations that the
configuration needs (``longtake.operations``) would take at the rate of this machine's own matrix products, measured in
the same run, by the time it took; where the vendor states a peak, the share of that as well.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, peak_bytes, settle, stated_peak, write_results
from benchmarks.stages import PROMPT, STAGES, clock, spread, timed_chunk
from longtake.speed import ATTENTIONS, COLLAPSE, COMPILATIONS, FORWARD_PATHS

STAGED = 20
DECODERS = ("wan", "tiny", "none")


@dataclass
class Result:
    """What was measured. Times in milliseconds per chunk: [median, half the range of the middle half].

    Attributes:
        way: how the transformer was run: ``fast``, ``compiled``, ``plain`` or ``naive``.
        operations: that a chunk needs; ``rate``: operations per second of the machine's own products in this dtype.
        share: of that rate, end to end; ``stated_share``: of the vendor's peak, if known.
        syncs: how often the host waited for a GPU per chunk, the frames' way to the host included; None on a CPU.
        peak_bytes: of the GPU, or of this process.
    """

    config: str
    way: str
    size: str
    memory: str
    dtype: str
    device: str
    decoder: str
    settings: dict[str, Any]
    measured: int
    stages: dict[str, tuple[float, float]]
    chunk_ms: tuple[float, float]
    frames_per_second: float
    real_time: float
    operations: float
    rate: float
    share: float
    stated_share: float | None
    syncs: float | None
    peak_bytes: int


class NoDecoder:
    """Stands for a decoder where only latents are wanted."""

    def __init__(self, decoder: Any) -> None:
        self.temporal, self.frames_for, self._shown = decoder.temporal, decoder.frames_for, None

    def decode(self, latents: Any) -> Any:
        """No pictures, but for their number: ``[frames, 3, 2, 2]``, always the same ones."""
        if self._shown is None:
            self._shown = latents.new_zeros(latents.shape[2] * self.temporal, 3, 2, 2)
        return self._shown


class NoWriter:
    """Takes frames, and does nothing with them."""

    def write(self, frames: Any) -> None:
        """Nothing."""


def product_rate(now: Callable[[], float], device: str, dtype: Any, tokens: int, width: int, wide: int) -> float:
    """Operations per second that a feed-forward layer's own product reaches here: the fastest of several runs."""
    import torch

    x, weight = (torch.randn(shape, device=device, dtype=dtype) for shape in ((tokens, width), (width, wide)))
    best = float("inf")
    for _ in range(10):
        repeats = 20 if device.startswith("cuda") else 3
        begin = now()
        for _ in range(repeats):
            x @ weight
        best = min(best, (now() - begin) / repeats)
    return 2 * tokens * width * wide / best


def needed_operations(pipe: Any, take: Any, decoder: str) -> float:
    """What a chunk of a full memory needs: all denoising steps, the commit, and the decoder."""
    from longtake.operations import decoder_operations, forward_operations

    tokens, text = take.memory.tokens, pipe.tokenizer.model_max_length
    sizes = (pipe.transformer.config, take.memory.chunk * tokens, take.memory.capacity * tokens, min(512, text))
    made = len(take.schedule) * forward_operations(*sizes).total + forward_operations(*sizes, commit=True).total
    if decoder == "tiny":
        made += pipe.tiny_decoder.operations(take.height, take.width, take.size)
    elif decoder == "wan":
        made += decoder_operations(pipe.vae.config, take.height, take.width, take.size)
    return made


def until_full(take: Any) -> int:
    """Chunks after which a take's memory is full, and one more."""
    return -(-take.memory.capacity // take.memory.chunk) + 2


@contextlib.contextmanager
def counted_syncs(device: str) -> Any:
    """A list that the waits of the host for a GPU are put into."""
    import torch

    if not device.startswith("cuda"):
        yield []
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode(before)


def measure(pipe: Any, take: Any, args: argparse.Namespace, rate: float, naive: bool = False) -> Result:
    """Runs a take that has not begun."""
    import torch

    from longtake.video import VideoWriter

    cuda = args.device.startswith("cuda")
    now = clock(args.device, args.own_time)
    arrived = now if args.own_time else time.perf_counter  # the frames are on the host then: no need to wait
    fps, per_chunk = pipe.config.fps, take.size * take.decoder.temporal
    decoder = "wan" if naive and args.decoder == "tiny" else args.decoder
    if decoder == "none":
        take.decoder = NoDecoder(take.decoder)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        writer: Any = NoWriter()
        if decoder != "none":
            path = Path(folder) / "chunk.mp4"
            writer = stack.enter_context(VideoWriter(path, width=take.width, height=take.height, fps=fps))
        for _ in range(until_full(take)):
            writer.write(take.next_chunk().to_uint8())
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        marks = [now()]
        with counted_syncs(args.device) as syncs:
            for _ in range(args.chunks):
                writer.write(take.next_chunk().to_uint8())
                marks.append(arrived())
        count = len([w for w in syncs if "synchroniz" in str(w.message)])
        whole = now() - marks[0]
        staged = [timed_chunk(take, writer, now) for _ in range(max(2, min(STAGED, args.chunks)))]
    each = [1000 * (b - a) for a, b in itertools.pairwise(marks)]
    operations, peak = needed_operations(pipe, take, decoder), stated_peak(args.gpu)
    speed = operations * args.chunks / whole
    return Result(
        config=args.config,
        way="naive" if naive else type(take._held).__name__.lower(),
        size=f"{take.height}x{take.width}",
        memory=args.memory,
        dtype=args.dtype,
        device=args.device,
        decoder=decoder,
        settings={
            "quantize": args.quantize,
            "layers": args.layers,
            "fuse": args.fuse,
            "attention": args.attention,
            "collapse": args.collapse,
            "compile": args.compile,
            "decoding": args.decoding,
            "threads": torch.get_num_threads(),
            "own_time": args.own_time,
        },
        measured=args.chunks,
        stages={name: spread([row[name] for row in staged]) for name in STAGES},
        chunk_ms=spread(each),
        frames_per_second=round(per_chunk * args.chunks / whole, 2),
        real_time=round(per_chunk * args.chunks / whole / fps, 3),
        operations=operations,
        rate=rate,
        share=round(speed / rate, 4),
        stated_share=round(speed / peak, 4) if cuda and peak is not None else None,
        syncs=round(count / args.chunks, 2) if cuda else None,
        peak_bytes=torch.cuda.max_memory_allocated() if cuda else peak_bytes(),
    )


def table(results: list[Result]) -> Any:
    """The results as a rich table."""
    from rich.table import Table

    made = Table(title="Milliseconds per chunk: median ± half the middle half's range")
    for name in ("way", *STAGES, "end to end", "frames/s", "x real time", "of products", "of peak", "syncs", "peak MB"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in results:
        stages = [f"{middle:.1f} ±{half:.1f}" for middle, half in (*row.stages.values(), row.chunk_ms)]
        ends = [f"{row.frames_per_second:.1f}", f"{row.real_time:.2f}", f"{row.share:.0%}"]
        ends += ["-" if row.stated_share is None else f"{row.stated_share:.0%}"]
        ends += ["-" if row.syncs is None else f"{row.syncs:.1f}", f"{row.peak_bytes / 1e6:.0f}"]
        made.add_row(row.way, *stages, *ends)
    return made


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.chunk", description=__doc__.splitlines()[0])
    made.add_argument("--config", default="pocket", help="wan-1.3b, wan-14b or pocket")
    made.add_argument("--size", help="HEIGHTxWIDTH in pixels; the model's by default")
    made.add_argument("--memory", default="memrope")
    made.add_argument("--chunks", type=int, default=40, help="that are measured; more are made before, to be warm")
    made.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    made.add_argument("--decoder", default="wan", choices=DECODERS)
    made.add_argument("--quantize", choices=("fp8", "int8"))
    made.add_argument("--path", default="auto", choices=FORWARD_PATHS, help="how the transformer is run")
    made.add_argument("--attention", default="auto", choices=ATTENTIONS, help="what computes attention")
    made.add_argument("--collapse", default="auto", choices=COLLAPSE, help="averages and padding in closed form")
    made.add_argument("--compile", nargs="?", default="auto", const="blocks", choices=COMPILATIONS, help="blocks")
    made.add_argument("--decoding", default="exact", choices=("exact", "fast"), help="one latent at a time, or several")
    made.add_argument("--fuse", action="store_true", help="queries, keys and values of a layer in one product")
    made.add_argument("--naive", action="store_true", help="the published way as well, for the ratio")
    made.add_argument("--layers", type=int, help="blocks, if not all: to see that it works")
    made.add_argument("--threads", type=int, help="CPU threads; one per core by default")
    made.add_argument(
        "--own-time",
        action="store_true",
        help="on a CPU, count what this process computes and not what it waits for: for ratios on a busy machine",
    )
    made.add_argument("--json", type=Path, help="where the numbers go, for benchmarks.compare")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m benchmarks.chunk``."""
    settle()
    from longtake.checkpoints.registry import bases
    from longtake.memory import parse_memory
    from longtake.placement import check_devices, parse_devices

    command = parser()
    args = command.parse_args(arguments)
    try:
        if args.config not in (known := sorted({"pocket", *bases()})):
            raise ValueError(f"--config must be one of {', '.join(known)}, not {args.config!r}.")
        if parse_memory(args.memory).learned:
            raise ValueError("There are no weights of a learned memory here: choose another --memory.")
        if args.chunks < 2 or min(args.threads or 1, args.layers or 1) < 1:
            raise ValueError("--chunks must be 2 or more, --threads and --layers 1 or more.")
        if args.fuse and (args.quantize or args.naive):
            raise ValueError("--fuse goes with neither --quantize nor --naive.")
        if args.layers and args.config == "pocket":
            raise ValueError("The pocket model has all its layers: leave --layers out.")
        size = None if args.size is None else [int(n) for n in args.size.split("x")]
        if size is not None and len(size) != 2:
            raise ValueError(f"--size must be HEIGHTxWIDTH, like 480x832, not {args.size!r}.")
        if len(parse_devices(args.device)) != 1:
            raise ValueError("--device names one device; benchmarks.large measures models split over several.")
        check_devices((args.device,))
        if args.own_time and args.device != "cpu":
            raise ValueError("--own-time counts what the CPU does: leave it out on other devices.")
        if args.json is not None and not args.json.parent.is_dir():
            raise ValueError(f"There is no folder {args.json.parent}: --json must lie in one that exists.")
    except ValueError as error:
        command.error(str(error))
    import torch
    from rich.console import Console

    from longtake.quiet import quieten_libraries

    quieten_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        pipe = pipeline(args, size)
        results = run(pipe, args)
    except ValueError as error:
        command.error(str(error))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table(results))
    for line in summary(results):
        console.print(line, highlight=False)
    if args.json is not None:
        write_results(args.json, machine(torch.get_num_threads()), [asdict(row) for row in results])
        console.print(f"Written to {args.json}")


def pipeline(args: argparse.Namespace, size: list[int] | None) -> Any:
    """A pipeline for the options, on its device. The pocket model has its weights, the others random ones."""
    import torch

    from benchmarks.large import build
    from longtake import load
    from longtake.checkpoints.registry import bases
    from longtake.quantize import quantize
    from longtake.tiny import TinyDecoder

    dtype = getattr(torch, args.dtype)
    args.gpu = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else None
    if args.config == "pocket":
        pipe = load("pocket", dtype)
        size = size or list(pipe.config.default_size)
        pipe.register_to_config(default_size=size)
    else:
        height, width = size or (480, 832)
        pipe = build(bases()[args.config], dtype, height, width, args.layers)
    pipe.check_size(*pipe.config.default_size)
    if args.quantize:
        quantize(pipe.transformer, args.quantize)
    elif args.fuse:
        for block in pipe.transformer.blocks:
            block.attn1.fuse_projections()
    pipe.forward_path, pipe.attention, pipe.collapse = args.path, args.attention, args.collapse
    pipe.compilation, pipe.decoding = args.compile, args.decoding
    if args.decoder == "tiny":
        vae = pipe.vae.config
        pipe.tiny_decoder = TinyDecoder(vae.z_dim, patch=vae.scale_factor_spatial // 8).to(dtype).eval()
        pipe.decoding = "tiny"
    return pipe.to(args.device)


def run(pipe: Any, args: argparse.Namespace) -> list[Result]:
    """Measures what was asked for."""
    import torch

    from benchmarks.naive import naive_memory, unfused_lora

    take = pipe.start(PROMPT, args.memory)
    config = pipe.transformer.config
    tokens, dim = take.memory.chunk * take.memory.tokens, config.num_attention_heads * config.attention_head_dim
    now = clock(args.device, args.own_time)
    rate = product_rate(now, args.device, getattr(torch, args.dtype), tokens, dim, config.ffn_dim)
    with torch.no_grad():
        results = [measure(pipe, take, args, rate)]
        if args.naive:
            pipe.forward_path, pipe.compilation, pipe.decoding = "plain", "off", "exact"
            with contextlib.nullcontext() if args.quantize else unfused_lora(pipe.transformer):
                take = pipe.start(PROMPT, args.memory)
                take.memory = naive_memory(take)
                results.append(measure(pipe, take, args, rate, naive=True))
    return results


def summary(results: list[Result]) -> list[str]:
    """Sentences about the results."""
    first = results[0]
    lines = [
        f"{first.config}, {first.size}, {first.memory}, {first.dtype} on {first.device}: a chunk needs "
        f"{first.operations / 1e12:.4g} T operations; products run at {first.rate / 1e12:.4g} T operations/s here."
    ]
    for row in results[1:]:
        lines.append(f"{first.way} is {row.chunk_ms[0] / first.chunk_ms[0]:.2f} times as fast as {row.way}.")
    return lines


if __name__ == "__main__":
    main()
