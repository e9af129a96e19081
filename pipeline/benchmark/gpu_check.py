"""What only a GPU can show: `make gpu-check`, or `python -m pipeline.benchmark.gpu_check`.

Needs PyTorch with its Triton, and numpy; pytest for the tests, and for the loader DALI, pyarrow and
pillow. What is missing is named. Leaves with 2 where there is no GPU, and with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.benchmark.options import LoaderOptions, NormOptions, StepOptions
from pipeline.benchmark.result import Result, aligned, machine, write_json
from pipeline.system.failure import TrainingError, run_command

ROOT = Path(__file__).resolve().parents[2]

_MODULE = "pipeline.benchmark.gpu_check"
_LAST_START = 0.75  # share of its budget after which a part begins nothing new
_LAST_LINES = 15

Status = Literal["done", "failed", "missing", "over time"]
Write = Callable[[Mapping[str, Any]], None]
"""Keeps a part's result, as far as it has come."""


def _tests(_limit_sec: float, write: Write) -> None:
    """The tests marked `gpu`, those also marked `slow` last; only their files are read, as others
    need more packages."""
    import pytest

    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--color=no"]
    code = pytest.main([*options, *gpu_test_files(ROOT / "tests")], [TestCounts(write)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(code)


def _norm(limit_sec: float, write: Write) -> Result:
    """Every shape, with few rounds."""
    from pipeline.benchmark.norm import run

    options = NormOptions(device="cuda", rounds=5, limit_sec=limit_sec)
    return run(options, lambda so_far: write(so_far.to_json({})))


def _memory(_limit_sec: float, write: Write) -> Result:
    """ResNet-50 in fp16; compiling it would take longer than all others."""
    from pipeline.benchmark.step import measure_memory

    options = StepOptions(depths="50", amps="fp16", sides="eager,triton,apex")
    return measure_memory(options, lambda so_far: write(so_far.to_json({})))


def _loader(_limit_sec: float, _write: Write) -> Result:
    """Files decoded on the GPU and on the CPU."""
    from pipeline.benchmark.device import pick_device
    from pipeline.benchmark.loader import measure_decoders

    options = LoaderOptions(files=512, rounds=3, images=4096, batch=256)
    return measure_decoders(options, pick_device("cuda"))


def _step(limit_sec: float, write: Write) -> Result:
    """The loop, then the table with few steps."""
    from pipeline.benchmark.step import run

    options = StepOptions(
        device="cuda", parts="both", table_rounds=3, table_steps=5, rounds=5, limit_sec=limit_sec
    )
    return run(options, lambda so_far: write(so_far.to_json({})))


class Part(NamedTuple):
    """One entry: seconds until it is ended, and what runs, in a process of its own.

    `run` gets the seconds after which it begins nothing new.
    """

    budget_sec: float
    run: Callable[[float, Write], Result | None]


PARTS = {
    "tests": Part(130.0, _tests),
    "norm": Part(70.0, _norm),
    "memory": Part(25.0, _memory),
    "loader": Part(45.0, _loader),
    "step": Part(200.0, _step),
}
"""In the order they run."""


class TestCounts:
    """A plugin of pytest: writes how many tests passed, failed and were skipped after each."""

    __test__ = False

    def __init__(self, write: Write) -> None:
        self._write = write
        self._passed = self._skipped = 0
        self._failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Puts the slow ones last."""
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Counts a test, which fails in its fixtures too."""
        self._passed += report.passed and report.when == "call"
        self._skipped += report.skipped
        if report.failed:
            self._failed.append(report.nodeid)
        self._write({
            "passed": self._passed,
            "failed": len(self._failed),
            "skipped": self._skipped,
            "which_failed": self._failed,
        })  # fmt: skip


def gpu_test_files(folder: Path) -> list[str]:
    """Paths of the test modules that mark anything `gpu`."""
    modules = sorted(folder.rglob("test_*.py"))
    return [str(path) for path in modules if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def run_here(part: str, path: str, limit_sec: str) -> None:
    """Runs one part in this process, which may be ended at any time; its result goes to `path`."""

    def write(so_far: Mapping[str, Any]) -> None:
        write_json(Path(path), so_far)

    result = PARTS[part].run(float(limit_sec), write)
    if result is not None:
        write(result.to_json({}))
        print(result.text())


@dataclass(frozen=True)
class Outcome:
    """How a part ended: `reason` unless it is done, `result` as far as it came."""

    part: str
    status: Status
    seconds: float
    reason: str = ""
    result: Mapping[str, Any] | None = None
    """The JSON of a benchmark, or the counts of the tests."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "status": self.status,
            "seconds": round(self.seconds, 1),
            "reason": self.reason,
            "result": self.result,
        }


def main(argv: list[str]) -> None:
    """Runs the parts one after the other, prints one table, writes one JSON.

    Raises `ValueError` for a wrong option or where there is no GPU, `TrainingError` at the end if a
    part failed.
    """
    options = _parse(argv)
    _require_gpu()
    outcomes = []
    for part in options.parts:
        budget_sec = PARTS[part].budget_sec
        print(f"{part}: at most {budget_sec:.0f} s", flush=True)
        outcomes.append(run_part(part, budget_sec))
    finish(outcomes, options.json)


def finish(outcomes: Sequence[Outcome], path: Path | None) -> None:
    """Prints the table and writes the JSON; raises `TrainingError` if a part failed."""
    from pipeline.benchmark.device import versions

    here = machine()
    path = path or default_path(str(here["gpu"]), datetime.date.today())
    print("\n".join(aligned(table(outcomes))))
    content = {
        "benchmark": "gpu-check",
        "ratios": {
            f"{outcome.part}_{name}": value
            for outcome in outcomes
            for name, value in (outcome.result or {}).get("ratios", {}).items()
        },
        "parts": {outcome.part: outcome.to_json() for outcome in outcomes},
        "machine": here,
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(path, content)
    print(f"written to {path}")
    failed = [outcome.part for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise TrainingError(f"failed: {', '.join(failed)}; the reasons stand in the table")


def _parse(argv: list[str]) -> argparse.Namespace:
    # Not jsonargparse, which a machine that is only measured need not have.
    parser = argparse.ArgumentParser(f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between")
    parser.add_argument("--json", type=Path, help="default: benchmarks/gpu_<GPU>_<date>.json")
    options = parser.parse_args(argv)
    chosen = options.parts.split(",")
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise ValueError(
            f"--parts={options.parts}: there is no part {unknown[0]}; there are: {', '.join(PARTS)}"
        )
    options.parts = [part for part in PARTS if part in chosen]
    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: the folder {options.json.parent} does not exist")
    return options


def _require_gpu() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"PyTorch is not installed for {sys.executable}; run pip install torch")
    import torch

    if torch.version.cuda is None:
        raise ValueError(
            f"PyTorch {torch.__version__} is built without CUDA, and there is nothing to check; "
            "install a build for CUDA on a machine with an NVIDIA GPU"
        )
    if not torch.cuda.is_available():
        raise ValueError("there is no NVIDIA GPU that PyTorch can use; nothing was checked")


def default_path(gpu: str, day: datetime.date) -> Path:
    """Where the JSON goes: benchmarks/gpu_nvidia-h200_2026-01-31.json in this checkout."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return ROOT / "benchmarks" / f"gpu_{name}_{day.isoformat()}.json"


def run_part(part: str, budget_sec: float) -> Outcome:
    """One part in a process of its own, ended after `budget_sec`; what it had found is kept."""
    script = f"import sys; from {_MODULE} import run_here; run_here(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-c", script, part, str(path), str(_LAST_START * budget_sec)]
        ended = run_limited(command, budget_sec)
        found = _read(path)
    last = _last_line(ended.text)
    if ended.code not in (0, None) or (found or {}).get("failed"):
        if "ModuleNotFoundError: " in last or "ImportError: " in last:
            return Outcome(part, "missing", ended.seconds, last, found)
        print("\n".join(ended.text.splitlines()[-_LAST_LINES:]), flush=True)
        return Outcome(part, "failed", ended.seconds, last, found)
    if ended.code is None:
        return Outcome(part, "over time", ended.seconds, f"ended after {budget_sec:g} s", found)
    return Outcome(part, "done", ended.seconds, "", found)


class Ended(NamedTuple):
    """A process that has ended, or was ended after its budget (`code` is None)."""

    code: int | None
    seconds: float
    text: str


def run_limited(command: Sequence[str], budget_sec: float) -> Ended:
    """Runs a command in this checkout; it and what it started are killed after `budget_sec`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(budget_sec)
        finally:  # of all its session, such as compilers it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return Ended(code, time.monotonic() - started, output.read())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not begun, or killed while it was written
        return None
    return found


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def table(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Part, figure and value: how each part ended, its numbers, and what did not run and why."""
    rows: list[tuple[str, ...]] = [("part", "figure", "value")]
    for outcome in outcomes:
        status = f"{outcome.status}, {outcome.seconds:.0f} s"
        rows.append((outcome.part, status, outcome.reason[:100]))
        result = outcome.result or {}
        numbers = result.get("raw", result) | result.get("ratios", {})
        for name, value in numbers.items():
            number = value.get("median") if isinstance(value, dict) else value
            if isinstance(number, int | float):
                rows.append((outcome.part, name, f"{number:.4g}"))
        for name, why in numbers.get("not_run", {}).items():
            rows.append((outcome.part, name, f"not run: {why[:80]}"))
    return rows


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
