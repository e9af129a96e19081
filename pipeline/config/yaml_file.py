"""Reads the settings of a YAML file and of those that it builds on, as text.

The only module that reads such files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ConfigError, require, setting_names
from pipeline.config.setting import home
from pipeline.config.values import flow
from pipeline.config.yaml_text import Quoted, tree_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

_NOTHING = ("", "null", "Null", "NULL", "~")  # what stands for nothing where a part would be


def unknown_setting(name: str, where: str, known: Sequence[str]) -> ConfigError:
    """The error for a name that is none of those `known`, with the nearest of them."""
    # A name is compared both whole and by its last part: `--depht` means `--model.depth`.
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    last = {option.rpartition(".")[2]: option for option in known}
    tail = difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.6)
    nearest = whole[0] if whole else last[tail[0]] if tail else None
    hint = f"; did you mean {nearest}?" if nearest else "; --help lists the settings"
    return ConfigError(f"{where}: there is no setting {name}{hint}")


def settings_in(path: Path) -> dict[str, Any]:
    """The settings of a YAML file and of those it builds on, by `part.name`, each a text or a list
    of texts. Raises `ConfigError`.

    A setting stands below its part or at the top under its whole name, as on the command line, but
    not both in one file. `base: FILE`, a path relative to the file that names it, includes all
    settings of FILE; the file's own settings override them, one at a time.
    """
    return _read_chain(path, f"--config {path}", [])


def _read_chain(path: Path, named: str, above: list[Path]) -> dict[str, Any]:
    """Reads one file. `named` is how the user refers to `path`; `above` are the files that build on
    it."""
    if any(path.resolve() == file.resolve() for file in above):
        chain = " -> ".join(str(file) for file in [*above, path])
        raise ConfigError(f"{path} builds on itself: {chain}; take base out of one of them")
    found = _read_one(path, named)
    base = found.pop("base", None)
    if base is None:
        return found
    require(
        isinstance(base, str) and (isinstance(base, Quoted) or base not in _NOTHING),
        f"{path}: base={base!r} must be the path of a YAML file, from the folder of this one",
    )
    return _read_chain(path.parent / home(base), f"{path}: base {base}", [*above, path]) | found


def _read_one(path: Path, named: str) -> dict[str, Any]:
    try:
        tree = tree_of(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{named} cannot be read ({error.strerror}); there are: {_configs_like(path)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named} is not YAML: {' '.join(str(error).split())}") from error
    if tree is None or _is_nothing(tree):
        return {}
    require(isinstance(tree, dict), f"{named} must hold settings by name, as configs/ does")
    known = ["base", *setting_names()]
    found: dict[str, Any] = {}
    for name, value in _flat(tree, known, path):
        if name not in known:
            raise unknown_setting(name, str(path), known)
        require(
            name not in found,
            f"{path}: {name} occurs twice, as {name} and below {name.partition('.')[0]}; leave one",
        )
        found[name] = value
    return found


def _flat(tree: dict[str, Any], known: Sequence[str], path: Path) -> Iterator[tuple[str, Any]]:
    """Every setting with its whole name, those of a part too."""
    parts = {name.partition(".")[0] for name in known if "." in name}
    for key, value in tree.items():
        if key not in parts:
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        elif not _is_nothing(value):
            raise ConfigError(f"{path}: {key} must hold settings by name, not {flow(value)}")
        # An empty part (`data:` with all its lines commented out) sets nothing and is fine.


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Quoted) and value in _NOTHING


def _configs_like(path: Path) -> str:
    """The files in configs/ with the names nearest to `path`, or all if none is near."""
    found = sorted(str(file.relative_to(CONFIGS.parent)) for file in CONFIGS.rglob("*.yaml"))
    near = difflib.get_close_matches(str(path), found, n=3, cutoff=0.75)
    return f"{', '.join(near)} and others" if near else ", ".join(found)
