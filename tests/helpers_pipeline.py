"""A pipeline of a few thousand random weights, strong enough that memory, prompt and noise all show in the video."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import Tensor

from longtake.memory import MEMORIES, MemoryEncoder
from longtake.pipeline import LongTakePipeline, LongTakePipelineOutput
from longtake.pocket.model import build_text_encoder, build_tokenizer
from longtake.take import Chunk, Take

FPS = 16
PROMPT = "a red ball rolls over a meadow"
OTHER = "a blue box bounces at night"
SCRIPT = f"{PROMPT} [2s] | {OTHER} [3s] | a green star in the snow [1h]"
CHANGES = (3, 7)  # chunks: the first whose middle is not before 2 s, and 5 s
ALL_MEMORIES = [
    *MEMORIES,
    "memrope:recent=2,averages=long",
    "memrope:sink=1,recent=1,long=0.3,short=0.6,pooling=position",
    "memrope:recent=2,adaptive=true,short=0.4",
    "memrope:ids=absolute,first_eviction=released",
    "sliding:window=7,sink=2,ids=relative",
    "sliding:window=12,sink=3,ids=unified",
    "echo:past=4,update=after_first_forward,prior=true",
    "deep-forcing:window=9,sink=2,budget=8",
    "deep-forcing-released:window=11,sink=1,budget=7,reuse=1",
]


def build(
    seed: int = 0,
    *,
    heads: int = 2,
    head_dim: int = 12,
    layers: int = 2,
    vae: dict[str, Any] | None = None,
    **config: Any,
) -> LongTakePipeline:
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        in_channels=4,
        out_channels=4,
        text_dim=128,
        freq_dim=16,
        ffn_dim=32,
    )
    for p in transformer.parameters():
        if p.ndim == 2:
            p.data.mul_(2)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.15)
    sizes: dict[str, Any] = {
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
    }
    autoencoder = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
        **(sizes if vae is None else vae),
    )
    tokenizer = build_tokenizer()
    pipe = LongTakePipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer).eval(),
        vae=autoencoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=transformer.eval(),
        **{"default_size": (32, 48), "fps": FPS, **config},
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.memory_encoder = random_memory(heads, head_dim, num_layers=layers)
    return pipe


def random_memory(
    heads: int, head_dim: int, grid: tuple[int, int] | int = (2, 3), seed: int = 0, **config: Any
) -> MemoryEncoder:
    """A learned memory of random weights, called trained, whose state is as large as keys and values are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = MemoryEncoder(heads, head_dim, grid=grid, **config)
        for name, p in encoder.named_parameters():
            if name.startswith("query_init"):
                p.data.div_(0.014)
            elif p.ndim == 2:
                p.data.mul_(2)
            elif "norm" in name:
                torch.nn.init.uniform_(p, 0.5, 1.5)
    encoder.trained = True
    return encoder.eval().requires_grad_(False)


@cache
def twins() -> tuple[LongTakePipeline, LongTakePipeline]:
    """Two pipelines with nothing in common but the values of their weights."""
    return build(), build()


def make(pipe: LongTakePipeline, prompt: Any, **settings: Any) -> Any:
    out = pipe(prompt, **settings)
    assert isinstance(out, LongTakePipelineOutput)
    return out.frames


def run(take: Take, count: int) -> list[Chunk]:
    return list(take.chunks(count))


def video(chunks: Sequence[Chunk]) -> Tensor:
    return torch.cat([c.video for c in chunks])


def same(one: Sequence[Chunk], other: Sequence[Chunk]) -> bool:
    """Bit for bit, counters and prompts too."""
    return len(one) == len(other) and all(
        torch.equal(a.video, b.video)
        and torch.equal(a.latents, b.latents)
        and (a.index, a.first_frame, a.prompt) == (b.index, b.first_frame, b.prompt)
        for a, b in zip(one, other, strict=True)
    )


def middle(chunk: int) -> float:
    """Time of a chunk's middle, in seconds: 9 frames in the first, 12 in every other."""
    return 4.5 / FPS if chunk == 0 else (9 + 12 * (chunk - 1) + 6) / FPS


def refused(pipe: LongTakePipeline, path: Path) -> str:
    with pytest.raises(ValueError) as error:
        pipe.resume(path)
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 400
    return text
