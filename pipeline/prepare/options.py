"""The options of each subcommand. Imports nothing heavy: `--help` answers at once.

A field `train_tar` is the option `--train-tar`; one without a default must be given.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import DataConfig, require
from pipeline.config.reading import config_of, read_yaml
from pipeline.config.setting import at_least_one

TrainCrop = Literal["random_resized_crop", "scale_jitter"]


@dataclass(frozen=True)
class _OfDataSet:
    """Options of subcommands that work on a data set."""

    root: Path
    """Folder of the data set: train/ and val/ with class folders, *.tar, TFRecord or *.rec."""
    cache_dir: Path | None = None
    """Folder of the image indexes, as data.cache_dir in training; null: where that looks first."""

    def __post_init__(self) -> None:
        _is_folder("root", self.root)


@dataclass(frozen=True)
class _InThreads(_OfDataSet):
    """Options of subcommands that read its images in threads."""

    workers: int = 0
    """Threads that read and decode; 0: one for each core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 0, f"--workers={self.workers} must be 0 or more")

    @property
    def threads(self) -> int:
        """The number of threads."""
        return self.workers or len(os.sched_getaffinity(0))


def _is_folder(option: str, path: Path) -> None:
    require(path.is_dir(), f"--{option} {path} is not a folder; give a data set's")


def _are_apart(from_: Path, to: Path) -> None:
    source, target = from_.resolve(), to.resolve()
    require(
        source != target and source not in target.parents and target not in source.parents,
        f"--to {to} and --from {from_} lie in each other; give a folder apart",
    )


@dataclass(frozen=True)
class DemoOptions:
    """Draws the demo data set: ten classes of shapes on clutter."""

    out: Path = Path("data/demo")
    """Folder of the data set."""
    seed: int = 0
    """Seed of every image."""
    train: int = 3000
    """Training images."""
    val: int = 1000
    """Validation images."""


@dataclass(frozen=True)
class MiniOptions:
    """Draws the data of configs/mini/: ten shapes, in CIFAR-10's format and size."""

    out: Path = Path("data/mini")
    """Folder of the data set."""
    seed: int = 0
    """Seed of every image."""
    train: int = 10_000
    """Training images."""
    test: int = 2_000
    """Test images."""


@dataclass(frozen=True)
class ImagenetOptions:
    """Lays ImageNet-1k out from its original archives; resumes where a killed call ended."""

    train_tar: Path
    """ILSVRC2012_img_train.tar; read where it lies, never unpacked to temporary files."""
    val_tar: Path
    """ILSVRC2012_img_val.tar."""
    devkit: Path
    """ILSVRC2012_devkit_t12.tar.gz, which holds the labels of the validation images."""
    out: Path
    """Folder of the data set."""
    layout: Literal["folders", "shards"] = "folders"
    """folders: <out>/<split>/<wnid>/<file>. shards: <out>/<split>/shard-000000.tar with members
    <wnid>/<file>. Images are never re-encoded."""
    shard_mb: int = 256
    """Size of a shard, about, in MB (10^6 bytes)."""
    workers: int = 8
    """Threads that read and write."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "shard-mb", "workers")
        for option in ("train-tar", "val-tar", "devkit"):
            path = getattr(self, option.replace("-", "_"))
            require(path.is_file(), f"--{option} {path} is not a file; give the archive's path")


@dataclass(frozen=True)
class IndexOptions(_OfDataSet):
    """Indexes a data set ahead of time, so that a job's start only opens the index."""

    again: bool = False
    """Also rebuild what seems up to date, as after replacing an image in place, which does not
    change its folder's time. A changed image is other data to runs that began before."""


