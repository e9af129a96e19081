"""`benchmark loader`: JPEG files to training batches, against a PyTorch DataLoader with Pillow and
against bare decoding with simplejpeg.

The images are in the page cache: what is measured is reading them there, decoding and augmenting.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from pipeline.benchmark.bare_decode import MISSING, BareDecode, can_run
from pipeline.benchmark.options import CONTAINERS, Container, Crop, LoaderOptions
from pipeline.benchmark.packing import pack
from pipeline.benchmark.photos import make_photos
from pipeline.benchmark.pillow_loader import PhotoDataset, use_one_thread
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.config import Config, ConfigError, DataConfig
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.stream import TrainStream, train_planner
from pipeline.ranks.places import Share

_PREFETCH = 2  # batches ahead: DataLoader's default for each worker, and data.prefetch_batches
_SHORT_SIDE, _USUAL_SIZE = (256, 480), 224  # the paper's jitter, for its crop
_RATIOS: dict[Crop, str] = {
    "random_resized_crop": "loader_vs_dataloader",
    "scale_jitter": "loader_vs_dataloader_jitter",
}


@dataclass(frozen=True)
class Row:
    """A row of the table: this project's loader on one container, or what it is held against."""

    container: Container | None
    crop: Crop | None
    threads: int
    what: str = "trainyard"

    @property
    def name(self) -> str:
        """Of its spread."""
        parts = (self.what, self.container, self.crop, f"{self.threads}t")
        return "_".join([part for part in parts if part]) + "_images_per_sec"


def run(options: LoaderOptions) -> Result:
    """Images per second of every row in a steady state, and the ratios for class folders.

    Ratios: `loader_vs_dataloader`, `loader_vs_dataloader_jitter` and `loader_vs_decode` (random-
    resized crop over bare decoding), at the most threads; those at fewer end in `_<threads>t`.
    Raises `ValueError` for a GPU decoder without a GPU.
    """
    _device(options.decode)
    with tempfile.TemporaryDirectory() as folder:
        manifests = _open_all(options, Path(folder))
        result = Result("loader", vars(options), figures=_figures(manifests["folders"]))
        sides = _sides(options, manifests, result)
        for measure in sides.values():  # what is done once: imports, workers, kernels
            measure()
        named = interleave(options.rounds, {row.name: side for row, side in sides.items()})
        result.spreads = named
        spreads = {row: named[row.name] for row in sides}
        for count in options.thread_counts:
            suffix = "" if count == options.thread_counts[-1] else f"_{count}t"
            for name, found in _ratios(spreads, count).items():
                result.ratios[name + suffix] = found
        result.table = _table(spreads)
        return result


def rows(options: LoaderOptions) -> list[Row]:
    """What is measured of this project's loader."""
    containers, crops = options.container_names, options.crop_names
    return [
        Row(container, crop, threads)
        for threads in options.thread_counts
        for container in containers
        for crop in crops
        if options.table == "full" or container == containers[0] or crop == crops[0]
    ]


