"""Whatever they lie in, the same images are the same data: hash, order, labels, batches."""

import logging
import os
import re
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from container_writers import (
    MAGIC,
    NAMED,
    WRITERS,
    contents,
    draw_images,
    image_record,
    packed,
    recordio,
    recordio_of,
    slim_examples,
    tar_of,
    tfrecord,
    tfrecord_of,
    webdataset,
    write,
    write_folders,
)

from pipeline.data.crops import CenterCrop, RandomResizedCrop
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import cached_manifest, open_manifest
from pipeline.data.stream import TrainStream, ValStream

IMAGE = draw_images(1)[0][2]


@pytest.mark.parametrize("write_as", NAMED)
@pytest.mark.parametrize("count", [1, 7, 203])
def test_the_same_images_are_the_same_data(tmp_path, write_as, count):
    images = draw_images(count)
    write_folders(tmp_path / "folders" / "train", images)
    write_as(tmp_path / "containers" / "train", images)
    folders = open_manifest(tmp_path / "folders", "train")
    contained = open_manifest(tmp_path / "containers", "train")
    assert len(contained) == count
    assert contained.digest == folders.digest
    assert contained.classes == folders.classes
    for column in ("labels", "lengths", "widths", "heights"):
        ours, theirs = getattr(contained, column), getattr(folders, column)
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()
    assert contents(contained) == contents(folders)
    again = open_manifest(tmp_path / "containers", "train")  # from the cache
    assert (again.digest, contents(again)) == (folders.digest, contents(folders))


def test_without_names_the_images_and_labels_are_the_same(tmp_path):
    images = draw_images(20)
    recordio(tmp_path / "train", images)
    manifest = open_manifest(tmp_path, "train")
    assert sorted(contents(manifest)) == sorted((label, content) for label, _, content in images)
    place = tmp_path / "train" / "train0.rec:Z é" / "train0.rec#00000001 at byte "
    assert re.fullmatch(f"{place}[0-9]+", str(manifest.path(0)))


def test_batches_are_those_of_class_folders(tmp_path):
    from pipeline.data.dali import DecodeSettings, Loader

    images = draw_images(23)
    write_folders(tmp_path / "folders" / "train", images)
    packed(tmp_path / "containers" / "train", images)
    batches = []
    for root in (tmp_path / "folders", tmp_path / "containers"):
        stream = TrainStream(open_manifest(root, "train"), RandomResizedCrop(16), seed=3)
        chunks = [np.arange(start, start + 5) for start in range(0, 50, 5)]
        settings = DecodeSettings("cpu", torch.device("cpu"), threads=1)
        with closing(Loader(stream, chunks, len(chunks), 5, settings)) as loader:
            batches.append(list(loader))
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_an_image_that_cannot_be_decoded_is_named_with_its_container(tmp_path):
    from pipeline.data.dali import DecodeSettings, Loader

    images = list(draw_images(9, ("a",)))
    images[4] = ("a", images[4][1], images[4][2][:700])
    packed(tmp_path / "train", images)
    stream = ValStream(open_manifest(tmp_path, "train"), CenterCrop(16, 16))
    settings = DecodeSettings("cpu", torch.device("cpu"), threads=1)
    loader = Loader(stream, [np.arange(9)], 1, 9, settings)
    with closing(loader), pytest.raises(BadImage, match="cannot be decoded") as caught:
        next(loader)
    assert f"{tmp_path}/train/shard-000001.tar:a/{images[4][1]} at byte " in str(caught.value)


