"""Parts of `gpu_check` for its tests: each ends in another way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from pipeline.benchmark.result import Result, Save


def done(options: Any, save: Save) -> Result:
    """Returns what it has got."""
    save(Result("made", {}, {"first": 1.0}))
    return Result("made", {}, {"all": float(options)})


def fails(_options: Any, save: Save) -> Result:
    """Has found something before."""
    save(Result("made", {}, {"first": 1.0}))
    raise ValueError("no luck")


def tells_where(_options: Any, save: Save) -> Result:
    """Where it runs, what it prints at once, and what its processes are to find first."""
    first = os.environ["PYTHONPATH"].split(os.pathsep)[0]
    line_buffered = getattr(sys.stdout, "line_buffering", False)
    figures = {"folder": os.getcwd(), "first": first, "line_buffered": line_buffered}
    return Result("made", {}, figures=figures)


def misses(_options: Any, _save: Save) -> Result:
    """Needs a package that is not there."""
    raise ModuleNotFoundError("No module named 'PIL'")


def dies(_options: Any, _save: Save) -> Result:
    """As by a fault of a driver."""
    os._exit(3)


def hangs(_options: Any, save: Save) -> Result:
    """With a process of its own, whose id it has saved."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    save(Result("made", {}, figures={"child": child.pid}))
    time.sleep(60)
    raise AssertionError("it should have been killed")
