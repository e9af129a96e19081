"""CIFAR-10 as the two splits of a data set, its pixels in memory, from either official archive.

Binary form: rows of 3073 bytes, the label and then 32 x 32 of R, of G and of B, row by row. Python
form: a pickled dict with the same pixels as an array (n, 3072), which is read without unpickling.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cifar_pickle import BadPickle, array_of, read_pickle
from pipeline.data.index.labels import plain_text, shown
from pipeline.data.index.survey import Split, name_few
from pipeline.data.index.unpacked import unpacked
from pipeline.data.index.window import BadContainer
from pipeline.system.regular import NotTaken, open_regular, read_regular

log = logging.getLogger("trainyard")

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE
_ROW_BYTES = 1 + _PIXEL_BYTES
_TRAIN_IMAGES, _TEST_IMAGES = 50_000, 10_000
_OFFICIAL_BATCHES, _OFFICIAL_BATCH = 5, 10_000
"""Training files of CIFAR-10, and the images in each of them. A file of that size is taken for one
of them, so that the others must exist; other sets in this format, such as the drawn one of
`prepare mini`, are recognised by files of other sizes."""

_PUT = (
    "put cifar-10-binary.tar.gz or cifar-10-python.tar.gz of "
    "https://www.cs.toronto.edu/~kriz/cifar.html there, packed or unpacked"
)
_AGAIN = "unpack or download the archive again"
_MOST_BYTES = 1 << 30  # of an archive unpacked; CIFAR-10 has 180 MB


@dataclass(eq=False)
class CifarImages:
    """The images of one split; an `ImageSet`.

    pixels: (N, 32, 32, 3) uint8. labels: (N,) int32. places: (N,) of `<archive>/<file>:<row>`.
    Images are in the order of their batch files and rows, whichever archive they come from, and
    so does the data hash.
    """

    split: Split
    classes: list[str]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]
    places: NDArray[np.object_]

    def __post_init__(self) -> None:
        """Widths (N,); all images are squares of one size."""
        self.heights: NDArray[np.int32] = np.full(len(self.labels), _SIDE, dtype=np.int32)
        self.widths = self.heights

    @functools.cached_property
    def digest(self) -> str:
        """The data hash, 64 hex digits."""
        summary = hashlib.sha256(f"cifar {json.dumps(self.classes)} {len(self)} ".encode())
        summary.update(self.labels.astype("<i4").tobytes())
        summary.update(self.pixels.tobytes())
        return summary.hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return `<archive>/<batch file>:<row>`."""
        return Path(self.places[index])

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels (32, 32, 3) of an image."""
        return np.asarray(self.pixels[index])

    def part(self, split: Split, chosen: NDArray[np.bool_]) -> CifarImages:
        """Return a split of the `chosen` (N,) images, in the same order."""
        arrays = self.pixels[chosen], self.labels[chosen], self.places[chosen]
        return CifarImages(split, self.classes, *arrays)


def open_cifar(
    root: Path, held_out: int | None, classes: Sequence[str] | None = None
) -> tuple[CifarImages, CifarImages]:
    """Return train and val of the archive at `root`; reads about 180 MB.

    `root` is the archive, its folder, or a folder that holds one of these; what is unpacked comes
    first, then the binary form. With `held_out` the last held_out / classes training images of each
    class are val, and the test images are not used; with None the test images are val. `classes`,
    those of a training, must be the archive's.

    ValueError, which says what to do, for an archive that is not CIFAR-10's or not whole, other
    classes, and a `held_out` that does not divide among the classes or leaves one without images.
    """
    archive = _open_archive(root)
    own = _read_classes(archive)
    if classes is not None and list(classes) != own:
        raise ValueError(
            f"{archive.place} has the classes {name_few(own)}, the training had "
            f"{name_few(classes)}; set data.root to the data of the training"
        )
    train = _read(archive, "train", archive.train_files(), own)
    test = _read(archive, "val", [archive.form.test], own)
    if (len(train), len(test)) != (_TRAIN_IMAGES, _TEST_IMAGES):
        log.warning(
            "warning: %s has %d training and %d test images, CIFAR-10 itself %d and %d; if it is "
            "to be CIFAR-10, copy its archive again",
            archive.place, len(train), len(test), _TRAIN_IMAGES, _TEST_IMAGES,
        )  # fmt: skip
    if held_out is None:
        return train, test
    is_val = _last_of_each(train.labels, held_out, own)
    return train.part("train", ~is_val), train.part("val", is_val)


def _read(archive: _Archive, split: Split, names: Sequence[str], classes: list[str]) -> CifarImages:
    """All images in the batch files `names`."""
    batches = [_read_batch(archive, name, len(classes)) for name in names]
    counts = [len(labels) for _, labels in batches]
    if split == "train" and _OFFICIAL_BATCH in counts:
        archive.train_files(_OFFICIAL_BATCHES)
    places = [
        f"{archive.place / name}:{row}"
        for name, count in zip(names, counts, strict=True)
        for row in range(count)
    ]
    pixels, labels = map(np.concatenate, zip(*batches, strict=True))
    return CifarImages(split, classes, pixels, labels, np.array(places, dtype=object))


def _last_of_each(
    labels: NDArray[np.int32], held_out: int, classes: Sequence[str]
) -> NDArray[np.bool_]:
    """Which images (N,) are the last held_out / classes of their class."""
    share, rest = divmod(held_out, len(classes))
    if rest:
        raise ValueError(
            f"data.held_out={held_out} must be a multiple of the {len(classes)} classes, so that "
            "each holds out as many"
        )
    is_val = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        own = np.flatnonzero(labels == label)
        if len(own) <= share:
            raise ValueError(
                f"data.held_out={held_out} takes {share} images of each class and {name} has only "
                f"{len(own)}; lower it"
            )
        is_val[own[-share:]] = True
    return is_val


# The archives


class _Form(NamedTuple):
    """One of the two archive forms: its name, the folder in it, and the files in that."""

    archive: str
    folder: str
    classes: str
    suffix: str

    @property
    def test(self) -> str:
        """The file of the test images."""
        return f"test_batch{self.suffix}"

    def has(self, name: str) -> bool:
        """Whether the archive has a file of that name."""
        batch = rf"(data_batch_[1-9][0-9]*|test_batch){re.escape(self.suffix)}"
        return name == self.classes or re.fullmatch(batch, name) is not None


_BINARY = _Form("cifar-10-binary.tar.gz", "cifar-10-batches-bin", "batches.meta.txt", ".bin")
_PYTHON = _Form("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta", "")
_FORMS = (_BINARY, _PYTHON)


@dataclass(frozen=True)
class _Archive:
    """An archive's files: `place` is its folder or file, `files` their contents by name."""

    form: _Form
    place: Path
    files: dict[str, bytes]

    def train_files(self, least: int = 1) -> list[str]:
        """The training batches, numbered from 1 without a gap, at least `least`.

        Raises `ValueError` naming the first one that is missing.
        """
        count = sum(name.startswith("data_batch_") for name in self.files)
        names = [f"data_batch_{n + 1}{self.form.suffix}" for n in range(max(least, count))]
        for name in names:
            self.content(name)
        return names

    def content(self, name: str) -> bytes:
        """The bytes of one file. Raises `ValueError` if it is missing."""
        if name not in self.files:
            raise ValueError(f"{self.place} has no {name} and so is not all of CIFAR-10; {_PUT}")
        return self.files[name]


