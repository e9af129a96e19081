"""Damages containers and what lies next to them, and reads them as a run would.

`containers` writes one of each kind, `mutate` changes a content, `try_reader` reads a file in
place. A reader either takes a file or refuses it in one sentence that names it; whatever else it
raises is a fault. Checksums are made right again after half of the changes: otherwise nothing
behind them would ever be reached.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import signal
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import cifar_archives
import numpy as np
from container_writers import (
    NUMBERS,
    draw_images,
    image_record,
    recordio_of,
    slim_examples,
    tar_of,
    tfrecord_of,
    walked,
    webdataset_members,
    write,
)
from google_crc32c import value as crc32c
from imagenet_archives import meta_mat, small_archives

from pipeline.data import statistics
from pipeline.data.cifar import open_cifar
from pipeline.data.classes import class_words
from pipeline.data.exclusion import read_list
from pipeline.data.images import GivenImages
from pipeline.data.index.arrow_file import load_fresh, write_manifest
from pipeline.data.index.labels import read_class_list
from pipeline.data.index.manifest import Manifest
from pipeline.data.index.scan import scan
from pipeline.data.index.survey import survey
from pipeline.prepare.archives import train_blocks, val_blocks
from pipeline.prepare.devkit import read_devkit

TAKEN, REFUSED = "taken", "refused"

_IMAGES = draw_images(5)
_MEANS = statistics.of_pixels(np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3))
_FACTS = {"data_hash": "ab", "crop": {"image_size": 4}}
_HEAD = struct.Struct("<QI")
_LONGEST_MESSAGE = 2000
_MORE_BYTES = 2 << 30
_HANGS_SEC = 60  # a read takes milliseconds


def containers(folder: Path) -> dict[str, bytes]:
    """Write a file of each kind below `folder`, with what belongs to it; contents by name."""
    contents = {
        "tar/x.tar": tar_of((f"{label}/{name}", data) for label, name, data in _IMAGES),
        "tar/gnu.tar": tar_of([("ü" * 90 + "/1.jpg", _IMAGES[0][2])], tarfile.GNU_FORMAT),
        "tar/n0.tar": tar_of([("n1.tar", tar_of([("n1_1.JPEG", _IMAGES[0][2])]))]),
        "tar/cls.tar": tar_of(webdataset_members(_IMAGES, NUMBERS)),
        "tar/json.tar": tar_of(webdataset_members(_IMAGES, None, "json")),
        "tfrecord/x.tfrecord": tfrecord_of(slim_examples(_IMAGES[:2], NUMBERS)),
        "tfrecord/named.tfrecord": tfrecord_of(slim_examples(_IMAGES[:2], None)),
        "names/classes.txt": "a\nZ é\n".encode(),
        "names/synset_words.txt": b"n01 tench\nn02 shark\n",
        **_recordio(),
        **_cifar(folder),
        **_imagenet(folder),
    }
    contents |= {"mat/packed.mat": _meta(), "mat/plain.mat": _unpacked(_meta())}
    for name, content in contents.items():
        write(folder / name, content)
    _write_index(folder)
    for name in ("index/train.arrow", "index/means.npz"):
        contents[name] = (folder / name).read_bytes()
    listed = {"version": 1, "splits": {"train": {"data_hash": "ab", "images": [0, 2]}}}
    contents["index/exclude.json"] = json.dumps(listed).encode()
    write(folder / "index/exclude.json", contents["index/exclude.json"])
    return contents


def _recordio() -> dict[str, bytes]:
    records = [image_record(NUMBERS[label], data, i) for i, (label, _, data) in enumerate(_IMAGES)]
    begins = [len(recordio_of(records[:i])) for i in range(len(records))]
    lines = (f"{i}\t{NUMBERS[c]}\t{c}/{n}\n" for i, (c, n, _) in enumerate(_IMAGES))
    index = (f"{i}\t{begin}\n" for i, begin in enumerate(begins))
    return {
        "recordio/x.rec": recordio_of(records),
        "recordio/x.lst": "".join(lines).encode(),
        "recordio/x.idx": "".join(index).encode(),
    }


def _cifar(folder: Path) -> dict[str, bytes]:
    for form in ("binary", "python"):
        cifar_archives.write(folder / f"cifar {form}", form, batches=(3,), test=2)
    contents = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.glob("cifar */*/*"))
    }
    members = {name.partition("/")[2]: data for name, data in contents.items() if "python" in name}
    # Not compressed: the checksum of gzip would catch every change.
    contents["cifar packed/cifar-10-python.tar.gz"] = tar_of(members.items())
    return contents


def _imagenet(folder: Path) -> dict[str, bytes]:
    paths = small_archives(1, 3).write(folder / "imagenet")
    kit = paths["devkit"]
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in paths.values()}
    with tarfile.open(kit) as packed:
        members = [(m.name, packed.extractfile(m)) for m in packed.getmembers() if m.isfile()]
        plain = tar_of([(name, file.read()) for name, file in members if file is not None])
    return contents | {"imagenet/plain/ILSVRC2012_devkit_t12.tar.gz": plain}


def _meta() -> bytes:
    rows = [
        {
            "ILSVRC2012_ID": i,
            "WNID": f"n{i}",
            "words": "x",
            "num_children": 0,
            "num_train_images": 1,
        }
        for i in (1, 2)
    ]
    return meta_mat(rows)


def _unpacked(mat: bytes) -> bytes:
    """A MATLAB file with its one variable not compressed."""
    return mat[:128] + zlib.decompress(mat[136:])


def _write_index(folder: Path) -> None:
    for number, (label, name, content) in enumerate(_IMAGES):
        write(folder / "index/data/train" / label / f"{number} {name}", content)
    write_manifest(folder / "index/train.arrow", scan(survey(folder / "index/data", "train")), "s")
    statistics.save(folder / "index/means.npz", _MEANS, 5, _FACTS)


# Changing


def mutate(content: bytes, random: Random) -> bytes:
    """Return the content with one to four changes, checksums made right again or not."""
    if random.random() < 0.5:
        return _changed(content, random)
    records = _records(content)
    if records:
        at = random.randrange(len(records))
        records[at] = _changed(records[at], random)
        return b"".join(map(_framed, records))
    changed = _changed(content, random)
    return _with_tar_checksums(changed) if content[257:262] == b"ustar" else changed


def _changed(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        random.choice(_CHANGES)(changed, random)
    return bytes(changed)


def _flip(content: bytearray, random: Random) -> None:
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _set(content: bytearray, random: Random) -> None:
    if content:
        content[random.randrange(len(content))] = random.choice(b'\0\1\x7f\x80\xff019 =/.\n\t"[{')


def _number(content: bytearray, random: Random) -> None:
    """Put a number at the edge of what fits where one may stand."""
    value = random.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    width, order = random.choice([2, 4, 8]), random.choice(["little", "big"])
    at = random.randrange(len(content) + 1)
    content[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]


def _digits(content: bytearray, random: Random) -> None:
    at = random.randrange(len(content) + 1)
    content[at:at] = random.choice([b"9" * 20, b"9" * 5000, b"-1", b"1e9", b"inf", b"[" * 3000])


def _cut(content: bytearray, random: Random) -> None:
    del content[random.randrange(len(content) + 1) :]


def _remove(content: bytearray, random: Random) -> None:
    at = random.randrange(len(content) + 1)
    del content[at : at + random.choice([1, 4, 8, 512])]


def _repeat(content: bytearray, random: Random) -> None:
    at = random.randrange(len(content) + 1)
    part = content[at : at + random.choice([1, 4, 12, 512, 1024])]
    content[at:at] = part * random.choice([1, 2, 50])


def _insert(content: bytearray, random: Random) -> None:
    at = random.randrange(len(content) + 1)
    content[at:at] = random.randbytes(random.choice([1, 4, 40]))


_CHANGES: list[Callable[[bytearray, Random], None]] = [
    _flip, _flip, _set, _set, _number, _digits, _cut, _remove, _repeat, _insert,
]  # fmt: skip


def _records(content: bytes) -> list[bytes]:
    """The records of a TFRecord file, none for another kind."""
    found, at = [], 0
    while at + _HEAD.size <= len(content):
        length, checksum = _HEAD.unpack_from(content, at)
        if checksum != _masked(content[at : at + 8]):
            return []
        found.append(content[at + _HEAD.size : at + _HEAD.size + length])
        at += _HEAD.size + length + 4
    return found


def _framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return b"".join(part + struct.pack("<I", _masked(part)) for part in (length, record))


def _masked(part: bytes) -> int:
    crc = crc32c(part)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _with_tar_checksums(content: bytes) -> bytes:
    changed = bytearray(content)
    for at in range(0, len(changed) - 511, 512):
        block = changed[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(changed)


# Reading


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Lets the body take 2 GB more than the process has, and end."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + _MORE_BYTES

    def hangs(*_: object) -> None:
        raise TimeoutError("a reader does not come back")

    handler = signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    signal.alarm(_HANGS_SEC)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def try_reader(path: Path) -> str:
    """Read a file of `containers` in place; TAKEN or REFUSED. Whatever else happens is raised."""
    try:
        taken = _reader(path)(path)
    except ValueError as error:
        message = str(error)
        # Of another kind or without the file's name, it came from a library unasked.
        if type(error).__name__ not in ("ValueError", "BadContainer", "ConfigError", "BadImage"):
            raise
        if str(path.parent) not in message or len(message.splitlines()) != 1:
            raise
        assert len(message) < _LONGEST_MESSAGE, message
        return REFUSED
    return TAKEN if taken else REFUSED


def _reader(path: Path) -> Callable[[Path], object]:
    name = path.name
    if path.parent.name in ("tar", "tfrecord", "recordio"):
        container = path.with_suffix(".rec") if path.parent.name == "recordio" else path
        return lambda _: _walk(container)
    if name.startswith("ILSVRC2012_img"):
        return _read_archive
    if path.suffix == ".mat":
        return _read_meta
    if "cifar" in str(path.parent.name):
        root = path if name.endswith(".gz") else path.parent
        return lambda _: open_cifar(root, None)
    readers: dict[str, Callable[[Path], object]] = {
        "classes.txt": read_class_list,
        "synset_words.txt": lambda one: class_words(one.parent) is not None,
        "train.arrow": _read_index,
        "means.npz": lambda one: not isinstance(statistics.load(one, _FACTS), str),
        "exclude.json": lambda one: read_list(one, "train", _THREE) is not None,
        "ILSVRC2012_devkit_t12.tar.gz": read_devkit,
    }
    return readers[name]


def _walk(path: Path) -> bool:
    whole = path.stat().st_size
    for entry in walked(path):
        end = entry.offset + entry.length + 4 * len(entry.gaps)
        assert 0 <= entry.offset <= end <= whole, f"an image lies outside its container: {entry}"
    return True


def _read_archive(path: Path) -> bool:
    kit = read_devkit(path.parent / "ILSVRC2012_devkit_t12.tar.gz")
    if "train" in path.name:
        return all(list(block.images()) for block in train_blocks(path, kit))
    return bool(val_blocks(path, kit))


def _read_meta(path: Path) -> bool:
    base = "kit/data/"
    members = [
        (f"{base}meta.mat", path.read_bytes()),
        (f"{base}ILSVRC2012_validation_ground_truth.txt", b"1\n2\n"),
    ]
    return bool(read_devkit(write(path.parent / "kit.tar", tar_of(members))))


def _read_index(path: Path) -> bool:
    table = load_fresh(path, "s")
    if table is None:
        return False
    manifest = Manifest("train", path.parent / "data/train", table)
    return all(len(manifest.read(image)) for image in range(len(manifest)))


class _Three(GivenImages):
    """Three images that an exclusion list may be of."""

    def __init__(self) -> None:
        self.labels = np.zeros(3, dtype=np.int32)
        self.digest = "ab"

    def __len__(self) -> int:
        return 3


_THREE = _Three()


def kept(path: Path) -> object:
    """What an image index or a file of means holds, to be compared; None if it is refused."""
    if path.suffix == ".npz":
        found = statistics.load(path, _FACTS)
        return None if isinstance(found, str) else (found[0].digest, found[1])
    table = load_fresh(path, "s")
    return None if table is None else (table.to_pydict(), dict(table.schema.metadata))


@functools.cache
def names() -> tuple[str, ...]:
    """The names of `containers`, which a test needs before there is a folder."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(sorted(containers(Path(folder))))
