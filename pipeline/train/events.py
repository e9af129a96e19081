"""The events of a run, one JSON object a line of its `metrics.jsonl`; only whole ones are read.

Imports nothing heavy, as `pipeline.train.folder`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.system.files import content_of

log = logging.getLogger("trainyard")

_NUMBERS = {
    "train": ("top1", "time"), "val": ("top1", "images", "time"), "done": ("time",),
}  # fmt: skip
"""Events of numbers alone, with those that each must have."""
_COUNTS = (
    "time", "total_steps", "ranks", "global_batch_size", "micro_batch_size", "accumulation",
    "train_images", "val_images", "classes",
)  # fmt: skip
"""Numbers in an event that has other things too."""
_NAMED = 10  # lines in a warning


def last(lines: Sequence[Mapping[str, Any]], event: str) -> Mapping[str, Any]:
    """The last of `lines` of metrics that is of one kind; empty if there is none."""
    return next((line for line in reversed(lines) if line.get("event") == event), {})


def read_metrics(path: Path, warn: bool = False) -> list[dict[str, Any]]:
    """The whole lines of a `metrics.jsonl`; those that a kill has cut, and lines that are no
    event of a run, are left out.

    With `warn` they are named in one warning, for readers that show the file or continue it.
    """
    try:
        stored = content_of(path, str(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    lines = stored.decode(errors="replace").splitlines()
    metrics, cut = [], []
    for number, line in enumerate(lines, start=1):
        found = metrics_of(line)
        if found is None:
            cut.append(number)
        else:
            metrics.append(found)
    if cut and warn:
        what = f"a line of {path} is" if len(cut) == 1 else f"{len(cut)} lines of {path} are"
        where = ", ".join(map(str, cut[:_NAMED])) + (" and more" if len(cut) > _NAMED else "")
        log.warning("warning: %s cut or no event of a run, and left out: line %s", what, where)
    return metrics


def metrics_of(line: str | bytes) -> dict[str, Any] | None:
    """The event that a line holds; None if a kill has cut it, or somebody else wrote it.

    What readers rely on is there and of its kind: `event`; of all events `step` and `position`; of
    `train` and `val` the fields in `_NUMBERS`; every other field that is known to be a number.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        return None
    if not all(_is_count(found.get(name)) for name in ("step", "position")):
        return None
    event = found["event"]
    if not all(_is_number(found.get(name)) for name in _NUMBERS.get(event, ())):
        return None
    known = found if event in _NUMBERS else {n: found[n] for n in _COUNTS if n in found}
    fits = all(v is None or _is_number(v) for n, v in known.items() if n != "event")
    return found if fits and isinstance(found.get("versions", {}), dict) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 1 << 63
