"""The networks that a report speaks of, and how they are drawn."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from pipeline.model.network import Network

# The colours of Okabe and Ito, which colour-blind readers can tell apart, without yellow and
# light blue, too pale for a line on white. By depth: the same in every plot and report.
_COLOURS = {
    18: "#0072B2", 34: "#D55E00", 50: "#009E73", 101: "#CC79A7", 152: "#000000",
    20: "#0072B2", 32: "#D55E00", 44: "#009E73", 56: "#CC79A7", 110: "#000000", 1202: "#E69F00",
}  # fmt: skip
_OTHER_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9")

Dash = Literal["-"] | tuple[int, tuple[float, ...]]
_PLAIN_DASH: Dash = (0, (5, 2))
_RESIDUAL_DASHES: tuple[Dash, ...] = (
    "-", (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1.2)), (0, (7, 1.5, 1.5, 1.5, 1.5, 1.5)),
    (0, (3, 1)), (0, (10, 2)),
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a network is drawn, in every plot of a report."""

    colour: str
    dash: Dash


def styles(networks: Set[Network]) -> dict[Network, Style]:
    """A style for each network: the colour tells the depth, dashes a plain net.

    Residual nets of one depth are told apart by their dashes, the first of them solid.
    """
    found: dict[Network, Style] = {}
    seen: dict[int, int] = {}
    colours = _colours({network.depth for network in networks})
    for network in sorted(networks):
        dash = _PLAIN_DASH
        if network.residual:
            nth = seen.get(network.depth, 0)
            seen[network.depth] = nth + 1
            dash = _RESIDUAL_DASHES[nth % len(_RESIDUAL_DASHES)]
        found[network] = Style(colours[network.depth], dash)
    return found


def _colours(depths: Set[int]) -> dict[int, str]:
    """A colour for each depth: the paper's have their own, others take what is left."""
    named = {depth: _COLOURS[depth] for depth in depths if depth in _COLOURS}
    free = [colour for colour in _OTHER_COLOURS if colour not in named.values()]
    rest = enumerate(sorted(depths - named.keys()))
    return named | {
        depth: (free or _OTHER_COLOURS)[i % len(free or _OTHER_COLOURS)] for i, depth in rest
    }
