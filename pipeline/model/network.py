"""The network that the settings of `model` describe: facts and a name. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import ModelConfig
from pipeline.config.training import Family, Shortcut, has_bottlenecks

_OWN_SHORTCUT: dict[Family, Shortcut] = {"imagenet": "B", "cifar": "A"}


def shortcut_of(config: ModelConfig) -> Shortcut | None:
    """The shortcut in force: that of the settings, or the family's own; None in a plain network."""
    if not config.residual:
        return None
    return config.shortcut or _OWN_SHORTCUT[config.family]


def network_facts(config: ModelConfig) -> dict[str, Any]:
    """The settings that the network's function depends on, the shortcut being the one in force.

    Networks that differ here can have parameters of the same names and shapes.
    """
    names = ["family", "residual", "depth"]
    if has_bottlenecks(config.family, config.depth):
        names.append("variant")
    return {name: getattr(config, name) for name in names} | {"shortcut": shortcut_of(config)}


@dataclass(frozen=True, order=True)
class Network:
    """The network as people name it, whatever it is trained on.

    `shortcut` is A, B or C, and empty for a plain net. `variant` is v1 or v1.5, and empty where
    the two are the same network: without bottlenecks.
    """

    family: Family
    residual: bool
    depth: int
    shortcut: str = ""
    variant: str = ""

    @property
    def label(self) -> str:
        """Its name for people: "ResNet-50 v1.5", "ResNet-34 A", "plain-18", "CIFAR ResNet-110
        A". Option B is not mentioned with bottlenecks."""
        kind = "ResNet" if self.residual else "plain"
        family = "CIFAR " if self.family == "cifar" else ""
        shortcut = "" if self.variant and self.shortcut == "B" else self.shortcut
        words = (f"{family}{kind}-{self.depth}", self.variant, shortcut)
        return " ".join(word for word in words if word)

    @property
    def kind(self) -> tuple[Family, bool, str, str]:
        """The properties that networks of different depth share."""
        return self.family, self.residual, self.shortcut, self.variant


def plain(depth: int, family: Family = "imagenet") -> Network:
    """The plain net of `depth` layers."""
    return Network(family, False, depth)


def resnet(
    depth: int, shortcut: str = "B", variant: str = "v1", family: Family = "imagenet"
) -> Network:
    """The ResNet of `depth` layers; `variant` counts only where it has bottlenecks."""
    return Network(family, True, depth, shortcut, variant if has_bottlenecks(family, depth) else "")


def network_of(model: Mapping[str, Any]) -> Network:
    """The network that the part `model` of a resolved configuration describes.

    Runs from before a setting existed have its default: residual, ImageNet's family.
    """
    family: Family = model.get("family", "imagenet")
    depth = int(model["depth"])
    if not model.get("residual", True):
        return plain(depth, family)
    shortcut = model.get("shortcut") or _OWN_SHORTCUT[family]
    return resnet(depth, shortcut, model.get("variant", "v1.5"), family)


def network_in(settings: Mapping[str, Any]) -> Network:
    """The network of the `settings` by `part.name`."""
    parts = ((name.partition("."), value) for name, value in settings.items())
    return network_of({rest: value for (part, _, rest), value in parts if part == "model"})


def network_name(config: ModelConfig) -> str:
    """The name for people of the network of these settings; see `Network.label`."""
    return network_of(dataclasses.asdict(config)).label
