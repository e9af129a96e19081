"""The test protocols of the paper (section 3.4) and the options valid for each.

Imports nothing heavy, so that a wrong option is answered before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import Config, require
from pipeline.config.training import Weights

if TYPE_CHECKING:
    from pipeline.data.crops import Planner


Name = Literal["1-crop", "10-crop", "multi-scale"]
BnImages = int | Literal["all"] | None
"""Training images over which BN's statistics are recomputed; None: those of the training."""

PAPER_SCALES = (224, 256, 384, 480, 640)
"""Shorter sides in pixels over which the paper averages its scores."""

STRIDES = {"imagenet": 32, "cifar": 4}
"""Pixels of the image to one cell a side of the last feature map, by model.family."""


@dataclass(frozen=True)
class ViewProtocol:
    """The views of a test image that are averaged.

    `scales` are the shorter sides in pixels of multi-scale, empty for crops; `mirror` adds the
    mirrored image at each of them.
    """

    name: Name = "1-crop"
    scales: tuple[int, ...] = ()
    mirror: bool = False

    @property
    def fully_convolutional(self) -> bool:
        """Whether views are whole images, of any shape."""
        return self.name == "multi-scale"

    def views(self, config: Config) -> tuple[Planner, ...]:
        """The views, in the order in which they are drawn."""
        from pipeline.data.crops import PLACES, Crop, WholeImage

        size, resize = config.data.view_size, config.data.val_resize
        if self.name == "1-crop":
            return (Crop(size, resize),)
        if self.name == "10-crop":  # Krizhevsky 2012, section 4.1
            both = (False, True)
            return tuple(Crop(size, resize, place, mirror) for mirror in both for place in PLACES)
        sides = (False, True) if self.mirror else (False,)
        return tuple(WholeImage(scale, mirror) for scale in self.scales for mirror in sides)

    def check(self, config: Config) -> None:
        """Raises `ConfigError` if `config`'s data or network cannot be tested this way."""
        cifar = config.data.dataset == "cifar-10"
        require(
            self.name == "1-crop" or not cifar,
            f"--protocol {self.name} is not for data.dataset=cifar-10, whose images are tested as "
            "they are; leave it at 1-crop",
        )
        if self.fully_convolutional:
            least = smallest_scale(config)
            low = [scale for scale in self.scales if scale < least]
            require(
                not low,
                f"--scales {' '.join(map(str, low))}: the smallest possible is {least}, whose "
                f"feature map has the {max(2, pool_window(config))} cells a side that pooling "
                f"needs at {config.data.shown_view_size}",
            )


@dataclass(frozen=True)
class Request:
    """The test that the command line asks for."""

    checkpoints: tuple[Path, ...]
    protocol: ViewProtocol
    weights: Weights | None
    """Which weights of each checkpoint; None: the average where there is one."""
    bn_images: BnImages
    test_images: bool
    json: str | None
    per_class: str | None
    confusion: str | None
    """This and the two above: where the files go that were asked for."""
    settings: Any
    """The parser's namespace, with the settings that were given."""


def pool_window(config: Config) -> int:
    """Cells a side of the last feature map of a view of the validation: what the network pools."""
    return -(-config.data.view_size // STRIDES[config.model.family])


def smallest_scale(config: Config) -> int:
    """The least shorter side in pixels whose feature map holds a whole pooling window.

    At least 2 cells a side: on CPUs, bf16 convolutions of stride 2 whose output is one cell wide
    and several high read uninitialised memory (torch 2.13.0; to be tried again with later ones).
    """
    return (max(2, pool_window(config)) - 1) * STRIDES[config.model.family] + 1


def choose_protocol(name: Name, scales: Sequence[int] | None, mirror: bool) -> ViewProtocol:
    """The protocol that the command line asks for. Raises `ConfigError`."""
    require(
        not (mirror and name == "10-crop"),
        "--mirror is not for --protocol 10-crop, whose crops are mirrored already; leave it out",
    )
    for option, given in (("--mirror", mirror), ("--scales", scales is not None)):
        require(
            not given or name == "multi-scale",
            f"{option} is for --protocol multi-scale and the protocol is {name}; leave it out",
        )
    if name != "multi-scale":
        return ViewProtocol(name)
    chosen = tuple(PAPER_SCALES if scales is None else scales)
    shown = " ".join(map(str, chosen))
    require(len(set(chosen)) == len(chosen), f"--scales {shown} holds a side twice; give each once")
    require(min(chosen) >= 1, f"--scales {shown} must be shorter sides in pixels, such as 224 256")
    return ViewProtocol(name, chosen, mirror)