def _open_archive(root: Path) -> _Archive:
    try:
        for form in _FORMS:
            for place in (root, root / form.folder):
                if (place / form.classes).is_file() or (place / form.test).is_file():
                    return _Archive(form, place, _read_files(form, place))
        for path in (root, *(root / form.archive for form in _FORMS)):
            if os.path.exists(path) and not path.is_dir():
                return _unpacked_in_memory(path)
    except NotTaken as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}; {_PUT}") from error
    except OSError as error:
        raise ValueError(
            f"{error.filename or root} cannot be read: {error.strerror or error}; give this user "
            "the right to read it, or set data.root to a copy"
        ) from error
    raise ValueError(f"data.root={root} holds no CIFAR-10; {_PUT}")


def _read_files(form: _Form, place: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = _MOST_BYTES
    for path in sorted(place.iterdir()):
        if form.has(path.name):
            files[path.name] = read_regular(path, left)
            left -= len(files[path.name])
    return files


def _unpacked_in_memory(path: Path) -> _Archive:
    """Reads the members of a tar.gz. Nothing is written to disk, so no member's name can escape."""
    files: dict[_Form, dict[str, bytes]] = {form: {} for form in _FORMS}

    def form_of(member: str) -> _Form | None:
        folder, _, name = member.rpartition("/")
        return next((f for f in _FORMS if folder == f.folder and f.has(name)), None)

    try:
        for member, content in unpacked(path, lambda name: form_of(name) is not None, _MOST_BYTES):
            form = form_of(member)
            assert form is not None, "only such members are unpacked"
            found, name = files[form], member.rpartition("/")[2]
            if found.setdefault(name, content) != content:
                raise ValueError(f"{path} has {member} twice, with other content; {_PUT}")
    except BadContainer as error:
        with open(path, "rb", opener=open_regular) as file:
            start = file.read(16)
        page = f"an error page, saved in its place? It begins with {start!r}"
        reason = page if start.lstrip().startswith(b"<") else error.reason
        raise ValueError(f"{path} is truncated, damaged or no tar.gz ({reason}); {_PUT}") from error
    for form, found in files.items():
        if found:
            return _Archive(form, path, found)
    folders = " nor ".join(form.folder for form in _FORMS)
    raise ValueError(f"{path} holds neither {folders} and so is not CIFAR-10; {_PUT}")


# What their files say


def _read_classes(archive: _Archive) -> list[str]:
    """The names of the classes. Raises `ValueError` if the file does not hold any."""
    name = archive.form.classes
    where, content = archive.place / name, archive.content(name)
    if archive.form is _PYTHON:
        names = _unpickled(where, content).get(b"label_names")
        if not isinstance(names, list) or not all(isinstance(one, bytes | str) for one in names):
            raise ValueError(f"{where} has no list label_names and so is not CIFAR-10's; {_AGAIN}")
        lines = [one if isinstance(one, str) else one.decode("latin-1") for one in names]
    else:
        text = plain_text(content)
        if text is None:
            raise ValueError(f"{where} is not plain text, perhaps UTF-16; {_AGAIN}")
        lines = text.decode("latin-1").split("\n")
    found = [line.strip() for line in lines if line.strip()]
    if not 2 <= len(found) <= 256 or len(set(found)) < len(found) or found[0].startswith("<"):
        raise ValueError(
            f"{where} must name at least two classes, each once, and has "
            f"{', '.join(map(shown, found[:3])) or 'none'}; {_AGAIN}"
        )
    return found


def _read_batch(
    archive: _Archive, name: str, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Pixels (n, 32, 32, 3) and labels (n,) of one batch file, labels below `classes`.

    Raises `ValueError`, naming the file, if it is no batch of CIFAR-10 or not whole.
    """
    where, content = archive.place / name, archive.content(name)
    planes, labels = (_binary if archive.form is _BINARY else _python)(where, content)
    for row, label in enumerate(labels):
        if not 0 <= label < classes:
            raise ValueError(
                f"{where}: the label {label} of image {row} must be below {classes}, the number of "
                f"classes, as in CIFAR-10; {_AGAIN}"
            )
    pixels = planes.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.array(labels, dtype=np.int32)


def _binary(where: Path, content: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    if len(content) == 0 or len(content) % _ROW_BYTES:
        raise ValueError(
            f"{where} has {len(content)} bytes, which is no multiple of the {_ROW_BYTES} that an "
            f"image of CIFAR-10 takes: it is truncated or something else; {_AGAIN}"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, _ROW_BYTES)
    return rows[:, 1:], rows[:, 0].tolist()


def _python(where: Path, content: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    batch = _unpickled(where, content)
    data, labels = batch.get(b"data"), batch.get(b"labels")
    pixels = array_of(data)
    if (
        pixels is None
        or not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
        or pixels.shape != (len(labels), _PIXEL_BYTES)
        or len(labels) == 0
    ):
        shape = "none" if pixels is None else f"some of shape {pixels.shape}"
        count = len(labels) if isinstance(labels, list) else "no"
        raise ValueError(
            f"{where} must hold data, bytes of shape (n, {_PIXEL_BYTES}), and n labels, as "
            f"CIFAR-10's do; it has {shape} and {count} labels; {_AGAIN}"
        )
    return pixels, labels


def _unpickled(where: Path, content: bytes) -> dict[bytes, Any]:
    """The dict in a pickle, its names as bytes."""
    try:
        return read_pickle(content)
    except BadPickle as error:
        raise ValueError(
            f"{where} is not a file of CIFAR-10's Python archive, or truncated: {error}; {_AGAIN}"
        ) from error