@pytest.mark.parametrize("write_as", WRITERS)
def test_a_changed_container_is_indexed_again(tmp_path, write_as, caplog):
    caplog.set_level(logging.INFO)
    write_as(tmp_path / "train", draw_images(6))
    first = open_manifest(tmp_path, "train")
    for name in ("notes.txt", "._shard-0.tar", ".train-00000-of-00003", ".x.rec", ".snapshots/x"):
        write(tmp_path / "train" / name, b"no container")
    caplog.clear()
    assert open_manifest(tmp_path, "train").digest == first.digest
    assert "scanned" not in caplog.text  # what is no container is no reason
    assert open_manifest(tmp_path, "train", again=True).digest == first.digest
    write_as(tmp_path / "train", draw_images(6, seed=1))
    assert cached_manifest(tmp_path, "train", None) is None
    assert open_manifest(tmp_path, "train").digest != first.digest


@pytest.mark.parametrize("write_as", [webdataset, tfrecord, recordio])
def test_numbered_classes_need_a_list_of_names(tmp_path, write_as):
    write_as(tmp_path / "train", draw_images(4))
    listed = tmp_path / "train" / "classes.txt"
    listed.unlink()
    with pytest.raises(ValueError, match=r"give classes as numbers, .*write them, one a line"):
        open_manifest(tmp_path, "train")
    for text, message in {
        "a\n": "has class number 1 (from 0), but",
        "a\n\nb\n": "has empty lines; write each class once",
        "a\na\n": "names classes twice: b'a'; write",
    }.items():
        listed.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            open_manifest(tmp_path, "train")
    listed.unlink()
    (tmp_path / "classes.txt").write_text("a\nZ é\n\n")  # one for train and val
    assert open_manifest(tmp_path, "train").classes == ["Z é", "a"]


def test_changing_what_names_classes_is_seen(tmp_path):
    recordio(tmp_path / "train", draw_images(4))
    assert open_manifest(tmp_path, "train").classes == ["Z é", "a"]
    (tmp_path / "train" / "classes.txt").write_text("cat\ndogs\n")
    assert open_manifest(tmp_path, "train").classes == ["cat", "dogs"]
    write(tmp_path / "val" / "x.rec", recordio_of([image_record(0, IMAGE)]))
    for name in ("a", "bcd"):
        write(tmp_path / "val" / "x.lst", f"0\t0\t{name}/1.JPEG\n".encode())
        assert open_manifest(tmp_path, "val").classes == [name]


def test_val_labels_follow_training_whatever_the_containers(tmp_path):
    packed(tmp_path / "train", draw_images(9, ("x", "y", "z")))
    write_folders(tmp_path / "val", draw_images(2, ("z", "y")))
    train = open_manifest(tmp_path, "train")
    assert open_manifest(tmp_path, "val", classes=train.classes).labels.tolist() == [1, 2]
    recordio(tmp_path / "other" / "val", draw_images(2))
    with pytest.raises(
        ValueError, match=r"2 class\(es\) that are not in the training data: Z é, a"
    ):
        open_manifest(tmp_path / "other", "val", classes=train.classes)


@pytest.mark.parametrize(
    "name", ["x.tfrecord", "x.tfrecords", "x.tfrec", "i-train.tfrecord-00000-of-00001"]
)
def test_tfrecords_by_any_of_their_names(tmp_path, name):
    records = [tfrecord_of([one]) for one in slim_examples(draw_images(3), None)]
    path = write(tmp_path / "train" / name, b"".join(records))
    lines = [f"{sum(map(len, records[:i]))} {len(one)}\n" for i, one in enumerate(records)]
    path.with_name(f"{name}.idx").write_text("".join(lines))  # DALI's tfrecord2idx
    assert len(open_manifest(tmp_path, "train")) == 3


def test_containers_may_be_symbolic_links_with_spaces(tmp_path):
    images = draw_images(5)
    packed(tmp_path / "elsewhere ü", images)
    (tmp_path / "train").mkdir()
    for path in (tmp_path / "elsewhere ü").iterdir():
        (tmp_path / "train" / f"link to {path.name}").symlink_to(path)
    assert len(open_manifest(tmp_path, "train")) == 5
    (tmp_path / "train" / "gone.tar").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"gone.tar cannot be read: No such file"):
        open_manifest(tmp_path, "train")


