"""Makes data sets ready: `python -m pipeline.prepare NAME [options]`."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import sys
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser

from pipeline.config import require
from pipeline.config.reading import field_docs, take_name
from pipeline.config.reading import parse as parse_settings
from pipeline.prepare.options import OPTIONS
from pipeline.system.console import ConsoleHandler
from pipeline.system.failure import run_command

_PROG = "python -m pipeline.prepare"
_INSIDE = {"demo": "drawn.demo", "mini": "drawn.mini", "imagenet": "imagenet.imagenet"}
"""The modules of subcommands that are no files of this folder."""


def parse(argv: list[str]) -> tuple[str, Any]:
    """The subcommand's name and its options (of the class in `OPTIONS`).

    Raises `ConfigError` for an unknown name or option, with the nearest right one; `--help` prints
    and exits.
    """
    name = take_name(argv, OPTIONS, "subcommand", _overview())
    kind = OPTIONS[name]
    parsed = parse_settings(_parser(name, kind), {}, argv[1:])
    values = {}
    for field in dataclasses.fields(kind):
        values[field.name] = getattr(parsed, _destination(field.name))
        given = values[field.name] is not None or not _is_required(field)
        require(given, f"{_option(field.name)} is missing; see {_PROG} {name} --help")
    return name, kind(**values)


def _parser(name: str, kind: type) -> ArgumentParser:
    parser = ArgumentParser(prog=f"{_PROG} {name}", description=kind.__doc__, exit_on_error=False)
    docs, types = field_docs(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        text, required = docs[field.name], _is_required(field)
        if types[field.name] is bool:
            parser.add_argument(_option(field.name), action="store_true", help=text)
            continue
        parser.add_argument(
            _option(field.name),
            type=types[field.name] | None if required else types[field.name],
            default=None if required else field.default,
            help=f"{text} (required)" if required else text,
        )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _option(field: str) -> str:
    return "--" + field.rstrip("_").replace("_", "-")


def _destination(field: str) -> str:
    return field.rstrip("_")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _overview() -> str:
    lines = [f"  {name:<10}{kind.__doc__}" for name, kind in OPTIONS.items()]
    return (
        f"usage: {_PROG} NAME [options]\n\n{__doc__}\n\n"
        + "\n".join(lines)
        + f"\n\n{_PROG} NAME --help lists the options of one."
    )


def main(argv: list[str]) -> None:
    """Runs one subcommand."""
    name, options = parse(argv)
    subcommand = importlib.import_module(f"pipeline.prepare.{_INSIDE.get(name, name)}")
    # What a scan reports; without a time, as the lines stand among the subcommand's own.
    logging.basicConfig(format="%(message)s", handlers=[ConsoleHandler(sys.stdout)])
    logging.getLogger("trainyard").setLevel(logging.INFO)
    subcommand.run(options)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
