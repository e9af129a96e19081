"""What containers tell of themselves, for `prepare verify --full`: checksums, and the index again.

TFRecord has a checksum for each record, which decoding does not see: another label, or pixels that
still decode. Tar has one for each header, RecordIO none; of these, walking again shows what is no
longer as it was indexed.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import require
from pipeline.data.index.manifest import Manifest
from pipeline.data.index.scan import scan
from pipeline.data.index.survey import survey
from pipeline.data.index.tfrecord import damaged_records
from pipeline.data.index.window import opened
from pipeline.prepare.files import Progress

log = logging.getLogger("trainyard")

DAMAGED = "its record does not match its checksum: pixels, label or name were changed"


def damaged_images(manifest: Manifest, threads: int) -> dict[int, str]:
    """Why each image is not what was written, by the checksums of its container; reads all bytes.

    Class folders have none. Containers that this call has just indexed are not walked again.
    ValueError for one that cannot be walked any more, with the byte, or has other images than were
    indexed.
    """
    tree = survey(manifest.directory.parent, manifest.split)
    if tree.kind == "folders":
        return {}
    # Its warnings were said when it was indexed.
    require(
        manifest.scanned or scan(tree, tell=log.debug).digest() == manifest.digest,
        f"{manifest.directory} has other images than its image index: its {tree.source_noun} were "
        "changed in place; restore them, or index them again (python -m pipeline.prepare index "
        "--again), which makes it other data to runs that began before",
    )
    if tree.kind != "tfrecord":
        return {}
    what = f"checking the records' checksums in {manifest.directory}"
    with (
        Progress(what, len(manifest), tree.size_bytes) as progress,
        ThreadPoolExecutor(threads, thread_name_prefix="checksums") as pool,
    ):
        found = pool.map(lambda one: _damaged(progress, *one), manifest.containers())
        return {image: DAMAGED for images in found for image in images}


def _damaged(
    progress: Progress, path: Path, images: NDArray[np.int64], offsets: NDArray[np.int64]
) -> list[int]:
    """The images of a container, which lie at ascending offsets, whose records are damaged."""
    found: list[int] = []
    with opened(path) as window:
        for begin, end in damaged_records(window, lambda length: progress.add(1, length)):
            first, last = np.searchsorted(offsets, (begin, end)).tolist()
            found += images[first:last].tolist()
    return found
