"""Runs another launcher and repeats the first cause of a failure after it.

    python -m launch.repeat horovodrun -np 2 python -m pipeline.train [its options]

horovodrun and torchrun print up to 35 lines of their own after the line that begins with `error:`.
Where no rank of this machine has said the cause, it is looked for in the folder of the run, which
ranks of other machines write to as well. Returns the code of the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launch.end import LastWords
from pipeline.config import ConfigError, require
from pipeline.config.reading import load_config
from pipeline.system.failure import CAUSE_FILE, run_command, say_error


def repeat(command: Sequence[str]) -> int:
    """Runs `command` and repeats, after it has failed, what its first rank with an error said;
    returns its code, 128 and the number of a signal that ended it."""
    require(bool(command), "launch.repeat needs a command, as horovodrun -np 2 python -m ...")
    end = LastWords(_run_dir(command))
    with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
        kept = Path(folder) / "cause.txt"
        try:
            process = subprocess.Popen(command, env={**os.environ, CAUSE_FILE: str(kept)})
        except OSError as error:
            raise ConfigError(
                f"{command[0]} cannot be run ({error.strerror}); give a program of this machine"
            ) from error
        # The terminal sends them to the launcher as well, which ends in its own way.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
        code = process.wait()
        cause = kept_cause(kept)
    if code and (cause := cause or end.cause()) is not None:
        say_error(cause)
    return code if code >= 0 else 128 - code


def _run_dir(command: Sequence[str]) -> Path | None:
    """The folder of the run that `command` trains; None if there is none, or not to be told."""
    for before, word in zip(command, command[1:], strict=False):
        if (before, word) == ("-m", "pipeline.train"):
            options = command[command.index(word) + 1 :]
            if not {"-h", "--help"} & set(options):
                with contextlib.suppress(ConfigError):
                    return load_config([o for o in options if o != "--debug"], "").run.path
    return None


def kept_cause(kept: Path) -> str | None:
    """The first error that a rank has written into the file `kept`; None without one."""
    try:
        return kept.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _run(argv: list[str]) -> None:
    # run_command has taken every --debug, which belongs to the command.
    code = repeat([*argv, *["--debug"] * ("--debug" in sys.argv)])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_command(_run, sys.argv[1:])
