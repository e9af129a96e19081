"""`benchmark loader`: JPEG files to training batches, against the usual PyTorch DataLoader with
Pillow and against bare full decoding by simplejpeg, which binds libjpeg-turbo. Also decoding on the
GPU against decoding on the CPU.

The images are in the page cache: this measures reading them from there, decoding, augmenting.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.benchmark import device as devices
from pipeline.benchmark.options import (
    CONTAINERS,
    CROPS,
    Container,
    Crop,
    LoaderOptions,
    chosen,
    numbers,
)
from pipeline.benchmark.passes import LoaderPasses, middle_speed
from pipeline.benchmark.photos import make_photos, pack
from pipeline.benchmark.result import Result, Save, Spread, interleave, ratio
from pipeline.benchmark.transforms import (
    normalised,
    random_resized_crop,
    randomly_flipped,
    use_one_thread,
)
from pipeline.config import ConfigError, DataConfig
from pipeline.data.dali import gpu_count
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.stream import TrainStream, train_planner
from pipeline.ranks.places import Share
from pipeline.system.machine import available_cores

MISSING = "simplejpeg is not installed; pip install simplejpeg"
_CPU = torch.device("cpu")
_PREFETCH = 2  # batches ahead: DataLoader's default for each worker, and data.prefetch_batches
_SHORT_SIDE, _USUAL_SIZE = (256, 480), 224  # the paper's jitter, for its crop
_RATIOS: dict[Crop, str] = {
    "random_resized_crop": "loader_vs_dataloader",
    "scale_jitter": "loader_vs_dataloader_jitter",
}

Rate = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """A row of the table: this project's loader on one container, or a reference."""

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
    """Images per second of every row in steady state, and the ratios for class folders.

    Ratios: `loader_vs_dataloader`, `loader_vs_dataloader_jitter` and `loader_vs_decode` (random-
    resized crop over bare decoding), at the most threads; those at fewer end in `_<threads>t`.
    Raises `ValueError` for a GPU decoder without a GPU.
    """
    if options.decode == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "--decode=gpu needs an NVIDIA GPU and PyTorch sees none; use --decode=cpu"
        )
    with tempfile.TemporaryDirectory() as folder:
        manifests = _open_all(options, Path(folder))
        files = manifests["folders"]
        result = Result("loader", vars(options))
        result.figures = {
            "files": len(files),
            "mean_file_kb": float(files.lengths.mean() / 1000),
            "mean_width": float(files.widths.mean()),
            "mean_height": float(files.heights.mean()),
        }
        if not can_run():
            result.figures["not_run"] = {"simplejpeg": MISSING}
        sides = _sides(options, manifests)
        result.spreads = interleave(options.rounds, {row.name: side for row, side in sides.items()})
    spreads = {row: result.spreads[row.name] for row in sides}
    counts = numbers(options.threads)
    for count in counts:
        suffix = "" if count == counts[-1] else f"_{count}t"
        for name, found in _ratios(spreads, count).items():
            result.ratios[name + suffix] = found
    result.table = _table(spreads)
    return result


def rows(options: LoaderOptions) -> list[Row]:
    """The rows of this project's loader."""
    containers, crops = chosen(options.containers, CONTAINERS), chosen(options.crops, CROPS)
    return [
        Row(container, crop, threads)
        for threads in numbers(options.threads)
        for container in containers
        for crop in crops
        if options.table == "full" or container == containers[0] or crop == crops[0]
    ]


