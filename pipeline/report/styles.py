"""How runs are told apart in every plot of a report: colours, dashes, and words in the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from pipeline.config.differences import distinctions, in_short
from pipeline.model.network import Network
from pipeline.report.runs import Run
from pipeline.system.console import counted

# The colours of Okabe and Ito, which colour-blind readers can tell apart, without yellow and
# light blue, too pale for a line on white. By depth, the same in every plot and report.
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

_IN_LEGEND = 3  # settings that a legend names
_LONGEST_VALUE = 24  # characters of a setting's value there


@dataclass(frozen=True)
class Style:
    """How a line is drawn."""

    colour: str
    dash: Dash


@dataclass(frozen=True)
class Series:
    """Runs that are drawn alike, and what the legend calls them."""

    label: str
    style: Style
    runs: tuple[Run, ...]


def series_of(runs: Sequence[Run], of_report: Set[Network]) -> list[Series]:
    """The series of the runs on one data set; `of_report` are the networks of the whole report.

    Runs of one network whose settings differ are told apart by colour, and their legend says by
    which settings. Those that differ in their seed alone are one series, unless there is only one
    network and colours enough for every run.
    """
    networks = {run.network for run in runs}
    each = len(networks) == 1 and len(runs) <= len(_OTHER_COLOURS)
    of_network = styles_of(of_report)
    found: list[tuple[Network, str, list[Run]]] = []
    for network in sorted(networks):
        members = [run for run in runs if run.network == network]
        found += [(network, *group) for group in _groups(members, each, len(networks) == 1)]
    firsts = {network: of_network[network] for network in networks}
    others = _further({style.colour for style in firsts.values()})
    return [
        Series(label, firsts.pop(network) if network in firsts else next(others), tuple(group))
        for network, label, group in found
    ]


def _groups(members: Sequence[Run], each: bool, only_network: bool) -> list[tuple[str, list[Run]]]:
    """The runs of one network, as label and runs of each series: with `each` every run is one."""
    apart = distinctions([_settings(run, with_seed=each) for run in members])
    groups: dict[str, list[Run]] = {}
    words: dict[str, str] = {}
    for run, found in zip(members, apart, strict=True):
        key = str(run.folder) if each else repr(found)
        groups.setdefault(key, []).append(run)
        words[key] = in_short({n: _clipped(v) for n, v in found.items()}, _IN_LEGEND)
    label = members[0].network.label
    if len(groups) == 1:
        many = f" ({counted(len(members), 'run')})" if len(members) > 1 else ""
        return [(label + many, list(members))]
    return [(_label(label, words[key], runs, each, only_network), runs)
            for key, runs in groups.items()]  # fmt: skip


def _label(network: str, words: str, runs: Sequence[Run], each: bool, only_network: bool) -> str:
    if each:
        return f"{runs[0].name}: {words}" if words else runs[0].name
    many = f" ({counted(len(runs), 'run')})" if len(runs) > 1 else ""
    return (words if only_network else f"{network}, {words}") + many


def _settings(run: Run, with_seed: bool) -> dict[str, Any]:
    names = [*run.recipe, *(["run.seed"] if with_seed else [])]
    return {name: run.settings[name] for name in names}


def _clipped(value: Any) -> Any:
    text = str(value)
    return value if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _further(taken: Set[str]) -> Any:
    """Styles for series beyond the first of each network: colours that are not `taken` yet, then
    all of them again with other dashes."""
    yield from (Style(colour, "-") for colour in _OTHER_COLOURS if colour not in taken)
    for nth in count(1):
        dash = _RESIDUAL_DASHES[nth % len(_RESIDUAL_DASHES)]
        yield from (Style(colour, dash) for colour in _OTHER_COLOURS)


def styles_of(networks: Set[Network]) -> dict[Network, Style]:
    """A style for each network: the colour shows the depth, dashes a plain net.

    Residual nets of one depth differ in their dashes, the first of them solid.
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


def _colours(depths: Set[int]) -> Mapping[int, str]:
    """A colour for each depth: the paper's have their own, others take what is left."""
    named = {depth: _COLOURS[depth] for depth in depths if depth in _COLOURS}
    free = [colour for colour in _OTHER_COLOURS if colour not in named.values()]
    rest = enumerate(sorted(depths - named.keys()))
    return named | {
        depth: (free or _OTHER_COLOURS)[i % len(free or _OTHER_COLOURS)] for i, depth in rest
    }
