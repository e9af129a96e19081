"""Small archives of the structure of ImageNet's three, with a writer for MATLAB 5 structures."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.prepare.options import ImagenetOptions

ROOT = Path(__file__).parents[1]

# Dies in the worst place: the file is written and has not yet got its name.
_DYING = """
import os, signal, sys
from pipeline.prepare.__main__ import main
left, replace = int(sys.argv[1]), os.replace
def dying(*names):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = dying
main(sys.argv[2:])
"""

# ILSVRC2012_ID is the place here plus one: not the order of the wnids, as in the real devkit.
WNIDS = ("n02119789", "n01440764", "n03661043", "n02100735")
WORDS = (
    "kit fox, Vulpes macrotis",
    "tench, Tinca tinca",
    "library",
    "English setter",
)


def jpeg(number: int, side: int = 16) -> bytes:
    """A small JPEG whose pixels, and so bytes, depend on `number`."""
    pixels = np.random.default_rng(number).integers(0, 255, (side, side + 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


@dataclass
class Archives:
    """What the archives shall hold; change it before `write`.

    train: images by wnid and name. val: by name. truth: the devkit's labels, one for each val
    image in order of name. train_counts: num_train_images by wnid.
    """

    train: dict[str, dict[str, bytes]] = field(default_factory=dict)
    val: dict[str, bytes] = field(default_factory=dict)
    truth: list[int] = field(default_factory=list)
    train_counts: dict[str, int] = field(default_factory=dict)
    rows: Callable[[list[dict[str, object]]], list[dict[str, object]]] = list

    def write(self, folder: Path) -> dict[str, Path]:
        """Write the three archives; their paths by option name."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {
            "train_tar": folder / "ILSVRC2012_img_train.tar",
            "val_tar": folder / "ILSVRC2012_img_val.tar",
            "devkit": folder / "ILSVRC2012_devkit_t12.tar.gz",
        }
        inner = {f"{wnid}.tar": tar_of(images) for wnid, images in self.train.items()}
        paths["train_tar"].write_bytes(tar_of(inner))
        paths["val_tar"].write_bytes(tar_of(self.val))
        base = "ILSVRC2012_devkit_t12/"
        kit = {
            base + "readme.txt": b"A small kit.\n",
            base + "data/meta.mat": meta_mat(self.rows(self._rows())),
            base + "data/ILSVRC2012_validation_ground_truth.txt": "".join(
                f"{label}\n" for label in self.truth
            ).encode(),
        }
        paths["devkit"].write_bytes(tar_of(kit, mode="w:gz"))
        return paths

    def _rows(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for number, (wnid, words) in enumerate(zip(WNIDS, WORDS, strict=True), 1):
            count = self.train_counts.get(wnid, 0)
            rows.append(_row(number, wnid, words, [], count))
        rows.append(_row(len(rows) + 1, "n00001740", "entity", [1, 2, 3, 4], 0))
        return rows


def small_archives(train_per_class: int = 3, val_images: int = 6, padding: int = 0) -> Archives:
    """Archives with 4 classes of `train_per_class` images (the i-th class has i more), each with
    `padding` bytes behind it."""
    archives = Archives()
    for i, wnid in enumerate(WNIDS):
        images = {
            f"{wnid}_{number}.JPEG": jpeg(1000 * i + number) + bytes(padding)
            for number in range(1, train_per_class + i + 1)
        }
        archives.train[wnid] = images
        archives.train_counts[wnid] = len(images)
    for number in range(1, val_images + 1):
        archives.val[f"ILSVRC2012_val_{number:08}.JPEG"] = jpeg(9000 + number)
        archives.truth.append(3 * number % len(WNIDS) + 1)
    return archives


def visible_files(folder: Path) -> dict[str, bytes]:
    """The content of every file below `folder` by its path there; without hidden ones."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: found[name].read_bytes() for name in found if "/." not in f"/{name}"}


def options(paths: Mapping[str, Path], out: Path, **more: object) -> ImagenetOptions:
    """The options of `prepare imagenet` for these archives."""
    return ImagenetOptions(**paths, out=out, **more)  # type: ignore[arg-type]


def killed_at_file(number: int, *argv: str) -> int:
    """Run `pipeline.prepare` with SIGKILL as it names its file of that number; the exit code."""
    command = [sys.executable, "-c", _DYING, str(number), *argv]
    return subprocess.run(command, cwd=ROOT).returncode


def tar_of(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """A tar of `files` by name, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _row(
    number: int, wnid: str, words: str, children: Sequence[int], images: int
) -> dict[str, object]:
    return {
        "ILSVRC2012_ID": number,
        "WNID": wnid,
        "words": words,
        "gloss": f"what {words} is",
        "num_children": len(children),
        "children": list(children),
        "wordnet_height": min(1, len(children)),
        "num_train_images": images,
    }


def meta_mat(rows: Sequence[Mapping[str, object]], name: str = "synsets") -> bytes:
    """A MATLAB 5 file with one compressed structure array of text and numbers."""
    fields = list(rows[0]) if rows else []
    width = max((len(one) for one in fields), default=0) + 1
    body = (
        _element(6, struct.pack("<II", 2, 0))
        + _element(5, struct.pack("<ii", len(rows), 1))
        + _element(1, name.encode())
        + struct.pack("<HHi", 5, 4, width)  # the short form
        + _element(1, b"".join(one.encode().ljust(width, b"\0") for one in fields))
        + b"".join(_value(row[one]) for row in rows for one in fields)
    )
    packed = zlib.compress(_element(14, body))
    header = b"MATLAB 5.0 MAT-file, made by a test".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + struct.pack("<II", 15, len(packed)) + packed


def _value(value: object) -> bytes:
    if isinstance(value, str):
        codes = value.encode("utf-16-le")
        kind, count, content = 4, len(codes) // 2, _element(4, codes)
    else:
        numbers = np.atleast_1d(np.array(value, dtype="<f8"))
        kind, count, content = 6, numbers.size, _element(9, numbers.tobytes())
    flags = _element(6, struct.pack("<II", kind, 0))
    return _element(
        14, flags + _element(5, struct.pack("<ii", 1, count)) + _element(1, b"") + content
    )


def _element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)
