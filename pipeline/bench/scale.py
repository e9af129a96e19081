"""`benchmark scale`: two Horovod ranks against two processes that do not communicate.

Both pairs live through the whole benchmark and train in turns. Whoever is not measured is stopped
by SIGSTOP: Horovod's thread would go on exchanging messages every cycle and slow the others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from launch.local import LocalRanks, start_ranks
from pipeline.bench.options import ScaleOptions
from pipeline.bench.report import Result, Spread, interleave, ratio
from pipeline.bench.resident import Workload
from pipeline.failure import TrainingError

_WARM_UP_STEPS = 4
_RANKS = 2


def run(options: ScaleOptions) -> Result:
    """Images per second of both pairs, one thread for each process, and their ratio."""
    work = Workload(options.depth, options.size, options.images)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        together = _Pair([_start(work, _RANKS, folder / "together")])
        stack.callback(together.end)
        apart = _Pair([_start(work, 1, folder / str(alone)) for alone in range(_RANKS)])
        stack.callback(apart.end)
        pairs = {"horovod": together, "apart": apart}
        for pair in pairs.values():
            pair.measure(_WARM_UP_STEPS, options.images)
            pair.cpu_sec_per_step.clear()
        spreads = interleave(
            options.rounds,
            {f"{name}_images_per_sec": _round(pair, options) for name, pair in pairs.items()},
        )
    cpu = {
        f"{name}_cpu_sec_per_step": Spread(tuple(pair.cpu_sec_per_step))
        for name, pair in pairs.items()
    }
    together_speed, apart_speed = spreads.values()
    settings = {name: value for name, value in os.environ.items() if name.startswith("HOROVOD_")}
    return Result(
        "scale",
        {**vars(options), "environment": settings},
        {
            "weak_scaling_2": ratio(together_speed, apart_speed),
            # Less moved by whatever else runs on the machine; a thread that spins counts as work.
            "weak_scaling_2_by_cpu_time": ratio(
                cpu["apart_cpu_sec_per_step"], cpu["horovod_cpu_sec_per_step"]
            ),
        },
        {**spreads, **cpu},
    )


def _round(pair: _Pair, options: ScaleOptions) -> Any:
    return lambda: pair.measure(options.steps, options.images)


def _start(work: Workload, ranks: int, folder: Path) -> LocalRanks:
    folder.mkdir()
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    workload = json.dumps(dataclasses.asdict(work))
    return start_ranks(
        [sys.executable, "-m", "pipeline.bench.scale_rank", workload, str(folder)],
        ranks,
        {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


class _Pair:
    """Two processes of `scale_rank`, of one job or of one each, that run only while measured."""

    def __init__(self, jobs: list[LocalRanks]) -> None:
        self._jobs = jobs
        self._processes = [process for job in jobs for process in job.processes]
        self.cpu_sec_per_step: list[float] = []

    def measure(self, steps: int, images: int) -> float:
        """Images per second of both together over `steps` steps, each by its own clock."""
        self._signal(signal.SIGCONT)
        for process in self._processes:
            self._tell(process, f"{steps}\n")
        answers = [self._answer(process) for process in self._processes]
        self._signal(signal.SIGSTOP)
        self.cpu_sec_per_step.append(sum(a["cpu_sec"] for a in answers) / len(answers) / steps)
        return sum(images * steps / answer["wall_sec"] for answer in answers)

    def end(self) -> None:
        """Ends both. They hold nothing worth saving, and one may wait for the other."""
        self._signal(signal.SIGKILL)
        for job in self._jobs:
            job.stop()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)

    def _tell(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError as error:
            raise _ended(process) from error

    def _answer(self, process: subprocess.Popen[str]) -> Mapping[str, float]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise _ended(process)
        answer: dict[str, float] = json.loads(line)
        return answer


def _ended(process: subprocess.Popen[str]) -> TrainingError:
    return TrainingError(
        f"process {process.pid} of the benchmark ended early with code {process.wait()}; its own "
        "error stands above"
    )
