"""The manifest's file: an Arrow file, written atomically, that every rank maps into memory."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.index.scan import Rows
from pipeline.data.index.survey import Split, Tree, name_few
from pipeline.system.failure import TrainingError
from pipeline.system.files import replacing
from pipeline.system.regular import open_regular

log = logging.getLogger("trainyard")

_VERSION = b"4"  # of the file; any other is scanned again
_COLUMNS = {
    "file": pa.binary(),  # file names are bytes on Linux and need not be UTF-8
    "label": pa.int32(),
    "length": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
}
# Class folders have no need of these.
_PLACE_COLUMNS = {"container": pa.int32(), "offset": pa.int64()}


def write_manifest(path: Path, rows: Rows, stamp: str = "") -> None:
    """Write rows as an Arrow IPC file, atomically; OSError if that fails.

    `stamp` identifies the state of the images' folder that the rows describe.
    """
    columns = dict(_COLUMNS)
    arrays = [
        pa.array(rows.files, type=_COLUMNS["file"]),
        *(pa.array(c) for c in (rows.labels, rows.lengths, rows.widths, rows.heights)),
    ]
    metadata = {
        b"version": _VERSION,
        b"classes": json.dumps(rows.classes).encode(),
        b"digest": rows.digest().encode(),
        b"stamp": stamp.encode(),
        b"passed": json.dumps(rows.passed.rows()).encode(),
    }
    if rows.places is not None:
        columns |= _PLACE_COLUMNS
        arrays += [pa.array(rows.places.containers), pa.array(rows.places.offsets)]
        metadata[b"containers"] = json.dumps(rows.places.names).encode()
        metadata[b"gaps"] = json.dumps(list(rows.places.gaps.items())).encode()
    metadata[b"checksum"] = b"%d" % _checksum(arrays, metadata)
    batch = pa.record_batch(arrays, schema=pa.schema(columns.items(), metadata=metadata))
    with (
        replacing(path) as new,
        open(new, "wb") as file,
        pa.ipc.new_file(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)  # the only one, so that every column is one piece of the map


def load_table(path: Path) -> pa.Table:
    """Map a file of `write_manifest`.

    ValueError if it is damaged or of another version, OSError if it cannot be read, TrainingError
    where Arrow gets no thread for it.
    """
    os.close(open_regular(path))
    try:
        with pa.memory_map(os.fsencode(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except OSError:
        raise
    except Exception as error:  # Arrow raises KeyError, MemoryError and others of its own too
        if os.strerror(errno.EAGAIN) in str(error) or "start new thread" in str(error):
            raise TrainingError(
                f"{path} cannot be read, as no more threads may be started ({error}); raise the "
                "limit of processes (ulimit -u, or pids.max of the container), or lower "
                "run.threads or data.threads"
            ) from error
        raise ValueError(f"it is damaged or no image index ({error})") from error
    metadata = table.schema.metadata or {}
    if metadata.get(b"version") != _VERSION:
        raise ValueError(f"its version is {metadata.get(b'version')!r}, not {_VERSION!r}")
    columns = _COLUMNS | (_PLACE_COLUMNS if b"containers" in metadata else {})
    if table.schema.names != list(columns) or table.schema.types != list(columns.values()):
        raise ValueError(f"its columns are {table.schema.names}")
    if any(table.column(name).num_chunks != 1 for name in columns):
        raise ValueError("its columns are not in one piece")
    # A wrong label would go unnoticed, and a wrong offset of a name may end the process.
    arrays = [column(table, name) for name in columns]
    if metadata.get(b"checksum") != b"%d" % _checksum(arrays, metadata):
        raise ValueError("its checksum does not match")
    return table


def load_fresh(path: Path, stamp: str) -> pa.Table | None:
    """Return the table if the file exists, is whole, and describes the state `stamp`."""
    try:
        table = load_table(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the image index %s is not used: %s", path, error)
        return None
    if table.schema.metadata[b"stamp"] != stamp.encode():
        log.info("the image index %s is out of date", path)
        return None
    return table


def cache_places(root: Path, split: Split, cache_dir: Path | None) -> list[Path]:
    """Return the paths where the file of `<root>/<split>` may be, best first.

    In `cache_dir`; without one in `<root>/.trainyard`, or in the user's cache where that cannot be
    written.
    """
    # Named after the tree's path, as one folder may serve several data sets.
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


def find_fresh(
    root: Path, split: Split, cache_dir: Path | None, stamp: str
) -> tuple[Path, pa.Table] | None:
    """Return the first file of `<root>/<split>` that `load_fresh` takes, and its table.

    Looks in `cache_places` and last in `<root>/.trainyard` even if there is a `cache_dir`: a staged
    copy brings its manifest along there.
    """
    places = cache_places(root, split, cache_dir)
    if cache_dir is not None:
        places += cache_places(root, split, None)[:1]
    for place in places:
        table = load_fresh(place, stamp)
        if table is not None:
            return place, table
    return None


def warn_if_fewer(places: Sequence[Path], rows: Rows, tree: Tree) -> None:
    """Log which containers hold fewer images than a manifest, out of date by now, says.

    A TFRecord or RecordIO file that was cut between two records shows no sign of it.
    """
    before = next(filter(None, map(_images_by_container, places)), {})
    if rows.places is None or not before:
        return
    now = _count(rows.places.names, rows.places.containers)
    fewer = [
        f"{name} ({now[name]} of {count})" if name in now else f"{name} (gone)"
        for name, count in before.items()
        if now.get(name, 0) < count
    ]
    if fewer:
        log.warning(
            "%d of the %d %s that %s held when it was indexed last hold fewer images now: %s; "
            "copy again from their source what nobody meant to change",
            len(fewer), len(before), tree.source_noun, tree.directory, name_few(fewer),
        )  # fmt: skip


def _images_by_container(path: Path) -> dict[str, int] | None:
    try:
        table = load_table(path)
    except (OSError, ValueError):
        return None
    names = json.loads(table.schema.metadata.get(b"containers", b"[]"))
    return _count(names, column(table, "container").to_numpy()) if names else None


def _count(names: Sequence[str], containers: NDArray[np.int32]) -> dict[str, int]:
    counts = np.bincount(containers, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def column(table: pa.Table, name: str) -> Any:
    """Return a column as the one Arrow array it is."""
    return table.column(name).chunk(0)


def _checksum(arrays: Sequence[Any], metadata: dict[bytes, bytes]) -> int:
    """Return a checksum of all that is read: columns, their lengths, and what describes them."""
    checksum = 0
    for key in sorted(metadata.keys() - {b"checksum"}):
        checksum = zlib.crc32(b"%b %d %b" % (key, len(metadata[key]), metadata[key]), checksum)
    for array in arrays:
        shape = len(array), array.offset, array.null_count
        checksum = zlib.crc32(repr(shape).encode(), checksum)
        for buffer in array.buffers():
            if buffer is not None:
                checksum = zlib.crc32(buffer, checksum)
    return checksum
