"""A report as a document of few kinds of blocks, written as one HTML page and as Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.system.files import write_text
from pipeline.system.words import printable
from pipeline.train.folder import REPORT

# Self-contained: the page must open on a node without a network, and in a mail.
_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5b6168; --line: #d9dce0;
  --back: #fff; --head: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6e9; --soft: #a2a8b0; --line: #3a3f46;
  --back: #16181b; --head: #22252a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--back);
  color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: break-word; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4; min-width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem .4rem;
  border-bottom: 1px solid var(--line); }
th { background: var(--head); font-weight: 600; }
th, td { white-space: nowrap; }
td.long { white-space: normal; min-width: 13rem; }
.number { text-align: right; }
figure { margin: 1rem 0 1.6rem; }
figure div { overflow-x: auto; }
figure img { display: block; max-width: 100%; min-width: 34rem; height: auto; background: #fff;
  border-radius: 6px; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .875rem; line-height: 1.45; margin-top: .5rem;
  max-width: 46rem; }
"""

_LONG_CELL = 26
"""Characters beyond which the cells of a column may be wrapped."""

_SHARE_OF_PIXELS = 0.6
"""Width of a plot on the page in CSS pixels over its own: sharp on dense screens."""


@dataclass(frozen=True)
class Heading:
    """`level` 1 is the page's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as `head`; the columns `numbers` are set to the right."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file in the report's folder; `alt` describes it."""

    file: str
    caption: str
    alt: str


Block = Heading | Paragraph | Table | Picture


def write_pages(folder: Path, blocks: Sequence[Block]) -> None:
    """Writes index.html, which holds its pictures, and report.md, which shows them, to `folder`."""
    write_text(folder / "index.html", to_html(blocks, folder))
    write_text(folder / REPORT, to_markdown(blocks))


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """One page without links to anything outside; pictures are read from `folder`."""
    title = next((b.text for b in blocks if isinstance(b, Heading) and b.level == 1), "report")
    body = "\n".join(_html_block(block, folder) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _html_block(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_escaped(text)}</p>"
        case Picture(file, caption, alt):
            content = (folder / file).read_bytes()
            image = base64.b64encode(content).decode("ascii")
            pixels = int.from_bytes(content[16:20], "big")  # the width in a PNG file
            return (
                f'<figure><div><img width="{round(_SHARE_OF_PIXELS * pixels)}" '
                f'alt="{_escaped(alt)}" src="data:image/png;base64,{image}"></div>'
                f"<figcaption>{_escaped(caption)}</figcaption></figure>"
            )
        case Table():
            columns = enumerate(zip(*block.rows, strict=True))
            long = {i for i, cells in columns if max(map(len, cells)) > _LONG_CELL}
            head = _html_row(block, block.head, "th", long)
            rows = "\n".join(_html_row(block, row, "td", long) for row in block.rows)
            return (
                f'<div class="table"><table>\n<thead>{head}</thead>\n'
                f"<tbody>\n{rows}\n</tbody>\n</table></div>"
            )


def _escaped(text: str) -> str:
    """`text` as HTML shows it, with names of any bytes in it."""
    return html.escape(printable(text))


def _html_row(table: Table, cells: tuple[str, ...], tag: str, long: Set[int]) -> str:
    parts = []
    for i, cell in enumerate(cells):
        kind = ' class="number"' if i in table.numbers else ' class="long"' if i in long else ""
        parts.append(f"<{tag}{kind}>{_escaped(cell)}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def to_markdown(blocks: Sequence[Block]) -> str:
    """The same content as GitHub's Markdown."""
    return "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Picture(file, caption, alt):
            return f"![{_plain(alt)}]({file})\n\n{_plain(caption)}"
        case Table(head, rows, numbers):
            rule = ["---:" if i in numbers else "---" for i in range(len(head))]
            lines = [[_plain(cell) for cell in row] for row in (head, *rows)]
            return "\n".join(f"| {' | '.join(row)} |" for row in (lines[0], rule, *lines[1:]))


def _plain(text: str) -> str:
    """`text` with what Markdown would read as markup escaped, on one line."""
    escaped = re.sub(r"([\\`*\[\]<>|]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", printable(text))
    return " ".join(escaped.split())
