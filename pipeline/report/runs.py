"""Reads the files of runs: their configuration, their metrics, and their results on whole data,
those that `python -m pipeline.evaluate` left with a run and the validations in training."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config import names_of
from pipeline.config import settings as said_of_settings
from pipeline.config.idle import idle_settings
from pipeline.config.parser import program
from pipeline.model.network import Network, network_in
from pipeline.report.references import DataSet, Protocol
from pipeline.train import folder as run_folder
from pipeline.train.events import last
from pipeline.train.folder import HOLDS, RunFolder, why_no_run, why_unreadable

_IMAGES: dict[DataSet, tuple[int, int]] = {
    "imagenet-1k": (1_281_167, 50_000), "cifar-10": (50_000, 10_000),
}  # fmt: skip
"""Training images, and those that the published errors count (for CIFAR-10: the test images)."""

_LABELS: dict[DataSet, str] = {"imagenet-1k": "ImageNet-1k", "cifar-10": "CIFAR-10"}


@dataclass(frozen=True)
class Evaluation:
    """One result.

    `top1` and `top5` are errors in %, the latter None where it was not counted; `dataset` as the
    setting of that name; `crop` is the side of the crop and the shorter side it is cut from, in
    pixels; `time` is in seconds since 1970, None if unknown; `scales` are the shorter sides in
    pixels of multi-scale, `mirror` whether each was counted mirrored too; `bn_images` how many
    training images BN's statistics were averaged over ("all", or empty for the moving averages);
    `ensemble` the number of networks; `changed` holds what else differs from the training, such as
    "optim.amp=off"; `weights` are "ema" or "raw" of a checkpoint that has both, empty for any
    other; `balanced` is the mean over classes of `top1`, None where it was not counted;
    `other_root` is where the images lie if they are not those that the training validated on, nor
    the test images next to them.
    """

    protocol: Protocol
    step: int
    images: int
    top1: float
    top5: float | None
    dataset: str | None
    crop: tuple[int, int]
    time: float | None
    in_training: bool = False
    mirror: bool = False
    scales: tuple[int, ...] = ()
    bn_images: str = ""
    ensemble: int = 1
    changed: tuple[str, ...] = ()
    other_root: str = ""
    weights: str = ""
    balanced: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it equals a validation in training: one view, one network, unchanged."""
        special = self.bn_images or self.ensemble > 1 or self.changed or self.other_root
        return self.protocol == "1-crop" and not special