def _open_all(options: LoaderOptions, folder: Path) -> dict[Container, Manifest]:
    """The same images in every container, and always in class folders, which Pillow reads."""
    root = folder / "made"
    if options.data is not None:
        root = Path(options.data)
    else:
        make_photos(root, options.files)
    cache = folder / "cache"  # nothing is written beside somebody's data
    everything = open_manifest(root, "train", cache)
    count = min(options.files, len(everything))
    images = [len(everything) * place // count for place in range(count)]
    found: dict[Container, Manifest] = {}
    for container in CONTAINERS:
        if container != "folders" and container not in options.container_names:
            continue
        pack(everything, images, container, folder / container)
        found[container] = open_manifest(folder / container, "train", cache)
    return found


def _figures(manifest: Manifest) -> dict[str, float]:
    return {
        "files": len(manifest),
        "mean_file_kb": float(manifest.lengths.mean() / 1000),
        "mean_width": float(manifest.widths.mean()),
        "mean_height": float(manifest.heights.mean()),
    }


def _sides(
    options: LoaderOptions, manifests: dict[Container, Manifest], result: Result
) -> dict[Row, Callable[[], float]]:
    """What measures a round of each row; those with workers come first, as they fork."""
    sides: dict[Row, Callable[[], float]] = {}
    for threads in options.thread_counts:
        for crop in options.crop_names:
            row = Row(None, crop, threads, "dataloader")
            sides[row] = _Reference(manifests["folders"], options, row).measure
        if can_run():
            bare = BareDecode(manifests["folders"], threads, options.images)
            sides[Row(None, None, threads, "simplejpeg")] = bare.measure
        else:
            result.figures["not_run"] = {"simplejpeg": MISSING}
    for row in rows(options):
        assert row.container is not None, "a row of ours has a container"
        sides[row] = _Ours(manifests[row.container], options, row).measure
    return sides


def _ratios(spreads: dict[Row, Spread], threads: int) -> dict[str, Spread]:
    found = {}
    for crop, name in _RATIOS.items():
        ours = spreads.get(Row("folders", crop, threads))
        reference = spreads.get(Row(None, crop, threads, "dataloader"))
        if ours and reference:
            found[name] = ratio(ours, reference)
    ours = spreads.get(Row("folders", "random_resized_crop", threads))
    bare = spreads.get(Row(None, None, threads, "simplejpeg"))
    if ours and bare:
        found["loader_vs_decode"] = ratio(ours, bare)
    return found


def _table(spreads: dict[Row, Spread]) -> list[tuple[str, ...]]:
    """A row for each side: speed, quartiles, and its share of both references at equal threads."""
    table: list[tuple[str, ...]] = [
        ("", "container", "crop", "threads", "img/s", "quartiles", "of DataLoader", "of decoding")
    ]
    for row, spread in spreads.items():
        low, middle, high = spread.quartiles
        held_against = (
            spreads.get(Row(None, row.crop, row.threads, "dataloader")),
            spreads.get(Row(None, None, row.threads, "simplejpeg")),
        )
        shares = [f"{ratio(spread, one).median:.2f}" if one else "-" for one in held_against]
        table.append((
            row.what, row.container or "-", row.crop or "-", str(row.threads),
            f"{middle:.4g}", f"{low:.4g} .. {high:.4g}", *shares,
        ))  # fmt: skip
    if not any(row.what == "simplejpeg" for row in spreads):
        table.append(("simplejpeg", "-", "-", "-", "not installed", "-", "-", "-"))
    return table


class _Side:
    """How both loaders are timed: between two batches of one pass, away from both its ends.

    The batches before fill the queues; those after keep every worker busy until the clock stops,
    and leave nothing running while another side is measured.
    """

    def __init__(self, options: LoaderOptions, workers: int) -> None:
        self._batch = options.batch
        self._edge = workers * _PREFETCH + 2
        # Whole turns of the workers, which deliver in bursts.
        turns = -(-options.images // (options.batch * workers))
        self._timed = turns * workers
        self.batches = self._timed + 2 * self._edge

    def images_per_sec(self, pass_: Iterable[object], device: torch.device | None = None) -> float:
        """Speed over the middle of one pass, which has `batches` batches; each counts when it is
        there on `device`."""
        arrived = []
        for _ in pass_:
            if device is not None and device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            arrived.append(time.perf_counter())
        assert len(arrived) == self.batches, f"{len(arrived)} of {self.batches} batches"
        first = self._edge - 1
        return self._timed * self._batch / (arrived[first + self._timed] - arrived[first])


class _Ours(_Side):
    """This project's `Loader`, as a training makes it."""

    def __init__(self, manifest: Manifest, options: LoaderOptions, row: Row) -> None:
        super().__init__(options, row.threads)
        assert row.crop is not None, "a row of ours has a crop"
        config = DataConfig(
            image_size=options.size,
            val_resize=options.size,
            train_crop=row.crop,
            short_side=_short_side(options.size),
            decode=options.decode,
            threads=row.threads,
            prefetch_batches=_PREFETCH,
        )
        self._stream = TrainStream(manifest, train_planner(config), seed=0)
        self._settings = _decoding(config, manifest)
        self._position = 0

    def measure(self) -> float:
        """Images per second in one pass over the next positions."""
        first = self._position
        self._position += self.batches * self._batch
        chunks = (
            np.arange(start, start + self._batch, dtype=np.int64)
            for start in range(first, self._position, self._batch)
        )
        loader = Loader(self._stream, chunks, self.batches, self._batch, self._settings)
        with contextlib.closing(loader):
            return self.images_per_sec(loader, self._settings.device)


class _Reference(_Side):
    """The usual loader: workers that live on, each with one thread, and Pillow's transforms."""

    def __init__(self, manifest: Manifest, options: LoaderOptions, row: Row) -> None:
        super().__init__(options, row.threads)
        assert row.crop is not None, "a DataLoader has a crop"
        dataset = PhotoDataset(
            manifest, options.size, self.batches * options.batch, row.crop,
            _short_side(options.size),
        )  # fmt: skip
        self._loader = DataLoader(
            dataset,
            options.batch,
            num_workers=row.threads,
            prefetch_factor=_PREFETCH,
            persistent_workers=True,
            worker_init_fn=use_one_thread,
        )

    def measure(self) -> float:
        """Images per second in one pass; the workers are those of the pass before."""
        return self.images_per_sec(self._loader)


def _short_side(size: int) -> tuple[int, int]:
    """The paper's [256, 480] in proportion to the crop."""
    least, most = (side * size // _USUAL_SIZE for side in _SHORT_SIDE)
    return least, most


def _decoding(config: DataConfig, manifest: Manifest) -> DecodeSettings:
    """As a run's own on these images. Raises `ValueError` if DALI sees no GPU for a GPU decoder."""
    assert config.threads is not None, "the row says how many threads"
    share = Share(config.threads, 0)
    return choose_decoding(Config(data=config), _device(config.decode), share, (manifest,))


def _device(decode: str) -> torch.device:
    """Where batches are handed out."""
    if decode != "gpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "--decode=gpu needs an NVIDIA GPU and PyTorch sees none; use --decode=cpu"
        )
    return torch.device("cuda", torch.cuda.current_device())
