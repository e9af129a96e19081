"""How networks are drawn."""

from pipeline.model.network import plain, resnet
from pipeline.report.figures import styles_of


def test_a_network_is_drawn_alike_whatever_stands_beside_it():
    some = styles_of({plain(18), resnet(34, "A")})
    more = styles_of({plain(18), resnet(34, "A"), resnet(34, "B"), resnet(50), plain(34)})
    assert some.items() <= more.items()
    assert len(set(more.values())) == 5


def test_depth_is_a_colour_and_plain_nets_are_dashed():
    drawn = styles_of({plain(20, "cifar"), resnet(20, "A", family="cifar"), plain(8, "cifar")})
    shallow, deep, residual = (drawn[n] for n in sorted(drawn))
    assert deep.colour == residual.colour != shallow.colour
    assert deep.dash == shallow.dash != residual.dash == "-"
