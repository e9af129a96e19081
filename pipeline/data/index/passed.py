"""Counts what a scan does not take, by reason: nothing vanishes without a word."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

HIDDEN = "names that begin with a dot"
NESTED = "folders inside class folders"
OUTSIDE = "files outside class folders"  # of `prepare split`
LOOSE = "images outside class folders and containers"
OUTSIDE = "files outside class folders"
TO_NOWHERE = "links to nothing"
SPECIAL = "special files (FIFOs, sockets, devices)"
UNUSED_LABELS = "label files without an image"
UNUSED_LINES = "lines of .lst files without a record"
LINKS = "links inside archives"

_OF_ONE = {
    HIDDEN: "name that begins with a dot",
    NESTED: "folder inside class folders",
    LOOSE: "image outside class folders and containers",
    OUTSIDE: "file outside class folders",
    TO_NOWHERE: "link to nothing",
    SPECIAL: "special file (FIFO, socket, device)",
    UNUSED_LABELS: "label file without an image",
    UNUSED_LINES: "line of .lst files without a record",
    LINKS: "link inside archives",
}

# Behind these there may be images, or a class, that somebody meant to train on.
_MISSED = {NESTED, LOOSE, TO_NOWHERE, SPECIAL, UNUSED_LABELS, UNUSED_LINES}
_PICTURES = re.compile(
    rb"\.(gif|heic|heif|avif|jp2|jxl|pbm|pgm|ppm|pnm|tga|ico|svg|psd|dng)$", re.I
)
_EXTENSION = re.compile(rb"\.[a-z][a-z0-9]{0,7}$", re.I)
_REASONS_SHOWN = 6


class Passed:
    """How many entries were passed over for each reason, and the first of them."""

    def __init__(self, rows: Iterable[tuple[str, int, str]] = ()) -> None:
        """Take rows as `rows` returns them."""
        self._found = {reason: (count, first) for reason, count, first in rows}

    def __bool__(self) -> bool:
        """Return whether anything was passed over."""
        return bool(self._found)

    def add(self, reason: str, name: bytes | str, count: int = 1) -> None:
        """Count `count` entries, the first of which is called `name`."""
        before, first = self._found.get(reason, (0, ""))
        self._found[reason] = before + count, first or os.fsdecode(name)

    def add_file(self, name: bytes, place: bytes) -> None:
        """Count a file whose `name` is no image's; `place` says where it lies."""
        found = _EXTENSION.search(name)
        kind = "" if found is None else os.fsdecode(found[0].lower())
        self.add(f"{kind} files" if kind else "other files", place)

    def merge(self, other: Passed) -> None:
        """Add what another walk passed over."""
        for reason, count, first in other.rows():
            self.add(reason, first, count)

    def rows(self) -> list[tuple[str, int, str]]:
        """Return reason, count and first name, the most frequent reason first."""
        rows = [(reason, count, first) for reason, (count, first) in self._found.items()]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def words(self) -> str:
        """Return "2 .gif files (the first a/1.gif), 1 link to nothing (the first b)"."""
        rows = self.rows()
        # What may be missed is named however many notes lie around it.
        shown = sorted(rows, key=lambda row: not _is_missed(row[0]))[:_REASONS_SHOWN]
        words = [f"{_counted(count, reason)} (the first {first})" for reason, count, first in shown]
        rest = sum(count for _, count, _ in rows) - sum(count for _, count, _ in shown)
        return ", ".join([*words, *([f"{rest} others"] if rest else [])])

    @property
    def may_be_missed(self) -> bool:
        """Whether images that somebody meant to use may be among them."""
        return any(_is_missed(reason) for reason in self._found)


def _is_missed(reason: str) -> bool:
    return (
        reason in _MISSED
        or _PICTURES.search(os.fsencode(reason.removesuffix(" files"))) is not None
    )


def _counted(count: int, reason: str) -> str:
    """How many, in words; a reason is in the plural."""
    one = _OF_ONE.get(reason, reason.removesuffix("s"))
    return f"{count} {one if count == 1 else reason}"
