"""`benchmark manifest`: a manifest of ImageNet's size, opened and planned from."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.benchmark.options import ManifestOptions
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.config import DataConfig
from pipeline.data.index.arrow_file import write_manifest
from pipeline.data.index.manifest import Manifest, read_manifest
from pipeline.data.index.scan import Rows
from pipeline.data.order import epoch_permutation
from pipeline.data.stream import TrainStream, train_planner

_CLASSES = 1000
_BATCHES = 200  # planned one after the other, timed one by one
_PERMUTATIONS = 5
_AIM_OPEN_SEC, _AIM_RSS_MB, _AIM_PLAN_MS = 0.5, 150.0, 2.0


def run(options: ManifestOptions) -> Result:
    """Time and memory of opening in fresh processes, and of planning a batch in this one.

    The ratios are each figure over its aim, 1 or less reaching it, and the cost of an image in the
    longest of `rows` over that in the shortest, `plan_cost_1e7_vs_1e3` by default.
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
    result = Result(
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
    _add_growth(result, options)
    return result


def _add_growth(result: Result, options: ManifestOptions) -> None:
    """What an image costs, and what memory a batch takes, at each length of the manifest."""
    lengths = {_power(rows): _Length(rows, options.batch) for rows in options.row_counts}
    costs = interleave(options.rounds, {name: one.measure for name, one in lengths.items()})
    for name, length in lengths.items():
        result.spreads[f"plan_us_per_image_{name}"] = costs[name]
        # numpy reports its arrays to tracemalloc; the permutation was made before.
        result.figures[f"plan_peak_kb_{name}"] = length.peak_bytes() / 1e3
        result.figures[f"permutation_mb_{name}"] = 4 * length.rows / 1e6
    shortest, longest = list(lengths)[0], list(lengths)[-1]
    if shortest != longest:
        found = ratio(costs[longest], costs[shortest])
        result.ratios[f"plan_cost_{longest}_vs_{shortest}"] = found


def _power(number: int) -> str:
    """1e7 for 10,000,000; any number that is no power of ten as it stands."""
    digits = str(number)
    return f"1e{len(digits) - 1}" if int(digits) == 10 ** (len(digits) - 1) else digits


class _Length:
    """A stream over a manifest of so many rows in memory, in the middle of its first epoch."""

    def __init__(self, rows: int, batch: int) -> None:
        self.rows, self._batch, self._done = rows, batch, 0
        self._stream = TrainStream(synthetic_manifest(rows), train_planner(DataConfig()), seed=0)
        started = time.perf_counter()
        self._stream.select(np.arange(batch, dtype=np.int64))
        # The next epoch's permutation is made in the background meanwhile.
        time.sleep(3 * (time.perf_counter() - started))

    def measure(self) -> float:
        """Microseconds per image to order and plan a batch, the median of many in one epoch."""
        return statistics.median(self._seconds() for _ in range(_BATCHES)) / self._batch * 1e6

    def peak_bytes(self) -> int:
        """The most memory that is taken while one batch is ordered and planned."""
        tracemalloc.start()
        try:
            self._seconds()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def _seconds(self) -> float:
        start = self._done % (self.rows - self._batch + 1)
        self._done = start + self._batch
        positions = np.arange(start, start + self._batch, dtype=np.int64)
        started = time.perf_counter()
        self._stream.select(positions)
        return time.perf_counter() - started


def synthetic_manifest(rows: int) -> Manifest:
    """A manifest as `synthetic_rows` would give, in memory and without scanning or hashing names:
    every image is called alike."""
    rng = np.random.default_rng(0)
    name = b"n10000000/n10000000_0000000.JPEG"
    offsets = np.arange(rows + 1, dtype=np.int32) * len(name)
    files = pa.Array.from_buffers(
        pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(name * rows)]
    )
    columns = {
        "file": files,
        "label": np.zeros(rows, dtype=np.int32),
        "length": np.full(rows, 80_000, dtype=np.int64),
        "width": rng.integers(300, 700, rows, dtype=np.int32),
        "height": rng.integers(250, 500, rows, dtype=np.int32),
    }
    table = pa.table(columns).replace_schema_metadata({"digest": "0" * 64, "classes": '["n"]'})
    return Manifest("train", Path("."), table)


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
from pipeline.data.index.manifest import read_manifest

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
