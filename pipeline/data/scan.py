"""The walk over a class-folder tree: which files, which class, how many bytes, what size.

`<root>/<split>/<class>/<file>`; everything is in bytewise order of names, whatever the locale.
Names that begin with a dot, files that are no images by extension and folders inside class
folders are passed over.
"""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

log = logging.getLogger("trainyard")

Split = Literal["train", "val"]

IMAGE_EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# What DALI decodes, by its first bytes, whatever the extension says. The plugins are called
# directly because Image.open refuses large images by a process-wide limit that is not ours to
# lift.
_HEADERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8", JpegImageFile),
    (b"\x89PNG", PngImageFile),
    (b"BM", BmpImageFile),
    (b"RIFF", WebPImageFile),
    (b"II", TiffImageFile),
    (b"MM", TiffImageFile),
)

# File times advance in ticks of up to 10 ms (the kernel's timer, before multigrain timestamps).
_CLOCK_TICK_SEC = 0.02
# More threads than cores: on a network file system a header waits, it does not compute.
_THREADS = 16
_PROGRESS_SEC = 10.0
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Tree:
    """The folders of one split, before any file is looked at.

    stamp: hex digits that change when an entry is added to or removed from any of the folders.
    changed_sec: when that last happened, in seconds since 1970.
    loose_images: image files beside the class folders, which belong to no class.
    """

    directory: Path
    classes: list[str]
    stamp: str
    changed_sec: float
    loose_images: int


@dataclass(frozen=True, eq=False)
class Rows:
    """The N images of a tree in bytewise order of (class, file).

    files: N names `<class>/<file>` as bytes; labels: (N,) int32 index into `classes`;
    lengths: (N,) int64 bytes; widths, heights: (N,) int32 pixels, 0 without a readable header,
    and as stored (EXIF orientation not applied).
    """

    classes: list[str]
    files: list[bytes]
    labels: NDArray[np.int32]
    lengths: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]

    def digest(self) -> str:
        """Return the data hash: sha256 over (class, name, bytes, width, height) of every image.

        Where the tree lies and the files' times do not enter, so a copy is the same data.
        """
        sha = hashlib.sha256()
        columns = (self.lengths.tolist(), self.widths.tolist(), self.heights.tolist())
        for file, length, width, height in zip(self.files, *columns, strict=True):
            sha.update(b"%s\0%d\0%d\0%d\n" % (file, length, width, height))
        return sha.hexdigest()


def survey(root: Path, split: Split) -> Tree:
    """Return the class folders of `<root>/<split>` at the cost of one stat for each.

    ValueError if the root or the split is missing, or if no class folder is there.
    """
    directory = root / split
    if not root.is_dir():
        raise ValueError(
            f"the data directory {root} does not exist; make the demo set with python -m "
            f"pipeline.prepare demo, or lay ImageNet out as <root>/train/<wnid>/*.JPEG and "
            f"<root>/val/<wnid>/*.JPEG, and set data.root"
        )
    if not directory.is_dir():
        raise ValueError(
            f"the data directory {root} has no folder {split}; lay the images out as "
            f"{directory}/<class>/*.JPEG, or set data.root to the folder that holds train and val"
        )
    with os.scandir(os.fsencode(directory)) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(b".")]
    folders = sorted(entry.name for entry in visible if entry.is_dir())
    loose_images = sum(not entry.is_dir() and _is_image(entry.name) for entry in visible)
    if not folders and loose_images:
        raise ValueError(
            f"{directory} holds {loose_images} images but no class folders, so their labels cannot "
            f"be known; move each into {directory}/<class>/, the folders named as in training"
        )
    if not folders:
        raise ValueError(_no_images(directory))
    times = [os.stat(directory).st_mtime_ns]
    times += [os.stat(os.path.join(os.fsencode(directory), name)).st_mtime_ns for name in folders]
    stamp = hashlib.sha256(repr((len(visible), folders, times)).encode()).hexdigest()
    classes = [os.fsdecode(name) for name in folders]
    return Tree(directory, classes, stamp, max(times) / 1e9, loose_images)


