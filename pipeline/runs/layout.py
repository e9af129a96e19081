"""Fits the tables of `pipeline.runs` into the width of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pipeline.system.console import table
from pipeline.system.words import printable

Rows = Sequence[Sequence[str]]

UNKNOWN = "-"
"""The cell of what is not known or not the case."""

_LEAVING = (
    "note", "where", "differs in", "network", "step", "last sign", "img/s", "epoch",
)  # fmt: skip
"""The columns of a list that a narrow terminal has below each run, the first to go first."""

_NUMBERS = ("epoch", "step", "img/s", "best top-1")
_BELOW = {"where": "on {}", "step": "step {}", "img/s": "{} img/s", "epoch": "epoch {}"}
"""How a cell reads without the head of its column."""

_NAME_SHARE = 3
"""A name longer than this part of the width stands on a line of its own."""

_LEAST_NAME = 16
_INDENT = "    "


def fitted(head: Sequence[str], rows: Rows, width: int) -> str:
    """The list in at most `width` columns where that is possible: what does not fit into the table
    stands below the run it is of. A name that is too long has its cells on the next line."""
    longest = max(_LEAST_NAME, width // _NAME_SHARE)
    rows = [list(map(printable, row)) for row in rows]
    for number in range(len(_LEAVING) + 1):
        below = _LEAVING[:number]
        lines = _table(head, rows, below, longest)
        if max(map(len, lines)) <= width:
            break
    text = lines[:1]
    for row, line in zip(rows, lines[1:], strict=True):
        alone = [row[0]] if len(row[0]) > longest else []
        text += [*alone, line, *_beneath(head, row, below, width)]
    return "\n".join(text)


def _table(head: Sequence[str], rows: Rows, below: Sequence[str], longest: int) -> list[str]:
    """The lines of the table: without the columns `below`, and without names of more than `longest`
    characters."""
    inside = [i for i, name in enumerate(head) if name not in below]
    numbers = [at for at, i in enumerate(inside) if head[i] in _NUMBERS]
    cells = [[row[i] for i in inside] for row in rows]
    for row in cells:
        row[0] = "" if len(row[0]) > longest else row[0]
    return table([head[i] for i in inside], cells, numbers).split("\n")


def _beneath(
    head: Sequence[str], row: Sequence[str], below: Sequence[str], width: int
) -> list[str]:
    """The cells that left the table, in the order of its columns; a note is a paragraph of its own.
    Where a run came to a good end is of no use any more."""
    cells = {name: cell for name, cell in zip(head, row, strict=True) if name in below}
    if row[head.index("state")] in ("finished", "stopped"):
        cells.pop("where", None)
    note = cells.pop("note", "")
    said = [_BELOW.get(n, "{}").format(cell) for n, cell in cells.items() if cell != UNKNOWN]
    return [line for text in (", ".join(said), note) for line in _wrapped(text, width)]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, max(width, 2 * len(_INDENT)), initial_indent=_INDENT, subsequent_indent=_INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def compared(head: Sequence[str], rows: Rows, width: int | None) -> str:
    """One line for each setting and one column for each run; where `width` is too small for that,
    a paragraph for each setting and in it a line for each run."""
    text = table(head, rows)
    if width is None or max(map(len, text.split("\n"))) <= width:
        return text
    widest = max(map(len, head[1:]))
    lines = []
    for name, *values in rows:
        own = zip(head[1:], values, strict=True)
        lines += [name, *(f"{_INDENT}{run.ljust(widest)}  {value}" for run, value in own)]
    return "\n".join(lines)
