"""Shows runs without touching them: `python -m pipeline.runs [DIR]`.

`runs A B` shows in which settings runs differ, `--follow NAME` prints a run's log until it ends.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.config.parser import program
from pipeline.config.reading import command_parser, parse
from pipeline.config.setting import PathText
from pipeline.runs import listing
from pipeline.runs.follow import LiveScreen, Screen, follow
from pipeline.system.console import say
from pipeline.system.failure import TrainingError, run_command
from pipeline.train.folder import RunFolder

RUNS = Path("runs")

DESCRIPTION = (
    "Lists the runs below a folder: how each stands, how far it is and when it last gave a sign of "
    "life. With several runs: the settings in which they differ. Only reads, whoever is running."
)
_LINES_BEFORE = 10  # of its log, shown when following a run


def main(argv: list[str]) -> None:
    """Parses and checks, then reads and prints."""
    parser = command_parser("pipeline.runs", DESCRIPTION)
    parser.add_argument(
        "runs", nargs="*", type=PathText, default=[], metavar="RUN",
        help=f"a folder of runs (default: {RUNS}/) or a run; several runs, by name or folder: "
        "their differences",
    )  # fmt: skip
    parser.add_argument(
        "--follow", type=PathText, metavar="NAME",
        help="print what this run says until it ends, on a terminal above a progress bar with "
        "what limits it; returns 0 when it finished, 75 when a signal stopped it, 1 for any other "
        "end",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print JSON; with --follow, its lines of metrics"
    )
    options = parse(parser, argv)
    # A truncated last line needs no warning here: a live run may be writing it right now.
    logging.getLogger("trainyard").setLevel(logging.ERROR)
    try:
        _show(options.follow, options.runs, options.json)
    except (KeyboardInterrupt, BrokenPipeError):  # the user has had enough, or closed the pager
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(130)


def _show(name: str | None, runs: list[str], as_json: bool) -> None:
    if name is not None:
        if len(runs) > 1:
            raise ConfigError(
                f"--follow {name} is given with {len(runs)} folders; give the one that holds it, "
                "or none"
            )
        _follow(listing.find_run(name, Path(*runs) if runs else RUNS), as_json)
    elif len(runs) > 1:
        _compare([listing.find_run(run, RUNS) for run in runs], as_json)
    else:
        _list(_listed(*runs), as_json)


def _listed(name: str | None = None) -> Path:
    """The folder to list: all runs, those below the folder of this path, or the run of this name.

    Without any run the folder of all need not be there.
    """
    if name is None:
        return RUNS
    folders = (folder for folder in (Path(name), RUNS / name) if folder.is_dir())
    return next(folders, None) or listing.find_run(name, RUNS)


def _list(below: Path, as_json: bool) -> None:
    found = listing.list_runs(below)
    if as_json:
        say(*json.dumps(listing.as_json(found), indent=1).split("\n"))
        return
    if found.runs or found.skipped:
        say(*listing.describe(found, below, _width()).split("\n"))
    if not found.runs:
        hint = "" if below.exists() else f": {program('pipeline.train')} makes one"
        say(f"no run below {below}/{hint}")


def _compare(folders: list[Path], as_json: bool) -> None:
    found = listing.differences(folders)
    if as_json:
        say(json.dumps({"runs": [str(folder) for folder in folders], "settings": found}))
    else:
        say(*listing.describe_differences(folders, found, _width()).split("\n"))


def _width() -> int | None:
    """Columns of the terminal that is written to; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _follow(folder: Path, as_json: bool) -> None:
    run = RunFolder(folder)
    # Of the metrics only new lines: the file has the earlier ones.
    file, past = (run.metrics, 0) if as_json else (run.log, _LINES_BEFORE)
    try:
        with closing(LiveScreen() if sys.stdout.isatty() and not as_json else Screen()) as screen:
            state, code = follow(folder, file, past, screen)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TrainingError(
            f"{folder} can no longer be read ({error.strerror}); whether the run continues is not "
            "known: look again when its file system is back"
        ) from error
    if not as_json:
        note = f": {state.note}" if state.note else ""
        say(f"{folder}: {state.state}{note}")
    sys.exit(int(code))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