def scan(tree: Tree) -> Rows:
    """Read the header of every image of the tree, in several threads.

    A file without a readable header is kept with size 0 x 0 and reported in one warning: only
    reading it is an error. ValueError if there is no image, or a class folder has none.
    """
    # Within one tick of its last change, a folder could change again and keep the stamp.
    time.sleep(min(max(0.0, tree.changed_sec + _CLOCK_TICK_SEC - time.time()), _CLOCK_TICK_SEC))
    started = reported = time.monotonic()
    names: list[list[bytes]] = []
    sizes: list[NDArray[np.int64]] = []
    parent = os.fsencode(tree.directory)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as pool:
        folders = [os.path.join(parent, os.fsencode(name)) for name in tree.classes]
        for class_names, class_sizes in pool.map(_scan_class, folders):
            names.append(class_names)
            sizes.append(class_sizes)
            if time.monotonic() - reported > _PROGRESS_SEC:
                reported = time.monotonic()
                done = sum(map(len, names))
                total = len(folders)
                log.info("%s: %d of %d classes, %d images", tree.directory, len(names), total, done)
    _check_classes(tree, [len(class_names) for class_names in names])
    lengths, widths, heights = np.concatenate(sizes).T
    rows = Rows(
        classes=tree.classes,
        files=[
            os.fsencode(folder) + b"/" + name
            for folder, class_names in zip(tree.classes, names, strict=True)
            for name in class_names
        ],
        labels=np.repeat(np.arange(len(names), dtype=np.int32), [len(part) for part in names]),
        lengths=np.ascontiguousarray(lengths),
        widths=widths.astype(np.int32),
        heights=heights.astype(np.int32),
    )
    seconds = time.monotonic() - started
    log.info("scanned %d images in %s in %.1f s", len(rows.files), tree.directory, seconds)
    _warn(tree, rows)
    return rows


def name_few(names: Sequence[str]) -> str:
    """Return the first few names and how many more there are, for a message."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _scan_class(folder: bytes) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the names of a class folder's images and (n, 3) int64: bytes, width, height."""
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if _is_image(entry.name) and not entry.name.startswith(b".") and not entry.is_dir()
        )
    measures = [_measure(os.path.join(folder, name)) for name in names]
    return names, np.array(measures, dtype=np.int64).reshape(-1, 3)


def _measure(path: bytes) -> tuple[int, int, int]:
    """Return bytes, width and height; what cannot be found out is 0."""
    length = 0
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            start = file.read(4)
            file.seek(0)
            for magic, plugin in _HEADERS:
                if start.startswith(magic):
                    width, height = plugin(file).size
                    return length, width, height
    except Exception:  # plugins raise nearly anything on a damaged header
        log.debug("no header in %r", path, exc_info=True)
    return length, 0, 0


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(tuple(extension.encode() for extension in IMAGE_EXTENSIONS))


def _no_images(directory: Path) -> str:
    return (
        f"{directory} holds no images ({' '.join(IMAGE_EXTENSIONS)}); lay them out as "
        f"{directory}/<class>/*.JPEG or set data.root"
    )


def _check_classes(tree: Tree, counts: Sequence[int]) -> None:
    empty = [name for name, count in zip(tree.classes, counts, strict=True) if not count]
    if len(empty) == len(counts):
        raise ValueError(_no_images(tree.directory))
    if empty:
        raise ValueError(
            f"{len(empty)} class folder(s) of {tree.directory} hold no images: {name_few(empty)}; "
            f"fill them or remove them"
        )


def _warn(tree: Tree, rows: Rows) -> None:
    """Log what a user should mend before training meets it."""
    headless = np.flatnonzero(rows.widths == 0)
    if len(headless):
        log.warning(
            "%d of %d images in %s have no readable header: %s; "
            "training will stop when it meets one",
            len(headless),
            len(rows.files),
            tree.directory,
            name_few([os.fsdecode(rows.files[index]) for index in headless]),
        )
    if tree.loose_images:
        log.warning(
            "%d images lie in %s beside its class folders and are not used",
            tree.loose_images,
            tree.directory,
        )
