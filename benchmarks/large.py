"""What a published model's shape costs where you are: random weights, no download.

    python -m benchmarks.large --config wan-1.3b --device cuda                      # or --devices cuda:0,cpu

A pipeline with the sizes of a published Wan (real autoencoder, all blocks) runs a take with MemRoPE; every stage is
timed as in ``benchmarks.cost``, and the peak memory of every GPU is set against the arithmetic of ``longtake.fit``.
Only the text encoder is a small stand-in: it is not at work while a take runs.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cost import measure, table
from benchmarks.machine import RESULTS, machine, settle, write_results

PROMPT_WIDTH = 4096


def build(base: Any, dtype: Any, height: int, width: int, layers: int | None = None) -> Any:
    """A pipeline of random weights, on the CPU.

    Args:
        base: an entry of ``longtake.checkpoints.registry.bases()``.
        layers: blocks, if not all of them.
    """
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from longtake import LongTakePipeline
    from longtake.pocket.model import TEXT_CONFIG, build_tokenizer

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        config = {k: v for k, v in base.transformer.items() if not k.startswith("_") and v is not None}
        transformer = WanTransformer3DModel(**{**config, **({"num_layers": layers} if layers else {})})
        vae = AutoencoderKLWan(**{k: v for k, v in base.vae.items() if not k.startswith("_")})
        tokenizer = build_tokenizer()
        tokenizer.model_max_length = 512
        text = {**TEXT_CONFIG, "d_model": PROMPT_WIDTH, "vocab_size": len(tokenizer)}
        text_encoder = UMT5EncoderModel(UMT5Config(**text))
    finally:
        torch.set_default_dtype(before)
    for name, parameter in transformer.named_parameters():  # as loading does
        if set(name.split(".")) & set(WanTransformer3DModel._keep_in_fp32_modules or ()):
            parameter.data = parameter.data.float()
    pipe = LongTakePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        default_size=[height, width],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m benchmarks.large``."""
    settle()
    from longtake.checkpoints.registry import bases
    from longtake.fit import Fit
    from longtake.memory import parse_memory
    from longtake.placement import OFFLOADS, QUANTIZATIONS, parse_devices, place

    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="wan-1.3b", choices=sorted(bases()))
    parser.add_argument("--size", default="480x832", help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--memory", default="memrope")
    parser.add_argument("--chunks", type=int, default=40, help="length of the take")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--devices", "--device", default="cpu", help="one device, or several separated by commas")
    parser.add_argument("--offload", default="none", choices=OFFLOADS)
    parser.add_argument("--quantize", choices=QUANTIZATIONS)
    parser.add_argument("--layers", type=int, help="blocks, if not all: to see that it works")
    parser.add_argument("--json", type=Path, default=RESULTS / "large.json", help="where the numbers go")
    args = parser.parse_args(arguments)
    try:
        height, width = (int(n) for n in args.size.split("x"))
        devices, policy = parse_devices(args.devices), parse_memory(args.memory)
        if args.chunks < 8:
            raise ValueError("--chunks must be 8 or more: before, the memory is not full.")
    except ValueError as error:
        parser.error(str(error))

    import torch
    from rich.console import Console

    from longtake.quantize import quantize

    base = bases()[args.config]
    pipe = build(base, getattr(torch, args.dtype), height, width, args.layers)
    if args.quantize:
        quantize(pipe.transformer, args.quantize)
    fit = Fit(
        {**base.transformer, "num_layers": len(pipe.transformer.blocks)},
        base.vae,
        pipe.text_encoder.config.to_dict(),
        policy,
        height,
        width,
        dtype=args.dtype,
        devices=devices,
        offload=args.offload,
        quantize=args.quantize,
    )
    place(pipe, devices, args.offload, fit.layers)
    with torch.no_grad():
        rows = measure(pipe, args.memory, [args.chunks], max(2, args.chunks // 2))
    peaks = {
        name: {"peak": torch.cuda.max_memory_allocated(name), "reserved": torch.cuda.max_memory_reserved(name)}
        for name in dict.fromkeys(devices)
        if name.startswith("cuda")
    }
    arithmetic = {name: fit.needed(name).total for name in fit.generating}
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table(rows))
    for name, count in arithmetic.items():
        measured = f", measured {peaks[name]['peak'] / 1e9:.2f} GB" if name in peaks else ""
        console.print(f"{name}: {count / 1e9:.2f} GB by arithmetic{measured}")
    info = {**machine(torch.get_num_threads()), "settings": {k: str(v) for k, v in vars(args).items() if k != "json"}}
    info |= {"arithmetic_bytes": arithmetic, "measured_bytes": peaks}
    write_results(args.json, info, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
