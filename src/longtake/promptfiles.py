"""Files with a prompt per line, and the videos that are made of them. Loads no torch.

Line numbers count from 0, and blank lines count too, as in the prompt files of Self-Forcing, LongLive and MemRoPE
(``TextDataset``). There a blank line makes a video of nothing; here it makes none.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longtake.memory import parse_memory
from longtake.prompts import Script, Segment, parse_script
from longtake.record import Recorded, snapshot_path

Status = Literal["done", "continue", "new"]
# A duration with its unit, escaped or not: whoever writes one writes a script. "[2]" in a plain prompt is a footnote.
_DURATION = re.compile(r"\[\s*[-+]?\s*[0-9.]+\s*(?:ms|s|m|h)(?:\s*[0-9.]+\s*(?:ms|s|m|h))*\s*\]", re.IGNORECASE)
# What no file name can have on one system or another.
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_MOST_BYTES = 200  # of a name without its ending; file systems take 255, with ".mp4.snapshot" and a temporary mark


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file as they are, without white space at their ends. A byte order mark is left out.

    Raises:
        ValueError: in one sentence, if there is no such file, it is no text in UTF-8 or has no line with text.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no file of prompts {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: prompts are read from a text file, one per line.")
    try:
        with path.open(encoding="utf-8-sig") as file:  # \n, \r\n and \r end a line, and nothing else does
            lines = [line.rstrip() for line in file]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a file of prompts: it is not text in UTF-8.") from None
    except OSError as error:
        raise ValueError(f"The prompts in {path} cannot be read: {error.strerror or error}.") from None
    if "\0" in "".join(lines):
        raise ValueError(f"{path} is not a file of prompts: it is not text, but binary data.")
    if not any(lines):
        raise ValueError(f"{path} has no prompts: write one per line.")
    return lines


def as_script(line: str, scripts: bool = True) -> str:
    """A line as text that `longtake.prompts.parse_script` reads.

    A line is a script if it has a duration with its unit in brackets, like ``[10s]``; then it stays as it is. Any other
    is one plain prompt, whatever bars and brackets it has: they are escaped.

    Args:
        line: of the file.
        scripts: whether there may be scripts; without, every line is a plain prompt.

    Raises:
        ValueError: what `parse_script` says of a line with a duration that is no script.
    """
    if not line.strip():
        return ""
    if scripts and _DURATION.search(line):
        parse_script(line)
        return line
    return plain(line)


def plain(prompt: str) -> str:
    """A plain prompt as text that `longtake.prompts.parse_script` reads as this prompt and nothing else."""
    return Script((Segment(prompt, 0),)).format()


def read_prompts(path: str | os.PathLike[str], scripts: bool = True) -> list[str]:
    """The prompts of a file, one per line, each as `as_script` gives it; empty for a blank line.

    Args:
        path: text in UTF-8, with or without byte order mark.
        scripts: see `as_script`.

    Raises:
        ValueError: in one sentence, if the file cannot be read (see `read_lines`), or a line is no script although it
            has a duration; names the line, counted from 1 as editors do.
    """
    prompts = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            prompts.append(as_script(line, scripts))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return prompts


def select(prompts: Sequence[str], start: int = 0, end: int | None = None) -> list[tuple[int, str]]:
    """The prompts from line ``start`` to before line ``end``, with their line numbers from 0; blank ones left out.

    Args:
        prompts: of `read_prompts`.
        start: first line.
        end: line after the last; None or -1 for all. May be beyond the end of the file.

    Raises:
        ValueError: in one sentence, for numbers that select nothing.
    """
    lines = len(prompts)
    if start < 0 or start >= lines:
        raise ValueError(f"--start must be the number of a line, from 0 to {lines - 1}, not {start}.")
    if end is not None and end != -1 and end <= start:
        raise ValueError(f"--end must be above --start, which is {start}, or be left out for all, not {end}.")
    last = lines if end is None or end == -1 else min(end, lines)
    chosen = [(index, prompts[index]) for index in range(start, last) if prompts[index].strip()]
    if not chosen:
        raise ValueError(f"All lines from {start} to {last - 1} are blank: choose others with --start and --end.")
    return chosen


def output_name(index: int, prompt: str, sample: int = 0, samples: int = 1) -> str:
    """The file of a prompt's video: ``007-a-red-ball-rolls.mp4``, and with ``-1`` if there are several samples.

    The number sorts and tells lines apart; the words tell people what it is.
    """
    words = re.findall(r"\w+", _DURATION.sub(" ", unicodedata.normalize("NFC", prompt)).lower())
    text = "".join("-" + word for word in words)[:60].rstrip("-")
    return _fit(f"{index:03d}{text}", f"-{sample}" if samples > 1 else "") + ".mp4"


def published_name(index: int, prompt: str, sample: int, kind: str, by_index: bool = True) -> str:
    """The file of a prompt's video as the scripts of Self-Forcing, LongLive and MemRoPE name it.

    ``rank0-{index}-{sample}_{kind}.mp4``, or with ``save_with_index: false`` ``rank0-{prompt}-{sample}.mp4`` with the
    prompt's first 100 characters. Characters that no file name can have become ``_``, and long names are cut.

    Args:
        index: line number, from 0.
        prompt: the plain prompt.
        sample: which of ``num_samples``, from 0.
        kind: ``lora``, ``ema`` or ``regular``.
        by_index: ``save_with_index``.
    """
    if by_index:
        return f"rank0-{index}-{sample}_{kind}.mp4"
    return _fit("rank0-" + _UNFIT.sub("_", prompt[:100]), f"-{sample}") + ".mp4"


def _fit(name: str, end: str) -> str:
    # Cut between characters: half of one is no UTF-8.
    return name.encode()[: _MOST_BYTES - len(end.encode())].decode(errors="ignore") + end


@dataclass(frozen=True)
class Item:
    """One video to be made.

    Attributes:
        index: line number of its prompt, from 0; ``sample``: which of several of the same prompt, from 0.
        script: what is said, for `longtake.prompts.parse_script`.
        seed: of its noise.
        path: where it goes.
    """

    index: int
    sample: int
    script: str
    seed: int
    path: Path


def items(
    prompts: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    start: int = 0,
    end: int | None = None,
    seed: int = 0,
    samples: int = 1,
    titles: Sequence[str] | None = None,
    published: tuple[str, bool] | None = None,
) -> list[Item]:
    """The videos of a file of prompts, in its order. No two have the same file, and which file one has does not depend
    on ``start`` and ``end``.

    Args:
        prompts: of `read_prompts`.
        folder: where the videos go; need not exist.
        start, end: see `select`.
        seed: of the first sample of every prompt, as in the published scripts; the next ones have the next seeds.
        samples: videos per prompt.
        titles: the lines that files are named after, if those are others; as many as prompts.
        published: kind and by_index of `published_name`, to name files so; None for `output_name`.

    Raises:
        ValueError: see `select`.
    """
    chosen = {index for index, _ in select(prompts, start, end)}
    made, taken = [], set()
    for index, (script, title) in enumerate(zip(prompts, titles or prompts, strict=True)):
        if not script.strip():
            continue
        for sample in range(samples):
            if published is None:
                name = output_name(index, title, sample, samples)
            else:
                name = published_name(index, title, sample, *published)
            # Prompts may begin with the same hundred characters, and not all file systems tell A from a.
            stem, mark = name.removesuffix(".mp4"), f"-{index}"
            while _same(name) in taken:
                name = _fit(stem, mark) + ".mp4"
                mark += "_"
            taken.add(_same(name))
            if index in chosen:
                made.append(Item(index, sample, script, seed + sample, Path(folder) / name))
    return made


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def status(
    path: str | os.PathLike[str],
    frames: int,
    script: Script | None = None,
    seed: int | None = None,
    memory: str | None = None,
) -> Status:
    """Whether a video is done, can be continued, or is yet to be begun.

    A video that is long enough but has no snapshot beside it is done: snapshots of large models take gigabytes, and
    people remove them. A video that was made with something else than what is given here is not what was asked for.

    Args:
        path: of the video.
        frames: that it shall have.
        script, seed, memory: what it is made with; None for anything.

    Raises:
        ValueError: in one sentence, if there is something at ``path`` that is none of the three.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is to be a video, and it is not a file.")
    if not snapshot_path(path).exists():
        if not path.exists():
            return "new"
        there = _frames_of(path)
        if there >= frames:
            return "done"
        raise ValueError(
            f"{path} has {there} of {frames} frames and no snapshot beside it, so it cannot be continued: "
            "--overwrite starts over, another folder leaves it alone."
        )
    found = Recorded.look(path)
    if found is None or (not found.frames and not path.exists()):
        return "new"  # it was stopped before its first frame
    _check_made_with(path, found, script, seed, memory)
    return "done" if (found.finished or 0) >= frames else "continue"