def _open_all(options: LoaderOptions, folder: Path) -> dict[Container, Manifest]:
    """The same images in every container, always including class folders, which Pillow reads."""
    root = folder / "made"
    if options.data is not None:
        root = Path(options.data)
    else:
        make_photos(root, options.files)
    cache = folder / "cache"  # nothing is written to somebody's data
    everything = open_manifest(root, "train", cache)
    count = min(options.files, len(everything))
    images = [len(everything) * place // count for place in range(count)]
    found: dict[Container, Manifest] = {}
    for container in dict.fromkeys(["folders", *chosen(options.containers, CONTAINERS)]):
        pack(everything, images, container, folder / container)
        found[container] = open_manifest(folder / container, "train", cache)
    return found


def _sides(options: LoaderOptions, manifests: Mapping[Container, Manifest]) -> dict[Row, Rate]:
    """Functions that measure a round of each row; those with workers come first, as they fork."""
    sides: dict[Row, Rate] = {}
    for threads in numbers(options.threads):
        for crop in chosen(options.crops, CROPS):
            row = Row(None, crop, threads, "dataloader")
            sides[row] = _reference(manifests["folders"], options, crop, threads)
        if can_run():
            bare = BareDecode(manifests["folders"], threads, options.images)
            sides[Row(None, None, threads, "simplejpeg")] = bare.measure
    device = devices.pick_device("cuda" if options.decode == "gpu" else "cpu")
    for row in rows(options):
        assert row.container is not None and row.crop is not None, "a row of ours has both"
        config = _config(options, row.threads, row.crop, options.decode)
        sides[row] = _ours(options, manifests[row.container], config, device, row.threads)
    return sides


def _config(
    options: LoaderOptions, threads: int, crop: Crop, decode: Literal["cpu", "gpu"]
) -> DataConfig:
    return DataConfig(
        image_size=options.size,
        val_resize=options.size,
        train_crop=crop,
        short_side=_short_side(options.size),
        decode=decode,
        threads=threads,
        prefetch_batches=_PREFETCH,
    )


def _ratios(spreads: dict[Row, Spread], threads: int) -> dict[str, Spread]:
    pairs = {
        name: (Row("folders", crop, threads), Row(None, crop, threads, "dataloader"))
        for crop, name in _RATIOS.items()
    }
    bare = Row(None, None, threads, "simplejpeg")
    pairs["loader_vs_decode"] = (Row("folders", "random_resized_crop", threads), bare)
    return {
        name: ratio(spreads[ours], spreads[reference])
        for name, (ours, reference) in pairs.items()
        if ours in spreads and reference in spreads
    }


def _table(spreads: dict[Row, Spread]) -> list[tuple[str, ...]]:
    """A row for each side: speed, quartiles, and its share of both references at equal threads."""
    table: list[tuple[str, ...]] = [
        ("", "container", "crop", "threads", "img/s", "quartiles", "of DataLoader", "of decoding")
    ]
    for row, spread in spreads.items():
        held_against = (
            spreads.get(Row(None, row.crop, row.threads, "dataloader")),
            spreads.get(Row(None, None, row.threads, "simplejpeg")),
        )
        shares = [f"{ratio(spread, one).median:.2f}" if one else "-" for one in held_against]
        names = (row.what, row.container or "-", row.crop or "-", str(row.threads))
        table.append((*names, *spread.cells(), *shares))
    return table


class _Middle:
    """The timed part of a pass: whole turns of the workers, which deliver in bursts, between two
    edges at which every queue is full."""

    def __init__(self, options: LoaderOptions, workers: int) -> None:
        self.edge = workers * _PREFETCH + 2
        self.timed = -(-options.images // (options.batch * workers)) * workers
        self.batches = self.timed + 2 * self.edge


def _ours(
    options: LoaderOptions, manifest: Manifest, data: DataConfig, device: torch.device, workers: int
) -> Rate:
    """A function that measures a round of this project's `Loader` as training opens it; its queues
    fill and empty like those of so many `workers`."""
    share = Share(data.threads or 1, 0)
    settings = choose_decoding(data, device, share, (manifest,))
    stream = TrainStream(manifest, train_planner(data), seed=0)
    middle, passes = _Middle(options, workers), LoaderPasses(stream, settings, options.batch)
    return lambda: passes.images_per_sec(middle.edge, middle.timed)


def _reference(manifest: Manifest, options: LoaderOptions, crop: Crop, workers: int) -> Rate:
    """A function that measures a round of the usual loader: persistent workers, each with one
    thread, and Pillow's transforms."""
    middle, short_side = _Middle(options, workers), _short_side(options.size)
    length = middle.batches * options.batch
    loader = DataLoader(
        PhotoDataset(manifest, options.size, length, crop, short_side),
        options.batch,
        num_workers=workers,
        prefetch_factor=_PREFETCH,
        persistent_workers=True,
        worker_init_fn=use_one_thread,
    )
    return lambda: middle_speed(loader, middle.edge, middle.timed, options.batch, _CPU)


def measure_decoders(options: LoaderOptions, _save: Save = lambda result: None) -> Result:
    """Images per second with each decoder that can run, on the GPU if there is one, and their
    ratio.

    JPEGs of ImageNet's usual size in the page cache; `options.threads` and `data` are not used:
    the loader has the threads of all cores that this process may use.
    """
    device, threads = devices.pick_device("auto"), available_cores()
    decoders: list[Literal["cpu", "gpu"]] = ["cpu"]
    if device.type == "cuda" and gpu_count():
        decoders.append("gpu")
    result = Result("gpu_loader", {**vars(options), "device": str(device), "threads": threads})
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), options.files)
        manifest = open_manifest(Path(folder), "train")
        sides = {}
        for decoder in decoders:
            config = _config(options, threads, "random_resized_crop", decoder)
            side = _ours(options, manifest, config, device, workers=2)
            sides[f"{decoder}_decoder_images_per_sec"] = side
        result.spreads = interleave(options.rounds, sides)
    if len(decoders) == 2:
        on_cpu, on_gpu = result.spreads.values()
        result.ratios["gpu_decoder_vs_cpu_decoder"] = ratio(on_gpu, on_cpu)
    else:
        result.figures["not_run"] = {"gpu_decoder": "DALI sees no GPU"}
    return result


