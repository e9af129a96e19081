"""Tests a checkpoint: `python -m pipeline.evaluate --checkpoint runs/demo/checkpoints/best.pt`.

Every image counts once, on any number of ranks. With the default protocol the result is that of the
training's validation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, require
from pipeline.config.reading import can_hold, checkpoint_exists, command_parser, parse_overrides
from pipeline.evaluate.protocol import (
    PAPER_SCALES,
    ViewProtocol,
    choose_protocol,
    images_for_statistics,
)
from pipeline.system.failure import run_command

if TYPE_CHECKING:
    import torch

    from pipeline.data.images import ImageSet
    from pipeline.evaluate.members import Member, Network
    from pipeline.evaluate.result import Tally
    from pipeline.ranks.places import Share
    from pipeline.ranks.world import World
    from pipeline.train.loaders import ValidationLoader
    from pipeline.train.metrics import Validation


DESCRIPTION = (
    "Tests a checkpoint, or several as an ensemble, on one process or under horovodrun. Settings "
    "come from the checkpoint; those listed here can be changed."
)


@dataclass(frozen=True)
class Request:
    """What is to be tested and how, as the command line says it."""

    checkpoints: tuple[Path, ...]
    protocol: ViewProtocol
    bn_images: int | str | None
    test_images: bool
    settings: Any
    """The parser's namespace, with the settings that were given."""


def main(argv: list[str]) -> None:
    """Parses and checks, then loads what is heavy and runs."""
    options = parse_options(argv)
    request = Request(
        tuple(Path(path) for path in options.checkpoint),
        choose_protocol(options.protocol, options.scales, options.mirror),
        images_for_statistics(options.bn_images),
        options.test_images,
        options,
    )
    finished = evaluate(request)
    if finished is not None:
        result, tally, val_set = finished
        write_results(options, result, tally, val_set)