def _frames_of(path: Path) -> int:
    from longtake.video import probe

    try:
        return probe(path).frames
    except (ValueError, OSError):
        raise ValueError(
            f"{path} is no video that can be read: --overwrite starts over, another folder leaves it alone."
        ) from None


def _check_made_with(path: Path, found: Recorded, script: Script | None, seed: int | None, memory: str | None) -> None:
    data = found.data
    try:
        said = [(s.start, s.prompt, s.change) for s in Script.from_dict(data["script"]).segments]
        old_seed, old_memory = data["seed"], parse_memory(data["policy"], 1)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            f"The snapshot of {path} lacks something that a take needs: --overwrite starts over, "
            "another folder leaves it alone."
        ) from None
    other: tuple[str, Any] | None = None
    if script is not None and said != [(s.start, s.prompt, s.change) for s in script.segments]:
        other = "prompt", Script.from_dict(data["script"]).format()[:60]
    elif seed is not None and old_seed != seed:
        other = "seed", old_seed
    elif memory is not None and old_memory != parse_memory(memory, 1):
        other = "memory", old_memory.spec()
    if other is not None:
        raise ValueError(
            f"{path} was made with the {other[0]} {other[1]!r}, which is not that asked for: --overwrite starts over, "
            "another folder leaves it alone."
        )
