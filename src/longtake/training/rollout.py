"""Stage 3 of the pocket model: the denoiser learns to continue its own long takes.

Takes run on and on with the memories of inference, by the weights of the moment. Before every chunk the model is asked
for the chunk that the world would show now, given what the take has become; then the take goes on with its own chunk.
The world's laws are periodic, so "now" is read off the take: the phase at which its last chunk fits best.

    torchrun --nproc-per-node 2 -m longtake.training.rollout --folder runs/pocket --minutes 30
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from longtake.attention import attending, memory_for
from longtake.memory.registry import parse_memory
from longtake.pocket.first.world import PERIODS, Scenes, render, sample_scenes
from longtake.pocket.model import CHUNK
from longtake.text import encode_text
from longtake.training.denoiser import LEVELS, MEMORIES, build, noised, sample_sigmas, sequence_losses, training_plans
from longtake.training.latents import SequencePool, change, describe, encode, load_vae
from longtake.training.loop import Stage, command_line, load_averaged

_WARM = 28  # frames before a latent that its encoder looks at
_SLIP = 2e-3  # how much a worse fit costs per squared frame of clock error: decides when nothing is in the picture


def period_latents(vae: AutoencoderKLWan, scenes: Scenes, index: int) -> torch.Tensor:
    """Latents of one scene at every frame of its period, ``[period, channels, height, width]``.

    Entry ``p`` is the latent whose last frame is at time ``p`` modulo the period.
    """
    scene = scenes.select(torch.tensor([index]))
    period = int(PERIODS[scene.motion[0]])
    table: list[torch.Tensor | None] = [None] * period
    times = torch.arange(4)[:, None] + torch.arange(_WARM + period - 3)
    four = scene.select(torch.zeros(4, dtype=torch.long))
    latents = encode(vae, render(four, times)[0])
    for offset in range(4):
        for j in range(_WARM // 4, latents.shape[1]):
            table[(offset + 4 * j) % period] = latents[offset, j]
    return torch.stack([x for x in table if x is not None])


@dataclass
class Actor:
    """One running take: what it should show, before and after a change of prompt, and where its clock is."""

    tables: tuple[torch.Tensor, torch.Tensor]
    captions: tuple[str, str]
    switch: int
    clock: int
    start: torch.Tensor

    def side(self, chunk: int) -> int:
        """0 before the change of prompt, 1 after."""
        return int(chunk >= self.switch)

    def truth(self, chunk: int) -> torch.Tensor:
        """The chunk that should follow, ``[channels, chunk, height, width]``."""
        table = self.tables[self.side(chunk)]
        times = [(self.clock + 4 * (i + 1)) % len(table) for i in range(CHUNK)]
        return table[times].transpose(0, 1)

    def observe(self, chunk: int, made: torch.Tensor) -> None:
        """Sets the clock by what was made, ``[channels, chunk, height, width]``."""
        table = self.tables[self.side(chunk)]
        self.clock += 4 * CHUNK
        period = len(table)
        slips = torch.arange(-(period // 2), period - period // 2)
        error = torch.zeros(period)
        for i in range(CHUNK):
            at = (self.clock - 4 * (CHUNK - 1 - i) + slips) % period
            error += (table[at] - made[:, i]).square().mean((1, 2, 3))
        self.clock += int(slips[(error / CHUNK + _SLIP * slips.square().float() / 16).argmin()])


class Troupe:
    """A group of takes that share a memory policy and run side by side."""

    def __init__(self, parts: dict[str, Any], vae: AutoencoderKLWan, policy: str, size: int, seed: int) -> None:
        self.parts, self.vae, self.policy, self.size, self.seed = parts, vae, parse_memory(policy), size, seed
        self.rng = random.Random(seed)
        self.round = 0
        self.restart(self.rng.randrange(8, 50))

    def restart(self, length: int) -> None:
        """New scenes, an empty memory."""
        seed = self.seed * 1_000_003 + 1009 * self.round
        self.round += 1
        self.length, self.index = length, 0
        scenes = sample_scenes(self.size, seed)
        after = change(scenes, seed + 17)
        self.actors = []
        start = encode(self.vae, render(scenes, torch.arange(1 + 4 * (CHUNK - 1)))[0])
        for i in range(self.size):
            switch = self.rng.randrange(1, length) if self.rng.random() < 0.5 else length + 1
            tables = period_latents(self.vae, scenes, i), period_latents(self.vae, after, i)
            captions = describe(scenes, i, self.rng), describe(after, i, self.rng)
            self.actors.append(Actor(tables, captions, switch, 4 * (CHUNK - 1), start[i].transpose(0, 1)))
        rows, columns = start.shape[-2:]
        self.memory = memory_for(
            self.parts["transformer"], self.policy, rows, columns, batch=self.size, chunk=CHUNK, functional=True
        )

    def _forward(self, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.parts["transformer"](x, sigma * 1000, text, return_dict=False)[0].float()
        return out

    def step(self) -> torch.Tensor | None:
        """One chunk of every take; the loss of the model's answer to "what comes next", none for a first chunk."""
        captions = [a.captions[a.side(self.index)] for a in self.actors]
        different = list(dict.fromkeys(captions))
        order = [different.index(c) for c in captions]
        text = encode_text(self.parts["tokenizer"], self.parts["text_encoder"], different)[order]
        self.memory.change_prompt("keep")  # the weights have changed: keys of the prompt too
        loss = None
        with torch.no_grad():
            self.memory.begin_chunk()
        with attending(self.parts["transformer"], self.memory):
            if self.index:
                truth = torch.stack([a.truth(self.index) for a in self.actors])
                sigma = sample_sigmas(self.size)
                noisy, flow = noised(truth, sigma)
                loss = (self._forward(noisy, sigma, text) - flow).square().mean()
            with torch.no_grad():
                made = self._make(text)
                with self.memory.recording():
                    self._forward(made, torch.zeros(self.size), text)
        self.memory.detach()
        if self.index:
            for actor, latents in zip(self.actors, made, strict=True):
                actor.observe(self.index, latents)
        self.index += 1
        if self.index >= self.length:
            self.restart(self.rng.randrange(20, 90))
        return loss

    def _make(self, text: torch.Tensor) -> torch.Tensor:
        if self.index == 0:
            # the true opening, so that the scene is known, passed through the model so that it looks like its own
            true = torch.stack([a.start for a in self.actors])
            sigma = torch.full((self.size,), self.rng.choice((0.0, 0.3, 0.625)))
            noisy, _ = noised(true, sigma)
            return noisy - sigma.view(-1, 1, 1, 1, 1) * self._forward(noisy, sigma, text)
        x = torch.randn(self.size, *self.actors[0].start.shape)
        for level in LEVELS.tolist():
            sigma = torch.full((self.size,), level)
            if level != float(LEVELS[0]):
                x = noised(x, sigma)[0]
            x = x - level * self._forward(x, sigma, text)
        return x


