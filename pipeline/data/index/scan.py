"""Scans what a survey found: which images, of which class, where, how many bytes, what size.

Class folders and containers give the same rows, in bytewise order of (class, file name) whatever
the locale, so that the same images in another container are the same data with the same hash.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index import folders, recordio, tar, tfrecord
from pipeline.data.index.class_names import Told, class_names, require_distinct
from pipeline.data.index.labels import look_alikes
from pipeline.data.index.passed import Passed
from pipeline.data.index.survey import Tree, name_few, no_images
from pipeline.data.index.window import Entry, Window, opened
from pipeline.system.console import Bar

log = logging.getLogger("trainyard")

_WALKS = {"tar": tar.walk, "tfrecord": tfrecord.walk, "recordio": recordio.walk}
_NUMBERED = re.compile(r"^(.+)-(\d{5})-of-(\d{5})$")

# File times advance in ticks of up to 10 ms (the kernel's timer, before multigrain timestamps).
_CLOCK_TICK_SEC = 0.02
# More threads than cores: on a network file system reading a header is waiting, not computing.
_THREADS = 16


@dataclass(frozen=True, eq=False)
class Rows:
    """The N images of a split in bytewise order of (class, file name).

    files: N names `<class>/<file>` as bytes; labels: (N,) int32 index into `classes`;
    lengths: (N,) int64 bytes; widths, heights: (N,) int32 pixels, 0 for a header not decoded,
    and as stored (EXIF orientation not applied). places: where in containers they lie, None for
    class folders. passed: what was not taken.
    """

    classes: list[str]
    files: list[bytes]
    labels: NDArray[np.int32]
    lengths: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    places: Places | None = None
    passed: Passed = field(default_factory=Passed)

    def digest(self) -> str:
        """Return the data hash: sha256 over (class, name, bytes, width, height) of every image.

        Where the images lie, in what container, and the files' times do not enter, so a copy is
        the same data. RecordIO, and TFRecord without file names, give the container's name and the
        record's number for a name.
        """
        sha = hashlib.sha256()
        columns = (self.lengths.tolist(), self.widths.tolist(), self.heights.tolist())
        for file, length, width, height in zip(self.files, *columns, strict=True):
            sha.update(b"%s\0%d\0%d\0%d\n" % (file, length, width, height))
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Places:
    """Where N images lie in containers.

    names: the containers, as files of the split's directory. containers: (N,) int32 index into
    `names`; offsets: (N,) int64 first byte. gaps: {image: places counted from its offset, each of 4
    bytes that are not its own and that its length leaves out}, for the few images that have any.
    """

    names: list[str]
    containers: NDArray[np.int32]
    offsets: NDArray[np.int64]
    gaps: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Part:
    """The images of one source as columns, which take a fifth of the entries' memory.

    numbers: (n, 4) int64: offset, length, width, height. passed: what else lies there. told: what
    it says of its classes.
    """

    labels: list[bytes | int]
    names: list[bytes]
    numbers: NDArray[np.int64]
    gaps: list[tuple[int, tuple[int, ...]]]
    passed: Passed
    told: Told


def scan(
    tree: Tree,
    progress: Callable[[], object] = lambda: None,
    tell: Callable[..., object] = log.warning,
) -> Rows:
    """Read the header of every image of the tree, in several threads, and call `progress` whenever
    there is some. `tell` takes what a user should repair, as `log.warning` does.

    An image whose header is not decoded is kept with size 0 x 0 and reported in one warning: only
    reading it is an error. ValueError if there is no image, a class folder has none, a file cannot
    be read, a container is damaged (with the byte), or numbered classes have no list of names.
    """
    # Within one tick of its last change, a folder could change again and keep the stamp.
    time.sleep(min(max(0.0, tree.changed_sec + _CLOCK_TICK_SEC - time.time()), _CLOCK_TICK_SEC))
    started = time.monotonic()
    parts = _walk_all(tree, progress, tell)
    _require_images(tree, parts)
    rows = _rows(tree, parts, tell)
    seconds = time.monotonic() - started
    log.info("scanned %d images in %s in %.1f s", len(rows.files), tree.directory, seconds)
    _warn(tree, rows, tell)
    return rows


def _walk_all(
    tree: Tree, progress: Callable[[], object], tell: Callable[..., object]
) -> list[_Part]:
    """Walk every source, in the sources' order.

    Shows how far it is: class folders by their number, containers by the bytes passed in them. The
    bar is drawn only by a process that logs such lines: in a job, rank 0.
    """
    windows: list[Window] = []
    by_number = tree.kind == "folders"
    with (
        Bar(
            len(tree.sources) if by_number else tree.size_bytes,
            f"scanning {tree.directory}",
            unit=" folders" if by_number else "B",
            stream=sys.stderr,
            wanted=log.isEnabledFor(logging.INFO),
        ) as bar,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as pool,
    ):
        jobs = [pool.submit(_walk, tree, name, windows, tell) for name in tree.sources]
        pending, images, before = set(jobs), 0, (0, 0)
        try:
            while pending:
                done, pending = wait(pending, bar.interval_sec, FIRST_COMPLETED)
                images += sum(len(job.result().names) for job in done)  # a failure ends the others
                walked, passed = len(jobs) - len(pending), sum(one.position for one in windows)
                if (walked, passed) != before:
                    before = walked, passed
                    progress()
                bar.move(walked if by_number else passed, f"{images} images")
                if bar.line_due():
                    log.info(
                        "%s: %d of %d %s%s", tree.directory, walked, len(jobs), tree.source_noun,
                        "" if by_number else f", {passed / 1e9:.1f} GB passed",
                    )  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)
    return [job.result() for job in jobs]


def _walk(tree: Tree, name: str, windows: list[Window], tell: Callable[..., object]) -> _Part:
    path = tree.directory / name
    if tree.kind == "folders":
        passed = Passed()
        return _columns(folders.walk(path, passed), passed, Told(path))
    with opened(path) as window:
        windows.append(window)
        window.tell = tell
        entries = _WALKS[tree.kind](window)
    numbers = {one.label for one in entries if isinstance(one.label, int)}
    told = Told(path, window.pairs, window.counts_from, numbers)
    return _columns(entries, window.passed, told)


def _columns(entries: Sequence[Entry], passed: Passed, told: Told) -> _Part:
    numbers = [(one.offset, one.length, one.width, one.height) for one in entries]
    return _Part(
        [one.label for one in entries],
        [one.name for one in entries],
        np.array(numbers, dtype=np.int64).reshape(-1, 4),
        [(row, one.gaps) for row, one in enumerate(entries) if one.gaps],
        passed,
        told,
    )


def _require_images(tree: Tree, parts: Sequence[_Part]) -> None:
    if not any(part.names for part in parts):
        raise ValueError(no_images(tree.directory, _all_passed([tree.passed], parts)))
    empty = [(name, p) for name, p in zip(tree.sources, parts, strict=True) if not p.names]
    if empty and tree.kind == "folders":
        instead = _all_passed([], [part for _, part in empty])
        raise ValueError(
            f"{len(empty)} class folder(s) of {tree.directory} hold no images: "
            f"{name_few([name for name, _ in empty])}"
            f"{f', only {instead.words()}' if instead else ''}; fill them or remove them"
        )


def _all_passed(beside: Sequence[Passed], parts: Sequence[_Part]) -> Passed:
    passed = Passed()
    for one in (*beside, *(part.passed for part in parts)):
        passed.merge(one)
    return passed


def _rows(tree: Tree, parts: Sequence[_Part], tell: Callable[..., object]) -> Rows:
    names_of_numbers = class_names(tree, [part.told for part in parts], tell)
    class_of = [
        names_of_numbers[label] if isinstance(label, int) else label
        for part in parts
        for label in part.labels
    ]
    names = [name for part in parts for name in part.names]
    order = list(range(len(names)))
    if tree.kind != "folders":  # which are walked in order
        # Stable: equal names, in different containers, stay in the containers' order.
        order.sort(key=lambda row: (class_of[row], names[row]))
    classes = sorted(set(class_of))
    require_distinct(tree, classes)
    label_of = {name: label for label, name in enumerate(classes)}
    offsets, lengths, widths, heights = np.concatenate([part.numbers for part in parts])[order].T
    places = None
    if tree.kind != "folders":
        counts = [len(part.names) for part in parts]
        containers = np.repeat(np.arange(len(parts), dtype=np.int32), counts)[order]
        places = Places(
            tree.sources, containers, np.ascontiguousarray(offsets), _gaps(parts, order)
        )
    return Rows(
        classes=[os.fsdecode(name) for name in classes],
        files=[class_of[row] + b"/" + names[row] for row in order],
        labels=np.array([label_of[class_of[row]] for row in order], dtype=np.int32),
        lengths=np.ascontiguousarray(lengths),
        widths=widths.astype(np.int32),
        heights=heights.astype(np.int32),
        places=places,
        passed=_all_passed([], parts),
    )


def _gaps(parts: Sequence[_Part], order: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return the gaps by image number, given that image `i` is row `order[i]` of the parts."""
    first, found = 0, dict[int, tuple[int, ...]]()
    for part in parts:
        found |= {first + row: gaps for row, gaps in part.gaps}
        first += len(part.names)
    return {image: found[row] for image, row in enumerate(order) if row in found} if found else {}


