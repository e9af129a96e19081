"""`benchmark loader`: JPEG files to training batches on the CPU, against a PyTorch DataLoader."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from pipeline.bench.options import LoaderOptions
from pipeline.bench.photos import make_photos
from pipeline.bench.pillow_loader import PhotoDataset, use_one_thread
from pipeline.bench.report import Result, interleave, ratio
from pipeline.config import DataConfig
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.manifest import Manifest, open_manifest
from pipeline.data.stream import TrainStream, train_planner

_PREFETCH = 2  # batches ahead: DataLoader's default for each worker, and data.prefetch_batches


def run(options: LoaderOptions) -> Result:
    """Images per second of both loaders in a steady state, and their ratio."""
    with _photos(options) as root:
        manifest = open_manifest(root, "train")
        ours, reference = _Ours(manifest, options), _Reference(manifest, options)
        sides = {
            "loader_images_per_sec": ours.measure,
            "dataloader_images_per_sec": reference.measure,
        }
        for measure in sides.values():  # what is done once: imports, workers, the page cache
            measure()
        spreads = interleave(options.rounds, sides)
        ours_speed, reference_speed = spreads.values()
        return Result(
            "loader",
            vars(options),
            {"loader_vs_dataloader": ratio(ours_speed, reference_speed)},
            spreads,
            {
                "files": len(manifest),
                "mean_file_kb": float(manifest.lengths.mean() / 1000),
                "mean_width": float(manifest.widths.mean()),
                "mean_height": float(manifest.heights.mean()),
            },
        )


@contextlib.contextmanager
def _photos(options: LoaderOptions) -> Iterator[Path]:
    if options.data is not None:
        yield Path(options.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), options.files)
        yield Path(folder)


class _Side:
    """How both loaders are timed: between two batches of one pass, away from both its ends.

    The batches before fill the queues; those after keep every worker busy until the clock stops,
    and leave nothing running while the other side is measured.
    """

    def __init__(self, options: LoaderOptions) -> None:
        self._batch, workers = options.batch, options.threads
        self._edge = workers * _PREFETCH + 2
        # Whole turns of the workers, which deliver in bursts.
        turns = -(-options.images // (options.batch * workers))
        self._timed = turns * workers
        self.batches = self._timed + 2 * self._edge

    def images_per_sec(self, pass_: Iterable[object]) -> float:
        """Speed over the middle of one pass, which has `batches` batches."""
        arrived = [time.perf_counter() for _ in pass_]
        assert len(arrived) == self.batches, f"{len(arrived)} of {self.batches} batches"
        first = self._edge - 1
        return self._timed * self._batch / (arrived[first + self._timed] - arrived[first])


class _Ours(_Side):
    """This project's `Loader`, as a training makes it."""

    def __init__(self, manifest: Manifest, options: LoaderOptions) -> None:
        super().__init__(options)
        config = DataConfig(image_size=options.size, val_resize=options.size)
        self._stream = TrainStream(manifest, train_planner(config), seed=0)
        self._settings = DecodeSettings("cpu", torch.device("cpu"), options.threads, _PREFETCH)
        self._size = options.size
        self._position = 0

    def measure(self) -> float:
        """Images per second in one pass over the next positions."""
        first = self._position
        self._position += self.batches * self._batch
        chunks = (
            np.arange(start, start + self._batch, dtype=np.int64)
            for start in range(first, self._position, self._batch)
        )
        loader = Loader(self._stream, chunks, self.batches, self._batch, self._size, self._settings)
        with contextlib.closing(loader):
            return self.images_per_sec(loader)


class _Reference(_Side):
    """The usual loader: workers that live on, each with one thread, and Pillow's transforms."""

    def __init__(self, manifest: Manifest, options: LoaderOptions) -> None:
        super().__init__(options)
        dataset = PhotoDataset(manifest, options.size, self.batches * options.batch)
        self._loader = DataLoader(
            dataset,
            options.batch,
            num_workers=options.threads,
            prefetch_factor=_PREFETCH,
            persistent_workers=True,
            worker_init_fn=use_one_thread,
        )

    def measure(self) -> float:
        """Images per second in one pass; the workers are those of the pass before."""
        return self.images_per_sec(self._loader)
