"""CIFAR-10's archives: both forms give the same data set, and what is not CIFAR-10 is refused."""

import os
import pickle

import numpy as np
import pytest
from cifar_archives import CLASSES, images, pickled, tar_gz, write

from pipeline.data.cifar import open_cifar


@pytest.fixture
def binary(tmp_path):
    write(tmp_path)
    return tmp_path


def test_images_stand_in_the_order_of_batch_files_and_rows(binary):
    train, val = open_cifar(binary, None)
    first, second = images(40, 0), images(30, 1)
    np.testing.assert_array_equal(train.pixels, np.concatenate([first[0], second[0]]))
    np.testing.assert_array_equal(train.labels, np.concatenate([first[1], second[1]]))
    assert (len(train), len(val)) == (70, 20)
    assert (train.split, val.split) == ("train", "val")
    assert train.classes == CLASSES
    assert train.pixels.dtype == np.uint8
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(train.read(41), second[0][1])
    assert str(train.path(41)).endswith("cifar-10-batches-bin/data_batch_2.bin:1")
    assert set(train.heights) == set(train.widths) == {32}


@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_every_form_of_the_archive_is_the_same_data(tmp_path, form, packed, direct):
    write(tmp_path / "reference")
    place = write(tmp_path / "other", form, packed=packed)
    found = open_cifar(place if direct else tmp_path / "other", None)
    for one, wanted in zip(found, open_cifar(tmp_path / "reference", None), strict=True):
        assert one.digest == wanted.digest
        np.testing.assert_array_equal(one.pixels, wanted.pixels)
        np.testing.assert_array_equal(one.labels, wanted.labels)
        assert one.classes == wanted.classes
    assert (form == "python") == ("data_batch_1.bin" not in str(found[0].path(0)))


def test_a_batch_of_ten_or_more_follows_the_ninth(tmp_path):
    write(tmp_path, batches=(10,) * 11)
    train, _ = open_cifar(tmp_path, None)
    wanted = [images(10, seed)[0] for seed in range(11)]
    np.testing.assert_array_equal(train.pixels, np.concatenate(wanted))


def test_one_pixel_one_label_or_one_name_changes_the_hash(binary):
    reference = open_cifar(binary, None)[0].digest
    folder = binary / "cifar-10-batches-bin"
    changes = ("data_batch_1.bin", 1, 255), ("data_batch_2.bin", 0, 9), ("batches.meta.txt", 0, 65)
    for name, at, value in changes:
        content = (folder / name).read_bytes()
        assert content[at] != value
        (folder / name).write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
        assert open_cifar(binary, None)[0].digest != reference
        (folder / name).write_bytes(content)
    assert open_cifar(binary, None)[0].digest == reference


def test_the_last_of_each_class_are_held_out(binary):
    whole, test = open_cifar(binary, None)
    train, val = open_cifar(binary, 20)
    assert (len(train), len(val)) == (50, 20)
    for label in range(10):
        own = whole.pixels[whole.labels == label]
        np.testing.assert_array_equal(train.pixels[train.labels == label], own[:-2])
        np.testing.assert_array_equal(val.pixels[val.labels == label], own[-2:])
    files = {whole.path(i): whole.read(i).tobytes() for i in range(70)}
    assert all(files[val.path(i)] == val.read(i).tobytes() for i in range(20))
    assert len({train.digest, val.digest, whole.digest, test.digest}) == 4


@pytest.mark.parametrize("held_out, classes, message", [
    (15, None, "data.held_out=15 must be a multiple of the 10 classes"),
    (70, None, "data.held_out=70 takes 7 images of each class and airplane has only 7"),
    (None, ["cow", "pig"], "has the classes airplane, .* the training had cow, pig"),
])  # fmt: skip
def test_a_held_out_that_does_not_fit_and_other_classes_are_refused(
    binary, held_out, classes, message
):
    with pytest.raises(ValueError, match=message):
        open_cifar(binary, held_out, classes)


@pytest.mark.parametrize("batches", [(40, 30), (10, 30, 20)])
def test_a_set_of_ones_own_is_taken_with_a_warning(tmp_path, caplog, batches):
    write(tmp_path, batches=batches)
    train, test = open_cifar(tmp_path, None)
    assert (len(train), len(test)) == (sum(batches), 20)
    assert f"has {sum(batches)} training and 20 test images, CIFAR-10 itself 50000" in caplog.text


# What is not CIFAR-10


def row(label: int) -> bytes:
    return bytes([label]) + bytes(3072)


