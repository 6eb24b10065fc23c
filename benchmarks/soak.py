"""Whether a take that runs and runs needs more and more memory.

    python -m benchmarks.soak --memory memrope --chunks 20000
    python -m benchmarks.soak --memory "memrope;longlive" --tiny

One take per memory, in this process, one after the other; the RAM of the process (resident, MB) is read at chunks 50,
200, 1000, 5000 and 20000. Decoded frames are thrown away: the file is tested elsewhere. ``--tiny`` keeps the real
classes but takes one layer with random weights, so that 20,000 chunks take minutes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, machine, resident_mb, write_results
from benchmarks.stages import PROMPT

MARKS = (50, 200, 1000, 5000, 20000)


def build_tiny() -> Any:
    """32x32 pixels, one layer, random weights; nothing to look at."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

    from longtake import LongTakePipeline
    from longtake.pocket.model import TRANSFORMER_CONFIG, VAE_CONFIG, build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    channels = 4
    small = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": channels, "dim_mult": [1, 1, 1]}
    small |= {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    layer = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "freq_dim": 32}
    layer |= {"in_channels": channels, "out_channels": channels}
    tokenizer = build_tokenizer()
    return LongTakePipeline(
        tokenizer,
        build_text_encoder(tokenizer).eval(),
        AutoencoderKLWan(**{**VAE_CONFIG, **small}).eval(),
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        WanTransformer3DModel(**{**TRANSFORMER_CONFIG, **layer}).eval(),
        default_size=(32, 32),
    )


def soak(pipe: Any, memory: str, marks: list[int]) -> list[dict[str, Any]]:
    """Runs one take to the last mark; the RAM at each."""
    take, rows, start = pipe.start(PROMPT, memory), [], time.perf_counter()
    for chunk in take.chunks(marks[-1]):
        done = chunk.index + 1
        del chunk
        if done in marks:
            took = time.perf_counter() - start
            row = {"memory": memory, "chunk": done, "rss_mb": round(resident_mb(), 2), "seconds": round(took, 1)}
            rows.append(row)
            print(f"{memory}: chunk {done}, {row['rss_mb']:.1f} MB, after {took:.0f} s", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m benchmarks.soak``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from longtake.memory import parse_memory

    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=MARKS[-1], help="how far each take runs")
    parser.add_argument("--memory", default="memrope", help="one or more, separated by semicolons")
    parser.add_argument("--tiny", action="store_true", help="one layer of random weights instead of the pocket model")
    parser.add_argument("--threads", type=int, help="CPU threads; one per core by default")
    parser.add_argument("--json", type=Path, default=RESULTS / "soak.json", help="where the numbers go")
    args = parser.parse_args(arguments)
    memories = args.memory.split(";")
    try:
        for memory in memories:
            parse_memory(memory)
        if args.chunks < 1 or (args.threads is not None and args.threads < 1):
            raise ValueError("--chunks and --threads must be whole numbers from 1 on.")
        args.json.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    import torch

    from longtake import load
    from longtake.quiet import quieten_libraries

    quieten_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = build_tiny() if args.tiny else load("pocket")
    marks = sorted({*(mark for mark in MARKS if mark < args.chunks), args.chunks})
    info = {**machine(torch.get_num_threads()), "model": "tiny" if args.tiny else "pocket"}
    rows: list[dict[str, Any]] = []
    for memory in memories:
        rows += soak(pipe, memory, marks)
        write_results(args.json, info, rows)
    print(f"Written to {args.json}")


if __name__ == "__main__":
    main()
