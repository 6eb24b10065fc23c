"""``longtake parity``: recordings of published pipelines, replayed one by one and compared."""

from __future__ import annotations

import json
from pathlib import Path

from longtake import speed
from longtake.cli_progress import say, tell
from longtake.plan import count
from longtake.snapshot import read_header

REPLAYED = ("sliding", "memrope", "echo")  # policies whose recordings `longtake.parity` takes


def refusal(path: Path) -> str | None:
    """What is wrong with a recording as far as its header tells, in one sentence; None if nothing. Loads no torch."""
    if not path.is_file():
        return f"There is no recording {path}."
    header = read_header(path)
    if header is None:
        return f"{path} is not a recording: it is no whole safetensors file."
    try:
        spec = json.loads(header["__metadata__"]["spec"])
        policy = spec["policy"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return f"{path} is not a recording: its metadata has no 'spec' with a policy."
    if policy not in REPLAYED:
        return f"{path} was recorded with policy {policy!r}; supported are {', '.join(REPLAYED)}."
    return None


def compare(files: list[Path], tolerance: float, forward_path: str = "auto") -> int:
    """Prints how each recording compares; returns the exit code."""
    if not 0 < tolerance < float("inf"):
        return say(f"--tolerance must be a number above 0, not {tolerance}.", 2)
    try:
        speed.check("forward path", forward_path)
    except ValueError as error:
        return say(str(error), 2)
    refusals = {path: refusal(path) for path in files}
    code = 0
    for sentence in refusals.values():
        if sentence is not None:
            code = say(sentence, 2)
    good = [path for path, sentence in refusals.items() if sentence is None]
    if not good:
        return code
    from longtake.parity import replay
    from longtake.quiet import quieten_libraries

    quieten_libraries()
    for path in good:
        try:
            result = replay(path, forward_path=forward_path)
        except (ValueError, OSError) as error:
            code = say(f"{path}: {error}", 2)
            continue
        passed = result.max_abs_diff <= tolerance
        states = "" if result.state_diff is None else f" (of memory states {result.state_diff:.3g})"
        tell(
            f"{path}: {result.policy}, {count(result.chunks, 'chunk')}, largest absolute difference "
            f"{result.max_abs_diff:.3g}{states}, {'pass' if passed else 'FAIL'}"
        )
        if not passed:
            code = max(code, 1)
    return code