@dataclass(frozen=True)
class SplitOptions:
    """Makes train and val out of one folder of class folders, each class in proportion."""

    from_: Path
    """Folder that holds a folder of images for each class."""
    to: Path
    """Folder of the data set; absent or empty."""
    val: float
    """Share of each class that becomes val, such as 0.2: rounded to the nearest image, at least one
    in val and one in train. Copies of one picture are all on one side, also those of another size
    or compression as far as a small copy of each tells."""
    seed: int = 0
    """Which images become val; the same images and seed give the same split."""
    files: Literal["links", "symlinks", "copies"] = "links"
    """links: hard links, which take no room and outlive the folder they come from; symlinks: to
    where the images are; copies."""
    workers: int = 8
    """Threads that read the images."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "workers")
        _is_folder("from", self.from_)
        require(0 < self.val < 1, f"--val={self.val} must lie in (0, 1), such as 0.2 for a fifth")
        require(self.seed >= 0, f"--seed={self.seed} must be 0 or more")
        _are_apart(self.from_, self.to)


@dataclass(frozen=True)
class StageOptions:
    """Copies a data set to a node's own disk; the copy counts as the same data."""

    from_: Path
    """Folder of the data set, which holds train or val or both."""
    to: Path
    """Folder of the copy; absent, empty, or begun by an earlier call."""
    workers: int = 16
    """Threads that copy; on a network file system they wait more than they compute."""
    cache_dir: Path | None = None
    """Folder of the source's image indexes, as given to index; null: where index puts them."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "workers")
        _is_folder("from", self.from_)
        _are_apart(self.from_, self.to)


@dataclass(frozen=True)
class VerifyOptions(_InThreads):
    """Finds every image that would fail in training. Exit code 2 when there is one, else 0."""

    root: Path
    """Folder of the data set, which holds train or val or both."""
    full: bool = False
    """Also decode every image as training does, and list as suspects those that decode with a
    warning; without it: end markers, headers and sizes only."""
    report: Path = Path("verify.jsonl")
    """Where the findings go, one JSON object per line; next to it <name>.exclude.json, the image
    numbers that training can leave out."""
    repair: Path | None = None
    """Folder for repaired copies of files that miss only the end marker; null: none are made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        folder = self.report.parent
        require(folder.is_dir(), f"--report {self.report}: the folder {folder} does not exist")
        if self.repair is not None:
            root, repair = self.root.resolve(), self.repair.resolve()
            require(
                root != repair and root not in repair.parents,
                f"--repair {self.repair} lies in --root {self.root}, whose files are never "
                "changed; give a folder elsewhere",
            )


@dataclass(frozen=True)
class ParityOptions(_OfDataSet):
    """Compares DALI's pixels with Pillow's. Exit code 2 when one is above tolerance, else 0."""

    root: Path
    """Folder of the data set, which holds train or val or both."""
    images: int = 64
    """Images of each comparison, rounded up to whole batches of 16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "--", "images")


@dataclass(frozen=True)
class MeanOptions(_InThreads):
    """Computes what data.mean=channel or pixel subtracts: the means of the training crops."""

    root: Path
    """Folder of the data set, which holds train."""
    config: Path | None = None
    """YAML file of the training, whose crop it is; null: that of the options below."""
    train_crop: TrainCrop | None = None
    """data.train_crop of the training; null: that of --config, or the default."""
    image_size: int | None = None
    """data.image_size of the training, of data.image_sizes the largest; null: that of --config, or
    the default."""
    area: tuple[float, float] | None = None
    """data.area of the training; null: that of --config, or the default."""
    short_side: tuple[int, int] | None = None
    """data.short_side of the training; null: that of --config, or the default."""
    images: int | None = None
    """Use this many images only, drawn at random; null: all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None:
            at_least_one(self, "--", "images")
        require(
            self.data.dataset != "cifar-10",
            f"--config {self.config} is for cifar-10, whose means a training computes itself in a "
            "second; nothing has to be prepared",
        )

    @property
    def data(self) -> DataConfig:
        """The data settings of the training that the means are for."""
        tree = {} if self.config is None else read_yaml(self.config)
        config = config_of(tree).data
        given = {
            name: getattr(self, name)
            for name in ("train_crop", "image_size", "area", "short_side")
            if getattr(self, name) is not None
        }
        cache_dir = config.cache_dir if self.cache_dir is None else str(self.cache_dir)
        if "image_size" in given:  # validation does not matter here, nor may its check
            given["val_resize"] = max(config.val_resize, given["image_size"])
            given["image_sizes"] = None
        return dataclasses.replace(config, root=str(self.root), cache_dir=cache_dir, **given)


OPTIONS = {
    "demo": DemoOptions,
    "mini": MiniOptions,
    "imagenet": ImagenetOptions,
    "split": SplitOptions,
    "index": IndexOptions,
    "stage": StageOptions,
    "verify": VerifyOptions,
    "parity": ParityOptions,
    "mean": MeanOptions,
}
