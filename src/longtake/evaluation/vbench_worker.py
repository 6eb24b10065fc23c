"""Runs inside VBench's own environment, which has neither Longtake nor its libraries: standard library and ``vbench``.

    python vbench_worker.py REQUEST.json ANSWER.json

The request has ``folder`` (of clips), ``dimensions``, ``device`` and ``output``. The answer has ``versions``,
``device``, ``scores`` (dimension to clip name to number) and ``failed`` (dimension to a reason).
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

# Its published weights are pickles, which newer versions of torch load only if told to.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

_NO_NETWORK = ("URLError", "ConnectionError", "CalledProcessError", "HTTPError", "TimeoutError", "gaierror")
_PER_HUNDRED = ("imaging_quality",)  # its mean is divided by 100, its single scores are not


def main() -> None:
    """Does what the request asks for, one dimension after the other."""
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    import torch
    from vbench import VBench  # type: ignore[import-not-found,unused-ignore]

    device = request["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = VBench(device, "", request["output"])
    answer: dict[str, Any] = {"versions": _versions(), "device": device, "scores": {}, "failed": {}}
    for dimension in request["dimensions"]:
        try:
            # a process of its own per dimension would load libraries anew; one call per dimension, as one that lacks
            # its weights ends the call
            bench.evaluate(request["folder"], dimension, dimension_list=[dimension], mode="custom_input")
            with open(os.path.join(request["output"], f"{dimension}_eval_results.json"), encoding="utf-8") as file:
                clips = json.load(file)[dimension][1]
            scale = 0.01 if dimension in _PER_HUNDRED else 1.0
            answer["scores"][dimension] = {
                os.path.basename(clip["video_path"]): float(clip["video_results"]) * scale for clip in clips
            }
        except Exception as error:  # whatever it is: the other dimensions are not the worse for it
            answer["failed"][dimension] = _reason(error)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(answer, file)


def _reason(error: Exception) -> str:
    name = type(error).__name__
    missing = isinstance(error, FileNotFoundError) and str(error.filename or "").endswith((".pth", ".pt"))
    if missing or name in _NO_NETWORK or (isinstance(error, FileNotFoundError) and error.filename == "wget"):
        return "its weights are not here and could not be downloaded, which needs a network and wget"
    text = " ".join(str(error).split()).rstrip(".")[:200]
    return f"VBench failed ({name}: {text})"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (
        "vbench",
        "torch",
        "numpy",
        "opencv-python",
        "opencv-python-headless",
        "transformers",
        "timm",
        "pyiqa",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
