"""Reads a configuration: defaults, then a YAML file, then the command line, all names checked.

Every command makes its parser and reads its options with these functions.

The only module that reads YAML. It imports nothing heavy, so that `--help` and a wrong setting
answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from pipeline.config import Config, ConfigError, names_for, require, setting_names
from pipeline.config.help import PlainHelp
from pipeline.config.setting import Command

T = TypeVar("T")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEFAULT_CONFIG = CONFIGS / "resnet50.yaml"


def _unknown(name: str, where: str, known: Sequence[str]) -> ConfigError:
    # A name is compared both whole and by its last part: `--depht` means `--model.depth`.
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    last = {option.rpartition(".")[2]: option for option in known}
    tail = difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.6)
    nearest = whole[0] if whole else last[tail[0]] if tail else None
    hint = f"; did you mean {nearest}?" if nearest else "; --help lists the settings"
    return ConfigError(f"{where}: there is no setting {name}{hint}")


def _flat_keys(tree: dict[str, Any], parts: set[str], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" in parts:
            yield from _flat_keys(value, parts, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a name that occurs twice, where YAML would quietly forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name} occurs twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file and of those it builds on, names checked. Raises `ConfigError`.

    `base: FILE`, a path relative to the file that names it, includes all settings of FILE; the
    file's own settings override them, one at a time.
    """
    return _read_chain(path, f"--config {path}", [])


def _read_chain(path: Path, named: str, above: list[Path]) -> dict[str, Any]:
    """Reads one file. `named` is how the user refers to `path`; `above` are the files that build on
    it."""
    if any(path.resolve() == file.resolve() for file in above):
        chain = " -> ".join(str(file) for file in [*above, path])
        raise ConfigError(f"{path} builds on itself: {chain}; take base out of one of them")
    tree = _read_one(path, named)
    base = tree.pop("base", None)
    if base is None:
        return tree
    require(
        isinstance(base, str),
        f"{path}: base={base!r} must be the path of a YAML file, from the folder of this one",
    )
    below = _read_chain(path.parent / base, f"{path}: base {base}", [*above, path])
    for part, values in tree.items():
        below[part] = below.get(part, {}) | values if isinstance(values, dict) else values
    return below


