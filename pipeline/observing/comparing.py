"""In which settings runs differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.observing.listing import table
from pipeline.observing.state import is_run
from pipeline.run_files import read_settings, read_versions, why_no_run


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
