"""A contact sheet of scenes of the pocket world, a row each, with their captions.

python -m longtake.pocket.world --seed 0 --out sheet.png
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

from longtake.pocket.world.names import FPS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m longtake.pocket.world", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the wording of their captions")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a .png file")
    parser.add_argument("--scenes", type=int, default=8, help="rows, 1 to 64")
    parser.add_argument("--seconds", type=float, default=10.0, help="that a row shows, up to 86400")
    parser.add_argument("--size", type=int, default=128, help="pixels of a picture, 16 to 512")
    parser.add_argument("--columns", type=int, default=8, help="pictures in a row, 1 to 32")
    parser.add_argument("--level", default="full", help="calm, plain, moving or full")
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that is there")
    args = parser.parse_args()
    for name, low, high in (("scenes", 1, 64), ("seconds", 0, 86400), ("size", 16, 512), ("columns", 1, 32)):
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} must be from {low} to {high}, not {getattr(args, name)}.")
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out must be a .png file, not {args.out}.")
    if args.out.exists() and not args.overwrite:
        parser.error(f"{args.out} is there already; give --overwrite to replace it.")
    if not args.out.parent.is_dir():
        parser.error(f"There is no folder {args.out.parent}.")

    import torch

    from longtake.pocket.world import caption, render, sample_scenes
    from longtake.sheet import contact_sheet

    try:
        scenes = sample_scenes(args.scenes, args.seed, args.level)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    frames = torch.linspace(0, args.seconds * FPS, args.columns).long()
    video = render(scenes, frames, args.size).video
    pictures = (video.flatten(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    sheet = contact_sheet(list(pictures), args.columns)
    # whole or not at all
    partial = args.out.with_name(args.out.name + ".part")
    try:
        sheet.save(partial, format="PNG", optimize=True)
        os.replace(partial, args.out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        parser.error(f"{args.out} cannot be written: {error.strerror or error}.")
    rng = random.Random(args.seed)
    for index in range(args.scenes):
        print(f"{index + 1}. {caption(scenes, index)}")
        print(f"   or: {caption(scenes, index, rng)}")


if __name__ == "__main__":
    main()
