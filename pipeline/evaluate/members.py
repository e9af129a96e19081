"""The networks to be tested: read from checkpoints, compared, built."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from pipeline.config import Config, ConfigError, require
from pipeline.config.effect import settings_of, without_effect
from pipeline.config.reading import overrides
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.evaluate.counting import Network
from pipeline.evaluate.protocol import ViewProtocol, pool_window
from pipeline.evaluate.views import FullyConvolutional
from pipeline.train.checkpoint import read_verified
from pipeline.train.precision import Precision
from pipeline.train.state import make_model

# What an evaluation needs of a checkpoint: not the velocity, nor every rank's own statistics.
_KEPT = (
    "model", "config", "classes", "fingerprint", "excluded", "step", "world_size", "normalisation",
)  # fmt: skip

# Settings that are about the test and not about the training.
_OF_THE_TEST = ("data.image_size", "data.val_resize", "data.local_batch_size")


@dataclass(frozen=True)
class Member:
    """A checkpoint, the settings to test it with, and those it was trained with.

    `trained` differs from what the checkpoint stores only in where the data lie and what this
    machine is.
    """

    path: Path
    content: dict[str, Any]
    config: Config
    trained: Config

    @cached_property
    def stored(self) -> Config:
        """The settings of the training as the checkpoint has them."""
        return overrides({}, (), yaml.safe_load(self.content["config"]))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return list(self.content["classes"])

    @property
    def weights(self) -> str:
        """16 hex digits over parameters and buffers: which network it is."""
        summary = hashlib.sha256()
        for name, tensor in self.content["model"].items():
            summary.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return summary.hexdigest()[:16]

    @property
    def normalisation(self) -> Normalisation:
        """What its training subtracted from pixels and divided them by."""
        state = self.content.get("normalisation")
        return IMAGENET if state is None else Normalisation.from_state(state)


def read_kept(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What is needed of each checkpoint. Raises `ValueError` for one that is damaged or missing."""
    contents = (read_verified(path) for path in paths)
    return [{name: one[name] for name in _KEPT if name in one} for one in contents]


def make_member(path: Path, content: dict[str, Any], options: Any, names: Sequence[str]) -> Member:
    """A member whose settings `names` are those that the command line `options` gave, if it did."""
    stored = yaml.safe_load(content["config"])
    of_machine = [name for name in names if name not in _OF_THE_TEST]
    return Member(
        path, content, overrides(options, names, stored), overrides(options, of_machine, stored)
    )


def require_alike(members: Sequence[Member]) -> None:
    """Raises `ConfigError`, naming both values, if scores of `members` cannot be averaged."""
    first = members[0]
    idle = without_effect(settings_of(first.config))
    for other in members[1:]:
        mine, theirs = first.classes, other.classes
        _same(first, other, f"{len(mine)} classes", f"{len(theirs)} classes")
        for label, (one, another) in enumerate(zip(mine, theirs, strict=True)):
            _same(first, other, f"{one} as class {label}", f"{another} as class {label}")
        seen = ("data.image_size", "data.val_resize", "data.dataset")
        for name in (name for name in seen if name not in idle):
            one, another = first.config.get(name), other.config.get(name)
            _same(first, other, f"{name}={one}", f"{name}={another}")
        if first.normalisation.digest != other.normalisation.digest:
            _same(first, other, _words(first.normalisation), _words(other.normalisation))


def require_unseen(members: Sequence[Member]) -> None:
    """Raises `ConfigError` if a member was trained on held-out images that the first one's settings
    test with; the last of each class are held out, so that those of fewer are among those of more.
    """
    tested = members[0].config.data.held_out or 0
    for other in members[1:]:
        held_out = other.config.data.held_out or 0
        require(
            held_out >= tested,
            f"--checkpoint: {other.path} was trained with data.held_out={held_out}, and so on "
            f"some of the {tested} images that {members[0].path} holds out; give --test-images, "
            "which none of them has seen",
        )


def _same(first: Member, other: Member, mine: str, theirs: str) -> None:
    if mine != theirs:
        raise ConfigError(
            f"--checkpoint: {other.path} has {theirs} and {first.path} has {mine}; an ensemble is "
            "of networks that see the same views and name the same classes"
        )


def _words(normalisation: Normalisation) -> str:
    mean, std = (
        ", ".join(f"{value:.2f}" for value in values)
        for values in (normalisation.mean, normalisation.std)
    )
    image = "" if normalisation.image is None else " and a mean image"
    return f"pixels normalised by [{mean}] / [{std}]{image} ({normalisation.digest})"


def build(member: Member, device: torch.device, protocol: ViewProtocol) -> Network:
    """The network with its weights, in eval mode, for the views of `protocol`."""
    model: nn.Module = make_model(member.config, len(member.classes), device)
    model.load_state_dict(member.content["model"])
    if protocol.fully_convolutional:
        model = FullyConvolutional(model, pool_window(member.config))
    return Network(model.eval(), Precision(member.config.optim.amp, device))


def with_test_images(config: Config) -> Config:
    """`config` with the archive's test images in the place of the held-out training images.

    Raises `ConfigError` if no training images are held out.
    """
    require(
        config.data.held_out is not None,
        f"--test-images is for runs that hold out training images of cifar-10; this one has "
        f"data.dataset={config.data.dataset or 'null'} and data.held_out=null; leave --test-images "
        "out",
    )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=None))
