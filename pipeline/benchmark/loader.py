"""`benchmark loader`: JPEG files to training batches, against a PyTorch DataLoader with Pillow and
against bare decoding with simplejpeg. Also decoding on the GPU against decoding on the CPU.

The images are in the page cache: what is measured is reading them there, decoding and augmenting.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import DataLoader

from pipeline.benchmark.loader_references import (
    MISSING,
    BareDecode,
    PhotoDataset,
    can_run,
    use_one_thread,
)
from pipeline.benchmark.options import CONTAINERS, Container, Crop, LoaderOptions
from pipeline.benchmark.passes import LoaderPasses, middle_speed
from pipeline.benchmark.photos import make_photos, pack
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.config import Config, ConfigError, DataConfig
from pipeline.data.dali import DecodeSettings, gpu_count
from pipeline.data.dali.settings import choose_decoding, decoder_memory
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.stream import TrainStream, train_planner
from pipeline.ranks.places import Share
from pipeline.system.machine import available_cores

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
            sides[row] = _reference(manifests["folders"], options, row)
        if can_run():
            bare = BareDecode(manifests["folders"], threads, options.images)
            sides[Row(None, None, threads, "simplejpeg")] = bare.measure
        else:
            result.figures["not_run"] = {"simplejpeg": MISSING}
    for row in rows(options):
        sides[row] = _ours_of_row(options, manifests, row)
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


class _Middle:
    """What is timed of a pass: whole turns of the workers, which deliver in bursts, between two
    edges in which every queue is full."""

    def __init__(self, options: LoaderOptions, workers: int) -> None:
        self.edge = workers * _PREFETCH + 2
        self.timed = -(-options.images // (options.batch * workers)) * workers
        self.batches = self.timed + 2 * self.edge


def _ours(
    options: LoaderOptions, stream: TrainStream, settings: DecodeSettings, workers: int
) -> Callable[[], float]:
    """What measures a round of this project's `Loader`, as a training makes it."""
    middle, passes = _Middle(options, workers), LoaderPasses(stream, settings, options.batch)
    return lambda: passes.images_per_sec(middle.edge, middle.timed)


def _ours_of_row(
    options: LoaderOptions, manifests: dict[Container, Manifest], row: Row
) -> Callable[[], float]:
    assert row.container is not None and row.crop is not None, "a row of ours has both"
    config = DataConfig(
        image_size=options.size,
        val_resize=options.size,
        train_crop=row.crop,
        short_side=_short_side(options.size),
        decode=options.decode,
        threads=row.threads,
        prefetch_batches=_PREFETCH,
    )
    manifest = manifests[row.container]
    stream = TrainStream(manifest, train_planner(config), seed=0)
    return _ours(options, stream, _decoding(config, manifest), row.threads)


def _reference(manifest: Manifest, options: LoaderOptions, row: Row) -> Callable[[], float]:
    """What measures a round of the usual loader: workers that live on, each with one thread, and
    Pillow's transforms."""
    assert row.crop is not None, "a DataLoader has a crop"
    middle = _Middle(options, row.threads)
    dataset = PhotoDataset(
        manifest, options.size, middle.batches * options.batch, row.crop,
        _short_side(options.size),
    )  # fmt: skip
    loader = DataLoader(
        dataset,
        options.batch,
        num_workers=row.threads,
        prefetch_factor=_PREFETCH,
        persistent_workers=True,
        worker_init_fn=use_one_thread,
    )
    cpu = torch.device("cpu")
    return lambda: middle_speed(loader, middle.edge, middle.timed, options.batch, cpu)


def measure_decoders(options: LoaderOptions, device: torch.device) -> Result:
    """Images per second that arrive on `device` with each decoder that can run, and their ratio.

    JPEGs of ImageNet's usual size in the page cache; `options.threads` and `data` are not used:
    the loader has the threads of all cores that this process may use.
    """
    threads = available_cores()
    decoders: list[Literal["cpu", "gpu"]] = ["cpu"]
    if device.type == "cuda" and gpu_count():
        decoders.append("gpu")
    result = Result("gpu_loader", {**vars(options), "device": str(device), "threads": threads})
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), options.files)
        config = DataConfig(image_size=options.size, val_resize=options.size)
        manifest = open_manifest(Path(folder), "train")
        memory = decoder_memory(config, (manifest,))
        stream = TrainStream(manifest, train_planner(config), seed=0)
        sides = {}
        for decoder in decoders:
            settings = DecodeSettings(decoder, device, threads, _PREFETCH, memory=memory)
            side = _ours(options, stream, settings, workers=2)
            sides[f"{decoder}_decoder_images_per_sec"] = side
        for measure in sides.values():  # what is done once: files, kernels, the decoder's memory
            measure()
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