@pytest.mark.parametrize("form, name, content, message", [
    ("binary", "data_batch_2.bin", row(1)[:-1],
     r"data_batch_2.bin has 3072 bytes, which is no multiple of the 3073 .* truncated"),
    ("binary", "test_batch.bin", b"", "test_batch.bin has 0 bytes, which is no multiple"),
    ("binary", "data_batch_1.bin", row(3) + row(10),
     "data_batch_1.bin: the label 10 of image 1 must be below 10"),
    ("binary", "batches.meta.txt", b"\n\n", "batches.meta.txt must name at least two classes"),
    ("binary", "batches.meta.txt", b"<!DOCTYPE html>\n<p>\n", "batches.meta.txt must name at"),
    ("python", "data_batch_1", b"<html>", "data_batch_1 is not a file of CIFAR-10's Python"),
    ("python", "data_batch_1", pickled({"labels": [1]}),
     r"must hold data, bytes of shape \(n, 3072\), and n labels, .* it has none and 1 labels"),
    ("python", "data_batch_1", pickled({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}),
     r"it has some of shape \(2, 3072\) and 1 labels"),
    ("python", "data_batch_1", pickled({"labels": [-1], "data": np.zeros((1, 3072), np.uint8)}),
     "the label -1 of image 0 must be below 10"),
    ("python", "data_batch_1", pickled([1, 2]), "data_batch_1 is not a file .*: it holds no dict"),
    ("python", "batches.meta", pickled({"x": 1}), "has no list label_names"),
    ("python", "test_batch", pickled({"data": np.zeros((9, 3072), np.uint8)})[:-100],
     "test_batch is not a file of .*or truncated"),
    *(("binary", name, None, f"has no {name} and so is not all of CIFAR-10; put")
      for name in ("data_batch_1.bin", "test_batch.bin", "batches.meta.txt")),
])  # fmt: skip
def test_a_file_that_is_not_cifars_is_refused_by_name(tmp_path, form, name, content, message):
    file = write(tmp_path, form) / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_cifar(tmp_path, None)


def test_a_file_that_cannot_be_read_is_named(binary):
    path = binary / "cifar-10-batches-bin" / "data_batch_1.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="data_batch_1.bin cannot be read: it is a folder, not a"):
        open_cifar(binary, None)


@pytest.mark.parametrize("present, missing", [((1,), 2), ((1, 2, 3, 4), 5)])
def test_an_official_batch_file_does_not_come_without_the_others(tmp_path, present, missing):
    folder = write(tmp_path, batches=(10,) * len(present))
    with open(folder / "data_batch_1.bin", "wb") as file:
        file.truncate(10_000 * 3073)  # as many images as an official file has, all alike
    with pytest.raises(ValueError, match=f"has no data_batch_{missing}.bin and so is not all of"):
        open_cifar(tmp_path, None)


def test_a_folder_without_an_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"data.root={tmp_path} holds no CIFAR-10; put cifar-10-b"):
        open_cifar(tmp_path, None)


def flipped(content: bytes) -> bytes:
    """One bit in the middle changed, which decodes to another pixel: only the checksum shows it."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("form, damage, message", [
    ("binary", lambda _: b"<!DOCTYPE html><p>Not found",
     r"is truncated, damaged or no tar.gz \(an error page, .*\? It begins with b'<!DOCTYPE html>"),
    ("binary", lambda _: b"-", r"is truncated, damaged or no tar.gz \(.* it is cut off"),
    ("binary", lambda _: tar_gz({"photos/1.jpg": b"x"}), "holds neither cifar-10-batches-bin nor"),
    ("binary", lambda whole: whole[: 9 * len(whole) // 10], "is truncated, damaged or no tar.gz"),
    ("binary", lambda whole: whole[: 3 * len(whole) // 10], "is truncated, damaged or no tar.gz"),
    ("binary", flipped, r"is truncated, damaged or no tar.gz \("),
    ("python", flipped, r"is truncated, damaged or no tar.gz \("),
])  # fmt: skip
def test_a_damaged_archive_or_something_else_is_refused(tmp_path, form, damage, message):
    path = write(tmp_path, form, packed=True)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path.name} {message}.*https://www.cs.toronto.edu"):
        open_cifar(tmp_path, None)


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self._command,)


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path, name):
    folder, mark = write(tmp_path, "python"), tmp_path / "ran"
    bad = {"data": Malicious(f"touch {mark}"), "label_names": CLASSES}
    (folder / name).write_bytes(pickle.dumps(bad, protocol=2))
    with pytest.raises(ValueError, match=rf"{name} is not a file of CIFAR-10's .*it would run"):
        open_cifar(tmp_path, None)
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists()  # elsewhere it does run


# BUILD with the state (None, {"__doc__": 5}), which sets an attribute of what was named before.
BUILD = b"N}" + pickle.BINUNICODE + b"\x07\x00\x00\x00__doc__K\x05s\x86b0}"


@pytest.mark.parametrize("module, name, then, message", [
    ("builtins", "eval", b"", "it would run builtins.eval"),
    ("numpy", "load", b"", "it would run numpy.load"),
    ("numpy.core.multiarray", "scalar", b"", "it would run numpy.core.multiarray.scalar"),
    ("pipeline.data.cifar", "_Unpickler", b"", "it would run pipeline.data.cifar._Unpickler"),
    ("_codecs", "encode", b"", "it would run _codecs.encode"),
    ("numpy.core.multiarray", "_reconstruct", BUILD, "is not a file of CIFAR-10's Python archive"),
    ("numpy", "ndarray", BUILD, "is not a file of CIFAR-10's Python archive"),
])  # fmt: skip
def test_no_other_name_is_looked_up_nor_the_reader_itself_changed(
    tmp_path, module, name, then, message
):
    folder = write(tmp_path, "python")
    content = f"c{module}\n{name}\n".encode() + then + b"."
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_1 .*{message}"):
        open_cifar(tmp_path, None)
