"""The settings in which runs differ, and how they are shown in short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import settings
from pipeline.config.setting import shown

_PARTS = ("optim", "schedule", "model", "data", "run")
_SHOWN = 4  # differences in a column


def differing(known: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The names with different values in `known`, with these; None where one is missing."""
    names = dict.fromkeys(name for facts in known for name in facts)
    values = {name: [facts.get(name) for facts in known] for name in names}
    return {name: found for name, found in values.items() if any(v != found[0] for v in found)}


def distinctions(known: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each of `known`, settings by `part.name`, those that differ among them and that it has,
    the most asked-for first."""
    names = sorted(differing(known), key=_place)
    return [{name: own[name] for name in names if name in own} for own in known]


def _place(name: str) -> tuple[int, int, str]:
    part, said = name.partition(".")[0], settings().get(name)
    return (
        (said.asked if said else None) or len(settings()),
        _PARTS.index(part) if part in _PARTS else len(_PARTS),
        name,
    )


def in_short(found: Mapping[str, Any], most: int = _SHOWN) -> str:
    """The first `most` differences on one line, and how many more there are: `base_lr=0.1 seed=1`;
    empty without any."""
    parts = [f"{name.rpartition('.')[2]}={shown(value)}" for name, value in found.items()]
    if len(parts) > most:
        parts[most:] = [f"and {len(parts) - most} more"]
    return " ".join(parts)
