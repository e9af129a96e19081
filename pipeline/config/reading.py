"""Reads a configuration: defaults, then a YAML file, then the command line, all names checked.

The only module that reads YAML. It imports nothing heavy, so that `--help` and a wrong setting
answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from pipeline.config import Config, setting_names
from pipeline.config.errors import ConfigError, require
from pipeline.config.help import PlainHelp

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
    """Refuses a name that stands twice, where YAML would quietly forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name} stands twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file and of those it builds on, names checked. Raises `ConfigError`.

    `base: FILE`, by its path from the file that says so, stands for all settings of FILE; what the
    file itself sets comes on top, one setting at a time.
    """
    return _read_chain(path, f"--config {path}", [])


def _read_chain(path: Path, named: str, above: list[Path]) -> dict[str, Any]:
    """`named` is how the user comes to `path`; `above` are the files that build on it."""
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
    """The files in configs/ with the names nearest to `path`, all where none is near."""
    found = sorted(str(file.relative_to(CONFIGS.parent)) for file in CONFIGS.rglob("*.yaml"))
    near = difflib.get_close_matches(str(path), found, n=3, cutoff=0.75)
    return f"{', '.join(near)} and others" if near else ", ".join(found)


def add_settings(parser: ArgumentParser) -> None:
    """Gives `parser` one option for each setting."""
    parser.add_class_arguments(Config, as_group=False)


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


def field_docs(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass, on one line, by the field's name."""
    params = parse_from_object(kind).params
    return {field.arg_name: " ".join((field.description or "").split()) for field in params}


def overrides(parsed: Any, names: Sequence[str], base: dict[str, Any]) -> Config:
    """The configuration `base` with the settings `names` that the command line gave."""
    tree = {part: dict(v) if isinstance(v, dict) else v for part, v in base.items()}
    for name in names:
        part, _, rest = name.partition(".")
        if parsed[name] is not None:
            tree[part][rest] = parsed[name]
    return to_config(parse(new_parser("", ""), tree, []))


def new_parser(prog: str, description: str) -> ArgumentParser:
    """A parser with every setting as an option; a command adds its own."""
    # The docstrings under the fields above are the help.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    add_settings(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def check_names(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Raises `ConfigError` with the nearest name for an option that `parser` does not have."""
    known = [s for action in parser._actions for s in action.option_strings if s.startswith("--")]
    for argument in argv:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise _unknown(name, "command line", known)


def take_name(argv: Sequence[str], known: Collection[str], kind: str, overview: str) -> str:
    """The first argument, which is to be one of the names `known` of a `kind` of thing.

    Raises `ConfigError` with the nearest for another; `--help` prints `overview` and exits.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(overview)
        sys.exit(0)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(known)}"
        what = f"there is no {kind} {name}" if name else f"the name of a {kind} is missing"
        raise ConfigError(f"{what}; {hint}")
    return name


def stored_option(argv: Sequence[str], changeable: Sequence[str]) -> str | None:
    """The name of the first option in `argv`, among --config and all settings, which is none of
    those `changeable`; None if there is none."""
    for argument in argv:
        name = argument.partition("=")[0].removeprefix("--")
        known = argument.startswith("--") and name in ("config", *setting_names())
        if known and name not in changeable:
            return name
    return None


def refuse_stored(argv: Sequence[str], changeable: Sequence[str]) -> None:
    """Raises `ConfigError` for an option that sets what a checkpoint has stored, unless it is one
    of the settings `changeable`."""
    name = stored_option(argv, changeable)
    if name is not None:
        raise ConfigError(f"--{name} comes from the checkpoint; --help lists what can change")


def checkpoint_exists(setting: str, path: str) -> None:
    """Raises `ConfigError`, naming `setting`, unless `path` is a file."""
    if Path(path).is_dir():
        raise ConfigError(f"{setting} {path} is a folder; give the path of a .pt file in it")
    require(Path(path).is_file(), f"{setting} {path} does not exist; give the path of a .pt file")


def can_hold(setting: str, path: str) -> None:
    """Raises `ConfigError`, naming `setting`, unless a file can be written at `path`."""
    folder = Path(path).parent
    require(folder.is_dir(), f"{setting} {path}: the folder {folder} does not exist")


def parse(parser: ArgumentParser, base: dict[str, Any], argv: Sequence[str]) -> Any:
    """Defaults, then `base` (a YAML's settings), then the command line `argv`.

    Returns the parser's namespace, the parts as dataclasses. Raises `ConfigError`.
    """
    check_names(parser, argv)
    parser.formatter_class = PlainHelp
    try:
        defaults = parser.get_defaults()
        parsed = parser.parse_object(base, namespace=defaults) if base else defaults
        return parser.instantiate(parser.parse_args(list(argv), namespace=parsed))
    except ArgumentError as error:
        raise ConfigError(_one_sentence(str(error), parser)) from error


# What jsonargparse says of a value that is neither of a type nor null.
_OF_NO_TYPE = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(?P<types>.+)\] Errors: "
    r".* Given value: (?P<value>.*)"
)
# Which option a file without one was meant for.
_OPTION_OF = ((".yaml", "--config"), (".yml", "--config"), (".pt", "--checkpoint"))


def _one_sentence(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's several lines as one, with the setting's name first."""
    text = " ".join(message.split())
    text = text.replace('Parser key "', "").replace('":', ":", 1)
    text = text.replace("typing.", "").replace("<class '", "").replace("'>", "")
    text = text.replace("Expected a tuple.", "Expected a list in brackets, such as [30,60].")
    if none := _OF_NO_TYPE.search(text):
        types = none["types"].replace("NoneType", "null")
        text = f"{text[: none.start()]}{none['value']} is none of {types}"
        text += "; a tuple is a list in brackets, such as [30,60]" if "tuple" in types else ""
    known = {option for action in parser._actions for option in action.option_strings}
    file = text.partition("unrecognized arguments: ")[2]
    meant = [o for suffix, o in _OPTION_OF if o in known and file.endswith(suffix)]
    return text + "".join(f"; did you mean {option} {file}?" for option in meant)


def to_config(parsed: Any) -> Config:
    """The `Config` in a parser's result."""
    return Config(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(Config)})


def load_config(argv: Sequence[str], prog: str, description: str) -> Config:
    """The configuration of `pipeline.train`: `--config FILE` (default configs/resnet50.yaml), then
    the options of the command line. Raises `ConfigError`; `--help` prints and exits."""
    parser = new_parser(prog, description)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    path, rest = _take_config(argv)
    base = read_yaml(path)
    if {"-h", "--help"} & set(rest):  # the defaults shown are those in force
        for part, values in base.items():
            named = values.items() if isinstance(values, dict) else [("", values)]
            parser.set_defaults({f"{part}.{name}".rstrip("."): value for name, value in named})
    # A run is called after its configuration unless either names it.
    base["run"] = {"name": path.stem} | base.get("run", {})
    return to_config(parse(parser, base, rest))


def _take_config(argv: Sequence[str]) -> tuple[Path, list[str]]:
    path, rest, arguments = DEFAULT_CONFIG, [], list(argv)
    while arguments:
        argument = arguments.pop(0)
        if argument == "--config":
            require(bool(arguments), "--config needs the path of a YAML file")
            path = Path(arguments.pop(0))
        elif argument.startswith("--config="):
            path = Path(argument.partition("=")[2])
        else:
            rest.append(argument)
    return path, rest
