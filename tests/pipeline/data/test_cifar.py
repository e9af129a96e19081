"""CIFAR-10's archives: both forms give the same data set, and what is not CIFAR-10 is refused."""

import os
import pickle

import cifar_archives
import numpy as np
import pytest
from cifar_archives import CLASSES, write

from pipeline.data.cifar import open_cifar


def both(root, held_out=None):
    return open_cifar(root, held_out)


@pytest.fixture
def binary(tmp_path):
    write(tmp_path)
    return tmp_path


def test_images_stand_in_the_order_of_batch_files_and_rows(binary):
    train, val = both(binary)
    first, second = cifar_archives.images(40, 0), cifar_archives.images(30, 1)
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
    found = both(place if direct else tmp_path / "other")
    for one, wanted in zip(found, both(tmp_path / "reference"), strict=True):
        assert one.digest == wanted.digest
        np.testing.assert_array_equal(one.pixels, wanted.pixels)
        np.testing.assert_array_equal(one.labels, wanted.labels)
        assert one.classes == wanted.classes
    assert (form == "python") == ("data_batch_1.bin" not in str(found[0].path(0)))


def test_a_batch_of_ten_or_more_follows_the_ninth(tmp_path):
    write(tmp_path, batches=(10,) * 11)
    train, _ = both(tmp_path)
    wanted = [cifar_archives.images(10, seed)[0] for seed in range(11)]
    np.testing.assert_array_equal(train.pixels, np.concatenate(wanted))


def test_one_pixel_one_label_or_one_name_changes_the_hash(binary):
    reference = both(binary)[0].digest
    folder = binary / "cifar-10-batches-bin"
    for name, at, value in (
        ("data_batch_1.bin", 1, b"\xff"),
        ("data_batch_2.bin", 0, b"\x09"),
        ("batches.meta.txt", 0, b"A"),
    ):
        content = (folder / name).read_bytes()
        assert content[at : at + 1] != value
        (folder / name).write_bytes(content[:at] + value + content[at + 1 :])
        assert both(binary)[0].digest != reference
        (folder / name).write_bytes(content)
    assert both(binary)[0].digest == reference


def test_the_last_of_each_class_are_held_out(binary):
    whole, test = both(binary)
    train, val = both(binary, held_out=20)
    assert (len(train), len(val)) == (50, 20)
    for label in range(10):
        own = whole.pixels[whole.labels == label]
        np.testing.assert_array_equal(train.pixels[train.labels == label], own[:-2])
        np.testing.assert_array_equal(val.pixels[val.labels == label], own[-2:])
    paths = [val.path(i) for i in range(20)]
    assert [whole.read([whole.path(j) for j in range(70)].index(p)).tobytes() for p in paths] == [
        val.read(i).tobytes() for i in range(20)
    ]
    assert len({train.digest, val.digest, whole.digest, test.digest}) == 4


@pytest.mark.parametrize("held_out, message", [
    (15, "data.held_out=15 must be a multiple of the 10 classes"),
    (70, r"data.held_out=70 takes 7 images of each class and airplane has only 7; lower it"),
])  # fmt: skip
def test_a_held_out_that_does_not_fit_is_refused(binary, held_out, message):
    with pytest.raises(ValueError, match=message):
        both(binary, held_out)


def test_other_classes_than_the_trainings_are_refused(binary):
    with pytest.raises(ValueError, match="has the classes airplane, .* the training had cow, pig"):
        open_cifar(binary, None, ["cow", "pig"])


def test_another_size_than_cifars_own_is_told(binary, caplog):
    both(binary)
    assert "has 70 training and 20 test images, CIFAR-10 itself 50000 and 10000" in caplog.text


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
        both(tmp_path)
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists()  # elsewhere it does run


@pytest.mark.parametrize("module, name", [
    ("builtins", "eval"), ("numpy", "load"), ("numpy.core.multiarray", "scalar"),
    ("pipeline.data.cifar", "_Unpickler"), ("_codecs", "encode"),
])  # fmt: skip
def test_no_other_name_is_looked_up(tmp_path, module, name):
    folder = write(tmp_path, "python")
    (folder / "data_batch_1").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(ValueError, match=f"it would run {module}.{name}"):
        both(tmp_path)