def _short_side(size: int) -> tuple[int, int]:
    """The paper's [256, 480] in proportion to the crop."""
    least, most = (side * size // _USUAL_SIZE for side in _SHORT_SIDE)
    return least, most


class PhotoDataset(Dataset[tuple[Tensor, int]]):
    """`length` images, over and over those of a manifest in a scattered order, cut at random.

    The manifest is of class folders. `short_side` is what scale_jitter draws from, both included.
    """

    def __init__(
        self, manifest: Manifest, size: int, length: int, crop: Crop, short_side: tuple[int, int]
    ) -> None:
        order = np.random.default_rng(0).permutation(len(manifest))
        self._files = [(str(manifest.path(int(i))), int(manifest.labels[i])) for i in order]
        self._size, self._length, self._short_side = size, length, short_side
        jitter = crop == "scale_jitter"
        self._cut = self._scale_jitter if jitter else self._random_resized_crop

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (3, size, size) float32, normalised; label."""
        path, label = self._files[index % len(self._files)]
        with open(path, "rb") as file:
            image = self._cut(Image.open(file).convert("RGB"))
        return normalised(randomly_flipped(image)), label

    def _random_resized_crop(self, image: Image.Image) -> Image.Image:
        return random_resized_crop(image, self._size)

    def _scale_jitter(self, image: Image.Image) -> Image.Image:
        """The paper's crop as usually implemented: the whole image is resized, then cropped."""
        width, height = image.size
        side, shorter = random.randint(*self._short_side), min(image.size)
        resized = image.resize(
            (side * width // shorter, side * height // shorter), Image.Resampling.BILINEAR
        )
        left = random.randint(0, resized.width - self._size)
        top = random.randint(0, resized.height - self._size)
        return resized.crop((left, top, left + self._size, top + self._size))


def can_run() -> bool:
    """Whether simplejpeg is installed. Nothing else replaces it."""
    return importlib.util.find_spec("simplejpeg") is not None


class BareDecode:
    """Decodes whole images from memory to RGB, one after the other on each of some threads.

    Files that simplejpeg refuses, such as ImageNet's few CMYK files and its PNG, are left out.
    """

    def __init__(self, manifest: Manifest, threads: int, images: int) -> None:
        """Reads all images of `manifest`. Raises `ValueError` if it can decode none of them."""
        # By name: mypy must pass with and without the package.
        self._decode: Any = importlib.import_module("simplejpeg").decode_jpeg
        contents = (manifest.read(image).tobytes() for image in range(len(manifest)))
        self._contents = [content for content in contents if self._decodes(content)]
        if not self._contents:
            raise ValueError(f"simplejpeg decodes none of the images of {manifest.directory}")
        self._threads = threads
        self._each = -(-images // threads)

    def measure(self) -> float:
        """Images per second of all threads together; decoding is done without the GIL."""
        count = self._threads * self._each
        with ThreadPoolExecutor(self._threads) as pool:
            begins = range(0, count, self._each)
            return count / devices.seconds(_CPU, lambda: list(pool.map(self._decode_from, begins)))

    def _decode_from(self, begin: int) -> None:
        for number in range(begin, begin + self._each):
            self._decode(self._contents[number % len(self._contents)], colorspace="RGB")

    def _decodes(self, content: bytes) -> bool:
        try:
            self._decode(content, colorspace="RGB")
        except ValueError:
            return False
        return True