def test_an_image_that_holds_recordios_magic_number_comes_back_whole(tmp_path):
    hidden = [IMAGE]
    for places in ([0], [1], [0, 3], [0, 1, 2]):  # in words behind the image's first two bytes
        tail = bytearray(b"\1\2" * 20)
        for place in places:
            tail[4 * place : 4 * place + 4] = MAGIC
        pad = b"\0" * (-(len(IMAGE) + 24) % 4)
        hidden.append(IMAGE + pad + bytes(tail))
    hidden.append(IMAGE[:2] + b"\xff\xfe\x00\x0a" + b"\0\0" + MAGIC + b"\0\0" + IMAGE[2:])
    for vector in (False, True):
        records = [image_record(0, one, vector=vector) for one in hidden]
        path = write(tmp_path / f"{vector}" / "train" / "x.rec", recordio_of(records))
        (path.parent / "classes.txt").write_text("c\n")
        manifest = open_manifest(path.parent.parent, "train")
        assert [manifest.read(i).tobytes() for i in range(len(hidden))] == hidden
        assert manifest.lengths.tolist() == [len(one) for one in hidden]
        assert len(set(zip(manifest.widths, manifest.heights, strict=True))) == 1
        assert manifest.widths.all()
        begin = int(str(manifest.path(4)).rpartition(" ")[2])
        os.truncate(path, begin + len(IMAGE) + 8)
        with pytest.raises(BadImage, match="changed or cut"):
            manifest.read(4)


FEW_OPEN = """
import os, random, resource, sys, threading
from pathlib import Path
from pipeline.data.index.manifest import open_manifest

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
manifest = open_manifest(Path(sys.argv[1]), "train", classes=None)
whole = [manifest.read(image).tobytes() for image in range(40)]
before, wrong = len(os.listdir("/proc/self/fd")), []

def read(seed):
    choose = random.Random(seed)
    for _ in range(1000):
        image = choose.randrange(40)
        if manifest.read(image).tobytes() != whole[image]:
            wrong.append(image)

threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
after = len(os.listdir("/proc/self/fd"))
del manifest
print(wrong, after - before, after - len(os.listdir("/proc/self/fd")))
"""


def test_few_containers_stay_open_while_many_threads_read(tmp_path):
    for number, (label, name, content) in enumerate(draw_images(40)):
        write(tmp_path / "train" / f"{number}.tar", tar_of([(f"{label}/{name}", content)]))
    argv = [sys.executable, "-c", FEW_OPEN, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "[] 0 16\n"  # a quarter of 64, and none of them when it is gone


def test_hidden_images_are_counted_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    members = [("a/x.jpg", IMAGE), ("a/._x.jpg", b"\0"), (".git/x.jpg", b"\0"), (".notes", b"")]
    write(tmp_path / "train" / "1.tar", tar_of(members))
    write(tmp_path / "train" / "2.tar", tar_of([("b/._y.jpg", b"\0"), ("b/y.jpg", IMAGE)]))
    assert len(open_manifest(tmp_path, "train")) == 2
    assert caplog.text.count("begin with a dot") == 1
    said = f"{tmp_path}/train: not used are 4 names that begin with a dot (the first a/._x.jpg)"
    assert said in caplog.text


def test_an_image_that_lies_in_two_shards_is_warned_of_once(tmp_path, caplog):
    for number in (1, 2):
        members = [("a/x.jpg", IMAGE), ("a/y.jpg", IMAGE)]
        write(tmp_path / "train" / f"{number}.tar", tar_of(members))
    write(tmp_path / "train" / "3.tar", tar_of([("b/x.jpg", IMAGE)]))
    assert len(open_manifest(tmp_path, "train")) == 5
    assert caplog.text.count("the class and name of another") == 1
    assert f"2 images in {tmp_path}/train have the class and name of another" in caplog.text
    assert "the first a/x.jpg: if tar archives hold copies" in caplog.text
