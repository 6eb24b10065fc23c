"""A page in parts, written as HTML that needs nothing else, or as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Something to type, as it is."""

    text: str


@dataclass(frozen=True)
class Cell:
    """Of a table; ``mark`` is "better", "worse" or ""."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Picture:
    """A file in the folder of the page."""

    path: str
    alt: str


@dataclass(frozen=True)
class Table:
    """Rows of cells or pictures under a header; ``folded`` ones are shown when asked for."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | Picture]]
    folded: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing as SVG text; ``path`` is the file that it is written to for Markdown."""

    svg: str
    path: str
    alt: str


Block = Heading | Text | Code | Table | Chart
_SIGNS = {"better": "▲", "worse": "▼", "": ""}


@dataclass(frozen=True)
class Page:
    """Blocks from top to bottom."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)

    def write_markdown(self, path: Path) -> None:
        """The page as Markdown; drawings go into files beside it.

        Raises:
            OSError: a file cannot be written.
        """
        for block in self.blocks:
            if isinstance(block, Chart):
                target = path.parent / block.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.svg, encoding="utf-8")
        text = "\n\n".join(_markdown(block) for block in self.blocks)
        path.write_text(text + "\n", encoding="utf-8")

    def write_html(self, path: Path) -> None:
        """The page as one file with all pictures in it.

        Raises:
            OSError: a file cannot be read or written.
        """
        parts = []
        for charts, blocks in itertools.groupby(self.blocks, lambda block: isinstance(block, Chart)):
            group = "\n".join(_html(block, path.parent) for block in blocks)
            parts.append(f'<div class="charts">\n{group}\n</div>' if charts else group)
        body = "\n".join(parts)
        path.write_text(_PAGE.format(title=escape(self.title), style=_STYLE, body=body), encoding="utf-8")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line; what stands between backticks is code."""
    parts = " ".join(text.split()).split("`")
    shown = [part if index % 2 else re.sub(r"([*_|<>\[\]#~])", r"\\\1", part) for index, part in enumerate(parts)]
    return "`".join(part.replace("|", r"\|") if index % 2 else part for index, part in enumerate(shown))


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Text():
            return _plain(block.text)
        case Code():
            return f"```\n{block.text}\n```"
        case Chart():
            return f"![{_plain(block.alt)}]({block.path})"
    lines = [f"**{_plain(block.folded)}**", ""] if block.folded else []
    lines += [_row(_plain(text) for text in block.header), _row("---" for _ in block.header)]
    for row in block.rows:
        lines.append(_row(_cell(cell) for cell in row))
    return "\n".join(lines)


def _row(cells: Sequence[str] | object) -> str:
    return "| " + " | ".join(cells) + " |"  # type: ignore[arg-type]


def _cell(cell: Cell | Picture) -> str:
    if isinstance(cell, Picture):
        return f"![{_plain(cell.alt)}]({cell.path.replace(' ', '%20')})"
    return f"{_SIGNS[cell.mark]} **{_plain(cell.text)}**" if cell.mark else _plain(cell.text)


def _inline(text: str) -> str:
    parts = [escape(part) for part in text.split("`")]
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{_inline(block.text)}</p>"
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Chart():
            svg = block.svg.replace(' xmlns="http://www.w3.org/2000/svg"', "").strip()
            return f'<figure role="img" aria-label="{escape(block.alt)}">{svg}</figure>'
    # long names may break behind their underscores
    names = (_inline(text).replace("_", "_<wbr>") for text in block.header)
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "\n".join(
        "<tr>" + "".join(_html_cell(cell, index == 0, folder) for index, cell in enumerate(row)) + "</tr>"
        for row in block.rows
    )
    table = f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    return f"<details><summary>{_inline(block.folded)}</summary>\n{table}</details>" if block.folded else table


def _html_cell(cell: Cell | Picture, first: bool, folder: Path) -> str:
    if isinstance(cell, Picture):
        kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(Path(cell.path).suffix, "png")
        content = base64.b64encode((folder / cell.path).read_bytes()).decode()
        return f'<td class="strip"><img alt="{escape(cell.alt)}" src="data:image/{kind};base64,{content}"></td>'
    if first:
        return f'<th scope="row">{_inline(cell.text)}</th>'
    sign = f" {_SIGNS[cell.mark]}" if cell.mark else ""
    return f'<td class="{cell.mark}">{_inline(cell.text)}{sign}</td>' if cell.mark else f"<td>{_inline(cell.text)}</td>"


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1c; --soft: #5c5c5c; --line: #ddd; --shade: #f5f5f5;
  --better: #00704f; --worse: #b04200; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e4e4e4; --soft: #a5a5a5; --line: #3a3d44;
  --shade: #20232a; --better: #4fd1a5; --worse: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 100rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p { max-width: 50rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: var(--shade); border-radius: 4px; }
code { padding: 0 .25em; } pre { padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th[scope=row], th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
thead code { padding: 0; background: none; }
td.better { color: var(--better); font-weight: 600; } td.worse { color: var(--worse); font-weight: 600; }
td.strip { padding: 2px; } td.strip img { display: block; height: 96px; image-rendering: auto; }
summary { cursor: pointer; color: var(--soft); padding: .3rem 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; }
figure svg text { fill: var(--ink); } figure svg > rect:first-child { fill: none; }
figure svg path[stroke="#ddd"] { stroke: var(--line); } figure svg [stroke="#000000"] { stroke: var(--ink); }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
