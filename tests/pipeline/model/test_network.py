"""From the settings of `model` to the network they describe."""

import pytest

from pipeline.config import ModelConfig
from pipeline.model.network import Network, network_facts, network_name, network_of, plain, resnet


@pytest.mark.parametrize(
    ("model", "network", "label"),
    [
        ({"depth": 34, "residual": False, "variant": "v1.5"}, plain(34), "plain-34"),
        ({"depth": 34, "shortcut": None, "variant": "v1"}, resnet(34, "B"), "ResNet-34 B"),
        ({"depth": 34, "shortcut": "A", "variant": "v1.5"}, resnet(34, "A"), "ResNet-34 A"),
        ({"depth": 50, "variant": "v1"}, resnet(50), "ResNet-50 v1"),
        ({"depth": 50}, resnet(50, variant="v1.5"), "ResNet-50 v1.5"),
        ({"depth": 50, "shortcut": "C", "variant": "v1"}, resnet(50, "C"), "ResNet-50 v1 C"),
        ({"family": "cifar", "depth": 56}, resnet(56, "A", family="cifar"), "CIFAR ResNet-56 A"),
        ({"family": "cifar", "depth": 56, "shortcut": "B"}, resnet(56, family="cifar"),
         "CIFAR ResNet-56 B"),
        ({"family": "cifar", "depth": 56, "residual": False}, plain(56, "cifar"), "CIFAR plain-56"),
    ],
)  # fmt: skip
def test_a_network_is_what_its_settings_say(model: dict, network: Network, label: str) -> None:
    assert network_of(model) == network
    assert network.label == label
    config = ModelConfig(**model, zero_init_last_norm=False)
    assert network_name(config) == label
    assert network_facts(config)["shortcut"] == (network.shortcut or None)


def test_facts_tell_networks_apart_that_have_the_same_parameters() -> None:
    plain = ModelConfig(depth=18, residual=False, zero_init_last_norm=False)
    padded = ModelConfig(depth=18, shortcut="A")
    assert network_facts(plain) != network_facts(padded)
    assert network_facts(ModelConfig()) == network_facts(ModelConfig(shortcut="B"))
    assert network_facts(ModelConfig()) != network_facts(ModelConfig(variant="v1"))


@pytest.mark.parametrize(("family", "depth"), [("imagenet", 34), ("cifar", 50)])
def test_without_bottlenecks_the_variants_are_one_network(family, depth) -> None:
    v1, v15 = (ModelConfig(family, depth=depth, variant=v) for v in ("v1", "v1.5"))
    assert network_facts(v1) == network_facts(v15)
    assert network_name(v1) == network_name(v15)
