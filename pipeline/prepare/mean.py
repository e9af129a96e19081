"""`prepare mean`: the means, deviations and principal components of a training set.

Over the crops of epoch 0 at seed 0, each image once, neither mirrored nor coloured; decoded on the
CPU, so that the same data have the same statistics everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.config import DataConfig, require
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.exclusion import Exclusions, read_list
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.normalisation import Normalisation
from pipeline.data.order import SCHEME_VERSION
from pipeline.data.statistics import PixelSums, facts_of, save, statistics_places
from pipeline.data.stream import TrainStream, train_planner
from pipeline.prepare.files import Progress, writing
from pipeline.prepare.options import MeanOptions
from pipeline.system.console import say

_SEED = 0
_BATCH = 64
# Pixels as they are: whole numbers, which float32 holds exactly.
_NOTHING = Normalisation(np.zeros(3, np.float32), np.ones(3, np.float32), None, np.zeros((3, 3)))


def run(options: MeanOptions) -> None:
    """Computes and stores the statistics, and prints them."""
    config = options.data
    cache = Path(config.cache_dir) if config.cache_dir else None
    manifest = open_manifest(options.root, "train", cache)
    images = len(manifest) if options.images is None else options.images
    require(
        images <= len(manifest),
        f"--images={images} is more than the {len(manifest)} training images; leave it out for all",
    )
    started = time.monotonic()
    found = compute(config, manifest, images, options.threads)
    facts = facts_of(config, manifest.digest) | {"seed": _SEED, "random_scheme": SCHEME_VERSION}
    place = _store(statistics_places(config), found, images, facts)
    seconds = max(time.monotonic() - started, 1e-3)
    say(f"{images:,} images in {seconds:.1f} s, {images / seconds:,.0f} images/s")
    say(f"mean {_row(found.mean)}, deviation {_row(found.std)} of R, G and B in 0..255")
    axes = "; ".join(_row(axis) for axis in found.color_axes)
    say(f"eigenvector x eigenvalue, by row: {axes}")
    say(f"written: {place}")


def compute(config: DataConfig, manifest: Manifest, images: int, threads: int) -> Normalisation:
    """The statistics of the first `images` of the training crops of epoch 0.

    Raises `BadImage` for a file that cannot be decoded.
    """
    plain = dataclasses.replace(config, flip=False, color_std=None)
    stream = TrainStream(manifest, train_planner(plain), _SEED)
    if config.exclude is not None:
        without = read_list(Path(config.exclude), "train", manifest)
        stream.exclusions = Exclusions().listed(without, 0)
    settings = DecodeSettings(
        "cpu", torch.device("cpu"), threads, output="uint8", normalisation=_NOTHING
    )
    batch = min(_BATCH, images)
    positions = np.arange(images, dtype=np.int64)
    chunks = [positions[start : start + batch] for start in range(0, images, batch)]
    sums, size = PixelSums(), int(manifest.lengths.mean())
    with (  # the bar after the loader, which takes over what C code writes to stderr
        contextlib.closing(Loader(stream, chunks, len(chunks), batch, settings)) as loader,
        Progress(f"reading {manifest.directory}", images, images * size) as progress,
    ):
        for drawn in loader:
            sums.add(drawn.images.permute(0, 2, 3, 1).numpy())
            progress.add(len(drawn.positions), len(drawn.positions) * size)
    return sums.normalisation()


def _store(places: list[Path], found: Normalisation, images: int, facts: dict[str, object]) -> Path:
    """Writes the file to the first place that can be written; returns that."""
    *others, last = places
    for place in others:
        with contextlib.suppress(OSError):
            save(place, found, images, facts)
            return place
    with writing(last):
        save(last, found, images, facts)
    return last


def _row(values: np.ndarray) -> str:
    return " ".join(f"{value:.2f}" for value in values)
