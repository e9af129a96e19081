"""CIFAR-10's official archives, packed or unpacked, and what their files say, as arrays.

Binary form: rows of 3073 bytes, the label and then 32 x 32 of R, of G and of B, row by row. Python
form: a pickled dict with the same pixels as an array (n, 3072). No pickled object is ever made: the
names that those files hold stand for classes of this module, and any other name is refused.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GZIP = b"\x1f\x8b"
_CURE = (
    "put cifar-10-binary.tar.gz or cifar-10-python.tar.gz of "
    "https://www.cs.toronto.edu/~kriz/cifar.html there, packed or unpacked"
)

SIDE = 32
_PIXEL_BYTES = 3 * SIDE * SIDE
_ROW_BYTES = 1 + _PIXEL_BYTES
_AGAIN = "unpack or download the archive again"


class Form(NamedTuple):
    """How one of the two archives is named, the folder in it, and the files of that."""

    archive: str
    folder: str
    classes: str
    suffix: str

    @property
    def test(self) -> str:
        """The file of the test images."""
        return f"test_batch{self.suffix}"

    def batch_number(self, name: str) -> int | None:
        """Which file of training images `name` is, from 1; None for any other."""
        match = re.fullmatch(rf"data_batch_(\d+){re.escape(self.suffix)}", name)
        return int(match[1]) if match else None

    def has(self, name: str) -> bool:
        """Whether the archive has a file of that name."""
        return name in (self.classes, self.test) or self.batch_number(name) is not None


_BINARY = Form("cifar-10-binary.tar.gz", "cifar-10-batches-bin", "batches.meta.txt", ".bin")
_PYTHON = Form("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta", "")
_FORMS = (_BINARY, _PYTHON)


@dataclass(frozen=True)
class Archive:
    """An archive's files: `place` is its folder or file, `files` their contents by name."""

    form: Form
    place: Path
    files: dict[str, bytes]

    def train(self, least: int = 1) -> list[str]:
        """The training batches, which have numbers from 1 without a gap, at least `least`.

        Raises `ValueError` naming the first one that is missing.
        """
        numbers = map(self.form.batch_number, self.files)
        last = max((number for number in numbers if number is not None), default=least)
        names = [f"data_batch_{n}{self.form.suffix}" for n in range(1, max(least, last) + 1)]
        for name in names:
            self.content(name)
        return names

    def content(self, name: str) -> bytes:
        """The bytes of one file. Raises `ValueError` if it is missing."""
        if name not in self.files:
            raise ValueError(f"{self.place} has no {name} and so is not all of CIFAR-10; {_CURE}")
        return self.files[name]


def open_archive(root: Path) -> Archive:
    """The archive at `root`: its file, its folder, or a folder that holds one of these.

    What is unpacked comes first, then the binary form. Raises `ValueError`, with the cure, if there
    is none or it cannot be read.
    """
    try:
        if root.is_file():
            return _unpacked_in_memory(root)
        for form in _FORMS:
            for place in (root, root / form.folder):
                if (place / form.classes).is_file() or (place / form.test).is_file():
                    return _folder(place, form)
        for form in _FORMS:
            if (root / form.archive).is_file():
                return _unpacked_in_memory(root / form.archive)
    except OSError as error:
        raise ValueError(
            f"{error.filename or root} cannot be read: {error.strerror}; give this user the right "
            "to read it, or set data.root to a copy"
        ) from error
    raise ValueError(f"data.root={root} holds no CIFAR-10; {_CURE}")


def _folder(place: Path, form: Form) -> Archive:
    names = [one.name for one in place.iterdir() if form.has(one.name)]
    return Archive(form, place, {name: (place / name).read_bytes() for name in names})


