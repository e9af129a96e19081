"""Reads the settings of a YAML file and of those that it builds on, as text.

The only module that reads such files.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ConfigError, require, setting_names
from pipeline.config.setting import home
from pipeline.config.values import flow
from pipeline.config.yaml_text import Name, Quoted, in_words, tree_of

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = _PACKAGE / "configs"
CONFIGS = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent / "configs"
"""The configurations that come along: within the package where a wheel has put them (setup.py),
else at the top of the checkout."""

_MOST_NEAR = 5  # files that a message names
_NEAR = 0.6  # least similarity of a name that may have been meant
_NOTHING = ("", "null", "Null", "NULL", "~")  # what stands for nothing where a part would be


def unknown_setting(name: str, where: str, known: Sequence[str]) -> ConfigError:
    """The error for a name that is none of those `known`, with the nearest of them."""
    # A name is compared both whole and by its last part: `--depht` means `--model.depth`.
    last = {option.rpartition(".")[2]: option for option in known}
    part, _, word = name.rpartition(".")
    # `optim.lr` means `optim.base_lr`, and `optim.ema` means `optim.ema_decay`, though other names
    # have fewer letters that differ.
    longer = [one for one in known if one.startswith(f"{part}.") and one.endswith(f"_{word}")]
    longer += [one for one in known if one.startswith(f"{name}_")]
    tail = _nearest(word, list(last))
    nearest = next(iter(longer), None) or _nearest(name, known) or (last[tail] if tail else None)
    here = "--help" if name.startswith("--") else "python -m pipeline.train --help"
    hint = f"did you mean {nearest}?" if nearest else f"{here} lists the settings"
    return ConfigError(f"{where}: there is no setting {name}; {hint}")


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that is most like `name`, of equals the first; None if none is near."""
    scores = {other: difflib.SequenceMatcher(None, other, name).ratio() for other in known}
    best = max(scores, key=scores.__getitem__, default=None)
    return best if best is not None and scores[best] >= _NEAR else None


@dataclass(frozen=True)
class Given:
    """What a file gives for a setting, as text or a list of texts, and that file."""

    value: Any
    file: Path


def settings_in(path: Path) -> dict[str, Given]:
    """The settings of a YAML file and of those it builds on, by `part.name`. Raises `ConfigError`.

    A setting stands below its part or at the top under its whole name, as on the command line, but
    not both in one file. `base: FILE`, a path relative to the file that names it, includes all
    settings of FILE; the file's own settings override them, one at a time. For a `path` that is not
    there, the file that `shipped` has for it.
    """
    found: dict[str, Given] = {}
    for file, values in _chain_of(path):
        found = {name: Given(value, file) for name, value in values.items()} | found
    return found


def files_of(path: Path) -> list[Path]:
    """The YAML files that `settings_in` reads. Raises `ConfigError`."""
    return [file for file, _ in _chain_of(path)]


def _chain_of(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    return _read_chain(str(shipped(str(path)) or path), Path(), f"--config {path}", [])


def shipped(asked: str) -> Path | None:
    """The configuration that comes along under a path such as `configs/demo.yaml`, if the working
    folder has no file of that path; else None."""
    path = Path(home(asked))
    if path.parts[:1] != ("configs",) or os.path.lexists(path):
        return None
    found = CONFIGS.joinpath(*path.parts[1:])
    return found if ".." not in path.parts and found.is_file() else None


def _read_chain(
    asked: str, start: Path, named: str, above: list[Path]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The settings in the file that the user has as `asked`, from the folder `start`, and messages
    as `named`, then those of the files that it builds on; `above` are those that build on it."""
    path = start / home(asked)
    if any(path.resolve() == file.resolve() for file in above):
        chain = " -> ".join(str(file) for file in [*above, path])
        raise ConfigError(f"{path} builds on itself: {chain}; take base out of one of them")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        tried = f"{error.strerror}: {os.path.abspath(path)}"
        rule = "; a base is given from the folder of the file that names it" if above else ""
        raise ConfigError(
            f"{named} cannot be read ({tried}){rule}; {_near(path, asked, start)}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named} is not YAML: {error}") from error
    found = _settings_of(text, path, named)
    base = found.pop("base", None)
    yield path, found
    if base is None:
        return
    require(
        isinstance(base, str) and (isinstance(base, Quoted) or base not in _NOTHING),
        f"{path}: base={base!r} must be the path of a YAML file, from the folder of this one",
    )
    yield from _read_chain(base, path.parent, f"{path}: base {base}", [*above, path])


def _settings_of(text: str, path: Path, named: str) -> dict[str, Any]:
    """The settings in the `text` of one file, and its `base`."""
    try:
        tree = tree_of(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{named} is not YAML: {in_words(error)}") from error
    if tree is None or _is_nothing(tree):
        return {}
    require(isinstance(tree, dict), f"{named} must hold settings by name, as configs/ does")
    known = ["base", *setting_names()]
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name, line, value in _flat(tree, known, path):
        if name not in known:
            is_part = isinstance(value, dict) and "." not in name
            raise unknown_setting(name, str(path), _parts(known) if is_part else known)
        require(
            name not in found,
            f"{path}: {name} occurs twice, as {name} and below {name.partition('.')[0]}, in line "
            f"{lines.get(name)} and line {line}; leave one",
        )
        found[name], lines[name] = value, line
    return found


def _parts(known: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in known if "." in name))


def _flat(
    tree: dict[Name, Any], known: Sequence[str], path: Path
) -> Iterator[tuple[str, int, Any]]:
    """Every setting with its whole name, those of a part too, and its line."""
    parts = _parts(known)
    for key, value in tree.items():
        if key not in parts:
            yield str(key), key.line, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", name.line, inner) for name, inner in value.items())
        elif _is_nothing(value):
            raise ConfigError(
                f"{path}: {key} holds nothing; give settings below it, or take out line {key.line}"
            )
        else:
            raise ConfigError(f"{path}: {key} must hold settings by name, not {flow(value)}")


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Quoted) and value in _NOTHING


def _near(path: Path, asked: str, start: Path) -> str:
    """The files in configs/ and beside `path` with the nearest names, as the user gives them who
    gave `asked` for `path`, from the folder `start`."""
    ours = {str(file.relative_to(CONFIGS.parent)): file for file in sorted(CONFIGS.rglob("*.yaml"))}
    near = [ours[name] for name in difflib.get_close_matches(asked, ours, _MOST_NEAR, 0.75)]
    by_name = {file.name: file for file in [*ours.values(), *path.parent.glob("*.yaml")]}
    alike = difflib.get_close_matches(path.name, by_name, _MOST_NEAR, 0.75)
    near += [by_name[name] for name in alike]
    names = {file: name for name, file in ours.items() if start == Path() and shipped(name)}
    shown = dict.fromkeys(names.get(file, os.path.relpath(file, start)) for file in near)
    if not shown:
        return f"those that come along are in {CONFIGS}"
    return f"near are: {', '.join(list(shown)[:_MOST_NEAR])}"
