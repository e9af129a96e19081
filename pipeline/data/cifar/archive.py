"""Finds CIFAR-10's archive, packed or unpacked, and gives the bytes of the files in it."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Form = Literal["binary", "python"]

ARCHIVES: dict[Form, str] = {
    "binary": "cifar-10-binary.tar.gz",
    "python": "cifar-10-python.tar.gz",
}
FOLDERS: dict[Form, str] = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}
CLASSES: dict[Form, str] = {"binary": "batches.meta.txt", "python": "batches.meta"}
TEST: dict[Form, str] = {"binary": "test_batch.bin", "python": "test_batch"}
_TRAIN: dict[Form, re.Pattern[str]] = {
    "binary": re.compile(r"data_batch_(\d+)\.bin"),
    "python": re.compile(r"data_batch_(\d+)"),
}
_GZIP = b"\x1f\x8b"
_CURE = (
    "put cifar-10-binary.tar.gz or cifar-10-python.tar.gz of "
    "https://www.cs.toronto.edu/~kriz/cifar.html there, packed or unpacked"
)


@dataclass(frozen=True)
class Archive:
    """An archive's files: `place` is its folder or file, `files` their contents by name."""

    form: Form
    place: Path
    files: dict[str, bytes]

    @property
    def train(self) -> list[str]:
        """The training batches in the order of their numbers, which begin with 1 without a gap.

        Raises `ValueError` if one is missing.
        """
        matches = filter(None, map(_TRAIN[self.form].fullmatch, self.files))
        numbers = {int(match[1]): match[0] for match in matches}
        self.require_train(max(numbers, default=1))
        return [numbers[number] for number in sorted(numbers)]

    def require_train(self, count: int) -> None:
        """Raises `ValueError` naming the first of the training batches 1 .. `count` that is not
        there."""
        suffix = ".bin" if self.form == "binary" else ""
        for number in range(1, count + 1):
            self.content(f"data_batch_{number}{suffix}")

    def content(self, name: str) -> bytes:
        """The bytes of one file. Raises `ValueError` if it is missing."""
        if name not in self.files:
            raise self._missing(name)
        return self.files[name]

    def _missing(self, name: str) -> ValueError:
        return ValueError(f"{self.place} has no {name} and so is not all of CIFAR-10; {_CURE}")


def open_archive(root: Path) -> Archive:
    """The archive at `root`: its file, its folder, or a folder that holds one of these.

    What is unpacked comes first, then the binary form. Raises `ValueError`, with the cure, if there
    is none or it cannot be read.
    """
    try:
        if root.is_file():
            return _unpacked_in_memory(root)
        for form, folder in FOLDERS.items():
            for place in (root, root / folder):
                if (place / CLASSES[form]).is_file() or (place / TEST[form]).is_file():
                    return _folder(place, form)
        for name in ARCHIVES.values():
            if (root / name).is_file():
                return _unpacked_in_memory(root / name)
    except OSError as error:
        raise ValueError(
            f"{error.filename or root} cannot be read: {error.strerror}; give this user the right "
            "to read it, or set data.root to a copy"
        ) from error
    raise ValueError(f"data.root={root} holds no CIFAR-10; {_CURE}")


def _folder(place: Path, form: Form) -> Archive:
    names = [one.name for one in place.iterdir() if _belongs(one.name, form)]
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
    files: dict[Form, dict[str, bytes]] = {"binary": {}, "python": {}}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                for form in FOLDERS:
                    if folder == FOLDERS[form] and member.isfile() and _belongs(name, form):
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
    folders = " nor ".join(FOLDERS.values())
    raise ValueError(f"{path} holds neither {folders} and so is not CIFAR-10; {_CURE}")


def _belongs(name: str, form: Form) -> bool:
    return name in (CLASSES[form], TEST[form]) or _TRAIN[form].fullmatch(name) is not None