@pytest.mark.parametrize("name", [b"numpy.core.multiarray\n_reconstruct", b"numpy\nndarray"])
def test_a_pickle_that_would_change_the_reader_itself_is_refused(tmp_path, name):
    folder = write(tmp_path, "python")
    # BUILD with the state (None, {"__doc__": 5}), which sets an attribute of what was named.
    build = b"N}" + pickle.BINUNICODE + b"\x07\x00\x00\x00__doc__K\x05s\x86b0"
    (folder / "data_batch_1").write_bytes(b"\x80\x02c" + name + b"\n" + build + b"}.")
    with pytest.raises(ValueError, match="data_batch_1 is not a file of CIFAR-10's Python archive"):
        both(tmp_path)


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
    ("python", "data_batch_1", cifar_archives.pickled({"labels": [1]}),
     r"must hold data, bytes of shape \(n, 3072\), and n labels, .* it has none and 1 labels"),
    ("python", "data_batch_1",
     cifar_archives.pickled({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}),
     r"it has some of shape \(2, 3072\) and 1 labels"),
    ("python", "data_batch_1",
     cifar_archives.pickled({"labels": [-1], "data": np.zeros((1, 3072), np.uint8)}),
     "the label -1 of image 0 must be below 10"),
    ("python", "data_batch_1", cifar_archives.pickled([1, 2]), "data_batch_1 holds no dict"),
    ("python", "batches.meta", cifar_archives.pickled({"x": 1}), "has no list label_names"),
])  # fmt: skip
def test_a_file_that_is_not_cifars_is_refused_by_name(tmp_path, form, name, content, message):
    folder = write(tmp_path, form)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        both(tmp_path)


def test_a_truncated_pickle_is_refused(tmp_path):
    folder = write(tmp_path, "python")
    content = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="test_batch is not a file of .*or truncated"):
        both(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name} and so is not all of CIFAR-10; put"):
        both(tmp_path)


@pytest.mark.parametrize("present, missing", [((1,), 2), ((1, 2, 3, 4), 5)])
def test_an_official_batch_file_does_not_come_without_the_others(tmp_path, present, missing):
    folder = write(tmp_path, batches=(10,) * len(present))
    with open(folder / "data_batch_1.bin", "wb") as file:
        file.truncate(10_000 * 3073)  # as many images as an official file has, all alike
    with pytest.raises(ValueError, match=f"has no data_batch_{missing}.bin and so is not all of"):
        both(tmp_path)


def test_files_of_other_sizes_are_a_set_of_ones_own(tmp_path, caplog):
    write(tmp_path, batches=(10, 30, 20), test=10)
    assert [len(one) for one in both(tmp_path)] == [60, 10]
    assert "if it is to be CIFAR-10, copy its archive anew" in caplog.text


@pytest.mark.parametrize("content, message", [
    (b"<!DOCTYPE html><p>Not found", "is not a gzip archive: it begins with .*an error page"),
    (b"PK\x03\x04", "is not a gzip archive: it begins with b'PK"),
    (cifar_archives.tar_gz({"photos/1.jpg": b"x"}), "holds neither cifar-10-batches-bin nor"),
])  # fmt: skip
def test_an_archive_that_is_something_else_is_refused(tmp_path, content, message):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=f"{message}.*https://www.cs.toronto.edu"):
        both(tmp_path)


@pytest.mark.parametrize("keep", [0.9, 0.3])
def test_a_truncated_archive_is_refused(tmp_path, keep):
    path = write(tmp_path, packed=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="cifar-10-binary.tar.gz is truncated or damaged"):
        both(tmp_path)


@pytest.mark.parametrize("form", ["binary", "python"])
def test_a_packed_archive_with_one_changed_bit_is_refused(tmp_path, form):
    path = write(tmp_path, form, packed=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # decodes to another pixel, which the checksum alone tells
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cifar-10-{form}.tar.gz is truncated or damaged"):
        both(tmp_path)


def test_a_folder_without_an_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"data.root={tmp_path} holds no CIFAR-10; put cifar-10-b"):
        both(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path) / "data_batch_1.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="data_batch_1.bin cannot be read: Is a directory; give"):
        both(tmp_path)