def _warn(tree: Tree, rows: Rows, tell: Callable[..., object]) -> None:
    """Tell what a user should repair before training meets it."""
    headless = [os.fsdecode(rows.files[index]) for index in np.flatnonzero(rows.widths == 0)]
    if headless:
        tell(
            "%d of %d images in %s have no header that is decoded: %s; training fails when it "
            "meets one, or excludes it, by data.bad_images; python -m pipeline.prepare verify says "
            "why for each",
            len(headless), len(rows.files), tree.directory, name_few(headless),
        )  # fmt: skip
    twice = [os.fsdecode(one) for one, next_one in pairwise(rows.files) if one == next_one]
    if twice:  # of containers only
        tell(
            "%d images in %s have the class and name of another one, the first %s: if %s hold "
            "copies, remove them, or training takes each twice",
            len(twice), tree.directory, twice[0], tree.source_noun,
        )  # fmt: skip
    alike = look_alikes(rows.files)
    if alike:
        tell(
            "%d images in %s have the class and name of another one but for its Unicode form (NFC, "
            "NFD), the first %s: if they are copies, remove them, or training takes each twice",
            len(alike), tree.directory, os.fsdecode(alike[0][1]),
        )  # fmt: skip
    missing = _missing_shards(tree.sources) if tree.kind == "tfrecord" else []
    if missing:
        tell(
            "%d TFRecord files that the names of the others count are missing in %s: %s; copy them "
            "too, unless only a part is meant",
            len(missing), tree.directory, name_few(missing),
        )  # fmt: skip


def _missing_shards(sources: Sequence[str]) -> list[str]:
    """Return the missing names among those that `<name>-00000-of-01024` implies."""
    sets = {(found[1], found[3]) for found in map(_NUMBERED.search, sources) if found}
    every = (f"{name}-{k:05}-of-{n}" for name, n in sorted(sets) for k in range(int(n)))
    return sorted(set(every) - set(sources))
