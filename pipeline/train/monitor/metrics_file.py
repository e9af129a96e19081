"""metrics.jsonl: one JSON object a line, which another start of the run takes up again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.system.files import PatientFile, Room, replacing

log = logging.getLogger("trainyard")

_NAMED = 10  # cut lines in a warning


class MetricsFile:
    """The file of a run that stands at `position`, with `validations` of them done.

    What lies beyond is taken back, so that no step appears twice; `kept` are the lines that stay.
    """

    def __init__(self, path: Path, position: int, validations: int, room: Room) -> None:
        self.kept = _keep_lines(path, position, validations)
        self._file = PatientFile(path, room)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Appends a line. Raises `ValueError` for a number that JSON does not have."""
        self._file.write((json.dumps(metrics, allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path, warn: bool = False) -> list[dict[str, Any]]:
    """The whole lines of a `metrics.jsonl`; those that a kill has cut are left out.

    With `warn` they are named in one warning: for who shows the file, or goes on with it.
    """
    if not path.exists():
        return []
    metrics, cut = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        found = metrics_of(line)
        if found is None:
            cut.append(number)
        else:
            metrics.append(found)
    if cut and warn:
        what = f"a line of {path} is" if len(cut) == 1 else f"{len(cut)} lines of {path} are"
        where = ", ".join(map(str, cut[:_NAMED])) + (" and more" if len(cut) > _NAMED else "")
        log.warning("warning: %s cut and left out: line %s", what, where)
    return metrics


def metrics_of(line: str | bytes) -> dict[str, Any] | None:
    """What a line says; None if a kill has cut it."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _keep_lines(path: Path, position: int, validations: int) -> list[dict[str, Any]]:
    """Rewrites the file without what lies beyond the checkpoint; returns what stays."""
    kept, seen = [], 0
    for metrics in read_metrics(path, warn=True):
        seen += metrics["event"] == "val"
        beyond = metrics["event"] == "val" and seen > validations
        if metrics["position"] <= position and not beyond and metrics["event"] != "done":
            kept.append(metrics)
    text = "".join(json.dumps(metrics) + "\n" for metrics in kept)
    if path.exists() and path.read_bytes() != text.encode():
        with replacing(path) as new:
            new.write_text(text, encoding="utf-8")
    return kept
