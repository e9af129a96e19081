"""`benchmark demo`: configs/demo.yaml under horovodrun, from the first step to the last."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.benchmark.options import DemoOptions
from pipeline.benchmark.result import Result, Spread
from pipeline.prepare.drawn.demo import draw_demo
from pipeline.system.failure import TrainingError
from pipeline.train.folder import RunFolder, find_runs

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
_AIM_SEC = 300.0
_LAST_LINES = 15


def run(options: DemoOptions) -> Result:
    """Trains once for each seed, one after the other; top-1, seconds, speed and data wait.

    Ratios: `min_top1`, the worst seed's held-out top-1 at the end, and `max_seconds_of_300`, the
    slowest run's seconds from the start of horovodrun to its end over the aim.
    """
    data = Path(options.data)
    if not data.exists():
        draw_demo(data)
    runs = []
    for seed in options.seed_numbers:
        runs.append(_train(options, data, seed))
        print(_line(seed, runs[-1]), flush=True)
    columns = {name: Spread(tuple(run_[name] for run_ in runs)) for name in runs[0]}
    return Result(
        "demo",
        vars(options),
        {
            "min_top1": min(columns["top1"].rounds),
            "max_seconds_of_300": max(columns["wall_sec"].rounds) / _AIM_SEC,
        },
        columns,
    )


def _train(options: DemoOptions, data: Path, seed: int) -> dict[str, float]:
    """One run in a temporary folder, as a user starts it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("horovodrun", "-np", str(options.ranks), sys.executable, "-m", "pipeline.train"),
            *("--config", str(_CONFIG), f"--data.root={data.resolve()}"),
            *(f"--run.dir={folder}", f"--run.seed={seed}"),
        ]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=_CONFIG.parents[1],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            last = "\n".join(done.stdout.splitlines()[-_LAST_LINES:])
            print(last, file=sys.stderr)
            raise TrainingError(f"the run of seed {seed} failed; its last lines stand above")
        (run,) = find_runs(Path(folder))
        return {"wall_sec": seconds, **summary(RunFolder(run).lines())}


def summary(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Final top-1 and top-5, median img/s and data-wait share of the lines of a metrics.jsonl."""
    train = [line for line in lines if line["event"] == "train"]
    val = [line for line in lines if line["event"] == "val"]
    return {
        "top1": val[-1]["top1"],
        "top5": val[-1]["top5"],
        "images_per_sec": statistics.median(line["images_per_sec"] for line in train),
        "data_wait_share": statistics.median(line["data_wait_share"] for line in train),
    }


def _line(seed: int, found: dict[str, float]) -> str:
    return (
        f"seed {seed}: top-1 {found['top1']:.2%}, {found['wall_sec']:.0f} s, "
        f"{found['images_per_sec']:.0f} img/s, data wait {found['data_wait_share']:.1%}"
    )
