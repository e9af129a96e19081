"""The checks that need a GPU: `make gpu-check`, or `python -m pipeline.benchmark.gpu_check`.

Needs PyTorch with its Triton, and numpy; pytest for the tests, and for the loader DALI, pyarrow and
pillow. Names what is missing. Exits with 2 where there is no GPU, and with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.benchmark.options import LoaderOptions, NormOptions, StepOptions, chosen, within
from pipeline.benchmark.result import Result, Save, aligned, of_this_machine, write_json
from pipeline.config.setting import home
from pipeline.system.console import say
from pipeline.system.failure import TrainingError, run_command

ROOT = Path(__file__).resolve().parents[2]


class Part(NamedTuple):
    """One part, which runs in a process of its own."""

    budget_sec: float
    """Seconds until it is killed, with all that it has started."""
    run: str
    """The full name of a function of `options` and a `Save`; imported only in that process."""
    options: Any = None


PARTS = {
    "tests": Part(130.0, "pipeline.benchmark.gpu_check.run_tests"),
    "norm": Part(
        70.0, "pipeline.benchmark.norm.run", NormOptions(device="cuda", rounds=5, limit_sec=52.0)
    ),
    # Compiling would take longer than all others.
    "memory": Part(
        25.0, "pipeline.benchmark.step.measure_memory",
        StepOptions(depths="50", amps="fp16", sides="eager,triton,apex"),
    ),
    "loader": Part(
        45.0, "pipeline.benchmark.loader.measure_decoders",
        LoaderOptions(files=512, rounds=3, images=4096, batch=256),
    ),
    "step": Part(
        200.0, "pipeline.benchmark.step.run",
        StepOptions(
            device="cuda", parts="both", table_rounds=3, table_steps=5, rounds=5, limit_sec=150.0
        ),
    ),
}  # fmt: skip
"""The parts in the order they run. Their limits leave a quarter of the time to what has begun."""


def run_tests(_options: None, save: Save) -> Result:
    """Runs the tests marked `gpu`, those also marked `slow` last; collects only their files, as
    others need more packages. Raises `TrainingError` if one fails."""
    import pytest

    counts = TestCounts(save)
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--color=no"]
    code = pytest.main([*options, *gpu_test_files(ROOT / "tests")], [counts])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        failed = counts.result.figures["failed"]
        raise TrainingError(f"{failed} failed" if failed else f"pytest ended with code {code:d}")
    return counts.result


class TestCounts:
    """A pytest plugin: saves after each test how many passed, failed and were skipped."""

    __test__ = False

    def __init__(self, save: Save) -> None:
        self._save = save
        figures = {"passed": 0, "failed": 0, "skipped": 0, "which_failed": []}
        self.result = Result("tests", {}, figures=figures)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Puts the slow ones last."""
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Counts a test, including failures in its fixtures."""
        figures = self.result.figures
        figures["passed"] += report.passed and report.when == "call"
        figures["skipped"] += report.skipped
        if report.failed:
            figures["failed"] += 1
            figures["which_failed"].append(report.nodeid)
        self._save(self.result)


def gpu_test_files(folder: Path) -> list[str]:
    """Paths of the test modules that mark anything `gpu`."""
    modules = sorted(folder.rglob("test_*.py"))
    return [str(path) for path in modules if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def main(argv: list[str]) -> None:
    """Runs the parts one after the other, each printing its table; writes one JSON.

    Raises `ValueError` for a wrong option or where there is no GPU or no checkout, `TrainingError`
    at the end if a part failed.
    """
    options = _parse(argv)
    _require_checkout()
    _require_gpu()
    outcomes = {}
    for name in PARTS:
        if name in chosen(options.parts, list(PARTS)):
            say(f"{name}: at most {PARTS[name].budget_sec:.0f} s")
            outcomes[name] = run_part(PARTS[name])
    finish(outcomes, options.json)


def _parse(argv: list[str]) -> argparse.Namespace:
    # Not `config.reading`, whose packages a machine that only runs this need not have.
    parser = argparse.ArgumentParser(f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument(
        "--json",
        type=lambda text: Path(home(text)),
        help="default: benchmarks/gpu_<GPU>_<date>.json",
    )
    options = parser.parse_args(argv)
    within(options, "parts", list(PARTS))
    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: the folder {options.json.parent} does not exist")
    return options


def _require_checkout() -> None:
    if not (ROOT / "tests").is_dir():
        raise ValueError(
            f"what is checked are the tests of a checkout, which {ROOT} is not; start it in one, "
            "by make gpu-check"
        )


def _require_gpu() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"PyTorch is not installed for {sys.executable}; run pip install torch")
    import torch

    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ValueError(
            f"PyTorch {torch.__version__}, which is built {built}, sees no NVIDIA GPU; nothing was "
            "checked"
        )


def run_part(part: Part) -> dict[str, Any]:
    """Runs a part in a process of its own, which is killed after its budget.

    Returns its `status` (done, failed, missing: a package, over time), the `seconds` it took, the
    `reason` unless it is done, and the JSON of its `result` as far as it got.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcome.json"
        reason = f"ended after {part.budget_sec:g} s"
        write_json(path, {"status": "over time", "reason": reason, "result": None})
        process = multiprocessing.get_context("spawn").Process(target=run_here, args=(part, path))
        process.start()
        try:
            process.join(part.budget_sec)
            code = process.exitcode
        finally:  # with its whole session, such as compilers it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if code not in (0, None):
        outcome |= {"status": "failed", "reason": f"ended with code {code}"}
    return outcome | {"seconds": round(time.monotonic() - started, 1)}


