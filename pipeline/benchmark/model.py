"""`benchmark model`: what the model of a configuration reaches when nothing waits for data.

The phases of the program's own steps that are the model's: forward and loss, backward, optimizer.
What the loop adds around them is `benchmark step`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from pipeline.benchmark.configured import ModelOptions
from pipeline.benchmark.resident import Training, resident_training
from pipeline.benchmark.result import Result, Spread, interleave
from pipeline.config import Config
from pipeline.model.network import network_name
from pipeline.ranks.places import choose_device, own_share, set_threads
from pipeline.ranks.world import World

PHASES = ("forward", "backward", "optimizer")
_LR = 1e-3
_IMAGENET_CLASSES, _CIFAR_CLASSES = 1000, 10


class ModelStep:
    """Rounds of a training's own steps, of which the phases of the model count."""

    def __init__(self, training: Training, images: int, round_sec: float) -> None:
        """`images` in each step; a round takes `round_sec`. Takes a few steps."""
        self._training, self._images = training, images
        self._rounds: list[dict[str, float]] = []
        self.steps = 2
        self.images_per_sec()  # memory, algorithms, compilation
        step_sec = images / self.images_per_sec()
        self.steps = max(1, round(round_sec / step_sec))
        self._rounds.clear()

    def images_per_sec(self) -> float:
        """One round; keeps the seconds per step of its phases too."""
        found = self._training.phase_seconds(self.steps)
        self._rounds.append({phase: found[phase] / self.steps for phase in PHASES})
        return self._images / sum(self._rounds[-1].values())

    def spreads(self) -> dict[str, Spread]:
        """Seconds of a step's phases, by round: forward with the loss, backward, optimizer."""
        return {
            f"{phase}_sec": Spread(tuple(found[phase] for found in self._rounds))
            for phase in PHASES
        }


def run(options: ModelOptions) -> Result:
    """Images per second of one rank, seconds of the phases, and their shares as ratios.

    Raises `ValueError` for a device or a norm backend that is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        training = one_rank_training(options, Path(folder))
        step = ModelStep(training, options.images, options.round_sec)
        speeds = interleave(options.rounds, {"model_images_per_sec": step.images_per_sec})
    result = Result("model", options.settings() | {"device": str(training.device)})
    result.figures = describe(options, training) | {"steps_per_round": step.steps}
    result.spreads = speeds | step.spreads()
    result.ratios = shares(step)
    result.table = [("", "img/s or ms", "quartiles", "share"), *rows(result)]
    return result


def one_rank_training(options: ModelOptions, folder: Path) -> Training:
    """The configuration's training for one rank on this machine without its data; files in
    `folder`.

    A step of it has no more than one micro-batch, and it writes no checkpoints.
    """
    world, config = World(), options.config
    share = own_share(world)
    set_threads(config, share)
    device = choose_device(config.run.device, share.gpu)
    data = dataclasses.replace(
        config.data, local_batch_size=options.images, global_batch_size=options.images,
        decode="auto", mean="imagenet",
    )  # fmt: skip
    run_ = dataclasses.replace(
        config.run, dir=str(folder), checkpoint_every_steps=None, checkpoint_every_sec=None
    )
    alone = dataclasses.replace(config, data=data, run=run_)
    # Labels and pixels are noise: a rate that keeps every loss finite.
    alone = dataclasses.replace(alone, optim=dataclasses.replace(config.optim, base_lr=_LR))
    return resident_training(alone, world, device, folder, classes=_classes(config))


def describe(options: ModelOptions, training: Training) -> dict[str, str | int]:
    """What was run, for the table's end and the JSON."""
    threads = torch.get_num_threads()
    place = (
        str(training.device)
        if training.device.type == "cuda"
        else f"{threads} thread{'s' if threads > 1 else ''}"
    )
    config = options.config
    what = (
        f"{network_name(config.model)}, {options.images} images of {config.data.image_size} px a "
        f"step, AMP {config.optim.amp}, {place}"
    )
    return {"measured": what, "images_per_step": options.images}


def shares(step: ModelStep) -> dict[str, Spread | float]:
    """`<phase>_of_step` of each phase, by round."""
    spreads = list(step.spreads().values())
    totals = [sum(found) for found in zip(*(one.rounds for one in spreads), strict=True)]
    return {
        f"{phase}_of_step": Spread(tuple(a / b for a, b in zip(spread.rounds, totals, strict=True)))
        for phase, spread in zip(PHASES, spreads, strict=True)
    }


def rows(result: Result) -> list[tuple[str, ...]]:
    """The model's rows of a table: its speed, then the phases in ms with their shares."""
    low, middle, high = result.spreads["model_images_per_sec"].quartiles
    found: list[tuple[str, ...]] = [("model", f"{middle:.4g}", f"{low:.4g} .. {high:.4g}", "")]
    for phase in PHASES:
        low, middle, high = result.spreads[f"{phase}_sec"].quartiles
        share = result.ratio_value(f"{phase}_of_step")
        ms = f"{middle * 1e3:.4g} ms"
        found.append((f"  {phase}", ms, f"{low * 1e3:.4g} .. {high * 1e3:.4g}", f"{share:.1%}"))
    return found


def speed_row(name: str, speed: Spread) -> tuple[str, ...]:
    """A row of a table with img/s: median and quartiles."""
    low, middle, high = (f"{one:.4g}" if one < 1e4 else f"{one:.0f}" for one in speed.quartiles)
    return name, middle, f"{low} .. {high}", ""


def _classes(config: Config) -> int:
    return _CIFAR_CLASSES if config.model.family == "cifar" else _IMAGENET_CLASSES