def read_evaluation(path: Path) -> Evaluation:
    """Reads a result file of `pipeline.evaluate`. Raises ValueError, naming the file, if it is not
    one."""
    of_crop = {name for name, one in said_of_settings().items() if one.of_view}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        data, is_other = content["config"]["data"], content["other_data"]
        return Evaluation(
            content["protocol"],
            int(content["step"]),
            int(content["images"]),
            100 * (1 - content["top1"]),
            _error(content, "top5"),
            None if is_other else data["dataset"],
            (data.get("val_size") or data["image_size"], data["val_resize"]),
            datetime.fromisoformat(content["date"]).timestamp(),
            mirror=content["mirror"],
            scales=tuple(content["scales"]),
            bn_images=str(content["bn_images"] or ""),
            ensemble=len(content["ensemble"]),
            changed=tuple(
                f"{name}={value}"
                for name, value in content["changed"].items()
                if content["scales"] or name not in of_crop
            ),
            other_root=data["root"] if is_other else "",
            weights=next((kind for kind in content.get("weights_kind", ()) if kind), ""),
            balanced=_error(content, "balanced_top1"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is no result of python -m pipeline.evaluate ({what}); evaluate again or "
            "remove the file"
        ) from error


def _error(shares: Mapping[str, Any], name: str) -> float | None:
    """An error in % from a share that need not be there."""
    share = shares.get(name)
    return None if share is None else 100 * (1 - share)


@dataclass(frozen=True)
class Run:
    """One run. `settings` are by `part.name`, `lines` those of its metrics."""

    folder: Path
    settings: dict[str, Any]
    lines: list[dict[str, Any]]
    evaluated: list[Evaluation]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @cached_property
    def network(self) -> Network:
        """The network that was trained."""
        return network_in(self.settings)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind: start, train, val or done."""
        return [line for line in self.lines if line.get("event") == event]

    @property
    def start(self) -> Mapping[str, Any]:
        """The line of metrics of its last start."""
        return last(self.lines, "start")

    @property
    def finished(self) -> bool:
        """Whether it reached the end of its schedule."""
        return bool(self.events("done"))

    @property
    def step(self) -> int:
        """The last step with a line of metrics; 0 without any."""
        return max((int(line["step"]) for line in self.lines), default=0)

    def epochs_at(self, step: int) -> float | None:
        """Passes over the training images after `step` steps; None for a run that does not say how
        many there are."""
        images = self.start.get("train_images")
        return step * self.settings["data.global_batch_size"] / images if images else None

    @property
    def time(self) -> float | None:
        """Time of its last line of metrics, in seconds since 1970."""
        return max((line["time"] for line in self.lines if "time" in line), default=None)

    @cached_property
    def data_set(self) -> DataSet | None:
        """The data set if it was trained on exactly that, else None.

        A run on ImageNet-1k has checked this at its start; data in CIFAR-10's format are CIFAR-10
        if they have as many images.
        """
        named: DataSet | None = self.settings["data.dataset"]
        if named != "cifar-10":
            return named
        train, test = _IMAGES[named]
        held_out = self.settings["data.held_out"] or 0
        found = self.start.get("train_images"), self.start.get("val_images")
        return named if found == (train - held_out, held_out or test) else None

    @property
    def data_label(self) -> str:
        """The name for people of the data it was trained on."""
        if self.data_set is None:
            return str(self.settings["data.root"])
        held_out = self.settings["data.held_out"]
        held = f", {held_out:,} images held out" if held_out else ""
        return _LABELS[self.data_set] + held

    @property
    def data_name(self) -> str:
        """The same without the path, for headings."""
        return self.data_label if self.data_set else Path(self.data_label).name or self.data_label

    @cached_property
    def recipe(self) -> dict[str, str]:
        """The settings that define the experiment: runs that share them differ in their seed."""
        counting = set(names_of("identity", "recipe")) - set(idle_settings(self.settings))
        return {name: str(value) for name, value in self.settings.items() if name in counting}

    def is_whole(self, evaluation: Evaluation) -> bool:
        """Whether a result counts the images that the published errors of its data set count."""
        named = self.data_set
        whole = named is not None and evaluation.images == _IMAGES[named][1]
        return whole and evaluation.dataset == named

    @property
    def crop(self) -> tuple[int, int]:
        """Side of the crop of a validation, and the shorter side it is cut from, in pixels."""
        size = self.settings["data.val_size"] or self.settings["data.image_size"]
        return size, self.settings["data.val_resize"]

    @property
    def evaluations(self) -> list[Evaluation]:
        """Its results: those of `pipeline.evaluate`, and its last validation, of the weights and of
        their average, unless one of them is the same."""
        validated = [one for line in self.events("val")[-1:] for one in self.of_validation(line)]
        known = {_what(one) for one in self.evaluated if one.is_plain}
        new = [one for one in validated if _what(one) not in known]
        return self.evaluated + new

    def of_validation(self, line: Mapping[str, Any]) -> list[Evaluation]:
        """The results in the line of a validation, of the average of the weights first if there is
        one."""
        kinds = [("ema_", "ema"), ("", "raw")] if "ema_top1" in line else [("", "")]
        return [
            Evaluation(
                "1-crop", int(line["step"]), int(line["images"]),
                100 * (1 - line[f"{prefix}top1"]), _error(line, f"{prefix}top5"),
                self.settings["data.dataset"], self.crop, line.get("time"), in_training=True,
                weights=weights, balanced=_error(line, f"{prefix}balanced_top1"),
            )
            for prefix, weights in kinds
        ]  # fmt: skip


def _what(one: Evaluation) -> tuple[object, ...]:
    """What a plain result is of."""
    return one.step, one.images, one.crop, one.weights


def date(seconds: float | None) -> str:
    """A day as 2026-11-21; "unknown" for None."""
    return "unknown" if seconds is None else time.strftime("%Y-%m-%d", time.localtime(seconds))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, each once, sorted by data, network and name; ValueError for a folder
    that is no run."""
    unique = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    return sorted(runs, key=lambda run: (run.data_label, run.network, _by_number(run.name)))


def _by_number(name: str) -> list[tuple[int, str]]:
    """What sorts lr-9 before lr-10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def find_runs(below: Path) -> list[Path]:
    """The folders below `below` that hold a run. Raises ValueError if there is none."""
    found = [run for run in run_folder.find_runs(below) if RunFolder(run).has_trained]
    if not found:
        raise ValueError(
            f"there is no run below {below}/ ({HOLDS}); train one by {program('pipeline.train')}, "
            "or give the folders of runs"
        )
    return found


def read_run(folder: Path) -> Run:
    """Reads the run in `folder`. A line of metrics that a kill has cut is left out with a warning.

    Raises ValueError naming the folder if it holds no run, or a file in it that cannot be read.
    """
    run = RunFolder(folder)
    try:
        if not run.has_trained:
            raise ValueError(why_no_run(run))
        evaluated = [read_evaluation(path) for path in run.evaluations]
        return Run(folder, run.settings(), run.lines(), evaluated)
    except OSError as error:
        raise ValueError(
            f"{folder} {why_unreadable(error)}; give runs that you may read, or leave it out"
        ) from error
