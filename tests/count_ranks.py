"""Validates one small network over the ranks: `count_ranks.py DATA OUT`, for test_validation.py.

`OUT` holds [images, top-1 hits, top-5 hits, loss] for each local batch size.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.config import Config, DataConfig
from pipeline.data.crops import CenterCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.stream import ValStream
from pipeline.ranks import connect
from pipeline.ranks.world import World
from pipeline.system.failure import run_command
from pipeline.train.loaders import open_val_loader, val_passes
from pipeline.train.precision import Precision
from pipeline.train.validation import validate

CPU = torch.device("cpu")
BATCHES = (4, 7, 64)  # many chunks, a padded last one, fewer images than a batch
DECODE = DecodeSettings("cpu", CPU, threads=1)


def config_of(local_batch_size: int) -> Config:
    """The settings that a validation reads."""
    return Config(DataConfig(image_size=32, val_resize=36, local_batch_size=local_batch_size))


def small_model(val_set: Manifest) -> nn.Module:
    """A network with drawn weights, its BN statistics measured so that it tells images apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(len(val_set.classes)),
    )  # fmt: skip
    stream = ValStream(val_set, CenterCrop(32, 36))
    with torch.no_grad(), closing(Loader(stream, [np.arange(20)], 1, 20, DECODE)) as loader:
        for batch in loader:
            model(batch.images)
    return model.eval()


def count(world: World, data: Path) -> dict[int, list[float]]:
    """Collective. The result of a validation for each batch size."""
    torch.set_num_threads(1)
    val_set = open_manifest(data, "val")
    model = small_model(val_set)
    results = {}
    for batch_size in BATCHES:
        config = config_of(batch_size)
        passes = val_passes(config.data, DECODE)
        loader = open_val_loader(config, val_set, world, passes)
        with closing(loader):
            images, classes = len(val_set), len(val_set.classes)
            found = validate(model, loader, Precision("off", CPU), world, images, classes)
        results[batch_size] = [found.images, found.top1_correct, found.top5_correct, found.loss]
    return results


def main(argv: list[str]) -> None:
    """Counts; rank 0 writes."""
    world = connect()
    results = count(world, Path(argv[0]))
    if world.rank == 0:
        Path(argv[1]).write_text(json.dumps(results))
    world.barrier()


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
