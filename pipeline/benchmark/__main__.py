"""Measures this machine: `python -m pipeline.benchmark NAME [--json FILE] [options]`."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from pipeline.benchmark.configured import CONFIGURED, NOT_OPTIONS, add_settings, read_settings
from pipeline.benchmark.options import OPTIONS
from pipeline.config import ConfigError
from pipeline.config.reading import can_hold, take_name
from pipeline.config.reading import parse as parse_settings
from pipeline.system.failure import launched_size, run_command

_PROG = "python -m pipeline.benchmark"
_KINDS: dict[str, type] = {**OPTIONS, **CONFIGURED}


def parse(argv: list[str]) -> tuple[str, Any, Path | None]:
    """The benchmark's name, its options (of its class above) and where its JSON goes.

    Raises `ConfigError` for an unknown name or option, with the nearest right one; `--help` prints
    and exits.
    """
    name = take_name(argv, _KINDS, "benchmark", _overview())
    kind, configured = _KINDS[name], CONFIGURED.get(name)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"{_PROG} {name}", description=kind.__doc__, exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False, skip=NOT_OPTIONS if configured else None)
    if configured:
        add_settings(parser, configured)
    parser.add_argument("--json", metavar="FILE", help="also write the whole result here")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parsed = parse_settings(parser, {}, argv[1:])
    found = read_settings(parsed, configured) if configured else {}
    for one in dataclasses.fields(kind):
        found.setdefault(one.name, getattr(parsed, one.name, None))
    options = kind(**found)
    return name, options, None if parsed.json is None else Path(parsed.json)


def _overview() -> str:
    lines = [f"  {name:<10}{kind.__doc__}" for name, kind in _KINDS.items()]
    return (
        f"usage: {_PROG} NAME [--json FILE] [options]\n\n{__doc__}\n\n"
        + "\n".join(lines)
        + f"\n\n{_PROG} NAME --help lists the options of one."
    )


def main(argv: list[str]) -> None:
    """Runs one benchmark, prints its table and ratios, writes its JSON."""
    name, options, path = parse(argv)
    if launched_size() > 1:
        raise ConfigError(
            "benchmarks start what they need themselves: start them once, not under horovodrun"
        )
    if path is not None:
        can_hold("--json", str(path))
    benchmark = importlib.import_module(f"pipeline.benchmark.{name}")  # torch and DALI: only now
    from pipeline.benchmark.device import versions
    from pipeline.benchmark.result import write_json

    result = benchmark.run(options)
    print(result.text())
    if path is not None:
        write_json(path, result.to_json(versions()))
        print(f"written to {path}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
