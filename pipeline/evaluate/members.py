"""The networks to be tested: read from checkpoints, compared, built, their scores averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import Config, ConfigError, names_for, require, settings
from pipeline.config.idle import idle_settings
from pipeline.data.dali import Batch
from pipeline.data.normalisation import Normalisation
from pipeline.evaluate.protocol import ViewProtocol, pool_window
from pipeline.evaluate.views import FullyConvolutional
from pipeline.ranks.world import World
from pipeline.train.checkpoint import Trained
from pipeline.train.precision import Precision
from pipeline.train.validation import Scored, logits_of

Network = Callable[[Tensor], Tensor]
"""Maps images (B, 3, H, W), channels-last, to logits (B, classes) float32."""


@dataclass(frozen=True)
class Member:
    """A network, the settings to test it with, and those it was trained with.

    `as_trained` differs from what the checkpoint stores only in where the data lie and what this
    machine is.
    """

    trained: Trained
    config: Config
    as_trained: Config

    @property
    def path(self) -> Path:
        """Of its checkpoint."""
        return self.trained.path


def make_member(trained: Trained, options: Any) -> Member:
    """A member with the settings that the command line `options` gave in place of its own."""
    names = names_for("evaluate")
    # The local batch is one too: a training of another size normalised over other images.
    of_test = {name for name, said in settings().items() if said.of_view}
    of_machine = [name for name in names if name not in of_test | {"data.local_batch_size"}]
    return Member(
        trained, trained.configured(options, names), trained.configured(options, of_machine)
    )


def require_alike(members: Sequence[Member]) -> None:
    """Raises `ConfigError`, naming both values, if scores of `members` cannot be averaged."""
    first = members[0]
    idle = idle_settings(first.config.values())
    for other in members[1:]:
        mine, theirs = first.trained.classes, other.trained.classes
        _same(first, other, f"{len(mine)} classes", f"{len(theirs)} classes")
        for label, (one, another) in enumerate(zip(mine, theirs, strict=True)):
            _same(first, other, f"{one} as class {label}", f"{another} as class {label}")
        seen = [name for name, said in settings().items() if said.of_view and name not in idle]
        for name in [*seen, "data.dataset"]:
            one, another = first.config.get(name), other.config.get(name)
            _same(first, other, f"{name}={one}", f"{name}={another}")
        normal, others = first.trained.normalisation, other.trained.normalisation
        if normal.digest != others.digest:
            _same(first, other, _words(normal), _words(others))


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
    model: nn.Module = member.trained.build(device, member.config)
    if protocol.fully_convolutional:
        model = FullyConvolutional(model, pool_window(member.config)).eval()
    return partial(logits_of, model, Precision(member.config.optim.amp, device))


def scored(
    networks: Sequence[Network], loader: Iterable[Batch], views: int, world: World
) -> Iterator[Scored]:
    """This rank's images with their scores, for `validation.count`.

    `loader` gives each chunk of images `views` times in a row, once for each view. An image's score
    is the mean over views and networks of softmax probabilities, in float64. A single view of a
    single network is ranked by its logits, which is what training's validation does.
    """
    summed: Tensor | None = None
    for number, batch in enumerate(loader):
        world.heartbeat.beat("evaluate")
        logits = [network(batch.images) for network in networks]
        if views * len(networks) == 1:
            yield batch, logits[0], F.log_softmax(logits[0], dim=1)
            continue
        for one in logits:
            probabilities = one.double().softmax(dim=1)
            summed = probabilities if summed is None else summed + probabilities
        if (number + 1) % views == 0:
            assert summed is not None
            mean = summed / (views * len(networks))
            # The labels of the last view: an image may have turned out to be unreadable by then.
            yield batch, mean, mean.log()
            summed = None


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
