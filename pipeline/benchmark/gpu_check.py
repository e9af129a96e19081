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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.system.failure import TrainingError, run_command

ROOT = Path(__file__).resolve().parents[2]

# Seconds until a part is ended, in the order they run; 470 in all.
BUDGETS = {"tests": 130.0, "norm": 70.0, "memory": 25.0, "loader": 45.0, "step": 200.0}
_LAST_START = 0.75  # share of its budget after which a part begins nothing new
_LAST_LINES = 15
_NOT_STARTED, _NOTHING_SELECTED = 4, 5  # pytest's codes

Status = Literal["done", "failed", "missing", "over time"]


@dataclass(frozen=True)
class Outcome:
    """How a part ended: `reason` unless it is done, `figures` by name as far as it came."""

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


@dataclass(frozen=True)
class Ended:
    """A process that has ended, or was ended after its budget (`code` is None)."""

    code: int | None
    seconds: float
    text: str


def main(argv: list[str]) -> None:
    """Runs the parts one after the other, prints one table, writes one JSON.

    Raises `ValueError` for a wrong option or where there is no GPU, `TrainingError` at the end if a
    part failed.
    """
    options = _parse(argv)
    _require_gpu()
    outcomes = []
    for part in options.parts:
        print(f"{part}: at most {BUDGETS[part]:.0f} s", flush=True)
        outcomes.append(run_part(part, BUDGETS[part]))
    finish(outcomes, options.json)


def finish(outcomes: Sequence[Outcome], path: Path | None) -> None:
    """Prints the table and writes the JSON; raises `TrainingError` if a part failed."""
    from pipeline.benchmark.device import versions
    from pipeline.benchmark.result import aligned, machine, write_json

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
    parser = argparse.ArgumentParser("python -m pipeline.benchmark.gpu_check", description=__doc__)
    parser.add_argument("--parts", default=",".join(BUDGETS), help="which, with commas between")
    parser.add_argument("--json", type=Path, help="default: benchmarks/gpu_<GPU>_<date>.json")
    options = parser.parse_args(argv)
    chosen = options.parts.split(",")
    unknown = [part for part in chosen if part not in BUDGETS]
    if unknown:
        raise ValueError(
            f"--parts={options.parts}: there is no part {unknown[0]}; there are: "
            f"{', '.join(BUDGETS)}"
        )
    options.parts = [part for part in BUDGETS if part in chosen]
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
    """One part in a process of its own, ended after `budget_sec`."""
    return run_tests(budget_sec) if part == "tests" else run_benchmark(part, budget_sec)


def run_tests(budget_sec: float) -> Outcome:
    """The tests marked `gpu`, those also marked `slow` last; only their files are read, as others
    need more packages."""
    if importlib.util.find_spec("pytest") is None:
        return Outcome("tests", "missing", 0.0, "pytest is not installed")
    files = gpu_test_files(ROOT / "tests")
    left, text, codes = budget_sec, "", set()
    for marks in ("gpu and not slow", "gpu and slow"):
        command = ["-m", "pytest", "-v", "-m", marks, "-p", "no:cacheprovider", "--color=no"]
        ended = run_limited([sys.executable, *command, *files], left)
        left, text = max(1.0, left - ended.seconds), text + ended.text
        codes.add(0 if ended.code == _NOTHING_SELECTED else ended.code)
    counts = count_tests(text)
    if codes == {_NOT_STARTED} and "No module named" in _last_line(text):
        return Outcome("tests", "missing", budget_sec - left, _last_line(text), counts)
    if counts["failed"] or not codes <= {0, None}:
        _show(text)
        return Outcome("tests", "failed", budget_sec - left, _last_line(text), counts)
    if None in codes:
        return Outcome("tests", "over time", budget_sec, f"ended after {budget_sec:g} s", counts)
    return Outcome("tests", "done", budget_sec - left, "", counts)


def gpu_test_files(folder: Path) -> list[str]:
    """Paths of the test modules that mark anything `gpu`."""
    modules = sorted(folder.rglob("test_*.py"))
    return [str(path) for path in modules if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def count_tests(text: str) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and which failed, in pytest -v's lines."""
    ends = re.findall(r"^(\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.MULTILINE)
    failed = [name for name, how in ends if how in ("FAILED", "ERROR")]
    return {
        "passed": sum(how == "PASSED" for _, how in ends),
        "failed": len(failed),
        "skipped": sum(how == "SKIPPED" for _, how in ends),
        "which_failed": failed,
    }


def run_benchmark(part: str, budget_sec: float) -> Outcome:
    """A part of `gpu_part`; what it had found when it was ended is kept."""
    from pipeline.benchmark.gpu_part import MISSING

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        limit = str(_LAST_START * budget_sec)
        command = [sys.executable, "-m", "pipeline.benchmark.gpu_part", part, str(path), limit]
        ended = run_limited(command, budget_sec)
        found = _read(path)
    if ended.code == 0:
        return Outcome(part, "done", ended.seconds, "", found)
    if ended.code == MISSING:
        return Outcome(part, "missing", ended.seconds, _last_line(ended.text), found)
    if ended.code is None:
        return Outcome(part, "over time", ended.seconds, f"ended after {budget_sec:g} s", found)
    _show(ended.text)
    return Outcome(part, "failed", ended.seconds, _last_line(ended.text), found)


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
        finally:
            _kill(process)
        output.seek(0)
        return Ended(code, time.monotonic() - started, output.read())


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all of its session, such as compilers it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not begun, or killed while it was written
        return None
    return found


def _show(text: str) -> None:
    print("\n".join(text.splitlines()[-_LAST_LINES:]), flush=True)


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
