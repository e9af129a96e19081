"""Reads a configuration: defaults, then a YAML file, then the command line, all names checked.

Every command makes its parser and reads its options with these functions. It imports nothing heavy,
so that `--help` and a wrong setting answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from docstring_parser import parse_from_object

from pipeline.config import (
    Config,
    ConfigError,
    names_for,
    require,
    setting_names,
    setting_types,
)
from pipeline.config.help import PRINT_CONFIG, PRINT_CONFIG_HELP, metavar_of
from pipeline.config.parser import Parsed, Parser, option_names, program
from pipeline.config.run import require_plain_name
from pipeline.config.setting import Command
from pipeline.config.values import Refused, read, refusal
from pipeline.config.yaml_file import CONFIGS, Given, settings_in, unknown_setting
from pipeline.config.yaml_text import Quoted

T = TypeVar("T")

DEFAULT_CONFIG = CONFIGS / "resnet50.yaml"


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file and of those it builds on, by part and name, each of its type.
    Raises `ConfigError`, as `settings_in` does."""
    tree: dict[str, Any] = {}
    for name, value in yaml_values(settings_in(path)).items():
        part, _, rest = name.partition(".")
        if rest:
            tree.setdefault(part, {})[rest] = value
        else:
            tree[part] = value
    return tree


def yaml_values(found: Mapping[str, Given]) -> dict[str, Any]:
    """The settings of a YAML file by `part.name`, each of its type."""
    return {name: _typed(name, given.value, f"{given.file}: ") for name, given in found.items()}


def _typed(name: str, value: Any, where: str = "") -> Any:
    """The value of a setting. Raises `ConfigError`, with `where` in front, if it is not of the
    setting's type."""
    try:
        return read(value, setting_types()[name])
    except Refused as error:
        raise ConfigError(refusal(f"{where}{name}=", value, error)) from error


@contextlib.contextmanager
def placed(found: Mapping[str, Given], given: Collection[str]) -> Iterator[None]:
    """Puts the file in front of a `ConfigError` about a setting that came out of it, and not off
    the command line."""
    try:
        yield
    except ConfigError as error:
        name = str(error).partition("=")[0]
        if name in found and name not in given:
            raise ConfigError(f"{found[name].file}: {error}") from error
        raise


def command_parser(command: str, description: str) -> Parser:
    """The parser of `python -m <command>`, to which the command adds its options."""
    return Parser(program(command), description)


def new_parser(command: str, description: str) -> Parser:
    """A parser with every setting as an option; a command adds its own."""
    parser = command_parser(command, description)
    _add_settings(parser, setting_names(), "")
    _add_debug(parser)
    return parser


def _add_settings(parser: Parser, names: Sequence[str], note: str) -> None:
    """Gives `parser` an option for each of the settings `names`, in `Parsed` if it is given; its
    help is the docstring under the field, and a `note`."""
    hints = get_type_hints(Config)
    docs = {
        part: field_docs(hints[part]) for part in {n.partition(".")[0] for n in names if "." in n}
    }
    docs[""] = field_docs(Config)
    for name in names:
        part, _, rest = name.rpartition(".")
        kind = setting_types()[name]
        parser.add_argument(
            f"--{name}", type=kind, default=argparse.SUPPRESS, help=docs[part][rest] + note,
            metavar=rest.upper() if metavar_of(kind) is None else None,
        )  # fmt: skip


def _add_debug(parser: Parser) -> None:
    """Adds the help of `--debug`, which `run_command` itself reads from the command line."""
    if "--debug" not in option_names(parser):
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_overrides(parser: Parser, names: Sequence[str]) -> None:
    """Gives `parser` an option for each of the settings `names`, without a default of its own."""
    _add_settings(parser, names, " (default: as stored)")


def parse_overrides(
    parser: Parser,
    argv: Sequence[str],
    command: Command,
    refusal: str = "--{} comes from the checkpoint; --help lists what can change",
) -> Parsed:
    """Parses the options of a command that takes its settings from a checkpoint or file and lets
    some of them change. Raises `ConfigError` with `refusal`, formatted with the name, for any
    other.
    """
    _add_debug(parser)
    add_overrides(parser, names_for(command))
    changeable = option_names(parser)
    for argument in argv:
        option = argument.partition("=")[0]
        name = option.removeprefix("--")
        known = option.startswith("--") and name in ("config", *setting_names())
        require(not known or option in changeable, refusal.format(name))
    return parse(parser, argv)


def overrides(parsed: Parsed, names: Sequence[str], base: Mapping[str, Any]) -> Config:
    """The configuration `base` with those of the settings `names` that the command line gave."""
    given = {name: parsed[name] for name in names if name in parsed}
    return made(typed_values(base) | given)


def config_of(tree: Mapping[str, Any]) -> Config:
    """The configuration from settings by part and name, as `Config.to_yaml` writes them.

    Raises `ConfigError` for an unknown name or a value of another type.
    """
    return made(typed_values(tree))


def typed_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by `part.name`, each of its type. `tree` has Python's values: its strings are text
    as it stands."""
    found: dict[str, Any] = {}
    known = setting_names()
    for part, values in tree.items():
        named = values if isinstance(values, Mapping) and part not in known else {"": values}
        found |= {f"{part}.{name}".rstrip("."): value for name, value in named.items()}
    for name in found:
        if name not in known:
            raise unknown_setting(name, "the configuration", known)
    return {
        name: _typed(name, Quoted(value) if isinstance(value, str) else value)
        for name, value in found.items()
    }


def made(values: Mapping[str, Any]) -> Config:
    """The configuration with these settings, by `part.name`; others have their defaults."""
    owners = get_type_hints(Config)
    own: dict[str, Any] = {}
    for name, value in values.items():
        part, _, rest = name.partition(".")
        if rest:
            own.setdefault(part, {})[rest] = value
        else:
            own[part] = value
    return Config(**{
        part: owners[part](**value) if dataclasses.is_dataclass(owners[part]) else value
        for part, value in own.items()
    })  # fmt: skip


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and its bases, on one line, by name."""
    owners = [one for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one)]
    params = [param for one in owners for param in parse_from_object(one).params]
    return {field.arg_name: " ".join((field.description or "").split()) for field in params}


