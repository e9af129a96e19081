"""Only regular files are opened: a FIFO of any data file's name would hold a rank for ever."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import cifar_archives
import numpy as np
import pytest
from container_writers import (
    draw_images,
    image_record,
    packed,
    recordio_of,
    slim_examples,
    tfrecord_of,
    write,
    write_folders,
)
from imagenet_archives import small_archives

from pipeline.data import statistics
from pipeline.data.cifar import open_cifar
from pipeline.data.classes import class_words
from pipeline.data.exclusion import read_list
from pipeline.data.images import BadImage, GivenImages
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.archives import train_blocks
from pipeline.prepare.devkit import read_devkit
from pipeline.prepare.files import read_mark
from pipeline.system import files
from pipeline.system.regular import read_regular


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An open that blocks is ended, and what is no regular file is not tried again."""

    def blocked(*_: object) -> None:
        raise TimeoutError("an open blocks")

    monkeypatch.setattr(files, "READ_AGAIN_SEC", (1000.0,))
    before = signal.signal(signal.SIGALRM, blocked)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes only
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a folder": os.mkdir,
    "a character device": lambda path: path.symlink_to("/dev/zero"),
}


def in_place_of(path: Path, kind: str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    KINDS[kind](path)


IMAGES = draw_images(4)


def folders(root: Path) -> None:
    write_folders(root / "train", IMAGES)


def containers(root: Path) -> None:
    packed(root / "train", IMAGES)


def recordio(root: Path) -> None:
    records = [image_record(i % 2, data, i) for i, (_, _, data) in enumerate(IMAGES)]
    write(root / "train/x.rec", recordio_of(records))
    write(root / "classes.txt", b"a\nb\n")


def tfrecord(root: Path) -> None:
    write(root / "train/x.tfrecord", tfrecord_of(slim_examples(IMAGES, None)))


PLACES = {
    "train/a/1.jpg": folders,
    "train/x.tar": containers,
    "train/x.rec": recordio,
    "train/x.lst": recordio,
    "train/x.idx": recordio,
    "classes.txt": recordio,
    "train/x.tfrecord": tfrecord,
    "train/x.tfrecord.idx": tfrecord,
}


# A folder in a class folder is counted; one beside containers would be a class, so of another kind.
CASES = [(name, kind) for name in PLACES for kind in KINDS if kind != "a folder" or "/" not in name]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_no_regular_file_is_named_with_its_kind(tmp_path, name, kind):
    PLACES[name](tmp_path)
    in_place_of(tmp_path / name, kind)
    wanted = f"{tmp_path / name} cannot be read: it is {kind}, not a regular file; put the right"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "train")
    assert not (tmp_path / ".trainyard").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_image_became_after_indexing_is_named(tmp_path, kind):
    folders(tmp_path)
    manifest = open_manifest(tmp_path, "train")
    in_place_of(manifest.path(0), kind)
    with pytest.raises(BadImage, match=f"it is {kind}, not a regular file"):
        manifest.read(0)
    with pytest.raises(BadImage, match=f"it is {kind}, not a regular file"):
        GivenImages([manifest.path(0)])


def test_what_a_container_became_after_indexing_is_named(tmp_path):
    containers(tmp_path)
    manifest = open_manifest(tmp_path, "train")
    for path in (tmp_path / "train").iterdir():
        in_place_of(path, "a FIFO")
    with pytest.raises(BadImage, match="it is a FIFO, not a regular file"):
        manifest.read(0)


def test_an_index_that_is_a_fifo_is_replaced(tmp_path, caplog):
    folders(tmp_path)
    digest = open_manifest(tmp_path, "train").digest
    in_place_of(tmp_path / ".trainyard" / "train.arrow", "a FIFO")
    assert open_manifest(tmp_path, "train").digest == digest
    assert "train.arrow is not used: " in caplog.text and "it is a FIFO, not" in caplog.text
    assert (tmp_path / ".trainyard" / "train.arrow").is_file()


class _Set:
    digest = "d"

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_exclusion_list_is_a_regular_file(tmp_path, kind):
    in_place_of(tmp_path / "e.json", kind)
    with pytest.raises(ValueError, match=f"e.json cannot be read: it is {kind}, not a regular fi"):
        read_list(tmp_path / "e.json", "train", _Set())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_marks_are_regular_files(tmp_path, kind):
    in_place_of(tmp_path / "means.npz", kind)
    said = statistics.load(tmp_path / "means.npz", {})
    assert said == f"{tmp_path}/means.npz cannot be read (it is {kind}, not a regular file)"
    assert read_mark("--out", tmp_path, tmp_path / "means.npz", "a data set") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_classes_that_are_no_file_cost_a_warning(tmp_path, kind, caplog):
    in_place_of(tmp_path / "synset_words.txt", kind)
    assert class_words(tmp_path) == {}
    assert f"it is {kind}, not a regular file" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta", "test_batch"])
def test_a_batch_of_cifar_is_a_regular_file(tmp_path, name, kind):
    folder = cifar_archives.write(tmp_path, "python")
    in_place_of(folder / name, kind)
    with pytest.raises(ValueError, match=f"{name} cannot be read: it is {kind}, not a regular"):
        open_cifar(tmp_path, None)


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a character device"])
def test_an_archive_of_cifar_is_a_regular_file(tmp_path, kind):
    in_place_of(tmp_path / "cifar-10-binary.tar.gz", kind)
    for root in (tmp_path, tmp_path / "cifar-10-binary.tar.gz"):
        with pytest.raises(ValueError, match=f"tar.gz cannot be read: it is {kind}, not a regular"):
            open_cifar(root, None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_archives_of_imagenet_are_regular_files(tmp_path, kind):
    paths = small_archives().write(tmp_path)
    kit = read_devkit(paths["devkit"])
    for path in paths.values():
        in_place_of(path, kind)
    with pytest.raises(ValueError, match=f"it is {kind}, not a regular file"):
        read_devkit(paths["devkit"])
    with pytest.raises(ValueError, match=f"it is {kind}, not a regular file"):
        train_blocks(paths["train_tar"], kit)


def test_a_file_that_is_larger_than_its_kind_can_be_is_not_read(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="it has more than the 1000 bytes that such a file can have"):
        read_regular(tmp_path / "x", 1000)
    assert read_regular(write(tmp_path / "y", bytes(1000)), 1000) == bytes(1000)
    assert np.frombuffer(read_regular(write(tmp_path / "z", b""), 0), np.uint8).size == 0
