"""Reads what runs left behind: their configuration, their metrics and their evaluations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config import names_of
from pipeline.config.idle import idle_settings
from pipeline.model.network import Network, network_of
from pipeline.report.evaluations import Evaluation, read_evaluation, validation_in_training
from pipeline.train import folder as run_folder
from pipeline.train.folder import HOLDS, RunFolder, last, why_no_run

_IMAGES = {"imagenet-1k": (1_281_167, 50_000), "cifar-10": (50_000, 10_000)}
"""Training images, and those that the stated errors count (of CIFAR-10: the test images)."""


@dataclass(frozen=True)
class Run:
    """One run. `settings` are by `part.name`, `versions` those of its last start."""

    folder: Path
    settings: dict[str, Any]
    versions: dict[str, str]
    lines: list[dict[str, Any]]
    evaluated: list[Evaluation]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @cached_property
    def network(self) -> Network:
        """What was trained."""
        part = {k.partition(".")[2]: v for k, v in self.settings.items() if k.startswith("model.")}
        return network_of(part)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind: start, train, val or done."""
        return [line for line in self.lines if line.get("event") == event]

    @property
    def finished(self) -> bool:
        """Whether it came to the end of its schedule."""
        return bool(self.events("done"))

    @property
    def step(self) -> int:
        """The last step of which there is a line; 0 without any."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def time(self) -> float | None:
        """When its last line was written, in seconds since 1970."""
        return max((line["time"] for line in self.lines if "time" in line), default=None)

    @cached_property
    def data_set(self) -> str | None:
        """imagenet-1k or cifar-10 if it was trained on just that, else None.

        A run on ImageNet-1k has checked this at its start; data in CIFAR-10's format are CIFAR-10
        if they have as many images.
        """
        named: str | None = self.settings["data.dataset"]
        if named != "cifar-10":
            return named
        train, test = _IMAGES[named]
        held_out = self.settings["data.held_out"] or 0
        wanted = (train - held_out, held_out or test)
        return named if self._has_images(*wanted) else None

    def _has_images(self, train: int, val: int) -> bool:
        """Whether its first validation counted `val` images and followed an epoch of `train`."""
        batch = self.settings["data.global_batch_size"]
        for line in self.events("val")[:1]:
            seen = (line["epoch"] + 1) * train
            position = int(line["position"])
            return bool(line["images"] == val) and position - batch < seen <= position
        return False

    @property
    def data_label(self) -> str:
        """What it was trained on, for people."""
        held_out = self.settings["data.held_out"]
        names = {"imagenet-1k": "ImageNet-1k", "cifar-10": "CIFAR-10"}
        if self.data_set is None:
            return str(self.settings["data.root"])
        held = f", {held_out:,} images held out" if held_out else ""
        return names[self.data_set] + held

    @cached_property
    def recipe(self) -> dict[str, str]:
        """The settings that make the experiment: runs that have them alike differ in their seed."""
        counting = set(names_of("identity", "recipe")) - set(idle_settings(self.settings))
        return {name: str(value) for name, value in self.settings.items() if name in counting}

    def is_whole(self, evaluation: Evaluation) -> bool:
        """Whether a result counts what the stated errors of its data set count."""
        named = self.data_set
        whole = named is not None and evaluation.images == _IMAGES[named][1]
        return whole and evaluation.dataset == named

    @property
    def evaluations(self) -> list[Evaluation]:
        """What it is judged by: the results of `pipeline.evaluate`, and its last validation unless
        one of them is the same."""
        last = [validation_in_training(line, self.settings) for line in self.events("val")[-1:]]
        new = [
            val
            for val in last
            if not any(
                e.is_plain and (e.step, e.images, e.crop) == (val.step, val.images, val.crop)
                for e in self.evaluated
            )
        ]
        return self.evaluated + new


def date(seconds: float | None) -> str:
    """A day as 2026-11-21; "unknown" for None."""
    return "unknown" if seconds is None else time.strftime("%Y-%m-%d", time.localtime(seconds))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, each once, by data, network and name; ValueError for what is none."""
    unique = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    return sorted(runs, key=lambda run: (run.data_label, run.network, run.name))


def find_runs(below: Path) -> list[Path]:
    """The folders below `below` that hold a run. Raises ValueError if there is none."""
    found = [run for run in run_folder.find_runs(below) if RunFolder(run).has_trained]
    if not found:
        raise ValueError(
            f"there is no run below {below}/ ({HOLDS}); train one, as with make train, or give the "
            "folders of runs"
        )
    return found


def read_run(folder: Path) -> Run:
    """The run in `folder`. A line of metrics that a kill has cut is left out with a warning.

    Raises ValueError naming the folder if it holds no run, or a file in it that cannot be read.
    """
    run = RunFolder(folder)
    if not run.has_trained:
        raise ValueError(why_no_run(run))
    lines = run.lines()
    evaluated = [read_evaluation(path) for path in run.evaluations]
    return Run(folder, run.settings(), last(lines, "start").get("versions", {}), lines, evaluated)
