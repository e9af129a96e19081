"""`benchmark manifest`: opens an index of ImageNet's size and plans batches from it."""

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

from pipeline.benchmark.options import ManifestOptions, numbers
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.config import DataConfig
from pipeline.data.index.arrow_file import write_manifest
from pipeline.data.index.manifest import Manifest, read_manifest
from pipeline.data.index.scan import Rows
from pipeline.data.order import epoch_permutation
from pipeline.data.stream import TrainStream, train_planner

_CLASSES = 1000
_NAME = b"n10000000/n10000000_0000000.JPEG"  # as long as ImageNet's
_BATCHES = 200  # planned one after the other, timed one by one
_PERMUTATIONS = 5
_AIM_OPEN_SEC, _AIM_RSS_MB, _AIM_PLAN_MS = 0.5, 150.0, 2.0


def run(options: ManifestOptions) -> Result:
    """Time and memory of opening in fresh processes, and of planning a batch in this one.

    Each ratio is a figure over its target, reached at 1 or less; one more is the cost of an image
    in the longest of `rows` over that in the shortest, `plan_cost_1e7_vs_1e3` by default.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.arrow"
        write_manifest(path, _rows(synthetic_manifest(options.images, _CLASSES)))
        opened = [_open_in_new_process(path) for _ in range(options.rounds)]
        plans = _Plans(read_manifest(path, "train", path.parent), options.batch)
        plan_ms = Spread(tuple(1e3 * sec for sec in plans.seconds()))
        file_mb = path.stat().st_size / 1e6
    permutations = (_permutation_sec(options.images, epoch) for epoch in range(_PERMUTATIONS))
    seconds, rss_mb = (Spread(found) for found in zip(*opened, strict=True))
    result = Result("manifest", vars(options))
    result.ratios = {
        "open_vs_aim": seconds.median / _AIM_OPEN_SEC,
        "rss_vs_aim": rss_mb.median / _AIM_RSS_MB,
        "plan_vs_aim": plan_ms.median / _AIM_PLAN_MS,
    }
    result.spreads = {"open_sec": seconds, "open_rss_mb": rss_mb, "plan_ms": plan_ms,
                      "permutation_sec": Spread(tuple(permutations))}  # fmt: skip
    result.figures = {"first_plan_sec": plans.first_sec, "file_mb": file_mb}
    _add_growth(result, options)
    return result


def _add_growth(result: Result, options: ManifestOptions) -> None:
    """The time for an image, and the memory for a batch, at each length of the manifest."""
    lengths = {_power(rows): rows for rows in numbers(options.rows)}
    plans = {n: _Plans(synthetic_manifest(rows), options.batch) for n, rows in lengths.items()}
    costs = interleave(options.rounds, {name: one.us_per_image for name, one in plans.items()})
    for name, rows in lengths.items():
        result.spreads[f"plan_us_per_image_{name}"] = costs[name]
        # numpy reports its arrays to tracemalloc; the permutation was made before.
        result.figures[f"plan_peak_kb_{name}"] = plans[name].peak_bytes() / 1e3
        result.figures[f"permutation_mb_{name}"] = 4 * rows / 1e6
    shortest, longest = list(lengths)[0], list(lengths)[-1]
    if shortest != longest:
        found = ratio(costs[longest], costs[shortest])
        result.ratios[f"plan_cost_{longest}_vs_{shortest}"] = found


def _power(number: int) -> str:
    """1e7 for 10,000,000; any number that is no power of ten as it stands."""
    digits = str(number)
    return f"1e{len(digits) - 1}" if int(digits) == 10 ** (len(digits) - 1) else digits


class _Plans:
    """Times of batches ordered and planned one after the other in the middle of an epoch.

    `first_sec` is the time of the very first, which waits for the epoch's permutation.
    """

    def __init__(self, manifest: Manifest, batch: int) -> None:
        self._rows, self._batch, self._done = len(manifest), batch, 0
        self._stream = TrainStream(manifest, train_planner(DataConfig()), seed=0)
        self.first_sec = self._plan()
        time.sleep(3 * self.first_sec)  # the next epoch's permutation is made in the background

    def seconds(self) -> list[float]:
        """Seconds of each of many batches."""
        return [self._plan() for _ in range(_BATCHES)]

    def us_per_image(self) -> float:
        """Microseconds per image, by the median of many batches."""
        return statistics.median(self.seconds()) / self._batch * 1e6

    def peak_bytes(self) -> int:
        """The peak of memory while one batch is ordered and planned."""
        tracemalloc.start()
        try:
            self._plan()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def _plan(self) -> float:
        start = self._done % (self._rows - self._batch + 1)
        self._done = start + self._batch
        positions = np.arange(start, start + self._batch, dtype=np.int64)
        started = time.perf_counter()
        self._stream.select(positions)
        return time.perf_counter() - started


def synthetic_manifest(rows: int, classes: int = 1, side: int | None = None) -> Manifest:
    """A manifest in memory, made without scanning or hashing names: every image has the same name
    and the first of `classes`, with sides like ImageNet's or all of `side` pixels."""
    rng = np.random.default_rng(0)
    offsets = np.arange(rows + 1, dtype=np.int32) * len(_NAME)
    files = pa.Array.from_buffers(
        pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(_NAME * rows)]
    )
    widths, heights = ((300, 700), (250, 500)) if side is None else ((side, side + 1),) * 2
    columns = {
        "file": files,
        "label": np.zeros(rows, dtype=np.int32),
        "length": np.full(rows, 80_000, dtype=np.int64),
        "width": rng.integers(*widths, rows, dtype=np.int32),
        "height": rng.integers(*heights, rows, dtype=np.int32),
    }
    names = json.dumps([f"class{label}" for label in range(classes)])
    facts = {"digest": "0" * 64, "classes": names, "passed": "[]"}
    table = pa.table(columns).replace_schema_metadata(facts)
    return Manifest("train", Path("."), table)


def _rows(manifest: Manifest) -> Rows:
    """The result that a scan would have."""
    return Rows(
        classes=manifest.classes,
        files=[_NAME] * len(manifest),
        labels=manifest.labels,
        lengths=manifest.lengths,
        widths=manifest.widths,
        heights=manifest.heights,
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
assert len(manifest)
print(json.dumps([seconds, rss_mb() - before]))
"""


def _open_in_new_process(path: Path) -> tuple[float, float]:
    """Seconds, and megabytes of resident memory more than before, the file's own pages included."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True, check=True
    )
    seconds, rss = json.loads(done.stdout)
    return seconds, rss


def _permutation_sec(images: int, epoch: int) -> float:
    started = time.perf_counter()
    epoch_permutation(0, epoch, images)
    return time.perf_counter() - started