def run_here(part: Part, path: Path) -> None:
    """Runs a part in this process, which may be killed at any time, from this checkout's root:
    the existing `path` always holds the result so far."""
    os.setsid()
    os.chdir(ROOT)
    before = os.environ.get("PYTHONPATH", "")  # for what the part starts
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # it may be killed, or end by a driver's fault
    outcome = json.loads(path.read_text(encoding="utf-8"))

    def save(result: Result) -> None:
        outcome["result"] = result.to_json()
        write_json(path, outcome)

    try:
        module, _, name = part.run.rpartition(".")
        result = getattr(importlib.import_module(module), name)(part.options, save)
        say(*result.text().split("\n"))
        outcome |= {"status": "done", "reason": ""}
        save(result)
    except Exception as error:  # the other parts are run
        traceback.print_exc()
        status = "missing" if isinstance(error, ImportError) else "failed"
        write_json(path, outcome | {"status": status, "reason": f"{type(error).__name__}: {error}"})


def finish(outcomes: Mapping[str, Mapping[str, Any]], path: Path | None) -> None:
    """Prints how each part ended and writes the JSON. Raises `TrainingError` if one failed."""
    ratios = {
        f"{part}_{name}": value
        for part, outcome in outcomes.items()
        for name, value in (outcome["result"] or {}).get("ratios", {}).items()
    }
    content = of_this_machine({"benchmark": "gpu-check", "ratios": ratios, "parts": dict(outcomes)})
    path = path or default_path(str(content["machine"]["gpu"]), datetime.date.today())
    table = [("part", "status", "seconds", "")]
    for part, outcome in outcomes.items():
        table.append((part, outcome["status"], str(outcome["seconds"]), outcome["reason"][:100]))
    try:
        write_json(path, content)
    finally:
        say(*aligned(table))
    say(f"written to {path}")
    failed = [part for part, outcome in outcomes.items() if outcome["status"] == "failed"]
    if failed:
        raise TrainingError(f"failed: {', '.join(failed)}; the table has the reasons")


def default_path(gpu: str, day: datetime.date) -> Path:
    """Where the JSON goes: benchmarks/gpu_nvidia-h200_2026-01-31.json in this checkout."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return ROOT / "benchmarks" / f"gpu_{name}_{day.isoformat()}.json"


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