def train(folder: Path, minutes: float, size: int = 8, pool: int = 200) -> Stage:
    """Trains for ``minutes`` from the denoiser stage's weights (continuing what is in ``folder``).

    Args:
        folder: holds the checkpoints of the stages before, gets this one's.
        minutes: wall time over all runs.
        size: takes per memory policy and process.
        pool: sequences for the teacher forcing that goes on beside.
    """
    parts = build()
    modules = {"transformer": parts["transformer"], "text_encoder": parts["text_encoder"]}
    load_averaged(folder / "denoiser.pt", modules)
    stage = Stage("rollout", folder, modules, minutes, lr=1e-3, adam_lr=7e-4, decay_from=0.3, ema=0.98)
    if stage.done:
        stage.copy_ema()
        return stage
    seed = 500_000 + stage.rank + 7919 * (stage.steps + 1)
    vae = load_vae(folder)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    data = SequencePool(vae, pool, seed)
    plans = training_plans()
    troupes = [Troupe(parts, vae, m, size, seed + i) for i, m in enumerate(MEMORIES)]

    def step() -> dict[str, float]:
        losses: dict[str, float] = {}
        with torch.autocast("cpu", torch.bfloat16):
            later, first = sequence_losses(parts, data, plans, rng, sequences=1, targets=4, solo=8)
            total = 0.5 * later + 0.5 * first
            losses |= {"later": later.item(), "first": first.item()}
            for name, troupe in zip(MEMORIES, troupes, strict=True):
                loss = troupe.step()
                if loss is not None:
                    total = total + loss
                losses[name] = 0.0 if loss is None else loss.item()
        total.backward()
        return losses

    return stage.run(step, data.renew, every=16)


def main() -> None:
    """Command line of this stage."""
    args = command_line(__doc__, minutes=30).parse_args()
    train(args.folder, args.minutes)


if __name__ == "__main__":
    main()
