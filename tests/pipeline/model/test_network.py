"""From the settings of `model` to the network they describe."""

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.network import (
    Network,
    build_network,
    network_facts,
    network_name,
    network_of,
    plain,
    resnet,
)

CASES = [
    (ModelConfig(), "ResNet-50 v1.5", 25_557_032),
    (ModelConfig(variant="v1", depth=101), "ResNet-101 v1", 44_549_160),
    (ModelConfig(depth=34, shortcut="A"), "ResNet-34 A", 21_623_848),
    (ModelConfig(depth=18), "ResNet-18 B", 11_689_512),
    (
        ModelConfig(depth=34, residual=False, zero_init_last_norm=False),
        "plain-34", 21_623_848,
    ),
    (ModelConfig("cifar", depth=20), "CIFAR ResNet-20 A", 275_572),
    (ModelConfig("cifar", depth=20, shortcut="B"), "CIFAR ResNet-20 B", 278_324),
    (
        ModelConfig("cifar", residual=False, depth=20, zero_init_last_norm=False),
        "CIFAR plain-20", 275_572,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "name", "count"), CASES)
def test_the_settings_choose_the_network(config: ModelConfig, name: str, count: int) -> None:
    with torch.device("meta"):
        classes = 1000 if config.family == "imagenet" else 100
        model = build_network(config, classes, "reference")
    assert network_name(config) == name
    assert sum(p.numel() for p in model.parameters()) == count


def test_zero_init_and_norm_reach_the_blocks() -> None:
    model = build_network(ModelConfig(depth=18), 10, "reference")
    assert not model.layer1[0].bn2.weight.any()
    cifar = build_network(ModelConfig("cifar", depth=8), 10, "reference")
    assert not cifar.layer1[0].bn2.weight.any()
    kept = build_network(ModelConfig(depth=18, zero_init_last_norm=False), 10, "reference")
    assert kept.layer1[0].bn2.weight.all()


def test_features_are_what_the_classifier_averages() -> None:
    model = build_network(ModelConfig("cifar", depth=8), 10, "reference").eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.features(images)
    assert features.shape == (2, 64, 8, 8)
    torch.testing.assert_close(model(images), model.fc(features.mean((2, 3))))


def test_facts_tell_networks_apart_that_have_the_same_parameters() -> None:
    plain = ModelConfig(depth=18, residual=False, zero_init_last_norm=False)
    padded = ModelConfig(depth=18, shortcut="A")
    assert network_facts(plain) != network_facts(padded)
    assert network_facts(ModelConfig()) == network_facts(ModelConfig(shortcut="B"))
    assert network_facts(ModelConfig("cifar", depth=20))["shortcut"] == "A"
    assert network_facts(ModelConfig()) != network_facts(ModelConfig(variant="v1"))
    for family, depth in (("imagenet", 34), ("cifar", 50)):
        v1, v15 = (ModelConfig(family, depth=depth, variant=v) for v in ("v1", "v1.5"))
        assert network_facts(v1) == network_facts(v15)  # the same network


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


def test_without_bottlenecks_the_variants_are_one_network() -> None:
    assert network_of({"depth": 18, "variant": "v1"}) == network_of({"depth": 18})
    assert network_of({"depth": 50, "variant": "v1"}) != network_of({"depth": 50})
