"""The index of a split: name, label, place, bytes and size of every image.

`<root>/<split>/`, class folders or containers, is scanned once and kept as an Arrow file that every
rank maps into memory; times of folders and containers show when it must be rebuilt. Images are
in bytewise order of (class, file), which defines the image numbers used everywhere else, and is the
same whatever they lie in.
"""

from __future__ import annotations

import json
import logging
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.images import BadImage
from pipeline.data.index.arrow_file import (
    cache_places,
    column,
    find_fresh,
    load_fresh,
    load_table,
    warn_if_fewer,
    write_manifest,
)
from pipeline.data.index.headers import header_of
from pipeline.data.index.labels import unicode_form
from pipeline.data.index.passed import Passed
from pipeline.data.index.recordio import GAP_BYTES, without_gaps
from pipeline.data.index.scan import scan
from pipeline.data.index.survey import Split, Tree, name_few, survey
from pipeline.system.regular import open_regular

log = logging.getLogger("trainyard")

_MOST_OPEN = 4096  # containers
_INDEX_AGAIN = (
    "if it was replaced on purpose, python -m pipeline.prepare index --again indexes the data "
    "again; runs that began before will see it as other data"
)


class Manifest:
    """The images of one split, read from the memory-mapped cache file.

    split, directory: which part, and the folder that holds its class folders or containers.
    classes: class names; labels index it. digest: the data hash, 64 hex digits. passed: what the
    scan did not take, but for what lies beside class folders or containers. scanned: whether this
    opening walked the data, rather than finding its index. labels (N,) int32,
    lengths (N,) int64 bytes, widths and heights (N,) int32 pixels (0: a header that is not
    decoded; `read` says why) are read-only views of the map. EXIF orientation is not applied to
    the sizes.
    """

    def __init__(
        self,
        split: Split,
        directory: Path,
        table: pa.Table,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Wrap a table of `load_table`; `classes` as in `open_manifest`."""
        metadata = table.schema.metadata
        self.split = split
        self.directory = directory
        self.scanned = False
        self.digest: str = metadata[b"digest"].decode()
        self.classes: list[str] = json.loads(metadata[b"classes"])
        self.passed = Passed(json.loads(metadata[b"passed"]))
        self._prefix = os.fsencode(directory) + b"/"
        self._files = column(table, "file")
        self.labels: NDArray[np.int32] = column(table, "label").to_numpy()
        self.lengths: NDArray[np.int64] = column(table, "length").to_numpy()
        self.widths: NDArray[np.int32] = column(table, "width").to_numpy()
        self.heights: NDArray[np.int32] = column(table, "height").to_numpy()
        self._containers = _Containers(table, self._prefix) if b"containers" in metadata else None
        if classes is not None and self.classes != classes:
            self._relabel(classes)

    def _relabel(self, classes: Sequence[str]) -> None:
        """Replace the classes that were found by the `classes` of the training data.

        ValueError for one found that is not among them; one without an image is warned of.
        """
        index = {name: label for label, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in index]
        if unknown:
            noun = "class folder(s)" if self._containers is None else "class(es)"
            forms = {unicode_form(name) for name in classes}
            alike = [name for name in unknown if unicode_form(name) in forms]
            hint = ""
            if alike:
                hint = (
                    f", or rename the {len(alike)} that look like classes of training and differ "
                    f"in their Unicode form (NFC, NFD), the first {ascii(alike[0])}"
                )
            raise ValueError(
                f"{self.directory} has {len(unknown)} {noun} that are not in the training data: "
                f"{name_few(unknown)}; remove them there or add them to training{hint}"
            )
        empty = [name for name in classes if name not in self.classes]
        if empty:
            log.warning(
                "%s has no images of %d of the %d training classes: %s; its accuracy is that of "
                "the other classes",
                self.directory, len(empty), len(classes), name_few(empty),
            )  # fmt: skip
        labels = np.array([index[name] for name in self.classes], dtype=np.int32)
        self.labels, self.classes = labels[self.labels], list(classes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the path of an image.

        In a container it has none: `<container>:<class>/<file> at byte N` says where it is.
        """
        file: bytes = self._files[int(index)].as_py()
        if self._containers is None:
            return Path(os.fsdecode(self._prefix + file))
        return Path(os.fsdecode(self._containers.describe(int(index), file)))

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the whole encoded image, (bytes,) uint8; may be called by several threads at once.

        BadImage if it cannot be read, is not as long as recorded, or has a header that is not
        decoded.
        """
        recorded = int(self.lengths[index])
        try:
            if self._containers is None:
                content, end = self._read_file(index), "the image index recorded"
                fix = f" ({_INDEX_AGAIN})"
            else:
                content = self._containers.read(int(index), recorded)
                end = "its container was changed or cut after the image index recorded"
                fix = ""  # such a container is indexed again at the next start
        except OSError as error:
            reason = f"it cannot be read: {error.strerror}"
            raise BadImage(self.path(index), reason, changed=True) from error
        if len(content) != recorded and (len(content) or self._containers is not None):
            reason = f"has {len(content)} bytes, {end} {recorded}{fix}"
            raise BadImage(self.path(index), reason, changed=True)
        if len(content) == 0:
            raise BadImage(self.path(index), "the file is empty", changed=recorded != 0)
        if self.widths[index] == 0:
            flaw = header_of(content.tobytes()).flaw
            now = flaw or f"is an image now, and was none when it was indexed ({_INDEX_AGAIN})"
            raise BadImage(self.path(index), now, changed=not flaw)
        return content

    def containers(self) -> Iterator[tuple[Path, NDArray[np.int64], NDArray[np.int64]]]:
        """Return each container: its path, its images (n,), and their offsets (n,), ascending.

        None for class folders.
        """
        if self._containers is not None:
            yield from self._containers.contents()

    def _read_file(self, index: int) -> NDArray[np.uint8]:
        name: bytes = self._files[int(index)].as_py()
        path = self._prefix + name
        with open(path, "rb", buffering=0, opener=open_regular) as file:
            return _read_range(file.fileno(), 0, os.fstat(file.fileno()).st_size)


class _Containers:
    """The containers of a manifest's images, and reading from them.

    The containers used last stay open: at most a quarter of the files that the process may have
    open, as training and validation each hold one of these and other parts need descriptors too.
    """

    def __init__(self, table: pa.Table, prefix: bytes) -> None:
        metadata = table.schema.metadata
        paths = [prefix + os.fsencode(name) for name in json.loads(metadata[b"containers"])]
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_OPEN if soft == resource.RLIM_INFINITY else min(_MOST_OPEN, soft // 4)
        self._paths = paths
        self._gaps: dict[int, list[int]] = dict(json.loads(metadata[b"gaps"]))
        self._numbers: NDArray[np.int32] = column(table, "container").to_numpy()
        self._offsets: NDArray[np.int64] = column(table, "offset").to_numpy()
        # Opens outside its lock: on a network file system other threads need not wait for it.
        self._opened = lru_cache(max(1, most))(lambda number: _OpenFile(paths[number]))

    def describe(self, index: int, file: bytes) -> bytes:
        """Return where an image lies, `file` being its class and name."""
        place = self._paths[self._numbers[index]], file, self._offsets[index]
        return b"%b:%b at byte %d" % place

    def contents(self) -> Iterator[tuple[Path, NDArray[np.int64], NDArray[np.int64]]]:
        """Return path, images and their offsets, ascending, of each container."""
        order = np.lexsort((self._offsets, self._numbers))
        ends = np.cumsum(np.bincount(self._numbers, minlength=len(self._paths)))
        for path, images in zip(self._paths, np.split(order, ends[:-1]), strict=True):
            yield Path(os.fsdecode(path)), images, self._offsets[images]

    def read(self, index: int, length: int) -> NDArray[np.uint8]:
        """Return the image's `length` bytes, fewer where the container ends; OSError."""
        gaps = self._gaps.get(index, ())
        file = self._opened(int(self._numbers[index]))
        raw = length + GAP_BYTES * len(gaps)
        content = _read_range(file.descriptor, int(self._offsets[index]), raw)
        return without_gaps(content, gaps) if gaps else content


class _OpenFile:
    """A descriptor that is closed when the last thread reading from it has released it."""

    def __init__(self, path: bytes) -> None:
        self.descriptor = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _read_range(descriptor: int, offset: int, length: int) -> NDArray[np.uint8]:
    """Return `length` bytes at `offset`, fewer where the file ends; OSError if it fails."""
    content = np.empty(length, dtype=np.uint8)
    done = 0
    while done < length and (count := os.preadv(descriptor, [content[done:].data], offset + done)):
        done += count
    return content[:done]


def open_manifest(
    root: Path,
    split: Split,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    again: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> Manifest:
    """Open the manifest of `<root>/<split>`, scanning only if no cache file is up to date.

    `classes` (the training classes, for val) gives the labels; `None` takes the classes in bytewise
    order. A class without an image is warned of. The cache lies in `cache_dir`, or else in
    `<root>/.trainyard`, or else, where that cannot be written, in the user's cache; a staged copy's
    own, in its `.trainyard`, is used with a `cache_dir` too. Replacing a file of a class folder in
    place does not change its folder's time and is met when it is read; `again` scans whatever the
    cache holds. `progress` is called now and then while the scan gets on. Ranks that share a file
    system: call on one first, then on the others.

    ValueError, with the fix, for what `survey` and `scan` refuse, a class that is not in `classes`,
    and no place for the cache.
    """
    tree = survey(root, split)
    found = None if again else find_fresh(root, split, cache_dir, tree.stamp)
    if found is not None:
        manifest = Manifest(split, tree.directory, found[1], classes)
        _tell_passed(tree, manifest.passed)
        return manifest
    rows = scan(tree, progress)
    _tell_passed(tree, rows.passed)
    places, refused = cache_places(root, split, cache_dir), []
    warn_if_fewer(places, rows, tree)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(place, rows, tree.stamp)
            manifest = Manifest(split, tree.directory, load_table(place), classes)
        except OSError as error:
            refused.append(f"{place.parent} ({error.strerror})")
            if again and load_fresh(place, tree.stamp) is not None:
                break  # one in a later place would never be read
        else:
            manifest.scanned = True
            return manifest
    raise ValueError(
        f"the image index of {tree.directory} cannot be written to {' or '.join(refused)}; "
        f"set data.cache_dir to a directory that can be written"
    )


def _tell_passed(tree: Tree, walked: Passed) -> None:
    """Log in one line what is not used; what lies beside the sources is as of this start."""
    passed = Passed(tree.passed.rows())
    passed.merge(walked)
    if passed:
        level = logging.WARNING if passed.may_be_missed else logging.INFO
        log.log(level, "%s: not used are %s", tree.directory, passed.words())


def cached_manifest(root: Path, split: Split, cache_dir: Path | None) -> Manifest | None:
    """Return the manifest of `<root>/<split>` if one is up to date; nothing is scanned.

    ValueError, with the fix, for what `survey` refuses.
    """
    tree = survey(root, split)
    found = find_fresh(root, split, cache_dir, tree.stamp)
    return None if found is None else Manifest(split, tree.directory, found[1])


def read_manifest(path: Path, split: Split, directory: Path) -> Manifest:
    """Open a file of `write_manifest` for the images below `directory`, whatever its stamp.

    ValueError if the file is damaged or of another version; OSError if it cannot be read.
    """
    return Manifest(split, directory, load_table(path))
