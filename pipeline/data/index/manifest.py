"""Which images exist: name, label, place, bytes and size of every image of a split.

`<root>/<split>/`, class folders or containers, is scanned once and kept as an Arrow file that every
rank maps into memory; times of folders and containers tell when it has to be made again. Images are
in bytewise order of (class, file), which is what an image index means everywhere else, and the same
whatever they lie in.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
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
from pipeline.data.index.open_files import ContainedImages
from pipeline.data.index.scan import scan
from pipeline.data.index.survey import Split, name_few, survey

log = logging.getLogger("trainyard")


_INDEX_AGAIN = (
    "if it was replaced on purpose, python -m pipeline.prepare index --again makes the manifest "
    "anew; to runs that began before it is other data"
)


class Manifest:
    """The images of one split, read from the memory-mapped cache file.

    split, directory: which part, and the folder that holds its class folders or containers.
    classes: class names; labels index it. digest: the data hash, 64 hex digits. labels (N,)
    int32, lengths (N,) int64 bytes, widths and heights (N,) int32 pixels (0: no readable header)
    are read-only views of the map. EXIF orientation is not applied to the sizes.
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
        self.digest: str = metadata[b"digest"].decode()
        own_classes: list[str] = json.loads(metadata[b"classes"])
        self.classes = own_classes if classes is None else list(classes)
        self._prefix = os.fsencode(directory) + b"/"
        self._files = column(table, "file")
        self.labels: NDArray[np.int32] = column(table, "label").to_numpy()
        self.lengths: NDArray[np.int64] = column(table, "length").to_numpy()
        self.widths: NDArray[np.int32] = column(table, "width").to_numpy()
        self.heights: NDArray[np.int32] = column(table, "height").to_numpy()
        self._containers = (
            ContainedImages(table, self._prefix) if b"containers" in metadata else None
        )
        if self.classes != own_classes:
            noun = "class folder(s)" if self._containers is None else "class(es)"
            label_map = _label_map(own_classes, self.classes, f"{directory} has", noun)
            self.labels = label_map[self.labels]

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

        BadImage if it cannot be read, is not as long as recorded, or had no readable header.
        """
        recorded = int(self.lengths[index])
        try:
            if self._containers is None:
                content, end = self._read_file(index), "the manifest recorded"
                cure = f" ({_INDEX_AGAIN})"
            else:
                content = self._containers.read(int(index), recorded)
                end = "its container was changed or cut after the manifest recorded"
                cure = ""  # such a container is indexed anew at the next start
        except OSError as error:
            reason = f"it cannot be read: {error.strerror}"
            raise BadImage(self.path(index), reason, changed=True) from error
        if len(content) != recorded and (len(content) or self._containers is not None):
            reason = f"has {len(content)} bytes, {end} {recorded}{cure}"
            raise BadImage(self.path(index), reason, changed=True)
        if len(content) == 0:
            raise BadImage(self.path(index), "the file is empty", changed=recorded != 0)
        if self.widths[index] == 0:
            raise BadImage(self.path(index), "no image header")
        return content

    def _read_file(self, index: int) -> NDArray[np.uint8]:
        name: bytes = self._files[int(index)].as_py()
        # Unbuffered: one read straight into the array, without the GIL.
        with open(self._prefix + name, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            content = np.empty(length, dtype=np.uint8)
            done = 0
            while done < length and (count := file.readinto(content[done:].data)):
                done += count
        return content[:done]


def open_manifest(
    root: Path,
    split: Split,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    again: bool = False,
) -> Manifest:
    """Open the manifest of `<root>/<split>`, scanning only if no cache file is up to date.

    `classes` (the training classes, for val) gives the labels; `None` takes the classes in bytewise
    order. A class without an image is warned of. The cache lies in `cache_dir`, or else in
    `<root>/.trainyard`, or else, where that cannot be written, in the user's cache; a staged copy's
    own, in its `.trainyard`, is used with a `cache_dir` too. Replacing a
    file of a class folder in place does not change its folder's time and is met when it is read;
    `again` scans whatever the cache holds. Ranks that share a file system: call on one first, then
    on the others.

    ValueError, with the cure, for what `survey` and `scan` refuse, a class that `classes` lacks,
    and no place for the cache.
    """
    tree = survey(root, split)
    found = None if again else find_fresh(root, split, cache_dir, tree.stamp)
    if found is not None:
        return _labelled(Manifest(split, tree.directory, found[1], classes))
    rows = scan(tree)
    places, refused = cache_places(root, split, cache_dir), []
    warn_if_fewer(places, rows, tree)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(place, rows, tree.stamp)
            return _labelled(Manifest(split, tree.directory, load_table(place), classes))
        except OSError as error:
            refused.append(f"{place.parent} ({error.strerror})")
            if again and load_fresh(place, tree.stamp) is not None:
                break  # one in a later place would never be looked at
    raise ValueError(
        f"the manifest of {tree.directory} cannot be written to {' or '.join(refused)}; "
        f"set data.cache_dir to a directory that can be written"
    )


def _labelled(manifest: Manifest) -> Manifest:
    """Warn of classes without an image."""
    lacking = np.setdiff1d(np.arange(len(manifest.classes)), manifest.labels)
    if len(lacking):
        log.warning(
            "%s has no images of %d of the %d training classes: %s; its accuracy is that of the "
            "other classes",
            manifest.directory,
            len(lacking),
            len(manifest.classes),
            name_few([manifest.classes[label] for label in lacking]),
        )
    return manifest


def cached_manifest(root: Path, split: Split, cache_dir: Path | None) -> Manifest | None:
    """Return the manifest of `<root>/<split>` if one is up to date; nothing is scanned.

    ValueError, with the cure, for what `survey` refuses.
    """
    tree = survey(root, split)
    found = find_fresh(root, split, cache_dir, tree.stamp)
    return None if found is None else Manifest(split, tree.directory, found[1])


def read_manifest(path: Path, split: Split, directory: Path) -> Manifest:
    """Open a file of `write_manifest` for the images below `directory`, whatever its stamp.

    ValueError if the file is damaged or of another version; OSError if it cannot be read.
    """
    return Manifest(split, directory, load_table(path))


def _label_map(
    own_classes: Sequence[str], classes: Sequence[str], who: str, noun: str
) -> NDArray[np.int32]:
    """Return the index in `classes` of each of a split's own classes."""
    index = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in own_classes if name not in index]
    if unknown:
        raise ValueError(
            f"{who} {len(unknown)} {noun} that the training data lacks: {name_few(unknown)}; "
            f"remove them there or add them to training"
        )
    return np.array([index[name] for name in own_classes], dtype=np.int32)
