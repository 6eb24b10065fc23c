"""Options that several commands take, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        help="A name of `longtake models` (downloaded on first use), or a path: a diffusers folder, an original "
        "Wan folder, or a .pt or .safetensors file (FILE#KEY chooses among several sets of weights). "
        "Default: pocket.",
    ),
]
Components = Annotated[
    Path | None,
    typer.Option(help="Where autoencoder and text encoder come from: a diffusers or an original Wan folder."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH[:SCALE]", help="LoRA weights to fuse into the model; may be given several times."),
]
MemoryWeights = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Weights of a learned memory (echo): a folder or file of save_memory, or a published checkpoint. "
        "Default: the model's own, if it has any.",
    ),
]
Pixels = Annotated[int | None, typer.Option(help="In pixels. Default: the model's.")]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="auto|float32|bfloat16", help="Default: auto (bfloat16 where the hardware has it)."),
]
Device = Annotated[
    str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute. Default: auto.")
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Split the model's blocks over several, e.g. cuda:0,cuda:1 or cuda:0,cpu; decode on the last.",
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        metavar="none|text|model|group",
        help="What waits in the CPU's memory while it is not needed: nothing, the text encoder, every part, or the "
        "text encoder and all blocks but one. Default: text on a GPU, none on a CPU.",
    ),
]
Quantize = Annotated[
    str | None, typer.Option(metavar="fp8|int8", help="Keep the blocks' weights in 8 bits: half the memory.")
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What computes attention, see `longtake doctor`: auto, native, products, cudnn, flash, flash-attn-2, "
        "flash-attn-3 or sage. Default: auto, the best that there is.",
    ),
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        metavar="auto|off|blocks",
        help="Whether the transformer's blocks are compiled, once the memory is full. It takes a while and needs a "
        "compiler. Default: auto, which is off until it is measured to pay.",
    ),
]
Decoding = Annotated[
    str | None,
    typer.Option(
        metavar="exact|fast|tiny:FILE",
        help="Latents become frames one by one, bit for bit as diffusers decodes; several at once, with the last bits "
        "rounded otherwise; or for a preview by the tiny decoder in a file, e.g. taew2_1.pth. Default: exact.",
    ),
]
OnChange = Annotated[
    str | None,
    typer.Option(
        metavar="keep|recache|flush|cut",
        help="What a new prompt does to the memory: nothing, read the last frames again under the new prompt, "
        "forget all but the beginning and the last frames, or that and a jump in time. Default: keep.",
    ),
]
SnapshotEvery = Annotated[
    str | None,
    typer.Option(help="Seconds of video between snapshots. Default: 10, or 60 if one has more than a gigabyte."),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: one per core.")]
Window = Annotated[str, typer.Option(help="Length of the windows that trends are over.")]
Features = Annotated[
    str,
    typer.Option(
        metavar="fixed|dino|clip|dinov2|DIR",
        help="What identity and loops are judged by: colours and edges (no download), or a network, downloaded on "
        "first use (340 to 610 MB) or in a folder.",
    ),
]
