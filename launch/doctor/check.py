"""The parts of every check: the facts of a job's nodes, its findings, a line of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipeline.system.launched import Engine

Facts = dict[str, Any]
Status = Literal["ok", "warn", "fail"]

_NAMES_SHOWN = 3


class Finding(NamedTuple):
    """What one rule of a check found, empty for nothing, and one sentence on what to do about it,
    empty if all is well.

    "fail": the job would not start, not end well or not be right; "warn": it would be slow or
    fragile.
    """

    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """One line of the table: the first non-empty finding of a check."""

    name: str
    status: Status
    found: str
    cure: str = ""
    """How to fix it; `--json` prints it under this name."""


@dataclass(frozen=True)
class Job:
    """The facts to judge, of each node, and how many ranks each is to run where known."""

    nodes: Sequence[Facts]
    ranks: Mapping[str, int] | None
    engine: Engine | None = None
    """What the ranks will communicate over; None: not known, so that either is looked at."""

    @property
    def first(self) -> Facts:
        """The node that represents all where they are alike."""
        return self.nodes[0]

    @property
    def several_nodes(self) -> bool:
        return len(self.nodes) > 1

    @property
    def several_ranks(self) -> bool:
        """Whether more than one rank is certain."""
        return self.several_nodes or (self.ranks is not None and sum(self.ranks.values()) > 1)

    def ranks_on(self, node: Facts) -> int | None:
        return None if self.ranks is None else self.ranks.get(node["node"])

    def where(
        self,
        problem: Callable[[Facts], str | None],
        when: Callable[[Facts], object] = lambda _: True,
    ) -> str:
        """`problem` of each node where it is not empty and `when` holds, as "node3: text"; or "".

        Equal texts share one mention; the only node of a job is not named, nor are all of them.
        """
        by_text: dict[str, list[str]] = {}
        for node in self.nodes:
            text = problem(node) if when(node) else None
            if text:
                by_text.setdefault(text, []).append(node["node"])
        if not self.several_nodes:
            return next(iter(by_text), "")
        if len(by_text) == 1 and len(next(iter(by_text.values()))) == len(self.nodes):
            return f"all nodes: {next(iter(by_text))}"
        return "; ".join(f"{few(names)}: {text}" for text, names in by_text.items())

    def odd_ones(self, value: Callable[[Facts], Any]) -> str:
        """Which nodes differ from most in `value`; "" if it is the same on all nodes."""
        values = [value(node) for node in self.nodes]
        if all(other == values[0] for other in values):
            return ""
        common = max(values, key=values.count)
        odd = self.where(lambda node: f"{value(node)}" if value(node) != common else None)
        return f"{odd} (the others have {common})"


Rules = Mapping[str, Callable[[Job], Iterator[Finding]]]
"""Checks by name. Each yields its findings, the most serious first, and is not resumed after the
first that is not empty."""


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def size(count: int | None) -> str:
    """Bytes in readable units: 1.5 GiB."""
    if count is None:
        return "unknown"
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    return f"{count / (1 << 20):.0f} MiB" if count >= 1 << 20 else f"{count / 1024:.0f} KiB"
