"""The network that the settings of `model` describe, and its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config import ModelConfig

if TYPE_CHECKING:
    from pipeline.model.backends import Backend
    from pipeline.model.blocks import Shortcut
    from pipeline.model.cifar_resnet import CifarResNet
    from pipeline.model.resnet import ResNet


def build_network(config: ModelConfig, classes: int, norm: Backend) -> ResNet | CifarResNet:
    """Builds the network, channels-last, its initial weights drawn from torch's seed.

    It maps images (N, 3, H, W), channels-last, to logits (N, classes); `features` gives what its
    pooling gets.

    Args:
        config: which network.
        classes: width of the last layer.
        norm: what computes the norm layers, as `backends.choose_backend` gives it.

    Raises:
        ValueError: `norm` is not installed.
    """
    from pipeline.model.cifar_resnet import cifar_resnet
    from pipeline.model.resnet import resnet

    shortcut = shortcut_of(config)
    if config.family == "cifar":
        return cifar_resnet(config.depth, classes, config.zero_init_last_norm, norm, shortcut)
    return resnet(config.depth, classes, config.variant, config.zero_init_last_norm, norm, shortcut)


def shortcut_of(config: ModelConfig) -> Shortcut | None:
    """The shortcut in force: that of the settings, or the family's own; None in a plain network."""
    if not config.residual:
        return None
    return config.shortcut or ("A" if config.family == "cifar" else "B")


def network_facts(config: ModelConfig) -> dict[str, Any]:
    """The settings that the network's function depends on, the shortcut being the one in force.

    Networks that differ here can have parameters of the same names and shapes.
    """
    names = ("family", "residual", "depth", "variant")
    return {name: getattr(config, name) for name in names} | {"shortcut": shortcut_of(config)}


def network_name(config: ModelConfig) -> str:
    """What a person calls it: "ResNet-50 v1.5", "ResNet-34 A", "plain-18", "CIFAR ResNet-110 A".

    The variant is named where it matters, with bottlenecks.
    """
    kind = "ResNet" if config.residual else "plain"
    family = "CIFAR " if config.family == "cifar" else ""
    shortcut = shortcut_of(config)
    bottlenecks = config.family == "imagenet" and config.depth >= 50
    words = [
        f"{family}{kind}-{config.depth}",
        config.variant if bottlenecks else "",
        shortcut if shortcut and not (bottlenecks and shortcut == "B") else "",
    ]
    return " ".join(word for word in words if word)
