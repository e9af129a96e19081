"""`benchmark demo`: whole calls of pipeline.train, as users make them, against a plain script.

Both train the same network on the same files with equal batch, precision, rates and epochs, on as
many ranks of this machine; `plain_script.py` is what one writes without this program. This program
also validates and saves after each epoch; the script validates once. Calls take turns. Ranks are
started without horovodrun and torchrun, whose own seconds are in neither side.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.benchmark.options import ENGINES, chosen
from pipeline.benchmark.plain_script import Task
from pipeline.benchmark.processes import environment, installed_engines, pick_kind
from pipeline.benchmark.rank_options import DemoOptions
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.config import Config, ConfigError, later_defaults, plain, require
from pipeline.config.idle import idle_settings
from pipeline.config.reading import config_of, read_yaml
from pipeline.config.setting import shown
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare import demo
from pipeline.prepare import options as prepare
from pipeline.ranks.local import start_ranks
from pipeline.system.console import say
from pipeline.system.failure import TrainingError
from pipeline.system.launched import Engine
from pipeline.system.machine import available_cores
from pipeline.train.folder import RunFolder, find_runs
from pipeline.train.schedule import NOTHING_YET, make_schedule

_LAST_LINES = 15
_FIGURES = ("images_per_sec", "call_sec", "top1")


def run(options: DemoOptions) -> Result:
    """Images per second of the training steps, seconds of the whole call and top-1 of each side.

    Ratios: `demo_vs_plain_images_per_sec`, and `demo_vs_plain_whole_call`, seconds over seconds.
    Those of further engines end in their names. Raises `ConfigError` for a configuration that the
    script does not know, and `TrainingError` if a call fails.
    """
    pick_kind("cpu", options.ranks)
    engines = chosen(options.engines, ENGINES) if options.engines else installed_engines()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = _data(options, folder)
        sides: dict[str, Call] = {"plain": PlainCall(options, data, folder)}
        for engine in engines:
            sides[f"demo_{engine}"] = DemoCall(options, data, folder, engine)
        spreads = interleave(
            options.rounds,
            {name: _named(name, call) for name, call in sides.items()},
        )
    result = Result("demo", {**vars(options), "device": "cpu"}, spreads=spreads)
    for engine in engines:
        suffix = "" if engine == engines[0] else f"_{engine}"
        for name, key in (("images_per_sec", "images_per_sec"), ("whole_call", "call_sec")):
            pair = (spreads[f"demo_{engine}_{key}"], spreads[f"plain_{key}"])
            result.ratios[f"demo_vs_plain_{name}{suffix}"] = ratio(*pair)
    result.figures["measured"] = f"the demo of the ratios ran over {engines[0]}"
    result.table = _table(spreads, list(sides))
    return result


def shortened(config: Config, epochs: float) -> Config:
    """The same training in `epochs`: its warm-up and its drops keep their places in it."""
    schedule = config.schedule
    share = epochs / (schedule.epochs or epochs)
    drops = tuple(share * drop for drop in schedule.drop_epochs or ())
    shorter = dataclasses.replace(
        schedule, epochs=epochs, warmup_epochs=share * schedule.warmup_epochs, drop_epochs=drops
    )
    return dataclasses.replace(config, schedule=shorter)


class Call(ABC):
    """A side: a command that trains, measured from its start to the end of all ranks."""

    def __init__(self, options: DemoOptions, data: Path, folder: Path, engine: Engine) -> None:
        self._options, self._data, self._folder, self._engine = options, data, folder, engine
        self._config = config_of(read_yaml(options.training))
        _require_plain(self._config, options)
        self._calls = 0

    def measure(self) -> dict[str, float]:
        """A call, each with another seed. The first, which warms up, trains a single epoch."""
        epochs = 1 if self._calls == 0 else self._options.epochs or self._config.schedule.epochs
        assert epochs is not None, "_require_plain has seen to it"
        place = self._folder / f"{type(self).__name__}-{self._engine}-{self._calls}"
        place.mkdir()
        config = shortened(self._config, epochs)
        command = self._command(config, place, seed=self._calls)
        self._calls += 1
        sec = self._time(command, place / "said")
        return {"call_sec": sec, **self._found(place)}

    def _time(self, command: Sequence[str], said: Path) -> float:
        started = time.perf_counter()
        with open(said, "w", encoding="utf-8") as output:
            ranks = start_ranks(
                [sys.executable, *command], self._options.ranks, environment(), self._engine,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            with ranks:
                codes = [process.wait() for process in ranks.processes]
        sec = time.perf_counter() - started
        if any(codes):
            lines = said.read_text("utf-8", "replace").splitlines()
            say(*lines[-_LAST_LINES:], stream=sys.stderr)
            raise TrainingError(f"a call of {command[1]} failed; its last lines are above")
        return sec

    @abstractmethod
    def _command(self, config: Config, place: Path, seed: int) -> list[str]:
        """What every rank runs, after the name of Python; it writes into `place`."""

    @abstractmethod
    def _found(self, place: Path) -> dict[str, float]:
        """The speed and the accuracy that a call left in `place`."""


class DemoCall(Call):
    """`python -m pipeline.train`, with validations and checkpoints as it is used."""

    def _command(self, config: Config, place: Path, seed: int) -> list[str]:
        drops = list(config.schedule.drop_epochs or ())
        settings = {
            "config": self._options.training,
            "data.root": self._data.resolve(),
            "data.local_batch_size": config.data.global_batch_size // self._options.ranks,
            "schedule.epochs": config.schedule.epochs,
            "schedule.warmup_epochs": config.schedule.warmup_epochs,
            "schedule.drop_epochs": drops,
            "run.dir": place,
            "run.seed": seed,
            "run.device": "cpu",
        }
        return ["-m", "pipeline.train", *(f"--{name}={value}" for name, value in settings.items())]

    def _found(self, place: Path) -> dict[str, float]:
        (found,) = find_runs(place)
        lines = [line for line in RunFolder(found).lines() if line["event"] in ("train", "done")]
        return {"images_per_sec": mean_speed(lines[:-1]), "top1": lines[-1]["top1"]}


class PlainCall(Call):
    """`plain_script.py`."""

    def __init__(self, options: DemoOptions, data: Path, folder: Path) -> None:
        super().__init__(options, data, folder, "torch")
        self._images = len(open_manifest(data, "train", folder / "cache"))

    def _command(self, config: Config, place: Path, seed: int) -> list[str]:
        data, optim = config.data, config.optim
        schedule = make_schedule(config, self._images)
        batch, epochs = data.global_batch_size, round(config.schedule.epochs or 0)
        positions = [
            epoch * self._images + first
            for epoch in range(epochs)
            for first in range(0, self._images, batch)
        ]
        task = Task(
            data=str(self._data), epochs=epochs, images=batch // self._options.ranks,
            size=data.image_size, area=data.area, val_resize=data.val_resize,
            model=dataclasses.asdict(config.model), amp=optim.amp,
            label_smoothing=optim.label_smoothing, momentum=optim.momentum,
            weight_decay=optim.weight_decay, decay_norm_and_bias=optim.decay_norm_and_bias,
            lr=[schedule.lr(position, NOTHING_YET) for position in positions], seed=seed,
            threads=max(1, available_cores() // self._options.ranks),
            workers=self._options.workers, log_every_steps=config.run.log_every_steps,
        )  # fmt: skip
        result = str(place / "result.json")
        words = json.dumps(dataclasses.asdict(task))
        return ["-m", "pipeline.benchmark.plain_script", words, result]

    def _found(self, place: Path) -> dict[str, float]:
        found: dict[str, float] = json.loads((place / "result.json").read_text(encoding="utf-8"))
        return found


def mean_speed(lines: Sequence[Mapping[str, Any]]) -> float:
    """Images per second over all lines of metrics, which are of different lengths."""
    position, sec = 0, 0.0
    for line in lines:
        sec += (line["position"] - position) / line["images_per_sec"]
        position = line["position"]
    return position / sec


def _named(name: str, call: Call) -> Any:
    return lambda: {f"{name}_{key}": value for key, value in call.measure().items()}


def _data(options: DemoOptions, folder: Path) -> Path:
    if options.data is not None:
        return Path(options.data)
    root = folder / "data"
    demo.draw_demo(prepare.DemoOptions(out=root))
    return root


def _require_plain(config: Config, options: DemoOptions) -> None:
    """Raises `ConfigError` unless the script can train as `config` says."""
    data, schedule = config.data, config.schedule
    for name, value, known in (
        ("data.dataset", data.dataset, None),
        ("data.train_crop", data.train_crop, "random_resized_crop"),
        ("data.flip", data.flip, True),
        ("data.color_std", data.color_std, None),
        ("data.mean", data.mean, "imagenet"),
        ("schedule.rule", schedule.rule, "steps"),
        *_later(config),
        ("schedule.steps", schedule.steps, None),
        ("schedule.drop_steps", schedule.drop_steps, None),
    ):
        if value != known:
            raise ConfigError(
                f"--config={options.training} has {name}={shown(value)}, and the plain script "
                f"knows only {shown(known)}; choose another configuration"
            )
    require(
        data.global_batch_size % options.ranks == 0,
        f"--ranks={options.ranks} must divide data.global_batch_size={data.global_batch_size} of "
        f"--config={options.training}",
    )


def _later(config: Config) -> list[tuple[str, Any, Any]]:
    """Settings that came after the script, of which it knows none: name, value and default."""
    idle = idle_settings(config.values())
    return [
        (name, plain(config.get(name)), default)
        for name, default in later_defaults().items()
        if name not in idle
    ]


def _table(spreads: dict[str, Spread], sides: list[str]) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = [
        ("", "img/s", "quartiles", "whole call s", "quartiles", "top-1", "quartiles")
    ]
    for side in sides:
        cells = [cell for key in _FIGURES for cell in spreads[f"{side}_{key}"].cells()]
        table.append((side, *cells))
    return table
