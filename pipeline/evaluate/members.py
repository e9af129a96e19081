"""The networks to be tested: read from checkpoints, compared, built, their scores averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import Config, names_for, require, settings
from pipeline.config.data import VIEW_SIDES
from pipeline.config.idle import idle_settings
from pipeline.data.dali import Batch
from pipeline.evaluate.protocol import ViewProtocol, pool_window
from pipeline.ranks.world import World
from pipeline.train.checkpoint import Trained
from pipeline.train.precision import Precision
from pipeline.train.validation import Scored, logits_of

Network = Callable[[Tensor], Tensor]
"""Maps images (B, 3, H, W), channels-last, to logits (B, classes) float32."""


@dataclass(frozen=True)
class Member:
    """A network, the settings to test it with, and those it was trained with.

    `as_trained` differs from the stored settings only in the place of the data and in what depends
    on this machine.
    """

    trained: Trained
    config: Config
    as_trained: Config

    @property
    def path(self) -> Path:
        """Of its checkpoint."""
        return self.trained.path


def make_member(trained: Trained, options: Any) -> Member:
    """A member whose settings are overridden by those in the command line `options`."""
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
    apart = {*idle, *VIEW_SIDES}
    views = [name for name, said in settings().items() if said.of_view and name not in apart]
    side = first.config.data.shown_view_size.partition("=")[0]
    for other in members[1:]:
        facts = (_facts(one, side, views) for one in (first, other))  # classes are first
        pairs = zip(*facts, strict=False)
        for mine, theirs in pairs:
            require(
                mine == theirs,
                f"--checkpoint: {other.path} has {theirs} and {first.path} has {mine}; an ensemble "
                "is of networks that see the same views and name the same classes",
            )


def _facts(member: Member, side: str, views: Sequence[str]) -> list[str]:
    """The common properties of an ensemble's members, in words: classes, the `side` of a view,
    `views` and normalisation."""
    config = member.config
    classes, normal = member.trained.classes, member.trained.normalisation
    mean, std = (", ".join(f"{value:.2f}" for value in v) for v in (normal.mean, normal.std))
    image = "" if normal.image is None else " and a mean image"
    return [
        f"{len(classes)} classes",
        *(f"{name} as class {label}" for label, name in enumerate(classes)),
        f"{side}={config.data.view_size}",
        *(f"{name}={config.get(name)}" for name in (*views, "data.dataset")),
        f"pixels normalised by [{mean}] / [{std}]{image} ({normal.digest})",
    ]


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


class FullyConvolutional(nn.Module):
    """A network's classifier as a 1x1 convolution over its feature map, pooled at the end.

    Each cell of the score map is the dense network's output for one window of `window` x `window`
    cells of the feature map (7 at 224 pixels): average pooling with stride 1, then `fc` as a 1x1
    convolution. The image's score is the mean over cells. On an image of the training's size there
    is one cell, and the scores are the dense network's.

    The parameters are those of `network`, shared.
    """

    def __init__(self, network: nn.Module, window: int) -> None:
        """`network` has `features` and `fc`, as `pipeline.model.network.build_network` makes it."""
        super().__init__()
        self.network = network
        self.window = window

    def score_map(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> the scores of every window, (N, classes, h, w).

        The feature map must hold a window: `protocol.smallest_scale` says from which side on.
        """
        classifier = cast(nn.Linear, self.network.fc)
        maps = cast(Tensor, self.network.features(images))  # type: ignore[operator]  # a method
        pooled = F.avg_pool2d(maps, self.window, stride=1)
        return F.conv2d(pooled, classifier.weight[:, :, None, None], classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> logits (N, classes)."""
        return self.score_map(images).mean(dim=(2, 3))


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
