"""`pipeline.evaluate`: a test of a checkpoint called from Python."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.api.settings import AnyPath, Settings, checkpoint_in, parsed
from pipeline.config import ConfigError, names_for, plain, require
from pipeline.evaluate.protocol import BnImages, Name, Request, choose_protocol
from pipeline.system.launched import launched_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluate.run import Evaluation

Kind = Literal["auto", "raw", "ema"]
"""Which weights of a checkpoint: as trained, their moving average, or auto: the average where there
is one."""


@dataclass(frozen=True)
class EvaluateResult:
    """Shares and exact counts over `images` images, each counted once; the same on every rank.

    confusion: (classes, classes) int64, images of the row's class predicted as the column's;
    `unreadable` images, which count as wrong, are in no column.
    """

    images: int
    top1: float
    top1_correct: int
    top5: float | None
    """Of five classes or fewer there is none."""
    top5_correct: int | None
    balanced_top1: float | None
    """The mean over classes of their top-1."""
    loss: float
    unreadable: int
    classes: list[str] = field(repr=False)
    confusion: NDArray[np.int64] = field(repr=False, compare=False)
    protocol: str
    views: int
    step: int
    checkpoints: tuple[Path, ...]
    file: Path | None = field(repr=False)
    """Where the result is kept in the folder of the first checkpoint's run, if that is there and
    can be written."""
    details: Mapping[str, Any] = field(repr=False)
    """The result as `python -m pipeline.evaluate --json` writes it."""

    def class_top1(self) -> dict[str, float | None]:
        """Top-1 by class, None for one without images that could be read."""
        hits, images = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return {
            name: hit / count if count else None
            for name, hit, count in zip(self.classes, hits, images, strict=True)
        }


def evaluate(
    checkpoint: AnyPath | Sequence[AnyPath],
    *,
    protocol: Name = "1-crop",
    scales: Sequence[int] | None = None,
    mirror: bool = False,
    weights: Kind = "auto",
    data: AnyPath | None = None,
    bn_images: BnImages = None,
    test_images: bool = False,
    settings: Settings | None = None,
) -> EvaluateResult:
    """Tests a checkpoint, as `python -m pipeline.evaluate` does, and keeps the result in its run.

    Args:
        checkpoint: a .pt file, a run's folder (its best.pt), or several: an ensemble.
        protocol: 1-crop, as in validation; 10-crop; or multi-scale, with `scales`, shorter sides in
            pixels, and `mirror`, which adds the mirrored image at each.
        weights: raw, as trained; ema, their moving average; auto: the average where there is one.
        data: the data set, in place of that of the training.
        bn_images: recompute BN's statistics over so many training images, or "all".
        test_images: of CIFAR-10 with held-out images: the archive's test images.
        settings: others that `python -m pipeline.evaluate --help` lists, as {"run.device": "cpu"}.

    Under horovodrun, torchrun or srun every rank makes the same call.

    Raises:
        ConfigError: a wrong argument. ValueError, of which it is one: a wrong checkpoint or data.
        OSError: a file that may not be read.
        TrainingError: the job cannot continue; or another call runs in this process.
    """
    several = isinstance(checkpoint, Iterable) and not isinstance(checkpoint, str)
    places: list[AnyPath] = list(checkpoint) if several else [checkpoint]  # type: ignore[arg-type,list-item]
    require(len(places) > 0, "checkpoint is an empty list; give the path of a .pt file of a run")
    names = names_for("evaluate")
    given = parsed(settings, names, {} if data is None else {"data.root": data})
    for name, value, kind in (("protocol", protocol, Name), ("weights", weights, Kind)):
        require(
            value in get_args(kind), f"{name}={value} must be one of {', '.join(get_args(kind))}"
        )
    is_count = isinstance(bn_images, int) and not isinstance(bn_images, bool) and bn_images >= 2
    require(
        bn_images in (None, "all") or is_count,
        f"bn_images={bn_images} must be a number of training images, at least 2, or all",
    )
    request = Request(
        tuple(checkpoint_in(place) for place in places),
        choose_protocol(protocol, _sides(scales), mirror),
        None if weights == "auto" else weights,
        bn_images, test_images, None, None, None, given,
    )  # fmt: skip
    from pipeline.api.process import alone  # torch, DALI and Horovod: after the check

    with alone("pipeline.evaluate"):
        from pipeline.evaluate.run import evaluate as run

        return _result(run(request, tell=lambda _: None, watch=launched_size() > 1))


def _sides(scales: Sequence[int] | None) -> list[int] | None:
    """`scales` as Python's own numbers. Raises `ConfigError`."""
    rule = f"scales={scales!r} must be a list of whole numbers of pixels, such as [224, 256]"
    try:
        found = None if scales is None else [operator.index(one) for one in scales]
    except TypeError as error:
        raise ConfigError(rule) from error
    require(found != [], rule)
    return found


def _result(found: Evaluation) -> EvaluateResult:
    totals, tally, details = found.totals, found.tally, plain(found.result)
    return EvaluateResult(
        totals.images, totals.top1, totals.top1_correct, totals.top5, totals.top5_correct,
        totals.balanced_top1, totals.loss, tally.unreadable, list(found.classes),
        tally.confusion.numpy(), details["protocol"], details["views"], details["step"],
        tuple(Path(one) for one in details["ensemble"]), found.file, details,
    )  # fmt: skip
