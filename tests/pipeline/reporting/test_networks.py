"""How networks are told apart and drawn."""

import pytest

from pipeline.reporting.networks import network_of, plain, resnet, styles


@pytest.mark.parametrize(
    ("model", "network", "label"),
    [
        ({"depth": 34, "residual": False, "variant": "v1.5"}, plain(34), "plain-34"),
        ({"depth": 34, "shortcut": None, "variant": "v1"}, resnet(34, "B"), "ResNet-34 B"),
        ({"depth": 34, "shortcut": "A", "variant": "v1.5"}, resnet(34, "A"), "ResNet-34 A"),
        ({"depth": 50, "variant": "v1"}, resnet(50), "ResNet-50 v1"),
        ({"depth": 50}, resnet(50, variant="v1.5"), "ResNet-50 v1.5"),
        ({"depth": 50, "shortcut": "C", "variant": "v1"}, resnet(50, "C"), "ResNet-50 C v1"),
        ({"family": "cifar", "depth": 56}, resnet(56, "A", family="cifar"), "ResNet-56"),
        ({"family": "cifar", "depth": 56, "shortcut": "B"}, resnet(56, family="cifar"),
         "ResNet-56 B"),
        ({"family": "cifar", "depth": 56, "residual": False}, plain(56, "cifar"), "plain-56"),
    ],
)  # fmt: skip
def test_a_network_is_what_its_settings_say(model, network, label):
    assert network_of(model) == network
    assert network.label == label


def test_without_bottlenecks_the_variants_are_one_network():
    assert network_of({"depth": 18, "variant": "v1"}) == network_of({"depth": 18})
    assert network_of({"depth": 50, "variant": "v1"}) != network_of({"depth": 50})


def test_a_network_is_drawn_alike_whatever_stands_beside_it():
    some = styles({plain(18), resnet(34, "A")})
    more = styles({plain(18), resnet(34, "A"), resnet(34, "B"), resnet(50), plain(34)})
    assert some.items() <= more.items()
    assert len(set(more.values())) == 5


def test_depth_is_a_colour_and_plain_nets_are_dashed():
    drawn = styles({plain(20, "cifar"), resnet(20, "A", family="cifar"), plain(8, "cifar")})
    shallow, deep, residual = (drawn[n] for n in sorted(drawn))
    assert deep.colour == residual.colour != shallow.colour
    assert deep.dash == shallow.dash != residual.dash == "-"
