"""In which order the gradients of a step's micro-batches are summed: one binary tree over them.

The micro-batches of a step are numbered 0 .. C - 1 in the order of their images, whichever rank
computes which. Node (level, n) of the tree is the sum of the micro-batches [n * 2**level,
(n + 1) * 2**level), as far as there are so many: the left half plus the right half. Floating-point
addition depends on its order, so a sum over this tree has the same bits however the micro-batches
are shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")


class Node(NamedTuple):
    """A partial sum: the micro-batches from `number * 2**level` on, `2**level` of them."""

    level: int
    number: int


class Step(NamedTuple):
    """What a rank does with the sum at hand after one of its micro-batches.

    Micro-batches 2k and 2k + 1 need nothing between them: a backward pass adds the second to the
    gradients of the first.
    """

    adds: int
    """How many sums kept earlier are added to it, the last one first."""
    keeps: bool
    """Whether it is then kept, and the next micro-batch begins from zero."""


def steps_of(first: int, count: int) -> tuple[list[Step], list[Node]]:
    """What a rank with the micro-batches [first, first + count) does after each, and the sums that
    it has in the end, from left to right: those kept, and the one at hand."""
    nodes: list[Node] = []
    steps = []
    end = first + count
    for number in range(first, end):
        node, adds = Node(0, number), 0
        while node.number % 2 and nodes and nodes[-1] == (node.level, node.number - 1):
            nodes.pop()
            # The first half of a pair was not kept.
            adds += node.level > 0
            node = Node(node.level + 1, node.number // 2)
        nodes.append(node)
        begins_pair = number % 2 == 0
        steps.append(Step(adds, keeps=number + 1 < end and not begins_pair))
    return steps, nodes


def total(sums: Mapping[Node, Value], count: int, add: Callable[[Value, Value], Value]) -> Value:
    """The sum over all `count` micro-batches, from `sums` that cover each of them once.

    `add(left, right)` may write into `left`.
    """

    def value(node: Node) -> Value:
        if node in sums:
            return sums[node]
        assert node.level > 0, f"micro-batch {node.number} of {count} is in none of {list(sums)}"
        left = value(Node(node.level - 1, 2 * node.number))
        if (2 * node.number + 1) << (node.level - 1) >= count:
            return left
        return add(left, value(Node(node.level - 1, 2 * node.number + 1)))

    return value(Node((count - 1).bit_length(), 0))
