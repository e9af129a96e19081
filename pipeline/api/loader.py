"""`pipeline.Loader`: the batches of a training or a validation, for a loop of one's own."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.api.device import Device, device_of
from pipeline.api.loader_parts import (
    bad_files,
    epochs_of,
    leave_out_listed,
    require_imagenet,
    stream_of,
)
from pipeline.api.loader_settings import asked, own_rank, require_still_own
from pipeline.api.loader_state import facts_of, place_in, require_position, state_of
from pipeline.config import require
from pipeline.data.dali import Batch as Decoded
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.exclusion import Exclusions
from pipeline.data.images import BadImage
from pipeline.data.index.survey import SPLITS, Split
from pipeline.data.opening import open_split
from pipeline.data.passes import Pass, Passes
from pipeline.data.statistics import normalisation_of
from pipeline.data.stream import TrainStream, ValStream
from pipeline.ranks.existing import share_of_own

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) and labels (B,) int64, both on the loader's device."""


class Loader:
    """Iterates over the images of `<root>/<split>` as `pipeline.train` does, one `for` an epoch.

    A batch is a tuple: images (B, 3, H, W), normalised, float32 (or float16, by `output`), and
    labels (B,) int64, both on the device; `positions` are then the batch's places in the stream.
    Which image stands at a position and how it is cut is a function of (seed, position) alone,
    whatever the number of ranks. No rank asks another for anything.

    Train: every batch is full, and the images left over at the end of an epoch begin the next one,
    unless `drop_last`. Val: each image once over all ranks, the last batch may be short.

    A `for` that is left early has had its epoch: the next one begins the next, unless a state is
    loaded or `set_epoch` called. `state_dict` may be taken between any two batches, and a loader
    on another number of ranks goes on from it with the next image.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Split = "train",
        batch_size: int | None = None,
        image_size: int = 224,
        seed: int = 0,
        *,
        global_batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        device: Device = "auto",
        threads: int | None = None,
        drop_last: bool = False,
        channels_last: bool = True,
        classes: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        """Opens the images of `root`, a folder as `data.root`, and indexes them if need be.

        `batch_size` is for each rank (64 if neither is given), `global_batch_size` for all of them;
        with both, `batch_size` is the most that a rank takes at once of its part of the global
        batch, in `accumulation` batches a step. `rank` and `world_size` are those of
        torch.distributed, or else of the launcher, or else 0 of 1. `device` auto is this rank's GPU
        if there is one. `classes` are those that labels of val number; None: those of train.
        `settings` are those of the configuration's part `data`, by their names there and with
        its defaults.

        Raises `ValueError` as a training would.
        """
        require(split in SPLITS, f"split={split!r} must be one of {', '.join(SPLITS)}")
        require(
            split == "train" or not drop_last,
            f"drop_last={drop_last} would leave images of {split} out; it is for train alone",
        )
        found = own_rank(rank, world_size)
        given = {"root": os.fspath(root), "image_size": image_size, "threads": threads}
        self._asked = asked(given, settings, seed, batch_size, global_batch_size, found)
        data, share = self._asked.data, share_of_own(found)
        self._device = device_of(device, share)
        if data.dataset == "imagenet-1k":
            require_imagenet(data)
        self._images, train_set = open_split(data, split, classes)
        normalisation = normalisation_of(data, self._images if train_set is None else train_set)
        decode = choose_decoding(data, self._device, share, (self._images,), normalisation)
        if split == "val":
            decode = decode.for_shape((data.view_size, data.view_size))
        self._epochs = epochs_of(self._asked, self._images, drop_last)
        self._stream = stream_of(self._asked, self._images, normalisation, drop_last)
        self._rank_is_given = rank is not None
        self._facts = facts_of(self._asked, self._images, normalisation, drop_last)
        self._channels_last = channels_last
        self._passes = Passes(data.local_batch_size, decode)
        self._pass: Pass | None = None
        self._process = os.getpid()
        self._closing = weakref.finalize(self, _close, self._passes, self._process)
        self._epoch = self._number = 0
        self._turn = 0  # the number of the `for` that may ask for batches
        self._begun = False  # by that one, which has not come to the epoch's end
        self._positions = np.empty(0, np.int64)
        leave_out_listed(self._stream, data, self.position)

    def __iter__(self) -> Iterator[Batch]:
        return _Epoch(self._next)

    def __len__(self) -> int:
        """This rank's batches in the epoch, those included that are done."""
        return self._epochs.first(self._epoch + 1) - self._epochs.first(self._epoch)

    def close(self) -> None:
        """Ends the threads and frees the memory of the loader, which cannot be used any more."""
        self._closing()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Loader has threads and cannot be sent to another process or copied; make one in "
            "each process, and hand over its state_dict"
        )

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the `for` that runs or was left, or else of the next one."""
        return self._epoch

    @property
    def position(self) -> int:
        """Where the next batch's step begins in the stream: in training the images that all ranks
        have been given before it, or have passed by."""
        return self._epochs.position(self._number)

    @property
    def positions(self) -> np.ndarray:
        """The places in the stream of the last batch's images, (B,) int64 in host memory."""
        return self._positions

    @property
    def device(self) -> torch.device:
        """Where images and labels are given out."""
        return self._device

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return len(self._images)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, which labels number."""
        return list(self._images.classes)

    @property
    def batch_size(self) -> int:
        """The most images of a batch of this rank."""
        return self._asked.data.local_batch_size

    @property
    def accumulation(self) -> int:
        """Batches of this rank in a step of the global batch; 1 unless both sizes were given."""
        return self._asked.accumulation

    def set_epoch(self, epoch: int) -> None:
        """Has the next `for` begin `epoch`, from 0. Where a state was loaded that lies in this very
        epoch, it goes on there instead."""
        require(
            type(epoch) is int and 0 <= epoch < 2**31, f"epoch={epoch!r} must lie in [0, 2**31)"
        )
        if epoch != self._epoch or self._begun:
            self._move(epoch, self._epochs.first(epoch))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on with the next batch: plain values, alike on all
        ranks in a training without bad images."""
        done, excluded = self._number - self._epochs.first(self._epoch), self._excluded()
        return state_of(self._facts, self._asked, self._epoch, done, self.position, excluded)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next `for` go on where `state` was taken: with the rest of its epoch.

        Raises `ValueError` for a state of other data, settings, seed or batch, naming both, and
        for what is no such state; the loader is then as it was.
        """
        epoch, batch, excluded = place_in(state, self._facts, self._asked, len(self._images))
        number = self._epochs.first(epoch) + batch
        if self._images.split == "val":  # first: another rank's may have a batch more
            require_position(state, self._epochs.position(number))
        require(
            number <= self._epochs.first(epoch + 1),
            f"the state is damaged: its batch is {batch}, and epoch {epoch} has fewer; load "
            "another one, or begin anew without a state",
        )
        require_position(state, self._epochs.position(number))
        before = self._excluded()
        self._exclude(excluded)
        try:
            leave_out_listed(self._stream, self._asked.data, self._epochs.position(number))
        except ValueError:
            self._exclude(before)
            raise
        self._move(epoch, number)

    def _excluded(self) -> list[Any]:
        """The images that are left out, as a state has them."""
        if isinstance(self._stream, ValStream):
            return sorted(self._stream.excluded)
        return self._stream.exclusions.rows()

    def _exclude(self, excluded: list[Any]) -> None:
        if isinstance(self._stream, ValStream):
            self._stream.excluded = frozenset(excluded)
        else:
            self._stream.exclusions = Exclusions(excluded)

    def _move(self, epoch: int, number: int) -> None:
        self._epoch, self._number = epoch, number
        self._turn, self._begun, self._pass = self._turn + 1, False, None

    def _next(self, asking: _Epoch) -> Batch:
        """The next batch for one of this loader's iterators."""
        self._require_usable()
        if asking.turn is None:
            if not self._rank_is_given:
                require_still_own(self._asked)
            if self._begun:  # another was left
                self._epoch += 1
                self._number = self._epochs.first(self._epoch)
            self._turn += 1
            self._begun = True
            asking.turn = self._turn
        if self._turn != asking.turn:
            raise RuntimeError(
                "this loader has begun another for, or was moved by set_epoch or load_state_dict, "
                "since this one began; use one at a time, or make a second Loader"
            )
        if self._number == self._epochs.first(self._epoch + 1):
            self._epoch += 1
            self._begun = False
            if isinstance(self._stream, ValStream):
                self._pass = None  # one has an end
            raise StopIteration
        batch = self._take()
        self._number += 1
        self._positions = batch.positions
        images = batch.images if self._channels_last else batch.images.contiguous()
        return images, batch.labels

    def _take(self) -> Decoded:
        """The batch at the present place, from the pass that stands or a new one."""
        if self._pass is None or self._pass.number != self._number:
            training = isinstance(self._stream, TrainStream)
            end = None if training else self._epochs.first(self._epoch + 1)
            self._pass = Pass(
                self._stream, self._epochs.positions, self._number, end, self._passes,
                bad_files(self._stream, self._asked.data),
            )  # fmt: skip
        try:
            return next(self._pass)
        except BadImage as error:
            self._pass = None
            fix = (
                "put back the file that was indexed"
                if error.changed
                else "put a good copy there, or go on without it by bad_images='exclude'"
            )
            raise BadImage(error.path, f"{error.reason}; {fix}", error.changed) from error
        except BaseException:
            self._pass = None  # what DALI or the caller broke off is not gone on with
            raise

    def _require_usable(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this loader was made by process {self._process}, and its threads are not in this "
                "one, which was forked from it; make a Loader in each process"
            )
        if not self._closing.alive:
            raise RuntimeError("this loader is closed; make a new one")


class _Epoch:
    """An iterator over one epoch, which begins with its first batch."""

    def __init__(self, take: Callable[[_Epoch], Batch]) -> None:
        self._take: Callable[[_Epoch], Batch] | None = take
        self.turn: int | None = None
        """Which of the loader's it is, from its first batch on."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._take is None:
            raise StopIteration
        try:
            return self._take(self)
        except StopIteration:
            self._take = None
            raise


def _close(passes: Passes, process: int) -> None:
    """Closes `passes`, which are of `process`."""
    if os.getpid() == process:
        passes.close()
    else:
        _of_others.append(passes)


_of_others: list[Passes] = []
"""Passes whose threads stayed in the process that this one was forked from: never freed, as DALI
would wait for them."""
