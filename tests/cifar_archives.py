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


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (count, 32, 32, 3) uint8 and labels (count,); each class's colour is its own, so that
    a network can tell them apart."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    colours = np.random.default_rng(99).integers(40, 216, (len(CLASSES), 1, 1, 3))
    pixels = colours[labels] + rng.integers(-40, 40, (count, 32, 32, 3))
    return pixels.astype(np.uint8), labels


def pickled(content: Any) -> bytes:
    """An object as the Python archive's files hold their dict."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def _batch(form: str, name: str, count: int, seed: int) -> bytes:
    pixels, labels = images(count, seed)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(count, -1)
    if form == "binary":
        return np.column_stack([labels.astype(np.uint8), planes]).tobytes()
    names = [f"{i}.png" for i in range(count)]
    return pickled(
        {"batch_label": name, "labels": labels.tolist(), "data": planes, "filenames": names}
    )


def write(
    root: Path, form: str = "binary", batches: tuple[int, ...] = (40, 30), test: int = 20,
    packed: bool = False,
) -> Path:  # fmt: skip
    """Writes an archive below `root`, which is data.root then; returns its folder or file."""
    ends = {"binary": ("bin", ".bin"), "python": ("py", "")}
    folder, suffix = f"cifar-10-batches-{ends[form][0]}", ends[form][1]
    parts = [(f"data_batch_{i + 1}", count, i) for i, count in enumerate(batches)]
    files = {
        name + suffix: _batch(form, name, count, seed)
        for name, count, seed in [*parts, ("test_batch", test, 1000)]
    }
    if form == "binary":
        files["batches.meta.txt"] = ("\n".join(CLASSES) + "\n\n").encode()
    else:
        files["batches.meta"] = pickled({"num_cases_per_batch": 7, "label_names": CLASSES})
    root.mkdir(parents=True, exist_ok=True)
    if packed:
        path = root / f"cifar-10-{form}.tar.gz"
        path.write_bytes(tar_gz({f"{folder}/{name}": content for name, content in files.items()}))
        return path
    (root / folder).mkdir()
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
    return root / folder


def tar_gz(members: dict[str, bytes]) -> bytes:
    """The bytes of a packed archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()
