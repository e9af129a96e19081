"""Opens the images of train and val that a configuration names, on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.config import Config
from pipeline.data.cifar import open_cifar
from pipeline.data.images import ImageSet
from pipeline.data.index.manifest import open_manifest
from pipeline.ranks.world import World

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
