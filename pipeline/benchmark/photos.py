"""Files like ImageNet's photographs, to measure reading and decoding, and the same images in each
container that this project reads."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.benchmark.options import Container
from pipeline.data.index.manifest import Manifest

# (width, height, share). Most of ImageNet has its longer side at 500 pixels.
_SIZES = ((500, 375, 0.62), (375, 500, 0.16), (500, 333, 0.16), (500, 400, 0.06))
_QUALITY = 90
# Photographs have amplitude spectra near 1/f (Field, "Relations between the statistics of natural
# images and the response properties of cortical cells", 1987). With the exponent and the contrast
# here a file has 82 KB on average (standard deviation 15 KB).
_EXPONENT = 1.2
_CONTRAST = 38.5
_RECORDIO_MAGIC = 0xCED7230A
_LENGTH_DELIMITED = 2  # protobuf's wire type of strings and messages


def make_photos(
    root: Path,
    count: int,
    seed: int = 0,
    classes: int = 1,
    split: Literal["train", "val"] = "train",
    scale: float = 1.0,
) -> None:
    """Makes `<root>/<split>/photo_000/*.JPEG` and so on, round the classes: `count` files of about
    500 x 375 pixels times `scale`, at 1 of 82 KB. Raises `FileExistsError` if they exist."""
    folders = [root / split / f"photo_{label:03d}" for label in range(classes)]
    for folder in folders:
        folder.mkdir(parents=True)

    def make(index: int) -> None:
        content = photo(np.random.default_rng([seed, index]), scale)
        (folders[index % classes] / f"photo_{index:06d}.JPEG").write_bytes(content)

    with ThreadPoolExecutor(2) as pool:  # FFTs and JPEG encoding release the GIL
        list(pool.map(make, range(count)))


def photo(rng: np.random.Generator, scale: float = 1.0) -> bytes:
    """One file: grey 1/f noise with fainter colour noise over it, 4:2:0, as cameras write it."""
    sides = _SIZES[rng.choice(len(_SIZES), p=[share for *_, share in _SIZES])][:2]
    width, height = (max(1, round(side * scale)) for side in sides)
    contrast = _CONTRAST * rng.lognormal(0.0, 0.4)
    grey = _noise(rng, height, width)
    colour = [_noise(rng, height, width) for _ in range(3)]
    pixels = np.stack([128 + contrast * (grey + 0.3 * tint) for tint in colour], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32 of mean 0 and variance 1 with an amplitude spectrum of 1/f."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    noise = np.fft.irfft2(white / frequency**_EXPONENT, s=(height, width))
    return np.asarray(noise / noise.std(), dtype=np.float32)


@dataclass(frozen=True)
class Packed:
    """One image: its class, the class's number, its file name and its encoded bytes."""

    class_name: str
    label: int
    name: str
    content: bytes


def pack(manifest: Manifest, images: Iterable[int], container: Container, root: Path) -> None:
    """Writes the train split of a data set: `images` of `manifest`, in one file of `container` or
    in class folders. Raises `BadImage` for one that cannot be read."""
    folder = root / "train"
    folder.mkdir(parents=True)
    names = manifest.classes
    if container == "recordio":
        names = sorted({names[int(manifest.labels[image])] for image in images}, key=str.encode)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    numbers = {name: number for number, name in enumerate(names)}
    _WRITERS[container](folder, _read(manifest, images, numbers))


def _read(manifest: Manifest, images: Iterable[int], numbers: dict[str, int]) -> Iterator[Packed]:
    for image in images:
        class_name = manifest.classes[int(manifest.labels[image])]
        content = manifest.read(image).tobytes()
        yield Packed(class_name, numbers[class_name], f"{image:08d}.JPEG", content)


def _folders(folder: Path, images: Iterable[Packed]) -> None:
    for image in images:
        (folder / image.class_name).mkdir(exist_ok=True)
        (folder / image.class_name / image.name).write_bytes(image.content)


def _tar(folder: Path, images: Iterable[Packed]) -> None:
    with tarfile.open(folder / "shard-000000.tar", "w") as archive:
        for image in images:
            member = tarfile.TarInfo(f"{image.class_name}/{image.name}")
            member.size = len(image.content)
            archive.addfile(member, io.BytesIO(image.content))


def _tfrecord(folder: Path, images: Iterable[Packed]) -> None:
    # Only now: the other containers, and photographs alone, need no TensorBoard.
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open(folder / "train-00000-of-00001", "wb") as file:
        writer = RecordWriter(file)  # TensorBoard's own files are TFRecords too
        for image in images:
            features = {
                b"image/class/synset": image.class_name.encode(),
                b"image/filename": image.name.encode(),
                b"image/encoded": image.content,
            }
            writer.write(_example(features))
        writer.flush()


def _example(features: dict[bytes, bytes]) -> bytes:
    """A tf.train.Example of byte features (tensorflow/core/example/feature.proto)."""
    entries = [
        # Features.feature is a map: messages of key (1) and Feature (2), which holds a BytesList.
        _field(1, _field(1, key) + _field(2, _field(1, _field(1, value))))
        for key, value in features.items()
    ]
    return _field(1, b"".join(entries))


def _field(number: int, content: bytes) -> bytes:
    length, digits = len(content), bytearray()
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    digits.append(length)
    return bytes([number << 3 | _LENGTH_DELIMITED]) + bytes(digits) + content


def _recordio(folder: Path, images: Iterable[Packed]) -> None:
    with open(folder / "train.rec", "wb") as file:
        for number, image in enumerate(images):
            header = struct.pack("<IfQQ", 0, image.label, number, 0)  # MXNet's IRHeader
            file.write(_record(header + image.content))


def _record(content: bytes) -> bytes:
    """A record as dmlc's RecordIOWriter writes it: cut where the magic number is at a multiple of
    4.

    A part's flag is 0 for a whole record; 1, 2, 3 for the first, a middle and the last part of one.
    """
    words = np.frombuffer(content[: len(content) // 4 * 4], "<u4")
    cuts = [4 * int(place) for place in np.flatnonzero(words == _RECORDIO_MAGIC)]
    begins, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(content)]
    flags = [1, *[2] * (len(cuts) - 1), 3] if cuts else [0]
    written = b""
    for begin, end, flag in zip(begins, ends, flags, strict=True):
        head = struct.pack("<II", _RECORDIO_MAGIC, flag << 29 | end - begin)
        written += head + content[begin:end]
    return written + b"\0" * (-len(content) % 4)


_WRITERS: dict[Container, Callable[[Path, Iterable[Packed]], None]] = {
    "folders": _folders,
    "tar": _tar,
    "tfrecord": _tfrecord,
    "recordio": _recordio,
}
