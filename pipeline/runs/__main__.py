"""Shows runs without touching them: `python -m pipeline.runs [DIR]`.

`runs A B` shows in which settings runs differ, `--follow NAME` what a run says until it ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import closing
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.config.reading import command_parser, parse
from pipeline.system.failure import TrainingError, run_command

RUNS = Path("runs")

DESCRIPTION = (
    "Lists the runs below a folder: how each stands, how far it is and when it last gave a sign of "
    "life. With several runs: the settings in which they differ. Only reads, whoever is running."
)


def main(argv: list[str]) -> None:
    """Parses and checks, then looks and prints."""
    parser = command_parser("pipeline.runs", DESCRIPTION)
    parser.add_argument(
        "runs",
        nargs="*",
        type=str,
        default=[],
        metavar="RUN",
        help=f"a folder of runs (default: {RUNS}/) or a run; several runs, by name or folder: "
        "their differences",
    )
    parser.add_argument(
        "--follow",
        type=str,
        metavar="NAME",
        help="print what this run says until it ends, on a terminal above a progress bar with "
        "what limits it; returns 0 when it finished, 75 when a "
        "signal stopped it, 1 for any other end",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON; with --follow, its lines of metrics"
    )
    options = parse(parser, {}, argv)
    # A cut last line is nothing to warn of here: a live run may be writing it right now.
    logging.getLogger("trainyard").setLevel(logging.ERROR)
    try:
        _show(options.follow, options.runs, options.json)
        sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):  # who looks has had enough, or closed the pager
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(130)


def _show(follow: str | None, runs: list[str], as_json: bool) -> None:
    from pipeline.runs.naming import find_run

    if follow is not None:
        if len(runs) > 1:
            raise ConfigError(
                f"--follow {follow} is given with {len(runs)} folders; give the one that holds it, "
                "or none"
            )
        _follow(find_run(follow, Path(*runs) if runs else RUNS), as_json)
    elif len(runs) > 1:
        _compare([find_run(name, RUNS) for name in runs], as_json)
    else:
        _list(_listed(*runs), as_json)


def _listed(name: str | None = None) -> Path:
    """The folder to list: all runs, those below the folder of this path, or the run of this name.

    Without any run the folder of all need not be there.
    """
    from pipeline.runs.naming import find_run

    if name is None or Path(name).is_dir():
        return RUNS if name is None else Path(name)
    return RUNS / name if (RUNS / name).is_dir() else find_run(name, RUNS)


def _list(below: Path, as_json: bool) -> None:
    from pipeline.runs import listing
    from pipeline.runs.naming import TRAIN

    found = listing.list_runs(below)
    if as_json:
        print(json.dumps(listing.as_json(found), indent=1))
        return
    if found.runs or found.skipped:
        print(listing.describe(found, below))
    if not found.runs:
        print(f"no run below {below}/" if below.exists() else f"no run yet below {below}/: {TRAIN}")


def _compare(folders: list[Path], as_json: bool) -> None:
    from pipeline.runs.differences import describe, differences

    found = differences(folders)
    if as_json:
        print(json.dumps({"runs": [str(folder) for folder in folders], "settings": found}))
    else:
        print(describe(folders, found))


def _follow(folder: Path, as_json: bool) -> None:
    from pipeline.runs.follow import MetricsLines, PlainLines, Screen, follow, screen_for_stdout

    source = MetricsLines(folder) if as_json else PlainLines(folder)
    try:
        with closing(Screen() if as_json else screen_for_stdout()) as screen:
            run, code = follow(folder, source, screen)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TrainingError(
            f"{folder} can no longer be read ({error.strerror}); whether the run goes on is not "
            "known: look again when its file system is back"
        ) from error
    if not as_json:
        print(f"{folder}: {run.state}{': ' + run.note if run.note else ''}", flush=True)
    sys.exit(int(code))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
