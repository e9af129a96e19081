"""An evaluation from its checkpoints to the files it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import RunConfig
from pipeline.data.classes import class_words
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.images import ImageSet
from pipeline.data.opening import open_data, open_val_data
from pipeline.data.passes import ValidationLoader
from pipeline.evaluate.averages import recompute
from pipeline.evaluate.members import (
    Member,
    Network,
    build,
    make_member,
    require_alike,
    require_unseen,
    scored,
    with_test_images,
)
from pipeline.evaluate.protocol import Request
from pipeline.evaluate.result import (
    Tally,
    describe,
    file_name,
    write,
    write_confusion,
    write_per_class,
)
from pipeline.evaluate.view_stream import open_loader
from pipeline.ranks import connect
from pipeline.ranks.addresses import warn_if_open
from pipeline.ranks.places import Share, own_share, take_share
from pipeline.ranks.reports import start_limit
from pipeline.ranks.watchdog import watched
from pipeline.ranks.world import World
from pipeline.system.console import log, say, start_logging
from pipeline.system.launched import launched
from pipeline.train import checkpoint
from pipeline.train.folder import run_of
from pipeline.train.metrics import Validation, balanced_top1
from pipeline.train.validation import count, labels_by_class


@dataclass(frozen=True)
class Evaluation:
    """A result, the same on every rank: as JSON holds it, and its exact counts.

    `file` is where it is kept in the run's folder; None where there is no run that takes it.
    """

    result: dict[str, Any]
    totals: Validation
    tally: Tally
    classes: list[str]
    file: Path | None


def evaluate(
    request: Request, tell: Callable[[str], object] = say, watch: bool = True
) -> Evaluation:
    """Counts the images that the networks get right; on rank 0 writes the files that were asked
    for, and the result in the folder of the first checkpoint's run, and tells it. Collective.
    Without `watch` no watchdog ends the process if it hangs."""
    world = connect()
    start_logging(world.rank)
    warn_if_open(launched().engine)
    given, name = request.settings, "run.start_timeout_sec"
    limit_sec = given[name] if name in given else RunConfig().start_timeout_sec
    with watched(world, start_limit(limit_sec), watch):
        return _evaluate(request, world, tell)


def _evaluate(request: Request, world: World, tell: Callable[[str], object]) -> Evaluation:
    members = _members(request, world)
    config = members[0].config
    share = own_share(world)
    device = world.together(lambda: take_share(config, share))
    val_set, train_set = _open_data(request, members[0], world)
    if train_set is not None:
        images = len(train_set) if request.bn_images == "all" else request.bn_images
        assert images is not None, "training images are opened for statistics alone"
        members = [recompute(one, train_set, images, world, share, device) for one in members]
    totals, tally = _count(members, request, val_set, world, share, device)
    is_other = _is_other_data(request, members[0], val_set, world)
    world.barrier()
    result = describe(members, request, totals, tally.unreadable, val_set.digest, is_other)
    run = run_of(request.checkpoints[0])
    file = None if run is None else run.path / file_name(result)

    def write_and_tell() -> bool:
        try:
            return _write_files(request, result, tally, val_set, file)
        finally:  # words after files, but a disk that is full must not cost both
            tell(_in_words(request, members, totals))

    is_kept = world.on_rank0(write_and_tell)
    return Evaluation(result, totals, tally, val_set.classes, file if is_kept else None)


def _in_words(request: Request, members: Sequence[Member], totals: Validation) -> str:
    checkpoints = ", ".join(f"{one.path}{one.trained.said_kind}" for one in members)
    balanced, top5 = totals.balanced_top1, totals.top5
    return (
        f"{checkpoints} at step {members[0].trained.step}, {request.protocol.name}: "
        f"top-1 {totals.top1:.2%} ({totals.top1_correct} of {totals.images}), "
        + ("" if top5 is None else f"top-5 {top5:.2%} ({totals.top5_correct}), ")
        + ("" if balanced is None else f"balanced top-1 {balanced:.2%}, ")
        + f"loss {totals.loss:.4f}"
    )


def _members(request: Request, world: World) -> list[Member]:
    """The checkpoints, checked to fit each other and the protocol. Collective."""
    paths = request.checkpoints
    contents = world.on_rank0(lambda: [checkpoint.read_verified(path) for path in paths])

    def checked() -> list[Member]:
        read = [
            checkpoint.trained(path, content, request.weights)
            for path, content in zip(paths, contents, strict=True)
        ]
        members = [make_member(one, request.settings) for one in read]
        require_alike(members)
        if not request.test_images:
            require_unseen(members)
        for member in members:
            request.protocol.check(member.config)
        return members

    return world.together(checked)


def _open_data(request: Request, member: Member, world: World) -> tuple[ImageSet, ImageSet | None]:
    """The test images, and the training images where they are needed. Collective."""
    config, classes = member.config, member.trained.classes
    if request.test_images:
        config = world.together(lambda: with_test_images(member.config))
    if request.bn_images is None:
        return open_val_data(config, world, classes), None
    train_set, val_set = open_data(member.config, world)
    return open_val_data(config, world, classes) if request.test_images else val_set, train_set


def _is_other_data(request: Request, member: Member, val_set: ImageSet, world: World) -> bool:
    """Whether the tested images belong to other data than the training's. False where no training
    is known, as for imported weights.

    Test images are recognised by the held-out ones, which are in the same archive. Collective.
    """
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
    """Runs the networks over the images, and logs which could not be read. Collective."""
    config, protocol, excluded = members[0].config, request.protocol, _excluded(members, val_set)

    def opened() -> tuple[list[Network], ValidationLoader]:
        normalisation = members[0].trained.normalisation
        decode = choose_decoding(config.data, device, share, (val_set,), normalisation)
        networks = [build(member, device, protocol) for member in members]
        return networks, open_loader(config, val_set, world, decode, protocol, excluded)

    networks, loader = world.together(opened)
    tally = Tally(len(val_set.classes), device)
    with closing(loader):
        batches = scored(networks, loader, len(protocol.views(config)), world)
        classes = len(val_set.classes)
        counted = count(batches, world, len(val_set), classes, "the evaluation", tally)
        passed_over = world.gather_objects([found.error for found in loader.found])
    for error in (error for theirs in passed_over for error in theirs):
        log.warning("warning: %s; it counts as wrong", error)
    balanced = balanced_top1(tally.confusion.diagonal(), labels_by_class(val_set))
    return dataclasses.replace(counted, balanced_top1=balanced), tally


def _excluded(members: Sequence[Member], val_set: ImageSet) -> frozenset[int]:
    """The validation images that the runs found unreadable, if they validated on `val_set`."""
    found: set[int] = set()
    for trained in (member.trained for member in members):
        if trained.fingerprint.get("data hash of val") == val_set.digest:  # else other images
            found |= set(trained.excluded["val"])
    return frozenset(found)


def _write_files(
    request: Request, result: dict[str, Any], tally: Tally, val_set: ImageSet, file: Path | None
) -> bool:
    """Writes what was asked for, and returns whether the result is kept in `file`."""
    if request.json is not None:
        write(Path(request.json), result)
    if request.per_class is not None:
        words = class_words(Path(result["config"]["data"]["root"]))
        write_per_class(Path(request.per_class), tally, val_set, words)
    if request.confusion is not None:
        write_confusion(Path(request.confusion), tally, val_set.classes)
    if file is not None:
        try:
            write(file, result)
            return True
        except OSError as error:  # the run may be somebody else's; the result has been logged
            log.warning("warning: the result is not kept in %s: %s", file.parent, error.strerror)
    return False
