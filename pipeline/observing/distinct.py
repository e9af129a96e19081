"""What tells runs of one network apart in a list: the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.effect import without_effect
from pipeline.help_text import shown
from pipeline.observing.state import RunState

_LEFT_OUT = ("run.name", "run.dir", "base", "config", "resume", "profile")
"""The name stands beside them; the others are of a start, not of a run."""
_FIRST = ("optim.base_lr", "run.seed", "schedule.epochs", "schedule.steps")
_PARTS = ("optim", "schedule", "model", "data", "run")
_MOST = 4


def distinctions(runs: Sequence[RunState]) -> list[dict[str, Any]]:
    """For each run its settings, by `part.name`, that are not the same in all runs of its network,
    what people ask for first in front. Settings without effect in a run do not count there.

    A run that is the only one of its network has none, nor one whose configuration is not there.
    """
    by_network: dict[str | None, list[int]] = {}
    for number, run in enumerate(runs):
        if run.settings:
            by_network.setdefault(run.network, []).append(number)
    found: list[dict[str, Any]] = [{} for _ in runs]
    for members in by_network.values():
        counting = [_counting(runs[number]) for number in members]
        names = dict.fromkeys(name for settings in counting for name in settings)
        for name in sorted(names, key=_place):
            if any(settings.get(name) != counting[0].get(name) for settings in counting):
                for number, settings in zip(members, counting, strict=True):
                    if name in settings:
                        found[number][name] = settings[name]
    return found


def _counting(run: RunState) -> dict[str, Any]:
    try:
        idle = set(without_effect(run.settings))
    except (KeyError, TypeError):  # of another version
        idle = set()
    return {
        name: value
        for name, value in run.settings.items()
        if name not in idle and name not in _LEFT_OUT
    }


def _place(name: str) -> tuple[int, int, str]:
    part = name.partition(".")[0]
    return (
        _FIRST.index(name) if name in _FIRST else len(_FIRST),
        _PARTS.index(part) if part in _PARTS else len(_PARTS),
        name,
    )


def in_short(differing: dict[str, Any]) -> str:
    """The first few for a column: `base_lr=0.1 seed=1`."""
    parts = [f"{name.rpartition('.')[2]}={shown(value)}" for name, value in differing.items()]
    if len(parts) > _MOST:
        parts[_MOST:] = [f"and {len(parts) - _MOST} more"]
    return " ".join(parts) or "-"
