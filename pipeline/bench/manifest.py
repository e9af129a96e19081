"""`benchmark manifest`: a manifest of ImageNet's size, opened and planned from."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.bench.options import ManifestOptions
from pipeline.bench.report import Result, Spread
from pipeline.config import DataConfig
from pipeline.data.manifest import read_manifest, write_manifest
from pipeline.data.order import epoch_permutation
from pipeline.data.scan import Rows
from pipeline.data.stream import TrainStream, train_planner

_CLASSES = 1000
_BATCHES = 200  # planned one after the other, timed one by one
_PERMUTATIONS = 5
_AIM_OPEN_SEC, _AIM_RSS_MB, _AIM_PLAN_MS = 0.5, 150.0, 2.0


def run(options: ManifestOptions) -> Result:
    """Time and memory of opening in fresh processes, and of planning a batch in this one.

    The ratios are each figure over its aim: 1 or less reaches it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.arrow"
        write_manifest(path, synthetic_rows(options.images))
        opened = [_open_in_new_process(path) for _ in range(options.rounds)]
        plan, first = _time_plans(path, options.batch)
        file_mb = path.stat().st_size / 1e6
    spreads = {
        "open_sec": Spread(tuple(seconds for seconds, _ in opened)),
        "open_rss_mb": Spread(tuple(rss for _, rss in opened)),
        "plan_ms": plan,
        "permutation_sec": Spread(
            tuple(_time_permutation(options.images, epoch) for epoch in range(_PERMUTATIONS))
        ),
    }
    return Result(
        "manifest",
        vars(options),
        {
            "open_vs_aim": spreads["open_sec"].median / _AIM_OPEN_SEC,
            "rss_vs_aim": spreads["open_rss_mb"].median / _AIM_RSS_MB,
            "plan_vs_aim": plan.median / _AIM_PLAN_MS,
        },
        spreads,
        {"first_plan_sec": first, "file_mb": file_mb},
    )


def synthetic_rows(count: int) -> Rows:
    """Rows as ImageNet's: 1000 classes in order, names of its kind, sizes around 500 x 375."""
    rng = np.random.default_rng(0)
    classes = [f"n{10_000_000 + label:08d}" for label in range(_CLASSES)]
    labels = (np.arange(count, dtype=np.int64) * _CLASSES // count).astype(np.int32)
    return Rows(
        classes=classes,
        files=[
            b"%b/%b_%07d.JPEG" % (name, name, image)
            for image, label in enumerate(labels.tolist())
            for name in (classes[label].encode(),)
        ],
        labels=labels,
        lengths=rng.integers(20_000, 200_000, count),
        widths=rng.integers(300, 700, count, dtype=np.int32),
        heights=rng.integers(250, 500, count, dtype=np.int32),
    )


_OPEN = """
import json, os, sys, time
from pathlib import Path
from pipeline.data.manifest import read_manifest

def rss_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6

before, started = rss_mb(), time.perf_counter()
manifest = read_manifest(Path(sys.argv[1]), "train", Path("."))
seconds = time.perf_counter() - started
print(json.dumps([seconds, rss_mb() - before, len(manifest)]))
"""


def _open_in_new_process(path: Path) -> tuple[float, float]:
    """Seconds, and megabytes of resident memory more than before, the file's own pages included."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True, check=True
    )
    seconds, rss, _ = json.loads(done.stdout)
    return float(seconds), float(rss)


def _time_plans(path: Path, batch: int) -> tuple[Spread, float]:
    """Milliseconds to order and plan each of many batches, and seconds of the very first, which
    waits for the epoch's permutation."""
    manifest = read_manifest(path, "train", path.parent)
    stream = TrainStream(manifest, train_planner(DataConfig()), seed=0)
    started = time.perf_counter()
    stream.select(np.arange(batch, dtype=np.int64))
    first = time.perf_counter() - started
    time.sleep(3 * first)  # the next epoch's permutation is made in the background meanwhile
    times = []
    for number in range(_BATCHES):
        start = number * batch % (len(manifest) - batch + 1)
        positions = np.arange(start, start + batch, dtype=np.int64)
        started = time.perf_counter()
        stream.select(positions)
        times.append((time.perf_counter() - started) * 1e3)
    return Spread(tuple(times)), first


def _time_permutation(images: int, epoch: int) -> float:
    started = time.perf_counter()
    epoch_permutation(0, epoch, images)
    return time.perf_counter() - started