def parse_options(argv: list[str]) -> Any:
    """The parsed command line; paths are checked. Raises `ConfigError`."""
    parser = command_parser("pipeline.evaluate", DESCRIPTION)
    parser.add_argument(
        "--checkpoint", type=str, nargs="+", metavar="FILE", help="file of a training run (.pt); "
        "several: an ensemble, whose scores are averaged",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", type=str, default="1-crop", metavar="NAME", help="1-crop: the centre, as in "
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
        "--bn-images", type=str, metavar="N", help="recompute BN statistics as true averages over "
        "this many training crops, or over all of an epoch; needs the training data",
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
        parser.add_argument(name, type=str, metavar="FILE", help=what)
    options = parse_overrides(parser, argv, "evaluate")
    require(
        options.checkpoint is not None,
        "--checkpoint is missing; give the path of a .pt file of a run",
    )
    for path in options.checkpoint:
        checkpoint_exists("--checkpoint", path)
    for option in ("json", "per_class", "confusion"):
        if options[option] is not None:
            can_hold(f"--{option.replace('_', '-')}", options[option])
    return options


def evaluate(request: Request) -> tuple[dict[str, Any], Tally, ImageSet] | None:
    """Collective. Counts the images that the networks get right.

    Returns the result as JSON holds it, the counts by class and the images on rank 0, else None.
    """
    from pipeline.evaluate.result import TestedImages, describe
    from pipeline.ranks import connect
    from pipeline.ranks.places import choose_device, own_share, set_threads
    from pipeline.system.console import log, start_logging

    world = connect()
    start_logging(world.rank)
    members = _members(request, world)
    share = own_share(world)
    set_threads(members[0].config, share)
    device = world.together(lambda: choose_device(members[0].config.run.device, share.gpu))
    val_set, train_set = _open_data(request, members[0], world)
    if train_set is not None:
        members = [
            _with_true_averages(one, request, train_set, world, share, device) for one in members
        ]
    totals, tally = _count(members, request, val_set, world, share, device)
    log.info(
        "%s at step %d, %s: top-1 %.4f (%d of %d), top-5 %.4f (%d), loss %.4f",
        ", ".join(str(path) for path in request.checkpoints), members[0].trained.step,
        request.protocol.name, totals.top1, totals.top1_correct, totals.images, totals.top5,
        totals.top5_correct, totals.loss,
    )  # fmt: skip
    is_other = _is_other_data(request, members[0], val_set, world)
    world.barrier()
    if world.rank != 0:
        return None
    images = TestedImages(val_set.digest, request.test_images, is_other)
    result = describe(
        members, request.protocol, totals, tally.unreadable, request.bn_images, images
    )
    return result, tally, val_set


def _members(request: Request, world: World) -> list[Member]:
    """Collective. The checkpoints, found to fit each other and the protocol."""
    from pipeline.evaluate import members as ensemble
    from pipeline.train import checkpoint

    read = world.on_rank0(lambda: [checkpoint.read(path) for path in request.checkpoints])

    def checked() -> list[Member]:
        members = [ensemble.make_member(one, request.settings) for one in read]
        ensemble.require_alike(members)
        if not request.test_images:
            ensemble.require_unseen(members)
        for member in members:
            request.protocol.check(member.config)
        return members

    return world.together(checked)


def _open_data(request: Request, member: Member, world: World) -> tuple[ImageSet, ImageSet | None]:
    """Collective. The images to test on, and those of training where they are needed."""
    from pipeline.data.opening import open_data, open_val_data
    from pipeline.evaluate.members import with_test_images

    config: Config = member.config
    if request.test_images:
        config = world.together(lambda: with_test_images(member.config))
    if request.bn_images is None:
        return open_val_data(config, world, member.trained.classes), None
    train_set, val_set = open_data(member.config, world)
    if request.test_images:
        val_set = open_val_data(config, world, member.trained.classes)
    return val_set, train_set


def _is_other_data(request: Request, member: Member, val_set: ImageSet, world: World) -> bool:
    """Collective. Whether the images tested are of other data than the training's. False where no
    training is known, as of imported weights.

    Test images are known by the held-out ones, which lie in the same archive.
    """
    from pipeline.data.opening import open_val_data

    wanted = member.trained.fingerprint.get("data hash of val")
    if wanted is None:
        return False
    if request.test_images:
        val_set = open_val_data(member.config, world, member.trained.classes)
    return bool(val_set.digest != wanted)


def _count(
    members: Sequence[Member], request: Request, val_set: ImageSet, world: World, share: Share,
    device: torch.device,
) -> tuple[Validation, Tally]:  # fmt: skip
    """Collective. Runs the networks over the images, and says which could not be read."""
    from pipeline.data.dali.settings import choose_decoding
    from pipeline.evaluate import members as ensemble
    from pipeline.evaluate.result import Tally
    from pipeline.evaluate.view_stream import open_loader
    from pipeline.system.console import log
    from pipeline.train.validation import count

    config, protocol, excluded = members[0].config, request.protocol, _excluded(members, val_set)

    def opened() -> tuple[list[Network], ValidationLoader]:
        decode = choose_decoding(
            config, device, share, (val_set,), members[0].trained.normalisation
        )
        networks = [ensemble.build(member, device, protocol) for member in members]
        return networks, open_loader(config, val_set, world, decode, protocol, excluded)

    networks, loader = world.together(opened)
    tally = Tally(len(val_set.classes), device)
    with contextlib.closing(loader):
        scored = ensemble.scored(networks, loader, len(protocol.views(config)), world)
        totals = count(scored, world, len(val_set), "the evaluation", tally)
        passed_over = world.gather_objects(loader.found)
    for found in (found for theirs in passed_over for found in theirs):
        log.warning("warning: %s; it counts as wrong", found.error)
    return totals, tally


def _excluded(members: Sequence[Member], val_set: ImageSet) -> frozenset[int]:
    """The validation images that the runs found unreadable, if they validated on `val_set`."""
    found: set[int] = set()
    for trained in (member.trained for member in members):
        if trained.fingerprint.get("data hash of val") == val_set.digest:  # else other images
            found |= set(trained.excluded["val"])
    return frozenset(found)


def _with_true_averages(
    member: Member, request: Request, train_set: ImageSet, world: World, share: Share,
    device: torch.device,
) -> Member:  # fmt: skip
    """Collective. `member` with BN statistics over its training images (`--bn-images`)."""
    from pipeline.evaluate.averages import recompute

    images = len(train_set) if request.bn_images == "all" else request.bn_images
    assert isinstance(images, int)
    weights = recompute(member, train_set, images, world, share, device)
    trained = dataclasses.replace(member.trained, weights=weights)
    return dataclasses.replace(member, trained=trained)


def write_results(options: Any, result: dict[str, Any], tally: Tally, val_set: ImageSet) -> None:
    """On rank 0: the files that were asked for, and the result beside the first one's run."""
    from pipeline.data.classes import class_words
    from pipeline.evaluate import result as tables
    from pipeline.evaluate.result import file_name, write
    from pipeline.system.console import log
    from pipeline.train.folder import run_of

    if options.json is not None:
        write(Path(options.json), result)
    if options.per_class is not None:
        words = class_words(Path(result["config"]["data"]["root"]))
        tables.write_per_class(Path(options.per_class), tally, val_set, words)
    if options.confusion is not None:
        tables.write_confusion(Path(options.confusion), tally, val_set.classes)
    run = run_of(Path(options.checkpoint[0]))
    if run is not None:
        try:
            write(run.path / file_name(result), result)
        except OSError as error:  # the run may be somebody else's; the result has been said
            log.warning("warning: the result is not kept in %s: %s", run.path, error.strerror)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
