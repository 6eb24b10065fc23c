"""Stage 2 of the pocket model: the denoiser and its text encoder, by flow matching with teacher forcing.

torchrun --nproc-per-node 2 -m longtake.training.denoiser --folder runs/pocket --minutes 48
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from longtake.memory.registry import parse_memory
from longtake.pocket.model import (
    CHUNK,
    SHIFT,
    TIMESTEPS,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
)
from longtake.rope import Rope
from longtake.sampling import warp
from longtake.text import encode_text
from longtake.training.latents import CHUNKS, SequencePool, load_vae
from longtake.training.loop import Stage, command_line
from longtake.training.sequence import Plan, attending_sequences, lay_out, plan_sequence

MEMORIES = ("memrope", "sliding:window=12,sink=3,ids=relative")
"""What the model is trained to run with; batches mix them."""
_GAP = 40  # chunks skipped in sequences from late in a take
LEVELS = warp(TIMESTEPS, SHIFT) / 1000


def sample_sigmas(count: int) -> torch.Tensor:
    """Noise levels: 60 % the four that sampling uses, 40 % spread by the same shift."""
    spread = torch.rand(count)
    spread = SHIFT * spread / (1 + (SHIFT - 1) * spread)
    exact = LEVELS[torch.randint(len(LEVELS), (count,))].to(spread.dtype)
    return torch.where(torch.rand(count) < 0.6, exact, spread)


def noised(clean: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The noisy latents and the flow (noise minus clean) that the model must predict."""
    noise = torch.randn_like(clean)
    s = sigma.view(-1, *[1] * (clean.ndim - 1))
    return (1 - s) * clean + s * noise, noise - clean


def build(seed: int = 0) -> dict[str, Any]:
    """Untrained transformer, text encoder and tokenizer."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer = build_transformer()
    # a flow of zero to begin with, and modulation that does not start as noise
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return {"transformer": transformer, "text_encoder": build_text_encoder(tokenizer), "tokenizer": tokenizer}


def training_plans() -> dict[tuple[str, bool], Plan]:
    """Plans by memory and by whether a sequence is from late in a take."""
    whole, late = list(range(CHUNKS)), [0, *range(_GAP, _GAP + CHUNKS - 1)]
    return {(m, g): plan_sequence(parse_memory(m), late if g else whole) for m in MEMORIES for g in (False, True)}


def sequence_losses(
    parts: dict[str, Any],
    data: SequencePool,
    plans: dict[tuple[str, bool], Plan],
    rng: random.Random,
    sequences: int,
    targets: int,
    solo: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher forcing on one batch: mean squared error of the flow, of later chunks and of first chunks.

    Args:
        parts: transformer, text encoder and tokenizer.
        data, plans, rng: sequences, what their chunks attend to, and the choice among them.
        sequences, targets: sequences, and chunks denoised in each.
        solo: first chunks denoised alone beside them.
    """
    clean = CHUNKS - 1
    batch = data.batch(sequences)
    chosen = [sorted(rng.sample(range(3 if g else 1, CHUNKS), targets)) for g in batch.gap]
    layout = lay_out([plans[rng.choice(MEMORIES), g] for g in batch.gap], chosen, clean, solo)
    chunks = batch.latents.unflatten(1, (CHUNKS, CHUNK)).transpose(2, 3)
    inputs, sigmas, flows, texts = [], [], [], []
    for i, wanted in enumerate(chosen):
        # what a take remembers is never quite clean: teach the model to look past that
        dirt = 0.12 * rng.random() if rng.random() < 0.7 else 0.0
        past = chunks[i, :clean]
        sigma = sample_sigmas(targets)
        noisy, flow = noised(chunks[i, wanted], sigma)
        inputs += [(1 - dirt) * past + dirt * torch.randn_like(past), noisy]
        sigmas += [torch.zeros(clean), sigma]
        flows.append(flow)
        texts += [batch.captions[i][j] for j in (*range(clean), *wanted)]
    first = data.batch(solo)
    sigma = sample_sigmas(solo)
    noisy, first_flow = noised(first.latents[:, :CHUNK].transpose(1, 2), sigma)
    inputs.append(noisy)
    sigmas.append(sigma)
    texts += [captions[0] for captions in first.captions]
    different = list(dict.fromkeys(texts))
    transformer = parts["transformer"]
    rope = Rope(transformer.config.attention_head_dim, (chunks.shape[-2] // 2, chunks.shape[-1] // 2))
    with attending_sequences(transformer, layout, rope):
        embedded = encode_text(parts["tokenizer"], parts["text_encoder"], different)
        embedded = embedded[[different.index(t) for t in texts]]
        out = transformer(torch.cat(inputs), torch.cat(sigmas) * 1000, embedded, return_dict=False)[0].float()
    per = clean + targets
    later = torch.cat([out[i * per + clean : (i + 1) * per] for i in range(sequences)])
    loss_later = (later - torch.cat(flows)).square().mean()
    return loss_later, (out[sequences * per :] - first_flow).square().mean()


def train(
    folder: Path,
    minutes: float,
    sequences: int = 4,
    targets: int = 4,
    solo: int = 16,
    pool: int = 600,
    compile_blocks: bool = False,
) -> Stage:
    """Trains for ``minutes`` (continuing what is in ``folder``) and returns the stage, its averaged weights in place.

    Args:
        folder: holds the autoencoder's checkpoint, gets this stage's.
        minutes: wall time over all runs.
        sequences, targets, solo: see :func:`sequence_losses`; per step and process.
        pool: sequences kept in memory.
        compile_blocks: compile the transformer's blocks: two minutes at the start, then steps are a third shorter.
    """
    parts = build()
    if compile_blocks:
        for block in parts["transformer"].blocks:
            block.forward = torch.compile(block.forward)
    modules = {"transformer": parts["transformer"], "text_encoder": parts["text_encoder"]}
    stage = Stage("denoiser", folder, modules, minutes, lr=3e-3, adam_lr=2e-3, decay_from=0.3, ema=0.98)
    if stage.done:
        stage.copy_ema()
        return stage
    seed = stage.rank + 7919 * (stage.steps + 1)
    data = SequencePool(load_vae(folder), pool, seed)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    plans = training_plans()

    def step() -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16):
            later, first = sequence_losses(parts, data, plans, rng, sequences, targets, solo)
        (later + first).backward()
        return {"later": later.item(), "first": first.item()}

    return stage.run(step, data.renew, every=8)


def main() -> None:
    """Command line of this stage."""
    parser = command_line(__doc__, minutes=48)
    parser.add_argument("--compile", action="store_true", help="compile the blocks (needs a C++ compiler)")
    args = parser.parse_args()
    train(args.folder, args.minutes, compile_blocks=args.compile)


if __name__ == "__main__":
    main()
