"""Settings as a caller in Python gives them, and where a checkpoint of a run lies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, require
from pipeline.config.parser import Parsed
from pipeline.config.reading import made, placed, typed_values
from pipeline.config.reading import yaml_values as values_of_yaml
from pipeline.config.run import require_plain_name
from pipeline.config.yaml_file import settings_in
from pipeline.train.checkpoint_path import checkpoint_at

AnyPath = str | os.PathLike[str]
Settings = Mapping[str, Any]
"""Settings by `part.name`, as {"data.root": "photos"}, or by part, as {"data": {"root": ...}}."""


def config_of_call(config: AnyPath | Settings | Config, settings: Settings | None) -> Config:
    """The configuration of a YAML file, of settings beside the defaults, or as it is; with
    `settings` in the place of its own.

    As on the command line, a run is named after its file unless either names it. Raises
    `ConfigError`.
    """
    given = _typed(settings)
    if isinstance(config, Config | Mapping):
        known = config.values() if isinstance(config, Config) else typed_values(config)
        found = made(known | given)
        require_plain_name(found.run.name)
        return found
    require(
        isinstance(config, str | os.PathLike),
        f"config={config!r} must be the path of a YAML file, a dict of settings or a Config",
    )
    path = Path(config).expanduser()
    in_file = settings_in(path)
    named = {"run.name": path.stem} | values_of_yaml(in_file)
    with placed(in_file, given):
        read = made(named | given)
        require_plain_name(read.run.name)
    return read


def parsed(settings: Settings | None, allowed: Sequence[str], others: Settings) -> Parsed:
    """`settings` and `others` as a command line has them. Raises `ConfigError` for one that is not
    `allowed`."""
    given = _typed(others) | _typed(settings)
    for name in given:
        require(
            name in allowed,
            f"{name} comes from the checkpoint; what can change: {', '.join(allowed)}",
        )
    return Parsed(**given)


def _typed(settings: Settings | None) -> dict[str, Any]:
    """`settings` by `part.name`, each of its type. Raises `ConfigError`."""
    require(
        settings is None or isinstance(settings, Mapping),
        f"settings={settings!r} must be a dict of settings, such as {{'data.root': 'photos'}}",
    )
    return typed_values(settings or {})


def checkpoint_in(place: AnyPath) -> Path:
    """The checkpoint `place`, or the best of the run whose folder it is. Raises `ConfigError` if
    there is none."""
    require(
        isinstance(place, str | os.PathLike),
        f"checkpoint={place!r} must be the path of a .pt file or of a run's folder",
    )
    return checkpoint_at("the checkpoint", Path(place).expanduser())