def add_options(
    parser: Parser, kind: type, joint: Literal["-", "_"], skip: Collection[str] = ()
) -> None:
    """Gives `parser` an option for each field of the dataclass `kind` but those in `skip`.

    Words of a name are joined by `joint`; the docstring below the field is the help.
    """
    docs, types = field_docs(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        option, text = _option(field, joint), docs[field.name]
        if types[field.name] is bool:
            parser.add_argument(option, action="store_true", help=text)
            continue
        parser.add_argument(
            option,
            type=types[field.name],
            default=None if _is_required(field) else field.default,
            help=f"{text} (required)" if _is_required(field) else text,
        )


def read_options(
    parsed: Parsed, parser: Parser, kind: type[T], joint: Literal["-", "_"], **known: Any
) -> T:
    """A `kind` made of what `add_options` found on the command line and of `known` fields.

    Raises `ConfigError` for a field without a default that is not given.
    """
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in known:
            value = known[field.name] = parsed[field.name.rstrip("_")]
            require(
                value is not None or not _is_required(field),
                f"{_option(field, joint)} is missing; see {parser.prog} --help",
            )
    return kind(**known)


def _option(field: dataclasses.Field[Any], joint: str) -> str:
    return "--" + field.name.rstrip("_").replace("_", joint)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def take_name(
    argv: Sequence[str], kinds: Mapping[str, type], what: str, command: str, about: str
) -> str:
    """The first argument, which must be one of the names in `kinds` of a `what`.

    Raises `ConfigError` with the nearest for another; `--help` lists them, below what the command
    is `about` (its usage and purpose), and exits.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {name:<10}{kind.__doc__}" for name, kind in kinds.items())
        with contextlib.suppress(OSError):  # as argparse's own help: `head` has had what it wanted
            print(f"usage: {program(command)} {about}\n\n{lines}\n")
            print(f"{program(command)} NAME --help lists the options of one.", flush=True)
        sys.exit(0)
    if name not in kinds:
        nearest = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(kinds)}"
        wrong = f"there is no {what} {name}" if name else f"the name of a {what} is missing"
        raise ConfigError(f"{wrong}; {hint}")
    return name


def can_hold(setting: str, path: str | None) -> None:
    """Raises `ConfigError`, naming `setting`, unless a file can be written at `path`, if given: an
    error after the work would cost its result."""
    if path is None:
        return
    folder = Path(path).parent
    require(
        folder.is_dir(),
        f"{setting} {path}: the folder {folder} does not exist; make it, or give another",
    )
    require(not Path(path).is_dir(), f"{setting} {path} is a folder; give the path of a file")
    place = Path(path) if Path(path).exists() else folder
    require(
        os.access(place, os.W_OK), f"{setting} {path}: {place} may not be written to; give another"
    )


def parse(parser: Parser, argv: Sequence[str]) -> Parsed:
    """The options of the command line `argv`, each of its type.

    Raises `ConfigError`, with the nearest name for an option that `parser` does not have.
    """
    _add_debug(parser)
    known = [option for option in option_names(parser) if option.startswith("--")]
    for name in (argument.partition("=")[0] for argument in argv):
        if name.startswith("--") and name not in known:
            raise unknown_setting(name, "command line", known)
    parsed = parser.parse_args(list(argv), Parsed())
    for action in parser._actions:
        value = parsed[action.dest]
        if action.dest in parser.kinds and value is not None and value is not action.default:
            several = isinstance(value, list)
            read_one = [_read_option(parser, action, v) for v in (value if several else [value])]
            setattr(parsed, action.dest, read_one if several else read_one[0])
    return parsed


def _read_option(parser: Parser, action: argparse.Action, text: str) -> Any:
    try:
        return read(text, parser.kinds[action.dest])
    except Refused as error:
        is_setting = action.dest in setting_names()
        option = action.option_strings[-1] if action.option_strings else str(action.metavar)
        named = f"{action.dest}=" if is_setting else f"{option} "
        raise ConfigError(refusal(named, text, error)) from error


def load_config(
    argv: Sequence[str], command: str = "pipeline.train", description: str = ""
) -> Config:
    """The configuration of a training: `--config FILE` (default configs/resnet50.yaml), then
    the options of the command line. Raises `ConfigError`; `--help` prints and exits."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", default=str(DEFAULT_CONFIG))
    try:
        known, rest = first.parse_known_args(argv)
        path: Path = read(known.config, Path)
    except (argparse.ArgumentError, Refused) as error:
        raise ConfigError("--config needs the path of a YAML file") from error
    found = settings_in(path)
    base = yaml_values(found)
    parser = new_parser(command, description)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    parser.add_argument(PRINT_CONFIG, action="store_true", help=PRINT_CONFIG_HELP)
    if {"-h", "--help"} & set(rest):  # the defaults shown are those in force
        parser.set_defaults(**(Config().values() | base))
    given = parse(parser, rest)
    # A run is named after its configuration unless either names it.
    named = {"run.name": path.stem} | base
    with placed(found, vars(given)):
        config = made(named | {name: given[name] for name in setting_names() if name in given})
        require_plain_name(config.run.name)
    return config