def _read_one(path: Path, named: str) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(
            f"{named} cannot be read ({error.strerror}); there are: {_configs_like(path)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named} is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    require(isinstance(tree, dict), f"{named} must hold settings by name, as configs/ does")
    known = ["base", *setting_names()]
    parts = {name.partition(".")[0] for name in known if "." in name}
    for name in _flat_keys(tree, parts):
        if name in parts and tree[name] is not None:
            raise ConfigError(f"{path}: {name} must hold settings by name, not {tree[name]!r}")
        # An empty part (`data:` with all its lines commented out) sets nothing and is fine.
        if name not in known and name not in parts:
            raise _unknown(name, str(path), known)
    return {key: value for key, value in tree.items() if value is not None or key not in parts}


def _configs_like(path: Path) -> str:
    """The files in configs/ with the names nearest to `path`, or all if none is near."""
    found = sorted(str(file.relative_to(CONFIGS.parent)) for file in CONFIGS.rglob("*.yaml"))
    near = difflib.get_close_matches(str(path), found, n=3, cutoff=0.75)
    return f"{', '.join(near)} and others" if near else ", ".join(found)


def command_parser(command: str, description: str) -> ArgumentParser:
    """The parser of `python -m <command>`, to which the command adds its options."""
    return ArgumentParser(prog=f"python -m {command}", description=description, exit_on_error=False)


def new_parser(command: str, description: str) -> ArgumentParser:
    """A parser with every setting as an option; a command adds its own."""
    # The docstrings under the fields are the help.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = command_parser(command, description)
    parser.add_class_arguments(Config, as_group=False)
    _add_debug(parser)
    return parser


def _add_debug(parser: ArgumentParser) -> None:
    """Adds the help of `--debug`, which `run_command` itself reads from the command line."""
    if "--debug" not in _options(parser):
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _options(parser: ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def add_overrides(parser: ArgumentParser, names: Sequence[str]) -> None:
    """Gives `parser` an option for each of the settings `names`, without a default of its own."""
    for name in names:
        part, _, rest = name.partition(".")
        owner = get_type_hints(Config)[part]
        parser.add_argument(
            f"--{name}",
            type=get_type_hints(owner)[rest] | None,
            default=None,
            help=f"{field_docs(owner)[rest]} (default: as stored)",
        )


def parse_overrides(
    parser: ArgumentParser,
    argv: Sequence[str],
    command: Command,
    refusal: str = "--{} comes from the checkpoint; --help lists what can change",
) -> Any:
    """Parses the options of a command that takes its settings from a checkpoint or file and lets
    some of them change. Raises `ConfigError` with `refusal`, formatted with the name, for any
    other.
    """
    _add_debug(parser)
    add_overrides(parser, names_for(command))
    changeable = _options(parser)
    for argument in argv:
        option = argument.partition("=")[0]
        name = option.removeprefix("--")
        known = option.startswith("--") and name in ("config", *setting_names())
        require(not known or option in changeable, refusal.format(name))
    return parse(parser, {}, argv)


def overrides(parsed: Any, names: Sequence[str], base: dict[str, Any]) -> Config:
    """The configuration `base` with the settings `names` that the command line gave."""
    tree = {part: dict(v) if isinstance(v, dict) else v for part, v in base.items()}
    for name in names:
        part, _, rest = name.partition(".")
        if parsed[name] is not None:
            tree[part][rest] = parsed[name]
    return config_of(tree)


def config_of(tree: dict[str, Any]) -> Config:
    """The configuration from settings by part and name, as a YAML file has them."""
    return _in_parsed(parse(new_parser("", ""), tree, []))


def _in_parsed(parsed: Any) -> Config:
    return Config(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(Config)})


def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and its bases, on one line, by name."""
    owners = [one for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one)]
    params = [param for one in owners for param in parse_from_object(one).params]
    return {field.arg_name: " ".join((field.description or "").split()) for field in params}


def add_options(
    parser: ArgumentParser, kind: type, joint: Literal["-", "_"], skip: Collection[str] = ()
) -> None:
    """Gives `parser` an option for each field of the dataclass `kind` but those in `skip`.

    Words of a name are joined by `joint`; the docstring below the field is the help.
    """
    docs, types = field_docs(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        option, text = _option(field, joint), docs[field.name]
        if types[field.name] is bool:
            parser.add_argument(option, action="store_true", help=text)
            continue
        parser.add_argument(
            option,
            type=types[field.name] | None if _is_required(field) else types[field.name],
            default=None if _is_required(field) else field.default,
            help=f"{text} (required)" if _is_required(field) else text,
        )


def read_options(
    parsed: Any, parser: ArgumentParser, kind: type[T], joint: Literal["-", "_"], **known: Any
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
        print(f"usage: python -m {command} {about}\n\n{lines}\n")
        print(f"python -m {command} NAME --help lists the options of one.")
        sys.exit(0)
    if name not in kinds:
        nearest = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(kinds)}"
        wrong = f"there is no {what} {name}" if name else f"the name of a {what} is missing"
        raise ConfigError(f"{wrong}; {hint}")
    return name


def checkpoint_exists(setting: str, path: str | None) -> None:
    """Raises `ConfigError`, naming `setting`, unless `path` is given and a file."""
    if path is None:
        raise ConfigError(f"{setting} is missing; give the path of a .pt file of a run")
    try:
        is_folder, is_file = Path(path).is_dir(), Path(path).is_file()
    except OSError as error:
        raise ConfigError(
            f"{setting} {path} cannot be read: {error.strerror}; give the path of a .pt file"
        ) from error
    require(not is_folder, f"{setting} {path} is a folder; give the path of a .pt file in it")
    require(is_file, f"{setting} {path} does not exist; give the path of a .pt file")


def can_hold(setting: str, path: str | None) -> None:
    """Raises `ConfigError`, naming `setting`, unless a file can be written at `path`, if given."""
    folder = Path(path or ".").parent
    require(folder.is_dir(), f"{setting} {path}: the folder {folder} does not exist")


def parse(parser: ArgumentParser, base: dict[str, Any], argv: Sequence[str]) -> Any:
    """Defaults, then `base` (a YAML's settings), then the command line `argv`.

    Returns the parser's namespace, the parts as dataclasses. Raises `ConfigError`, with the nearest
    name for an option that `parser` does not have.
    """
    _add_debug(parser)
    known = [option for option in _options(parser) if option.startswith("--")]
    for argument in argv:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise _unknown(name, "command line", known)
    parser.formatter_class = PlainHelp
    try:
        defaults = parser.get_defaults()
        parsed = parser.parse_object(base, namespace=defaults) if base else defaults
        return parser.instantiate(parser.parse_args(list(argv), namespace=parsed))
    except ArgumentError as error:
        raise ConfigError(_one_sentence(str(error), parser)) from error


# jsonargparse's messages for a value that is not of the one type, or of none of several.
_REFUSED = re.compile(
    r'Parser key "(?P<key>[^"]+)".*?: '
    r"(?:Expected a (?P<type>.+)\. Got|Does not .* Subtypes: \[(?P<types>.+)\] Errors: .* Given) "
    r"value: (?P<value>.*)"
)
_TYPE = re.compile(
    r"Literal\[(?P<choices>.+?)\]|tuple(?:\[.+?\]| with (?P<length>\d+) elements)?|\w+"
)
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}
# The option that a file without one was meant for.
_OPTION_OF = ((".yaml", "--config"), (".yml", "--config"), (".pt", "--checkpoint"))


def _one_sentence(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's several lines as one, with the setting's name first."""
    text = " ".join(message.split())
    text = re.sub(r"typing\.|<class '(?:pathlib\.)?(\w+)'>", r"\1", text)
    if refused := _REFUSED.fullmatch(text):
        key, value = refused["key"], refused["value"].strip()
        value = "null" if value == "None" else value
        option = next((a.option_strings[-1] for a in parser._actions if a.dest == key), key)
        named = f"{key}={value}" if key in setting_names() else f"{option} {value}"
        return f"{named} must be {_rule(refused['type'] or refused['types'], value)}"
    known = _options(parser)
    file = text.partition("unrecognized arguments: ")[2]
    meant = [o for suffix, o in _OPTION_OF if o in known and file.endswith(suffix)]
    return text + "".join(f"; did you mean {option} {file}?" for option in meant)


def _rule(types: str, value: str) -> str:
    """What a value of these types is, in words; with the choice that is nearest to `value`."""
    kinds: list[str] = []
    choices: list[str] = []
    for one in _TYPE.finditer(types):
        if one["choices"]:
            choices += re.findall("'(.*?)'", one["choices"])
        elif one[0].startswith("tuple"):
            length = f"{one['length']} " if one["length"] else ""
            kinds.append(f"a list of {length}numbers in brackets, such as [30,60]")
        else:
            kinds.append(_KINDS.get(one[0], one[0]))
    nearest = difflib.get_close_matches(value, choices, n=1, cutoff=0.7)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    if set(kinds) <= {"null"}:
        return f"one of {', '.join(choices + kinds)}{hint}"
    *others, last = kinds[:1] + choices + kinds[1:]
    return (f"{', '.join(others)} or {last}" if others else last) + hint


def load_config(
    argv: Sequence[str], command: str = "pipeline.train", description: str = ""
) -> Config:
    """The configuration of a training: `--config FILE` (default configs/resnet50.yaml), then
    the options of the command line. Raises `ConfigError`; `--help` prints and exits."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    try:
        known, rest = first.parse_known_args(argv)
    except ArgumentError as error:
        raise ConfigError("--config needs the path of a YAML file") from error
    path: Path = known.config
    base = read_yaml(path)
    parser = new_parser(command, description)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    if {"-h", "--help"} & set(rest):  # the defaults shown are those in force
        for part, values in base.items():
            named = values.items() if isinstance(values, dict) else [("", values)]
            parser.set_defaults({f"{part}.{name}".rstrip("."): value for name, value in named})
    # A run is named after its configuration unless either names it.
    base["run"] = {"name": path.stem} | base.get("run", {})
    return _in_parsed(parse(parser, base, rest))
