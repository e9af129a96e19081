"""Prepares data sets: `python -m pipeline.prepare NAME [options]`."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

from pipeline.config.reading import add_options, command_parser, read_options, take_name
from pipeline.config.reading import parse as parse_settings
from pipeline.prepare.options import OPTIONS
from pipeline.system.console import ConsoleHandler
from pipeline.system.failure import run_command


def parse(argv: list[str]) -> tuple[str, Any]:
    """The subcommand's name and its options (of the class in `OPTIONS`).

    Raises `ConfigError` for an unknown name or option, with the nearest right one; `--help` prints
    and exits.
    """
    name = take_name(
        argv, OPTIONS, "subcommand", "pipeline.prepare", f"NAME [options]\n\n{__doc__}"
    )
    kind = OPTIONS[name]
    parser = command_parser(f"pipeline.prepare {name}", kind.__doc__ or "")
    add_options(parser, kind, "-")
    return name, read_options(parse_settings(parser, argv[1:]), parser, kind, "-")


def main(argv: list[str]) -> None:
    """Runs one subcommand."""
    name, options = parse(argv)
    subcommand = importlib.import_module(f"pipeline.prepare.{name}")
    # Lines of a scan, without a time, as they appear among the subcommand's own.
    logging.basicConfig(format="%(message)s", handlers=[ConsoleHandler(sys.stdout)])
    logging.getLogger("trainyard").setLevel(logging.INFO)
    subcommand.run(options)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
