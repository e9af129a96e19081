"""Makes a report of runs: `python -m pipeline.report runs/plain-20 runs/resnet-20`.

It shows their errors and curves, and published numbers that compare with theirs, as one HTML page
and as Markdown.
"""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.config import ConfigError, require
from pipeline.config.reading import command_parser, parse
from pipeline.config.setting import PathText
from pipeline.system.console import ConsoleHandler, counted, say
from pipeline.system.failure import run_command

RUNS = Path("runs")

DESCRIPTION = (
    "Writes index.html and report.md: errors and curves of runs, the settings in which they "
    "differ, and published numbers that compare with theirs, from the files of runs alone."
)


def main(argv: list[str]) -> None:
    """Parses and checks, then reads, draws and writes."""
    parser = command_parser("pipeline.report", DESCRIPTION)
    parser.add_argument(
        "runs", nargs="*", type=PathText, default=[], metavar="RUN",
        help=f"folders of runs; none: all below {RUNS}/",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=PathText,
        default=str(RUNS / "report"),
        help="folder to write to",
    )
    options = parse(parser, argv)
    out = Path(options.out)
    require(
        not out.exists() or out.is_dir(),
        f"--out {out} is a file; give the folder that the report is to be written to",
    )
    if find_spec("matplotlib") is None:
        raise ConfigError("matplotlib, which draws the curves, is missing; pip install matplotlib")

    from pipeline.report.runs import find_runs, read_runs

    logging.basicConfig(handlers=[ConsoleHandler(sys.stderr)])  # a cut line of metrics
    folders = [Path(folder) for folder in options.runs] or find_runs(RUNS)
    runs = read_runs(folders)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be made ({error.strerror}); give a folder that can be written to"
        ) from error

    from pipeline.report.document import write_report  # loads torch and matplotlib

    write_report(out, runs)
    number = counted(len(runs), "run")
    say(f"report of {number} written to {out / 'index.html'} and {out / 'report.md'}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
