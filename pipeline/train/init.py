"""Weights with which a new run begins (`--init`), and what of them belongs to its identity.

The body comes as it is, BN's running statistics with it. Of the last layer a class keeps its row
where the file has a class of the same name; a row without one is that of a fresh network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config import Config, ConfigError, ModelConfig
from pipeline.config.setting import shown
from pipeline.config.training import Family
from pipeline.data.index.survey import name_few
from pipeline.data.normalisation import Normalisation
from pipeline.model.network import Network, network_facts, network_name, resnet, shortcut_of
from pipeline.train.checkpoint_path import best_if_run
from pipeline.train.trainer import Trainer
from pipeline.train.weights import (
    Weights,
    bytes_of,
    differences,
    read_weights_or_checkpoint,
    require_finite,
)

NAME, DIGEST = "initial weights", "sha256 of the initial weights"
"""The facts by which a run's fingerprint knows the file."""

_HEAD = ("fc.weight", "fc.bias")

log = logging.getLogger("trainyard")


@dataclass(frozen=True)
class Head:
    """Which rows of a file's last layer serve: `kept` has the file's row by ours. `reason` says in
    words why the others are drawn anew, or why rows without names serve."""

    kept: Mapping[int, int] = field(default_factory=dict)
    reason: str = ""

    def told(self, classes: Sequence[str]) -> str:
        """How many of our classes keep their row, for the log."""
        kept = [name for label, name in enumerate(classes) if label in self.kept]
        drawn = [name for label, name in enumerate(classes) if label not in self.kept]
        words = f"{len(kept)} of {len(classes)} classes keep their row"
        words += f" ({name_few(kept)})" if kept else ""
        words += f", {len(drawn)} are drawn anew" if drawn else ""
        words += f" ({name_few(drawn)})" if drawn else ""
        return words + (f": {self.reason}" if self.reason else "")


def begin(trainer: Trainer) -> None:
    """Collective. Gives the model of a new run the weights of `--init` on every rank, and its
    identity their file; without `--init` nothing."""
    if trainer.config.init is None:
        return
    given, classes = Path(trainer.config.init), trainer.train_set.classes

    def found() -> dict[str, Any]:
        path = best_if_run("--init", given)
        found = _read(path)
        _warn_of_other_pixels(path, found, trainer.decode.normalisation)
        drawn = trainer.state.model.state_dict()
        weights, head = fitted(path, found, trainer.config.model, drawn, classes)
        log.info("weights: from %s%s (sha256 %s)", path, found.kind, found.sha256)
        log.info("head: %s", head.told(classes))
        return {"weights": weights, "facts": {NAME: path.name, DIGEST: found.sha256}}

    content = trainer.world.on_rank0(found)
    trainer.state.model.load_state_dict(content["weights"], strict=False)
    trainer.fingerprint |= content["facts"]


