"""Names the classes of a data set, and holds against each other whatever tells them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.data.index.labels import (
    Pairs,
    is_placeholder,
    look_alikes,
    read_class_list,
    shown,
)
from pipeline.data.index.survey import CLASSES_FILE, Tree, name_few
from pipeline.data.index.window import reading, unreadable

log = logging.getLogger("trainyard")


@dataclass(eq=False)
class Told:
    """What a source says of its classes.

    pairs: numbers and names where its images have both. counts_from: the number that its format
    gives the first class. numbers: those of its images, counted from 0; none for names.
    """

    source: Path
    pairs: Pairs = field(default_factory=Pairs)
    counts_from: int = 0
    numbers: set[int] = field(default_factory=set)

    @property
    def largest(self) -> int:
        """The largest number, -1 without any."""
        return max(self.numbers, default=-1)


def class_names(
    tree: Tree, told: Sequence[Told], tell: Callable[..., object] = log.warning
) -> list[bytes]:
    """Return the names of numbered classes by number; empty if no source numbers them.

    `tell` takes the warnings. ValueError, naming the file and both values, if there is no list or
    it is too short, if sources contradict each other or the list, or if the list counts from a
    class that no image has.
    """
    pairs = _merged(told)
    largest = max(told, key=lambda one: one.largest)
    needed = largest.largest >= 0
    listed = _listed(tree, needed, tell) if needed or pairs.items() else None
    if listed is not None:
        _require_agreement(tree, pairs, listed)
    if not needed:
        return []
    if listed is None:
        raise ValueError(
            f"{tree.directory} holds {tree.source_noun} that give classes as numbers, so their "
            f"names are not known; write them, one a line in the order of the numbers, to "
            f"{tree.directory}/{CLASSES_FILE}, or next to train and val for both"
        )
    path = tree.class_lists[0]
    if largest.largest >= len(listed):
        raise ValueError(
            f"{largest.source} has class number {largest.largest} (from 0), but {path} "
            f"names only {len(listed)} classes; complete the list"
        )
    _require_no_placeholder(path, listed[0], told)
    if largest.largest + 1 < len(listed):
        tell(
            "%s names %d classes, the largest number in %s is %d (from 0): the last %d have no "
            "images; see that its first line is the class with number 0",
            path, len(listed), tree.directory, largest.largest, len(listed) - 1 - largest.largest,
        )  # fmt: skip
    return listed


def _require_no_placeholder(path: Path, first: bytes, told: Sequence[Told]) -> None:
    """Raise ValueError where a list's first line, `background` or so, shifts all others by one.

    It is right where numbers count from 0 and no image has that one.
    """
    shifted = [one for one in told if one.numbers and (one.counts_from or 0 in one.numbers)]
    if is_placeholder(first) and shifted:
        raise ValueError(
            f"the class list {path} begins with {shown(first)}, which would be the name of the "
            f"images of class {shifted[0].counts_from} in {shifted[0].source}, and every class "
            f"would have the name of the one before it; remove that line, or rename it if it is a "
            f"class"
        )


def require_distinct(tree: Tree, classes: Sequence[bytes]) -> None:
    """Raise ValueError for two classes that look the same."""
    for first, second in look_alikes(classes):
        raise ValueError(
            f"{tree.directory} has two classes that look the same, {ascii(os.fsdecode(first))} and "
            f"{ascii(os.fsdecode(second))}, which differ only in their Unicode form (NFC, NFD); "
            f"merge them or rename one"
        )


def _merged(told: Sequence[Told]) -> Pairs:
    pairs = Pairs()
    for one in told:
        for number, name in one.pairs.items():
            wrong = pairs.add(number, name)
            if wrong:
                raise ValueError(
                    f"{one.source} contradicts the containers before it: {wrong}; write them again "
                    f"with the same numbers for the same classes"
                )
    return pairs


def _listed(tree: Tree, needed: bool, tell: Callable[..., object]) -> list[bytes] | None:
    """Return the names in the class list, None without one.

    One that cannot be used is told of, and an error only where classes are numbers alone.
    """
    try:
        return _read_lists(tree)
    except ValueError as error:
        if needed:
            raise
        tell(
            "%s is not used, as all classes in %s have names: %s",
            tree.class_lists[0].name, tree.directory, error,
        )  # fmt: skip
        return None


def _read_lists(tree: Tree) -> list[bytes] | None:
    """Return the names in the class list; both lists, where there are two, must be the same."""
    lists = []
    for path in tree.class_lists:
        try:
            os.stat(path)  # a link to nothing does not pass, so is not tried again
            lists.append(reading(path, partial(read_class_list, path)))
        except OSError as error:
            raise unreadable(f"the class list {path}", error) from error
    if len(lists) > 1 and lists[0] != lists[1]:
        own, other = tree.class_lists
        raise ValueError(
            f"{own} and {other} name different classes: {_difference(*lists)}; remove the wrong one"
        )
    return lists[0] if lists else None


def _difference(ours: Sequence[bytes], theirs: Sequence[bytes]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} names"
    number = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"number {number} is {shown(ours[number])} and {shown(theirs[number])}"


def _require_agreement(tree: Tree, pairs: Pairs, listed: Sequence[bytes]) -> None:
    """Hold numbers that images have beside their names against the list.

    Names that the list does not have at all are of another vocabulary, such as a synset's words.
    """
    number_of = {name: number for number, name in enumerate(listed)}
    wrong = [
        f"{shown(name)} has number {number} in the images and {number_of[name]} in the list"
        for number, name in pairs.items()
        if number_of.get(name, number) != number
    ]
    if wrong:
        raise ValueError(
            f"{tree.class_lists[0]} contradicts {len(wrong)} classes of the {tree.source_noun} in "
            f"{tree.directory}: {name_few(wrong)}; correct the list (its first line is number 0) "
            f"or remove it"
        )
