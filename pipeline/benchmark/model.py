"""`benchmark model`: the speed of a configuration's model when nothing waits for data.

Times the model's phases of the program's own steps: forward and loss, backward, optimizer.
`benchmark step` measures what the loop adds around them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from pipeline.benchmark.options import ModelOptions
from pipeline.benchmark.resident import Training, resident_training
from pipeline.benchmark.result import Result, by_round, interleave, ratio
from pipeline.model.network import network_name
from pipeline.ranks.places import own_share, take_share
from pipeline.ranks.world import World
from pipeline.system.console import counted

PHASES = ("forward", "backward", "optimizer")
HEAD = ("", "img/s or ms", "quartiles", "share")
_LR = 1e-3
_CLASSES = {"imagenet": 1000, "cifar": 10}


class ModelStep:
    """Rounds of a training's own steps, of which the model's phases count."""

    def __init__(self, training: Training, images: int, round_sec: float) -> None:
        """`images` in each step; a round takes `round_sec`. Takes a few steps."""
        self._training, self._images = training, images
        self.steps = 2
        self.measure()  # memory, algorithms, compilation
        step_sec = images / self.measure()["model_images_per_sec"]
        self.steps = max(1, round(round_sec / step_sec))

    def measure(self) -> dict[str, float]:
        """One round: images per second, and seconds of each phase in a step."""
        found = self._training.phase_seconds(self.steps)
        phases = {f"{phase}_sec": found[phase] / self.steps for phase in PHASES}
        return {"model_images_per_sec": self._images / sum(phases.values()), **phases}


def run(options: ModelOptions) -> Result:
    """Images per second of one rank, seconds of the phases, and their shares as ratios.

    Raises `ValueError` for a device or a norm backend that is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        training = one_rank_training(options, Path(folder))
        step = ModelStep(training, options.images, options.round_sec)
        spreads = interleave(options.rounds, {"model": step.measure})
    settings = dataclasses.asdict(options) | {"device": str(training.device)}
    result = Result("model", settings, spreads=spreads, table=[HEAD])
    result.figures = describe(options, training) | {"steps_per_round": step.steps}
    add_phases(result)
    return result


def one_rank_training(options: ModelOptions, folder: Path) -> Training:
    """The configuration's training for one rank on this machine, without its data; files go to
    `folder`.

    Its steps have at most one micro-batch, and it writes no checkpoints.
    """
    world, config = World(), options.config
    share = own_share(world)
    device = take_share(config, share)
    data = dataclasses.replace(
        config.data, local_batch_size=options.images, global_batch_size=options.images,
        decode="auto", mean="imagenet",
    )  # fmt: skip
    run_ = dataclasses.replace(
        config.run, dir=str(folder), checkpoint_every_steps=None, checkpoint_every_sec=None
    )
    # Labels and pixels are noise: a rate that keeps every loss finite, and no class has a weight.
    optim = dataclasses.replace(config.optim, base_lr=_LR, class_weights="none")
    alone = dataclasses.replace(config, data=data, run=run_, optim=optim)
    return resident_training(alone, world, device, classes=_CLASSES[config.model.family])


def describe(options: ModelOptions, training: Training) -> dict[str, str | int]:
    """The settings that were run, for the end of the table and the JSON."""
    on_gpu = training.device.type == "cuda"
    place = str(training.device) if on_gpu else counted(torch.get_num_threads(), "thread")
    config = options.config
    what = (
        f"{network_name(config.model)}, {options.images} images of {config.data.image_size} px a "
        f"step, AMP {config.optim.amp}, {place}"
    )
    return {"measured": what, "images_per_step": options.images}


def add_phases(result: Result) -> None:
    """Adds to `result`, which has the rounds of `ModelStep`, the ratios `<phase>_of_step`, and the
    model's rows of the table: its speed, then the phases in ms with their shares."""
    spreads = {phase: result.spreads[f"{phase}_sec"] for phase in PHASES}
    step = by_round(lambda *phases: sum(phases), *spreads.values())
    result.table.append(("model", *result.spreads["model_images_per_sec"].cells(), ""))
    for phase, spread in spreads.items():
        share = ratio(spread, step)
        result.ratios[f"{phase}_of_step"] = share
        result.table.append((f"  {phase}", *spread.cells(1e3, " ms"), f"{share.median:.1%}"))
