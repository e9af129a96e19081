"""Tests a checkpoint: `python -m pipeline.evaluate --checkpoint runs/demo/checkpoints/best.pt`.

Every image counts once, on any number of ranks. With the default protocol the result is that of the
training's validation.
"""

from __future__ import annotations

import sys
from typing import Any

from pipeline.config import require
from pipeline.config.reading import can_hold, command_parser, parse_overrides
from pipeline.config.setting import PathText
from pipeline.config.training import Weights
from pipeline.evaluate.protocol import PAPER_SCALES, BnImages, Name, Request, choose_protocol
from pipeline.system.failure import run_command
from pipeline.train.checkpoint_path import checkpoint_at

DESCRIPTION = (
    "Tests a checkpoint, or several as an ensemble, on one process or under horovodrun. Settings "
    "come from the checkpoint; those listed here can be changed."
)


def main(argv: list[str]) -> None:
    """Parses and checks, then loads what is heavy and runs."""
    options = parse_options(argv)
    request = Request(
        tuple(options.checkpoint),
        choose_protocol(options.protocol, options.scales, options.mirror),
        options.weights,
        options.bn_images,
        options.test_images,
        options.json,
        options.per_class,
        options.confusion,
        options,
    )
    from pipeline.evaluate.run import evaluate

    evaluate(request)


def parse_options(argv: list[str]) -> Any:
    """The parsed command line; paths are checked. Raises `ConfigError`."""
    parser = command_parser("pipeline.evaluate", DESCRIPTION)
    parser.add_argument(
        "--checkpoint", type=PathText, nargs="+", metavar="FILE", help="file of a training run "
        "(.pt), or the run's folder, for its best; several: an ensemble, whose scores are averaged",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Weights, help="which weights of a checkpoint: raw, as trained, or ema, "
        "their moving average (default: the average where a checkpoint has one)",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", type=Name, default="1-crop", metavar="NAME", help="1-crop: the centre, as in "
        "validation; 10-crop: centre and corners, each also mirrored; multi-scale: whole images at "
        "several scales, the network applied fully convolutionally. Softmax probabilities are "
        "averaged",
    )  # fmt: skip
    parser.add_argument(
        "--scales", type=int, nargs="+", help="multi-scale: shorter sides in pixels; "
        f"default {' '.join(map(str, PAPER_SCALES))}",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", action="store_true", help="multi-scale: add the mirrored image at each scale"
    )
    parser.add_argument(
        "--bn-images", type=BnImages, metavar="N", help="recompute BN statistics as true averages "
        "over this many training crops, or over all of an epoch; needs the training data",
    )  # fmt: skip
    parser.add_argument(
        "--test-images", action="store_true", help="cifar-10 with data.held_out: the archive's "
        "test images in place of the held-out training images",
    )  # fmt: skip
    for name, what in (
        ("--json", "also write the result to this file"),
        ("--per-class", "write accuracy by class to this CSV file"),
        ("--confusion", "write the confusion matrix to this CSV file"),
    ):
        parser.add_argument(name, type=PathText, metavar="FILE", help=what)
    options = parse_overrides(parser, argv, "evaluate")
    images = options.bn_images
    # A variance needs two values, and the last feature map may have one for each image.
    require(
        images in (None, "all") or images >= 2,
        f"--bn-images {images} must be a number of training images, at least 2, or all for one "
        "epoch",
    )
    given = options.checkpoint or [None]
    options.checkpoint = [checkpoint_at("--checkpoint", one) for one in given]
    for option in ("json", "per_class", "confusion"):
        can_hold(f"--{option.replace('_', '-')}", options[option])
    return options


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
