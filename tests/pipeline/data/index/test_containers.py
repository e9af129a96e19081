"""Whatever they lie in, the same images are the same data: hash, order, labels, batches."""

import logging
import os
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
    slim_examples,
    tfrecord,
    webdataset,
    write_folders,
    write_recordio,
    write_tfrecord,
)

from pipeline.data.crops import RandomResizedCrop
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import cached_manifest, open_manifest
from pipeline.data.stream import TrainStream
from pipeline.prepare import index
from pipeline.prepare.options import IndexOptions


@pytest.mark.parametrize("write", NAMED)
@pytest.mark.parametrize("count", [1, 7, 1003])
def test_the_same_images_are_the_same_data(tmp_path, write, count):
    images = draw_images(count)
    write_folders(tmp_path / "folders" / "train", images)
    write(tmp_path / "containers" / "train", images)
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
    assert manifest.path(0) == tmp_path / "train" / (
        f"train0.rec:Z é/train0.rec#00000001 at byte {manifest._containers._offsets[0]}"
    )


@pytest.mark.parametrize("write", NAMED)
def test_batches_are_those_of_class_folders(tmp_path, write):
    from pipeline.data.dali import DecodeSettings, Loader

    images = draw_images(23)
    write_folders(tmp_path / "folders" / "train", images)
    write(tmp_path / "containers" / "train", images)
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


@pytest.mark.parametrize("write", WRITERS)
def test_an_empty_shard_among_others_is_none_the_worse(tmp_path, write):
    write(tmp_path / "train", draw_images(2))  # of three shards the last is empty
    assert len(open_manifest(tmp_path, "train")) == 2


@pytest.mark.parametrize("write", WRITERS)
def test_a_changed_container_is_indexed_again(tmp_path, write, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path / "train", draw_images(6))
    first = open_manifest(tmp_path, "train")
    (tmp_path / "train" / "notes.txt").write_text("about")
    caplog.clear()
    assert open_manifest(tmp_path, "train").digest == first.digest
    assert "scanned" not in caplog.text  # what is no container is no reason
    write(tmp_path / "train", draw_images(6, seed=1))
    assert cached_manifest(tmp_path, "train", None) is None
    assert open_manifest(tmp_path, "train").digest != first.digest


@pytest.mark.parametrize("write", [webdataset, tfrecord, recordio])
def test_numbered_classes_need_a_list_of_names(tmp_path, write):
    write(tmp_path / "train", draw_images(4))
    listed = tmp_path / "train" / "classes.txt"
    listed.unlink()
    with pytest.raises(ValueError, match=r"give classes as numbers, .*write them, one a line"):
        open_manifest(tmp_path, "train")
    for text, message in {
        "a\n": "has class number 1 (from 0), but",
        "a\n\nb\n": "has empty lines; write each class once",
        "a\na\n": "names classes twice: a; write",
    }.items():
        listed.write_text(text)
        with pytest.raises(ValueError) as caught:
            open_manifest(tmp_path, "train")
        assert message in str(caught.value)
    listed.unlink()
    (tmp_path / "classes.txt").write_text("a\nZ é\n\n")  # one for train and val
    assert open_manifest(tmp_path, "train").classes == ["Z é", "a"]


def test_changing_the_list_of_classes_is_seen(tmp_path):
    recordio(tmp_path / "train", draw_images(4))
    assert open_manifest(tmp_path, "train").classes == ["Z é", "a"]
    (tmp_path / "train" / "classes.txt").write_text("cat\ndogs\n")
    assert open_manifest(tmp_path, "train").classes == ["cat", "dogs"]


def test_val_labels_follow_training_whatever_the_containers(tmp_path):
    packed(tmp_path / "train", draw_images(9, ("x", "y", "z")))
    write_folders(tmp_path / "val", draw_images(2, ("z", "y")))
    train = open_manifest(tmp_path, "train")
    assert open_manifest(tmp_path, "val", classes=train.classes).labels.tolist() == [1, 2]
    recordio(tmp_path / "other" / "val", draw_images(2))
    with pytest.raises(ValueError, match=r"has 2 class\(es\) that the training data lacks: Z é, a"):
        open_manifest(tmp_path / "other", "val", classes=train.classes)


@pytest.mark.parametrize(
    "name", ["x.tfrecord", "x.tfrecords", "x.tfrec", "i-train.tfrecord-00000-of-00001"]
)
def test_tfrecords_by_any_of_their_names(tmp_path, name):
    write_tfrecord(tmp_path / "train" / name, slim_examples(draw_images(3), None))
    (tmp_path / "train" / f"{name}.idx").write_text("0 100\n")  # DALI's tfrecord2idx
    (tmp_path / "train" / "._x.tfrecord").write_bytes(b"\0")
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


def test_index_counts_both_splits_and_finds_them_again(tmp_path, capsys):
    packed(tmp_path / "train", draw_images(9))
    recordio(tmp_path / "val", draw_images(1))
    index.run(IndexOptions(tmp_path))
    train, val = capsys.readouterr().out.splitlines()
    known = f"hash {open_manifest(tmp_path, 'train').digest[:12]}, scanned in "
    assert train.startswith(f"train: 9 images of 2 classes, 0.00 GB, {known}")
    assert val.startswith("val: 1 images of 1 classes, ")
    index.run(IndexOptions(tmp_path))
    assert capsys.readouterr().out.count("up to date, opened in") == 2


def test_an_image_that_holds_recordios_magic_number_comes_back_whole(tmp_path):
    (_, _, content), *_ = draw_images(1)
    hidden = [content]
    for places in ([0], [1], [0, 3], [0, 1, 2]):  # in words behind the image's first two bytes
        tail = bytearray(b"\1\2" * 20)
        for place in places:
            tail[4 * place : 4 * place + 4] = MAGIC
        pad = b"\0" * (-(len(content) + 24) % 4)
        hidden.append(content + pad + bytes(tail))
    hidden.append(content[:2] + b"\xff\xfe\x00\x0a" + b"\0\0" + MAGIC + b"\0\0" + content[2:])
    for vector in (False, True):
        path = tmp_path / f"{vector}" / "train" / "x.rec"
        write_recordio(path, [image_record(0, one, vector=vector) for one in hidden])
        (path.parent / "classes.txt").write_text("c\n")
        manifest = open_manifest(path.parent.parent, "train")
        assert [manifest.read(i).tobytes() for i in range(len(hidden))] == hidden
        assert manifest.lengths.tolist() == [len(one) for one in hidden]
        assert len(set(zip(manifest.widths, manifest.heights, strict=True))) == 1
        assert manifest.widths.all()
        os.truncate(path, int(manifest._containers._offsets[4]) + len(content) + 8)
        with pytest.raises(BadImage, match="changed or cut"):
            manifest.read(4)
