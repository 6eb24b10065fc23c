"""``longtake models`` and ``longtake download``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from longtake.cli_progress import Stop, say, tell
from longtake.plan import format_bytes

_INDENT = "    "


def models_command(as_json: bool = False) -> int:
    """Lists the models that are known by name. Makes no request; returns the exit code."""
    from longtake.checkpoints.registry import default_user_file, load_registry, user_file

    try:
        found = [_facts(info) for info in load_registry().values()]
        own = user_file()
    except ValueError as error:
        return say(str(error), 2)
    if as_json:
        tell(json.dumps(found, indent=2))
        return 0
    for facts in found:
        tell("\n".join(_lines(facts)))
    tell("Or, as --model: a diffusers folder, a checkpoint (.pt, .safetensors), or an original Wan folder.")
    tell(f"Your own models are read from {own}." if own else f"Models of your own: list them in {default_user_file()}.")
    return 0


def download_command(names: Sequence[str], quiet: bool = False) -> int:
    """Fetches models, and prints for each where its transformer is; returns the exit code.

    0 if all are here, 2 with one sentence if one is not known or cannot be fetched, 130 after Ctrl-C.
    """
    from longtake.checkpoints.registry import find_info

    try:
        if not names:
            raise ValueError("Say what to download, e.g. longtake download self-forcing; longtake models lists them.")
        infos = [find_info(name) for name in dict.fromkeys(names)]  # all names before the first gigabyte
    except ValueError as error:
        return say(str(error), 2)
    with Stop() as stop:
        try:
            for info in infos:
                from longtake.checkpoints.hub import download, locate

                place = locate(info)
                if place is not None:
                    _note(f"{info.name} is here already.", quiet)
                else:
                    place = download(info, lambda text: _note(text, quiet), quiet)
                tell(str(place.transformer.absolute()))
        except ValueError as error:
            return say(str(error), 2)
        except OSError as error:
            return say(f"The files of {info.name} could not be written ({error.strerror or error}).", 1)
        except KeyboardInterrupt:
            say(f"\nStopped. What is here is kept; to go on: longtake download {' '.join(i.name for i in infos)}")
            return 128 + (stop.signal or 2)
    return 0


def _note(text: str, quiet: bool) -> None:
    if not quiet:
        say(text)


def _facts(info: Any) -> dict[str, Any]:
    """What there is to say of a model, for JSON and for people."""
    from longtake.checkpoints.hub_cache import locate

    facts: dict[str, Any] = {
        "name": info.name,
        "description": info.description,
        "license": info.license,
        "source": info.source,
        "parameters": info.parameters,
        "size": list(info.size),
        "fps": info.fps,
        "chunk": info.chunk,
        "denoising_steps": list(info.denoising_steps),
        "shift": info.shift,
        "memory": info.memory,
        "base": info.base,
        "files": [{"repo": f.repo, "path": f.path, "revision": f.revision, "size": f.size} for f in info.hub_files],
        "pinned": all(f.pinned for f in info.hub_files),
        "download_bytes": 0,
        "missing_bytes": 0,
        "exact": True,
        "ships": info.ships,
    }
    place = locate(info)
    facts["place"] = None if place is None else str(place.transformer)
    if info.folder is None:
        from longtake.checkpoints.hub import plan
        from longtake.checkpoints.registry import bases

        wanted = plan(info, ask=False)
        facts["download_bytes"] = wanted.total
        facts["missing_bytes"] = 0 if place else wanted.missing
        facts["exact"] = wanted.exact
        if (base := bases()[info.base]).repo:
            facts["components"] = {"repo": base.repo, "revision": base.revision, "license": base.license}
    return facts


def _lines(facts: dict[str, Any]) -> list[str]:
    height, width = facts["size"]
    count = _parameters(facts["parameters"])
    lines = [
        f"{facts['name']}: {facts['description']}",
        f"{count}{width}x{height}, {facts['fps']} frames per second, default memory {facts['memory']}",
        f"licence {facts['license']}; {facts['source']}",
    ]
    for file in facts["files"]:
        pinned = f"commit {file['revision'][:12]}" if len(file["revision"]) == 40 else f"{file['revision']}, not pinned"
        lines.append(f"{file['repo']}: {file['path']} ({pinned})")
    if "components" in facts:
        parts = facts["components"]
        lines.append(f"text encoder and autoencoder: {parts['repo']} ({parts['license']})")
    if facts["place"] is not None:
        lines.append("ships with Longtake" if facts["ships"] else f"here: {facts['place']}")
    elif facts["download_bytes"]:
        of = f" of {format_bytes(facts['download_bytes'])}" if facts["missing_bytes"] < facts["download_bytes"] else ""
        about = "" if facts["exact"] else "about "
        lines.append(
            f"to download: {about}{format_bytes(facts['missing_bytes'])}{of} (longtake download {facts['name']})"
        )
    else:
        lines.append("its files are not there")
    return [lines[0], *(textwrap.indent(line, _INDENT) for line in lines[1:])]


def _parameters(number: int | None) -> str:
    if number is None:
        return ""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name} parameters, "
    return f"{number} parameters, "
