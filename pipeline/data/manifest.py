"""Which images exist: name, label, bytes and size of every file of a class-folder tree.

`<root>/<split>/<class>/<file>` is scanned once and kept as an Arrow file that every rank maps into
memory; the directories' times tell when it has to be made again. Images are in bytewise order of
(class, file), which is what an image index means everywhere else.
"""

import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.scan import Rows, Split, name_few, scan, survey

log = logging.getLogger("trainyard")

_VERSION = b"1"  # of the cache file; any other is scanned again
_COLUMNS = {
    "file": pa.binary(),  # file names are bytes on Linux and need not be UTF-8
    "label": pa.int32(),
    "length": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
}


class BadImage(ValueError):
    """An image file that cannot be used: `path`, and the `reason` in words.

    `changed` says that it is not the file that was scanned, so that putting that one back mends
    the data set; a file that was bad already is part of the data hash.
    """

    def __init__(self, path: Path, reason: str, changed: bool = False) -> None:
        """Keep all; they are the arguments too, so the error survives pickling."""
        super().__init__(path, reason, changed)
        self.path = path
        self.reason = reason
        self.changed = changed

    def __str__(self) -> str:
        """Name the file and the reason."""
        return f"the image {self.path} cannot be used: {self.reason}"


class Manifest:
    """The images of one split, read from the memory-mapped cache file.

    split, directory: which part, and the folder that holds its class folders.
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
        """Wrap a table of `read_manifest`; `classes` as in `open_manifest`."""
        metadata = table.schema.metadata
        self.split = split
        self.directory = directory
        self.digest: str = metadata[b"digest"].decode()
        own_classes: list[str] = json.loads(metadata[b"classes"])
        self.classes = own_classes if classes is None else list(classes)
        self._prefix = os.fsencode(directory) + b"/"
        self._files = _column(table, "file")
        self.labels: NDArray[np.int32] = _column(table, "label").to_numpy()
        self.lengths: NDArray[np.int64] = _column(table, "length").to_numpy()
        self.widths: NDArray[np.int32] = _column(table, "width").to_numpy()
        self.heights: NDArray[np.int32] = _column(table, "height").to_numpy()
        if self.classes != own_classes:
            self.labels = _label_map(own_classes, self.classes, directory)[self.labels]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return Path(os.fsdecode(self._path_bytes(index)))

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the whole file of an image, (bytes,) uint8.

        BadImage if it cannot be read, is not as long as recorded, or had no readable header.
        """
        # Unbuffered: one read straight into the array, without the GIL.
        try:
            with open(self._path_bytes(index), "rb", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size
                content = np.empty(length, dtype=np.uint8)
                done = 0
                while done < length and (count := file.readinto(content[done:].data)):
                    done += count
        except OSError as error:
            reason = f"it cannot be read: {error.strerror}"
            raise BadImage(self.path(index), reason, changed=True) from error
        recorded = int(self.lengths[index])
        if done == 0:
            raise BadImage(self.path(index), "the file is empty", changed=recorded != 0)
        if done != recorded:
            reason = f"has {done} bytes, the manifest recorded {recorded}"
            raise BadImage(self.path(index), reason, changed=True)
        if self.widths[index] == 0:
            raise BadImage(self.path(index), "no image header")
        return content

    def _path_bytes(self, index: int) -> bytes:
        name: bytes = self._files[int(index)].as_py()
        return self._prefix + name


def open_manifest(
    root: Path,
    split: Split,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
) -> Manifest:
    """Open the manifest of `<root>/<split>`, scanning the tree only if no cache file is up to date.

    `classes` (the training classes, for val) gives the labels; `None` takes the class folders in
    bytewise order. The cache lies in `cache_dir`, or else in `<root>/.trainyard`, or else, where
    that cannot be written, in the user's cache. Replacing a file in place does not change its
    folder's time and is met when it is read. Ranks that share a file system: call on one first,
    then on the others.

    ValueError, with the cure, for a missing directory or split, images outside class folders, a
    class folder without images, none at all, a class that `classes` lacks, and no place for the
    cache.
    """
    tree = survey(root, split)
    places = _cache_places(root, split, cache_dir)
    for place in places:
        table = _load_fresh(place, tree.stamp)
        if table is not None:
            return Manifest(split, tree.directory, table, classes)
    rows = scan(tree)
    refused = []
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(place, rows, tree.stamp)
            return Manifest(split, tree.directory, _load(place), classes)
        except OSError as error:
            refused.append(f"{place.parent} ({error.strerror})")
    raise ValueError(
        f"the manifest of {tree.directory} cannot be written to {' or '.join(refused)}; "
        f"set data.cache_dir to a directory that can be written"
    )


def read_manifest(path: Path, split: Split, directory: Path) -> Manifest:
    """Open a file of `write_manifest` for the images below `directory`, whatever its stamp.

    ValueError if the file is damaged or of another version; OSError if it cannot be read.
    """
    return Manifest(split, directory, _load(path))


def write_manifest(path: Path, rows: Rows, stamp: str = "") -> None:
    """Write rows as an Arrow IPC file, whole or not at all; OSError if that fails.

    `stamp` tells `open_manifest` which state of the tree the rows describe.
    """
    arrays = [
        pa.array(rows.files, type=_COLUMNS["file"]),
        *(pa.array(c) for c in (rows.labels, rows.lengths, rows.widths, rows.heights)),
    ]
    metadata = {
        b"version": _VERSION,
        b"classes": json.dumps(rows.classes).encode(),
        b"digest": rows.digest().encode(),
        b"stamp": stamp.encode(),
        b"checksum": b"%d" % _checksum(arrays),
    }
    batch = pa.record_batch(arrays, schema=pa.schema(_COLUMNS.items(), metadata=metadata))
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        # One record batch, so that every column is one piece of the map.
        with open(partial, "xb") as file:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _load_fresh(path: Path, stamp: str) -> pa.Table | None:
    """Return the cached table if it is whole and describes this state of the tree."""
    try:
        table = _load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the manifest %s is not used: %s", path, error)
        return None
    if table.schema.metadata[b"stamp"] != stamp.encode():
        log.info("the manifest %s is out of date", path)
        return None
    return table


def _load(path: Path) -> pa.Table:
    """Map a cache file; pa.ArrowInvalid is a ValueError."""
    with pa.memory_map(os.fsdecode(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    metadata = table.schema.metadata or {}
    if metadata.get(b"version") != _VERSION:
        raise ValueError(f"its version is {metadata.get(b'version')!r}, not {_VERSION!r}")
    if table.schema.names != list(_COLUMNS) or table.schema.types != list(_COLUMNS.values()):
        raise ValueError(f"its columns are {table.schema.names}")
    # A wrong label would go unnoticed, and a wrong offset of a name may end the process.
    if metadata.get(b"checksum") != b"%d" % _checksum([_column(table, c) for c in _COLUMNS]):
        raise ValueError("its checksum does not match")
    return table


def _cache_places(root: Path, split: Split, cache_dir: Path | None) -> list[Path]:
    """Return where the cache file may lie, best first."""
    # Named by the tree's place, as one folder may serve several data sets.
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    shared_name = f"{place}-{split}.arrow"
    if cache_dir is not None:
        return [cache_dir / shared_name]
    places = [root / ".trainyard" / f"{split}.arrow"]
    try:
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(user_cache / "trainyard" / "manifests" / shared_name)
    except RuntimeError:  # a container's user may have no home
        pass
    return places


def _label_map(
    own_classes: Sequence[str], classes: Sequence[str], directory: Path
) -> NDArray[np.int32]:
    """Return the index in `classes` of each of the folder's own classes."""
    index = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in own_classes if name not in index]
    if unknown:
        raise ValueError(
            f"{directory} has {len(unknown)} class folder(s) that the training data lacks: "
            f"{name_few(unknown)}; remove them there or add them to training"
        )
    return np.array([index[name] for name in own_classes], dtype=np.int32)


def _column(table: pa.Table, name: str) -> Any:
    return table.column(name).chunk(0)


def _checksum(arrays: Sequence[Any]) -> int:
    checksum = 0
    for array in arrays:
        for buffer in array.buffers():
            if buffer is not None:
                checksum = zlib.crc32(buffer, checksum)
    return checksum
