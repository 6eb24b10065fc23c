"""How often the readers of clips are right, on freshly rendered video.

    python -m longtake.pocket.world.check_readers --clips 600 --json accuracy.json

A clip is ``--frames`` frames, four apart, of a scene that no training has seen. What is asked of a subject is asked
where it is clearly in sight in at least half of them, by the truth; clips in which it is not count for ``present``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch

from longtake.pocket.world import names
from longtake.pocket.world.captions import hidden_facts, truth
from longtake.pocket.world.clips import CLEAR, look_at, vote
from longtake.pocket.world.laws import camera_x, daylight
from longtake.pocket.world.networks import OF_SUBJECT, WEIGHTS, load_readers
from longtake.pocket.world.reader import degrade
from longtake.pocket.world.renderer import render
from longtake.pocket.world.scenes import LEVELS, sample_scenes

WORSE = {"blur": 1.0, "noise": 0.02, "contrast": 0.92}
"""What ``--worse`` does to pictures: a Gaussian blur of one pixel, noise, and less contrast."""
CHECKS = 2_000_000_000
"""From here on seeds are of checks; those of training are below."""
_STEP = 4  # frames from one that is read to the next


def accuracy(
    clips: int, seed: int = 0, level: str = "plain", size: int = 128, frames: int = 12, worse: bool = False,
    weights: Path = WEIGHTS,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Of each attribute: ``right``, the share of answers that are right; ``answered``, the share of clips that were
    answered at all; ``clips``, how many were asked; ``frame``, the share of single frames in clear sight read right.

    ``present`` is whether a subject was found to be clearly in sight, asked where all of the frames, or none, show one.
    ``radius`` has ``error``, the median of the relative error.

    Args:
        clips: how many; ``seed``: of the scenes.
        level: of `scenes.LEVELS`. Of clips that show two subjects, as some of level full do, only the place is asked:
            readers look at one of the two, and need not say which.
        size: of the pictures; ``frames``: of a clip, four apart; ``worse``: blurred, noisy and paler.
        weights: of the networks.

    Raises:
        ValueError: a level that is none.
        OSError: no weights.
    """
    networks = load_readers(weights)
    scenes = sample_scenes(clips, CHECKS + seed, level)
    starts = torch.randint(0, 5000, (clips, 1), generator=torch.Generator().manual_seed(seed))
    counts: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    errors: list[float] = []

    def ask(name: str, said: str | None, wanted: str) -> None:
        counts[name]["clips"] += 1
        counts[name]["answered"] += said is not None
        counts[name]["right"] += said == wanted

    for index in range(clips):
        scene, at = scenes.select([index]), starts[index : index + 1] + _STEP * torch.arange(frames)
        video = render(scene, at, size).video[0]
        if worse:
            video = degrade(video, WORSE["blur"] * size / 128, WORSE["noise"], WORSE["contrast"], seed + index)
        looks = look_at(video, networks)
        clip = vote(looks)
        known = truth(scene, at, 64)
        shown, other = known.shown[0, :, 0], known.shown[0, :, 1]
        facts = {name: values[int(getattr(scene, name)[0, 0])] for name, values in OF_SUBJECT.items()}
        if facts["accessory"] == "none":
            del facts["accessory_color"]
        clear = shown > CLEAR + 0.1
        if int(clear.sum()) * 2 >= frames and float(other.max()) == 0:
            for name, wanted in facts.items():
                ask(name, clip.values[name], wanted)
                each = looks.subject[name][clear].argmax(1) == OF_SUBJECT[name].index(wanted)
                counts[name]["frame"] += float(each.sum())
                counts[name]["frames"] += len(each)
            if clip.radius is not None:
                errors.append(abs(clip.radius / float(scene.radius[0, 0]) - 1))
        if bool(clear.all()) or float(known.shown.max()) < 0.02:
            ask("present", str(bool(clip.clear * 2 >= frames)), str(bool(clear.all())))
        ask("place", clip.values["place"], names.PLACES[int(scene.place[0])])
        level_now = daylight(scene, at)
        if float((level_now - 0.75).abs().min()) > 0.1 and float((level_now - 0.25).abs().min()) > 0.1:
            lights = {names.LIGHTS[int(v < 0.75) + int(v < 0.25)] for v in level_now[0]}
            if len(lights) == 1:
                ask("light", clip.values["light"], lights.pop())
        if float(camera_x(scene, at).abs().max()) < 0.02:
            for name in ("landmark2", "landmark3"):
                ask(name, clip.values[name], hidden_facts(scene, 0)[name])
    result: dict[str, dict[str, float]] = {}
    for name, found in counts.items():
        row = {"right": found["right"] / max(1, found["answered"]), "answered": found["answered"] / found["clips"]}
        row["clips"] = int(found["clips"])
        if found["frames"]:
            row["frame"] = found["frame"] / found["frames"]
        result[name] = row
    if errors:
        result["radius"] = {"error": float(torch.tensor(errors).median()), "clips": len(errors)}
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m longtake.pocket.world.check_readers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--clips", type=int, default=600, help="1 to 100000")
    parser.add_argument("--frames", type=int, default=12, help="of a clip, 2 to 100")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, 0 to 1000000")
    parser.add_argument("--level", default="plain", choices=LEVELS, help="how much there is in the scenes")
    parser.add_argument("--size", type=int, default=128, help="pixels of a picture, 32 to 512")
    parser.add_argument("--worse", action="store_true", help="blurred, noisy and paler pictures")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the networks")
    parser.add_argument("--json", type=Path, help="write it to this file, too")
    args = parser.parse_args()
    for name, low, high in (("clips", 1, 100_000), ("frames", 2, 100), ("seed", 0, 1_000_000), ("size", 32, 512)):
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} must be from {low} to {high}, not {getattr(args, name)}.")
    if not args.weights.is_file():
        parser.error(f"There is no file {args.weights}.")
    found = accuracy(args.clips, args.seed, args.level, args.size, args.frames, args.worse, args.weights)
    print(f"{'':16} right  answered  clips  one frame")
    for name, row in found.items():
        if "error" in row:
            print(f"{name:16} median error {row['error']:.3f} of {row['clips']:.0f} clips")
            continue
        frame = f"{row['frame']:10.3f}" if "frame" in row else ""
        print(f"{name:16} {row['right']:.3f}  {row['answered']:8.3f}  {row['clips']:5.0f} {frame}")
    if args.json is not None:
        try:
            args.json.write_text(json.dumps({"settings": _settings(args), "found": found}, indent=1) + "\n")
        except OSError as error:
            parser.error(f"{args.json} cannot be written: {error.strerror or error}.")


def _settings(args: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(args, name) for name in ("clips", "frames", "seed", "level", "size", "worse")}


if __name__ == "__main__":
    main()
