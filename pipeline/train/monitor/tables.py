"""The numbers of a run as tables: `train.csv` and `val.csv` in its folder `csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.system.files import PatientFile, Room, replacing
from pipeline.train.folder import TABLE
from pipeline.train.monitor.observer import DRAWN, Observer


class Tables(Observer):
    """A table of each kind of line, with the lines `kept` of earlier starts and no others of them.

    A column that a later line brings is added at the right; earlier rows are empty there.
    """

    def __init__(self, folder: Path, kept: Sequence[Mapping[str, Any]], room: Room) -> None:
        folder.mkdir(exist_ok=True)
        self._tables = {}
        for event in DRAWN:
            lines = [line for line in kept if line["event"] == event]
            self._tables[event] = _Table(folder / TABLE.format(event), lines, room)

    def see(self, line: Mapping[str, Any]) -> None:
        if line["event"] in self._tables:
            self._tables[line["event"]].add(line)

    def close(self) -> None:
        for table in self._tables.values():
            table.close()


class _Table:
    def __init__(self, path: Path, lines: Sequence[Mapping[str, Any]], room: Room) -> None:
        self._path, self._room = path, room
        self._columns = _columns(lines)
        self._file: PatientFile | None = None
        if lines or path.exists():
            self._rewrite(lines)

    def add(self, line: Mapping[str, Any]) -> None:
        missing = [name for name in _columns([line]) if name not in self._columns]
        if missing or self._file is None:
            self.close()
            earlier = _read(self._path)
            self._columns += missing
            self._rewrite([*earlier, line])
        else:
            self._file.write(_rows(self._columns, [line]).encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rewrite(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with replacing(self._path) as new:
            head = ",".join(self._columns) + "\n" if self._columns else ""
            new.write_text(head + _rows(self._columns, lines), encoding="utf-8")
        self._file = PatientFile(self._path, self._room)


def _columns(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names in lines, in their order; which event a line is of, its table says."""
    names = dict.fromkeys(name for line in lines for name in line)
    return [name for name in names if name != "event"]


def _rows(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a table; null and what a line does not have are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writerows(lines)
    return text.getvalue()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
