"""Opens the images that a configuration names: train and val on all ranks, or a split alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.config import Config, DataConfig
from pipeline.data.cifar import open_cifar
from pipeline.data.images import ImageSet
from pipeline.data.index.arrow_file import cache_places
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.index.survey import Split
from pipeline.ranks.world import World
from pipeline.system.files import locked

T = TypeVar("T")


def open_data(config: Config, world: World) -> tuple[ImageSet, ImageSet]:
    """Collective. Opens the images of train and val, checked to be the same on every rank."""

    def open_both() -> tuple[ImageSet, ImageSet]:
        if config.data.dataset == "cifar-10":
            return open_cifar(Path(config.data.root), config.data.held_out)
        root, cache = Path(config.data.root), _cache(config)
        train_set = open_manifest(root, "train", cache, progress=_beats(world))
        return train_set, _open_val(config, train_set.classes, world)

    train_set, val_set = _in_turn(world, open_both)
    world.require_same({"data hash": train_set.digest[:16] + " " + val_set.digest[:16]})
    return train_set, val_set


def open_val_data(config: Config, world: World, classes: list[str]) -> ImageSet:
    """Collective. Opens the images of val alone, labelled by the `classes` of a training."""
    val_set = _in_turn(world, lambda: _open_val(config, classes, world))
    world.require_same({"data hash of val": val_set.digest[:16]})
    return val_set


def open_split(
    data: DataConfig, split: Split, classes: Sequence[str] | None = None
) -> tuple[ImageSet, ImageSet | None]:
    """Opens the images of one split by one process alone, and those of train where they are needed
    for it: for the labels of val, unless `classes` give them, and for what data.mean subtracts.

    Nothing is said to other ranks: those of a machine wait for each other at a lock beside the
    index, so that one of them scans.
    """
    root, cache = Path(data.root), Path(data.cache_dir) if data.cache_dir else None
    if data.dataset == "cifar-10":
        both = open_cifar(root, data.held_out, classes)
        return both[split == "val"], both[0]
    with _alone(root, split, cache):
        needs_train = classes is None or data.mean != "imagenet"
        train_set: Manifest | None = None
        if split == "train" or needs_train:
            train_set = open_manifest(root, "train", cache, classes)
        if split == "train" and train_set is not None:
            return train_set, train_set
        labels = classes if train_set is None else train_set.classes
        return open_manifest(root, "val", cache, labels), train_set


@contextlib.contextmanager
def _alone(root: Path, split: Split, cache: Path | None) -> Iterator[None]:
    """The body without other processes in it at the same time, where any place of the index can
    hold a lock."""
    with contextlib.ExitStack() as held:
        for place in cache_places(root, split, cache) if root.is_dir() else ():
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(place.parent / "index.lock"))
                break
        yield


def _cache(config: Config) -> Path | None:
    return Path(config.data.cache_dir) if config.data.cache_dir else None


def _beats(world: World) -> Callable[[], object]:
    """What tells the watchdog that the data are still being indexed."""
    return lambda: world.heartbeat.beat("index")


def _open_val(config: Config, classes: list[str], world: World) -> ImageSet:
    if config.data.dataset == "cifar-10":
        return open_cifar(Path(config.data.root), config.data.held_out, classes)[1]
    root, cache = Path(config.data.root), _cache(config)
    return open_manifest(root, "val", cache, classes, progress=_beats(world))


def _in_turn(world: World, work: Callable[[], T]) -> T:
    """Collective. Rank 0 opens the data first and the rest find its cache; one rank of each other
    node comes next, in case that node has its own copy of the data."""
    turn = 0 if world.rank == 0 else 1 if world.local_rank == 0 else 2
    done: list[T] = []
    for now in range(3):
        done += world.together(lambda: [work()] if turn == now else [])  # noqa: B023  (called at once)
    return done[0]
