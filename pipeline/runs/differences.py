"""In which settings and facts runs differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import names_of, settings
from pipeline.config.effect import without_effect
from pipeline.config.help import shown
from pipeline.runs.state import RunState, is_run
from pipeline.system.text import table
from pipeline.train.folder import read_settings, read_versions, why_no_run


def differences(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, by `part.name`, each with its value in every run;
    versions of packages and the commit as `versions.<name>`, None where a run does not say.

    Raises ValueError for a folder that is no run or has no configuration.
    """
    settings = [_facts(folder) for folder in folders]
    names = dict.fromkeys(name for facts in settings for name in facts if name != "run.name")
    values = {name: [facts.get(name) for facts in settings] for name in names}
    return {name: found for name, found in values.items() if any(v != found[0] for v in found)}


def _facts(folder: Path) -> dict[str, Any]:
    if not (folder / "config.yaml").is_file():
        if is_run(folder):
            raise ValueError(
                f"the run {folder} has no config.yaml: it did not come as far as its first step; "
                "start it again, or leave it out"
            )
        raise ValueError(why_no_run(folder))
    versions = {f"versions.{name}": value for name, value in read_versions(folder).items()}
    return read_settings(folder) | versions


def describe(folders: Sequence[Path], found: dict[str, list[Any]]) -> str:
    """The differences for people: one line a setting, one column a run."""
    if not found:
        return "the runs have the same settings"
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    rows = [(name, *map(_shown, values)) for name, values in found.items()]
    return table(("setting", *names), rows)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
    # The name stands beside them, and what is of a start is not of the run.
    own = {name for name in names_of("place") if name.startswith("run.")}
    left_out = idle | own | set(names_of("start"))
    return {name: value for name, value in run.settings.items() if name not in left_out}


def _place(name: str) -> tuple[int, int, str]:
    part, said = name.partition(".")[0], settings().get(name)
    return (
        (said.asked if said else None) or len(settings()),
        _PARTS.index(part) if part in _PARTS else len(_PARTS),
        name,
    )


def in_short(differing: dict[str, Any]) -> str:
    """The first few for a column: `base_lr=0.1 seed=1`."""
    parts = [f"{name.rpartition('.')[2]}={shown(value)}" for name, value in differing.items()]
    if len(parts) > _MOST:
        parts[_MOST:] = [f"and {len(parts) - _MOST} more"]
    return " ".join(parts) or "-"
