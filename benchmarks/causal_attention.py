"""What a training step of the causal student costs, by the way its attention is computed.

    OMP_NUM_THREADS=1 python -m benchmarks.causal_attention --device cpu

One sequence of 8 chunks of 3 frames of 64 tokens through 6 layers, forward and backward, in bfloat16 autocast. On a
CPU the process's own time is counted, so that other work on the machine matters less.

- ``grouped plain``: elements with equally many keys together, no mask, two products and a softmax (``causal.py``);
- ``grouped fused``: the same with PyTorch's fused attention;
- ``padded plain``: all elements together, short ones padded, a bias masks the padding (``sequence.py``);
- ``padded fused``: the same with a boolean mask and PyTorch's fused attention.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from benchmarks.machine import RESULTS, machine, write_results
from longtake.memory import parse_memory
from longtake.rope import Rope
from longtake.training import sequence
from longtake.training.causal import causal_layout, plan_for
from longtake.training.causal_attention import attending_causal

CHUNKS, CHUNK, GRID = 8, 3, (8, 8)


def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """What ``sequence.py`` computes by products, by the fused kernel with a boolean mask."""
    mask = None if bias is None else (bias >= 0)[:, None, None, :]
    q, k, v = (x.transpose(1, 2).to(v.dtype) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def cases(transformer: Any, memory: str) -> dict[str, tuple[int, Callable[[], AbstractContextManager[Any]]]]:
    """By name: how many elements a forward takes, and the context it runs in."""
    policy = None if memory == "causal" else parse_memory(memory)
    plan = plan_for(policy, range(CHUNKS), CHUNK)
    teacher, diffusion = (causal_layout([plan], forcing=f) for f in ("teacher", "diffusion"))
    found: dict[str, tuple[int, Callable[[], AbstractContextManager[Any]]]] = {}
    for kernel in ("plain", "fused"):
        for name, layout in (("teacher", teacher), ("diffusion", diffusion)):
            found[f"{name}, grouped {kernel}"] = (
                len(layout),
                partial(attending_causal, transformer, layout, GRID, [0] * len(layout), kernel),
            )
    few = plan if policy is None else sequence.plan_sequence(policy, range(CHUNKS), CHUNK)  # no more slots than held
    old = sequence.lay_out([few], [list(range(CHUNKS))], CHUNKS - 1, 0)
    rope = Rope(transformer.config.attention_head_dim, GRID)
    found["teacher, padded"] = (2 * CHUNKS - 1, partial(sequence.attending_sequences, transformer, old, rope))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--heads", default="4", help="of 64 channels, e.g. 4,6")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    products = sequence._attend
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    rows = []
    for heads in map(int, args.heads.split(",")):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=64, text_dim=128, ffn_dim=256 * heads, num_layers=6
        ).to(args.device)
        for memory in ("causal", "sliding:window=12,sink=3,ids=relative", "memrope"):
            for name, (elements, context) in cases(transformer, memory).items():
                fused = [False, True] if "padded" in name else [False]
                for padded_fused in fused:
                    title = name + (f" {'fused' if padded_fused else 'plain'}" if "padded" in name else "")
                    x = torch.randn(elements, 16, CHUNK, 2 * GRID[0], 2 * GRID[1], device=args.device)
                    t = torch.full((elements,), 500.0, device=args.device)
                    text = torch.randn(elements if "padded" in name else 1, 24, 128, device=args.device)
                    times = []
                    for _ in range(args.repeats + 1):
                        sequence._attend = masked if padded_fused else products
                        begin = clock()
                        with context(), torch.autocast(args.device, torch.bfloat16):
                            out = transformer(x, t, text, return_dict=False)[0]
                        out.float().square().mean().backward()
                        transformer.zero_grad(set_to_none=True)
                        if args.device != "cpu":
                            torch.cuda.synchronize()
                        times.append(1000 * (clock() - begin))
                    median = statistics.median(times[1:])
                    rows.append({"heads": heads, "memory": memory, "variant": title, "ms": round(median, 1)})
                    print(f"{heads} heads  {memory:40s} {title:28s} {median:8.1f} ms", flush=True)
    write_results(RESULTS / "causal_attention.json", machine(torch.get_num_threads()), rows)


if __name__ == "__main__":
    main()