def _unpacked_in_memory(path: Path) -> Archive:
    """Nothing is written to disk, so that no member's name can lead anywhere."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start.startswith(_GZIP):
        page = " (an error page, saved in its place?)" if start.lstrip().startswith(b"<") else ""
        raise ValueError(
            f"{path} is not a gzip archive: it begins with {start[:16]!r}{page}; {_CURE}"
        )
    files: dict[Form, dict[str, bytes]] = {form: {} for form in _FORMS}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                for form in _FORMS:
                    if folder == form.folder and member.isfile() and form.has(name):
                        content = tar.extractfile(member)
                        assert content is not None, "a plain file has content"
                        files[form][name] = content.read()
            # A tar ends before its gzip does, where the checksum of all pixels stands.
            while stream.read(2**20):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); {_CURE}") from error
    for form, found in files.items():
        if found:
            return Archive(form, path, found)
    folders = " nor ".join(form.folder for form in _FORMS)
    raise ValueError(f"{path} holds neither {folders} and so is not CIFAR-10; {_CURE}")


def read_classes(archive: Archive) -> list[str]:
    """The names of the classes. Raises `ValueError` if the file does not hold any."""
    name = archive.form.classes
    content = archive.content(name)
    where = archive.place / name
    if archive.form is _PYTHON:
        names = _unpickled(where, content).get(b"label_names")
        if not isinstance(names, list) or not all(isinstance(one, bytes | str) for one in names):
            raise ValueError(f"{where} has no list label_names and so is not CIFAR-10's; {_AGAIN}")
        lines = [one if isinstance(one, str) else one.decode("latin-1") for one in names]
    else:
        lines = content.decode("latin-1").split("\n")
    found = [line.strip() for line in lines if line.strip()]
    if not 2 <= len(found) <= 256 or len(set(found)) < len(found) or found[0].startswith("<"):
        raise ValueError(
            f"{where} must name at least two classes, each once, and has {found[:3]}; {_AGAIN}"
        )
    return found


def read_batch(
    archive: Archive, name: str, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Pixels (n, 32, 32, 3) and labels (n,) of one batch file, labels below `classes`.

    Raises `ValueError`, naming the file, if it is no batch of CIFAR-10 or not whole.
    """
    where, content = archive.place / name, archive.content(name)
    if archive.form is _BINARY:
        planes, labels = _binary(str(where), content)
    else:
        planes, labels = _python(str(where), _unpickled(where, content))
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"{where}: the label {labels[wrong[0]]} of image {wrong[0]} must be below {classes}, "
            f"the number of classes, as in CIFAR-10; {_AGAIN}"
        )
    pixels = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels.astype(np.int32)


def _binary(where: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if len(content) == 0 or len(content) % _ROW_BYTES:
        raise ValueError(
            f"{where} has {len(content)} bytes, which is no multiple of the {_ROW_BYTES} that an "
            f"image of CIFAR-10 takes: it is truncated or something else; {_AGAIN}"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, _ROW_BYTES)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _python(where: str, batch: dict[Any, Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data, labels = batch.get(b"data"), batch.get(b"labels")
    pixels = data.pixels if isinstance(data, _Array) else None
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
    return pixels, np.array([max(-1, min(label, 256)) for label in labels], dtype=np.int64)


class _Array:
    """Stands for numpy's array in a pickle: takes bytes in row order, and nothing else."""

    pixels: NDArray[np.uint8] | None = None

    def __init__(self, *_: Any) -> None:
        """Whatever array the pickle asks for, there is none yet."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, column_order, content = state
        if isinstance(kind, _Kind) and kind.code in (b"u1", "u1") and not column_order:
            self.pixels = np.frombuffer(content, dtype=np.uint8).reshape(shape)


class _Kind:
    """Stands for numpy's dtype in a pickle."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like; bytes have none."""


# Classes with a __setstate__ alone: the attributes of anything else a pickle could set for good.
_STANDS_FOR: dict[str, Any] = {
    "numpy.core.multiarray _reconstruct": _Array,
    "numpy._core.multiarray _reconstruct": _Array,
    "numpy ndarray": _Array,
    "numpy dtype": _Kind,
}


class _Unpickler(pickle.Unpickler):
    """Makes dicts, lists, numbers and text, and the stand-ins above; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STANDS_FOR.get(f"{module} {name}")
        if stand_in is None:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return stand_in


def _unpickled(where: object, content: bytes) -> dict[Any, Any]:
    """The dict in a pickle, its text as bytes, as Python 2 wrote it."""
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if isinstance(found, dict):  # written by Python 3, its keys are text
            return {key.encode() if isinstance(key, str) else key: v for key, v in found.items()}
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise ValueError(
            f"{where} is not a file of CIFAR-10's Python archive, or truncated: {error}; {_AGAIN}"
        ) from error
    raise ValueError(f"{where} holds no dict and so is not CIFAR-10's; {_AGAIN}")
