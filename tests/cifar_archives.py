"""Writes small archives of CIFAR-10's two official forms, packed or not."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, and numpy's names as numpy 1 did: as the official
    archive has them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def _save_text(self, text: str | bytes) -> None:
        content = text if isinstance(text, bytes) else text.encode("latin-1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(obj, name)

    dispatch[str] = _save_text
    dispatch[bytes] = _save_text


def images(count: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (count, 32, 32, 3) uint8 and labels (count,); each class's colour is its own, so that
    a network can tell them apart."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    colours = np.random.default_rng(99).integers(40, 216, (classes, 1, 1, 3))
    pixels = colours[labels] + rng.integers(-40, 40, (count, 32, 32, 3))
    return pixels.astype(np.uint8), labels


def _planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


def pickled(content: dict) -> bytes:
    """A dict as the Python archive's files hold theirs."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def binary_rows(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch of the binary archive."""
    return np.column_stack([labels.astype(np.uint8), _planes(pixels)]).tobytes()


def files(form: str, batches: list[int], test: int, classes: int = 10) -> dict[str, bytes]:
    """The files of an archive with so many images in each batch."""
    found = {}
    parts = [(f"data_batch_{i + 1}", count, i) for i, count in enumerate(batches)]
    for name, count, seed in [*parts, ("test_batch", test, 1000)]:
        pixels, labels = images(count, seed, classes)
        if form == "binary":
            found[f"{name}.bin"] = binary_rows(pixels, labels)
        else:
            found[name] = pickled(
                {
                    "batch_label": f"{name} of {len(batches)}",
                    "labels": [int(label) for label in labels],
                    "data": _planes(pixels),
                    "filenames": [f"{i}.png" for i in range(count)],
                }
            )
    if form == "binary":
        found["batches.meta.txt"] = ("\n".join(CLASSES[:classes]) + "\n\n").encode()
    else:
        found["batches.meta"] = pickled(
            {"num_cases_per_batch": 7, "label_names": CLASSES[:classes]}
        )
    return found


def folder_of(form: str) -> str:
    return "cifar-10-batches-bin" if form == "binary" else "cifar-10-batches-py"


def write(
    root: Path, form: str = "binary", batches: tuple[int, ...] = (40, 30), test: int = 20,
    packed: bool = False,
) -> Path:  # fmt: skip
    """Writes an archive below `root`, which is data.root then; returns its folder or file."""
    content = files(form, list(batches), test)
    root.mkdir(parents=True, exist_ok=True)
    if packed:
        path = root / f"cifar-10-{form}.tar.gz"
        path.write_bytes(tar_gz({f"{folder_of(form)}/{n}": c for n, c in content.items()}))
        return path
    folder = root / folder_of(form)
    folder.mkdir()
    for name, one in content.items():
        (folder / name).write_bytes(one)
    return folder


def tar_gz(members: dict[str, bytes]) -> bytes:
    """The bytes of a packed archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()