def facts_in(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """The facts about the initial weights that a run's fingerprint has, if it began with some."""
    return {name: fingerprint[name] for name in (NAME, DIGEST) if name in fingerprint}


def start_facts(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """The same for the `start` event."""
    found = facts_in(fingerprint)
    return {"init": found[NAME], "init_sha256": found[DIGEST]} if found else {}


def warn_of_drawn_weights(config: Config) -> None:
    """Warns of settings that are meant for a run with `--init`, in a run without."""
    found = {"model.freeze": config.model.freeze, "optim.head_lr": config.optim.head_lr}
    settings = " and ".join(f"{name}={shown(value)}" for name, value in found.items() if value)
    if settings:
        log.warning(
            "warning: %s: meant for weights that are trained already, and all of this run were "
            "drawn by run.seed; begin another run with --init FILE, or leave this out",
            settings,
        )


def require_same_start(path: Path, stored: Mapping[str, Any], init: str | None) -> None:
    """Raises `ValueError` if checkpoint `path`, whose fingerprint is `stored`, is of a run that
    began otherwise than with the weights `init`. The file itself need not be there any more."""
    if init is None:
        return
    found = facts_in(stored)
    if not found:
        raise ValueError(
            f"checkpoint {path} is of a run that began without --init, and --init {init} is given; "
            "leave it out, or choose another run.name"
        )
    try:
        file = best_if_run("--init", Path(init))
    except ConfigError:  # a run whose best checkpoint is gone
        file = Path(init)
    if not file.is_file():
        log.info("--init %s is not there, and a run that resumes does not need it", init)
        return
    digest = hashlib.sha256(bytes_of(file, "--init")).hexdigest()
    if digest != found[DIGEST]:
        raise ValueError(
            f"checkpoint {path} is of a run that began with {found[NAME]} of sha256 "
            f"{found[DIGEST]}, and --init {file} has {digest}; leave it out, or choose another "
            "run.name"
        )


def _read(path: Path) -> Weights:
    if not path.is_file():
        wrong = "is not a file" if path.exists() else "does not exist"
        raise ValueError(
            f"--init {path} {wrong}; give the path of a file of weights, such as resnet50.pth, or "
            "the folder of a run, for its best checkpoint"
        )
    return read_weights_or_checkpoint(path, "--init")


def fitted(
    path: Path, found: Weights, model: ModelConfig, drawn: Mapping[str, Tensor],
    classes: Sequence[str],
) -> tuple[dict[str, Tensor], Head]:  # fmt: skip
    """What a network of `classes` and of the weights `drawn` takes from a file, and its head.

    Raises `ValueError` if the weights are those of another network, or not finite.
    """
    _require_network(path, found, model)
    tensors = {name: tensor.detach() for name, tensor in found.tensors.items()}
    body = {name: tensor for name, tensor in tensors.items() if name not in _HEAD}
    wanted = {name: tensor for name, tensor in drawn.items() if name not in _HEAD}
    if told := differences(body, wanted):
        raise ValueError(
            f"--init {path} does not hold the weights of a {network_name(model)}: {told}; set "
            "model as they were trained, or give others"
        )
    require_finite(tensors, f"--init {path}: its weights")
    head = _head(path, found, drawn["fc.weight"].shape[1], classes)
    for name in (name for name in _HEAD if name in tensors):
        rows = drawn[name].detach().cpu().clone()
        for own, theirs in head.kept.items():
            rows[own] = tensors[name][theirs]
        body[name] = rows
    return body, head


def _head(path: Path, found: Weights, features: int, classes: Sequence[str]) -> Head:
    if "fc.weight" not in found.tensors:
        return Head(reason="the file has no last layer")
    shapes = [tuple(found.tensors[name].shape) for name in _HEAD if name in found.tensors]
    width = shapes[0][0] if shapes[0] else 0
    if shapes not in ([(width, features)], [(width, features), (width,)]):
        raise ValueError(
            f"--init {path} has a last layer of shape {shapes[0]}, which must be ({width}, "
            f"{features}), with a bias for each row; give weights of the same network"
        )
    names = None if found.description is None else found.description.classes
    if names is None:
        if width == len(classes):
            rows = {label: label for label in range(width)}
            return Head(
                rows, f"the file has as many without names, taken to be in this order; {_CURE}"
            )
        return Head(
            reason=f"the file has {width} classes without names, here are {len(classes)}; {_CURE}"
        )
    if len(names) != width:
        raise ValueError(
            f"--init {path} names {len(names)} classes and its last layer has {width}; give the "
            "file and its .json as they were written"
        )
    theirs = {name: row for row, name in enumerate(names)}
    return Head({label: theirs[name] for label, name in enumerate(classes) if name in theirs})


_CURE = (
    "python -m pipeline.export --weights FILE --classes NAMES makes a checkpoint that names them"
)


def _require_network(path: Path, found: Weights, model: ModelConfig) -> None:
    """Raises `ValueError` naming both networks if the file's is another one."""
    if found.description is not None:
        there, name = found.description.network, found.description.name
        if all(there.get(n) == value for n, value in network_facts(model).items()):
            return
        here = {n: getattr(model, n, None) for n in there} | {"shortcut": shortcut_of(model)}
        settings = {n: value for n, value in there.items() if here[n] != value}
    else:
        guessed = network_in(found.tensors)
        if guessed is None or (guessed.family, guessed.depth) == (model.family, model.depth):
            return  # names and shapes say the rest
        name = guessed.label
        settings = {"family": guessed.family, "depth": guessed.depth}
        settings = {n: value for n, value in settings.items() if getattr(model, n) != value}
        settings = settings if _can_be(model, settings) else {}
    cure = " and ".join(f"model.{n}={shown(value)}" for n, value in settings.items())
    raise ValueError(
        f"--init {path} holds the weights of a {name}, and the network is a {network_name(model)}; "
        f"{f'set {cure}, or ' if cure else ''}give weights of a {network_name(model)}"
    )


def _can_be(model: ModelConfig, settings: Mapping[str, Any]) -> bool:
    """Whether there is such a network here: others have ResNets of 14, 26 or 200 layers."""
    try:
        dataclasses.replace(model, **settings)
    except ConfigError:
        return False
    return True


def network_in(tensors: Mapping[str, Tensor]) -> Network | None:
    """The residual network whose names and shapes `tensors` have, as far as these tell: a v1 looks
    like a v1.5. None if they are of no such network."""
    stem = tensors.get("conv1.weight")
    blocks = {tuple(name.split(".")[:2]) for name in tensors if name.startswith("layer")}
    if stem is None or stem.ndim != 4 or ("layer1", "0") not in blocks:
        return None
    convolutions = 3 if "layer1.0.conv3.weight" in tensors else 2
    depth = len(blocks) * convolutions + 2
    shortcut = "B" if any(".downsample.0." in name for name in tensors) else "A"
    family: Family = "cifar" if stem.shape[2:] == (3, 3) else "imagenet"
    return resnet(depth, shortcut, "v1.5", family)


def _warn_of_other_pixels(path: Path, found: Weights, here: Normalisation) -> None:
    if found.description is None or found.description.normalisation.digest == here.digest:
        return
    log.warning(
        "warning: the weights of %s were trained on pixels with other means and deviations; set "
        "data.mean as it was there, or expect the first steps to adapt to this",
        path,
    )
