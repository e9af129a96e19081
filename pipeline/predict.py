"""Classifies images: `python -m pipeline.predict --checkpoint runs/demo/checkpoints/best.pt
cat.jpg dog.jpg`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, names_for, require
from pipeline.config.reading import can_hold, command_parser, parse_overrides
from pipeline.config.setting import PathText
from pipeline.config.training import Weights
from pipeline.system.console import say
from pipeline.system.failure import run_command
from pipeline.system.files import write_text
from pipeline.train.checkpoint_path import checkpoint_at

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.dali import DecodeSettings, Loader
    from pipeline.data.images import GivenImages
    from pipeline.train.checkpoint import Trained

DESCRIPTION = (
    "Prints the most probable classes of images, seen as in validation: the centre. Settings come "
    "from the checkpoint; those listed here can be changed."
)
_TOP = 5


def main(argv: list[str]) -> None:
    """Parses and checks, then loads what is heavy and runs."""
    parser = command_parser("pipeline.predict", DESCRIPTION)
    parser.add_argument("images", nargs="*", type=PathText, metavar="IMAGE", help="image files")
    for name, what in (
        ("--checkpoint", "file of a training run (.pt), or the run's folder, for its best"),
        ("--json", "also write the result to this file"),
    ):
        parser.add_argument(name, type=PathText, metavar="FILE", help=what)
    parser.add_argument(
        "--weights", type=Weights, help="which weights of the checkpoint: raw, as trained, or ema, "
        "their moving average (default: the average where it has one)",
    )  # fmt: skip
    options = parse_overrides(parser, argv, "predict")
    checkpoint = checkpoint_at("--checkpoint", options.checkpoint)
    require(len(options.images) > 0, "no image is given; name one or more files after the options")
    for image in options.images:
        kind = "is a folder" if Path(image).is_dir() else "does not exist"
        require(Path(image).is_file(), f"the image {image} {kind}; give the path of an image file")
    can_hold("--json", options.json)
    trained = _read(checkpoint, options.weights)
    found = predict(trained, [Path(image) for image in options.images], options)
    try:
        if options.json is not None:
            result = {
                "checkpoint": str(checkpoint),
                "weights_kind": trained.kind,
                "predictions": found,
            }
            write_text(Path(options.json), json.dumps(result) + "\n")
    finally:  # a disk that is full must not cost the words as well
        if trained.kind is not None:
            say(f"{trained.path}{trained.said_kind}")
        for one in found:
            say(one["image"])
            say(*(f"  {guess['probability']:7.2%}  {guess['name']}" for guess in one["top"]))


def _read(path: Path, kind: Weights | None) -> Trained:
    from pipeline.train import checkpoint

    return checkpoint.read(path, kind)


def predict(trained: Trained, paths: Sequence[Path], options: Any) -> list[dict[str, Any]]:
    """The most probable classes of each image by a checkpoint's network, at most 5, by falling
    probability.

    `options` is the parsed command line. Raises `ValueError` for an image that cannot be used.
    """
    from pipeline.data.classes import class_words
    from pipeline.data.dali.settings import choose_decoding
    from pipeline.data.images import GivenImages
    from pipeline.ranks.places import own_share, take_share
    from pipeline.ranks.world import World

    config = for_files(trained.configured(options, names_for("predict")))
    images = GivenImages(paths)
    share = own_share(World())
    device = take_share(config, share)
    decode = choose_decoding(config.data, device, share, (images,), trained.normalisation)
    model = trained.build(device, config)
    with contextlib.closing(_open(config, images, decode)) as loader:
        probabilities = _probabilities(model, loader, config, len(images))
    words = class_words(Path(config.data.root))
    return [
        {"image": str(image), "top": _top(row, trained.classes, words)}
        for image, row in zip(paths, probabilities, strict=True)
    ]


def for_files(config: Config) -> Config:
    """Files are decoded, whatever the data set of the training was made of; those of CIFAR-10 are
    seen as they are."""
    data = config.data
    resize = data.image_size if data.dataset == "cifar-10" else data.val_resize
    files = dataclasses.replace(
        data, dataset=None, held_out=None, train_crop="random_resized_crop", val_resize=resize
    )
    return dataclasses.replace(config, data=files)


def _open(config: Config, images: GivenImages, decode: DecodeSettings) -> Loader:
    """Batches of one length; the last is filled up with its last image."""
    import numpy as np

    from pipeline.data.dali import Loader
    from pipeline.data.stream import ValStream, val_planner

    data = config.data
    batch = min(data.local_batch_size, len(images))
    count = -(-len(images) // batch)
    chunks = (np.arange(i * batch, (i + 1) * batch) for i in range(count))
    stream = ValStream(images, val_planner(data))
    return Loader(stream, chunks, count, batch, decode.for_shape((data.view_size,) * 2))


def _probabilities(model: Any, loader: Loader, config: Config, count: int) -> Tensor:
    """(count, classes) fp32 on the CPU, computed as in the training's validation."""
    import torch

    from pipeline.train.precision import Precision
    from pipeline.train.validation import logits_of

    rows = []
    with torch.no_grad():
        for batch in loader:
            precision = Precision(config.optim.amp, batch.images.device)
            rows.append(logits_of(model, precision, batch.images).softmax(1).cpu())  # host sync
    return torch.cat(rows)[:count]


def _top(row: Tensor, classes: Sequence[str], words: Mapping[str, str]) -> list[dict[str, Any]]:
    values, labels = row.topk(min(_TOP, len(classes)))
    return [
        {"label": label, "class": classes[label], "name": words.get(classes[label], classes[label]),
         "probability": value}
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
