"""Measures this machine: `python -m pipeline.benchmark NAME [--json FILE] [options]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from pipeline.benchmark.configured import CONFIGURED, NOT_OPTIONS, add_settings, read_settings
from pipeline.benchmark.options import OPTIONS
from pipeline.config import ConfigError
from pipeline.config.reading import add_options, can_hold, command_parser, read_options, take_name
from pipeline.config.reading import parse as parse_settings
from pipeline.system.failure import launched_size, run_command

_KINDS: dict[str, type] = {**OPTIONS, **CONFIGURED}


def parse(argv: list[str]) -> tuple[str, Any, Path | None]:
    """The benchmark's name, its options (of its class above) and where its JSON goes.

    Raises `ConfigError` for an unknown name or option, with the nearest right one; `--help` prints
    and exits.
    """
    about = f"NAME [--json FILE] [options]\n\n{__doc__}"
    name = take_name(argv, _KINDS, "benchmark", "pipeline.benchmark", about)
    kind, configured = _KINDS[name], CONFIGURED.get(name)
    parser = command_parser(f"pipeline.benchmark {name}", kind.__doc__ or "")
    add_options(parser, kind, "_", skip=NOT_OPTIONS if configured else ())
    if configured:
        add_settings(parser, configured)
    parser.add_argument("--json", metavar="FILE", help="also write the whole result here")
    parsed = parse_settings(parser, {}, argv[1:])
    found = read_settings(parsed, configured) if configured else {}
    options: Any = read_options(parsed, parser, kind, "_", **found)
    return name, options, None if parsed.json is None else Path(parsed.json)


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
