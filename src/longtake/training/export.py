"""Writes what was trained as an ordinary diffusers folder: the pocket model that ships.

python -m longtake.training.export --folder runs/pocket --out src/longtake/pocket/weights
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from longtake.pipeline import LongTakePipeline
from longtake.pocket.first.world import FPS, SIZE
from longtake.pocket.model import CHUNK, SHIFT, TIMESTEPS, build_vae
from longtake.training.denoiser import build
from longtake.training.latents import load_vae
from longtake.training.loop import load_averaged

STAGES = ("rollout", "denoiser")
"""Which stage's denoiser is taken: the first that is there."""


def assemble(folder: Path | None, seed: int = 0) -> LongTakePipeline:
    """The pipeline of the checkpoints in ``folder``; untrained without one.

    Raises:
        FileNotFoundError: if the folder lacks a stage.
    """
    parts = build(seed)
    if folder is None:
        vae = build_vae()
    else:
        vae = load_vae(folder)
        path = next((p for s in STAGES if (p := folder / f"{s}.pt").exists()), folder / "denoiser.pt")
        load_averaged(path, {"transformer": parts["transformer"], "text_encoder": parts["text_encoder"]})
    return LongTakePipeline(
        tokenizer=parts["tokenizer"],
        text_encoder=parts["text_encoder"].eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=parts["transformer"].eval(),
        denoising_steps=TIMESTEPS,
        chunk_frames=CHUNK,
        fps=FPS,
        default_size=(SIZE, SIZE),
    )


def main() -> None:
    """Command line of the export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--untrained", action="store_true", help="random weights, to try the machinery")
    parser.add_argument("--out", type=Path, default=Path("src/longtake/pocket/weights"))
    args = parser.parse_args()
    pipe = assemble(None if args.untrained else args.folder)
    # half precision on disk; it is loaded in whatever is asked for
    pipe.to(torch.float16)
    pipe.save_pretrained(args.out)
    for path in (args.out / "model_index.json", args.out / "tokenizer" / "tokenizer_config.json"):
        # transformers 5 writes a name that only it knows; this one is known to 4 and 5
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


if __name__ == "__main__":
    main()
