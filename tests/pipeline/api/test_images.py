"""`pipeline.images`: the images of any container, one by one, as a data set of PyTorch's."""

import io

import cifar_archives
import numpy as np
import pytest
import torch
from container_writers import WRITERS, draw_images, write, write_folders
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import pipeline
from pipeline.api import BadImage, ConfigError
from pipeline.data.index.manifest import open_manifest


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((4, 4))))


@pytest.mark.parametrize("writer", [write_folders, *WRITERS], ids=lambda one: one.__name__)
def test_images_of_any_container_are_those_of_a_training(writer, tmp_path):
    drawn = draw_images(14)
    writer(tmp_path / "train", drawn)
    manifest = open_manifest(tmp_path, "train")
    images = pipeline.images(tmp_path, "train")
    assert isinstance(images, Dataset) and len(images) == len(images.paths) == 14
    assert (images.digest, images.classes) == (manifest.digest, manifest.classes)
    assert images.labels.tolist() == manifest.labels.tolist()
    contents = {content for _, _, content in drawn}
    for index, (image, label) in enumerate(images):
        encoded = manifest.read(index).tobytes()
        assert encoded in contents and label == manifest.labels[index]
        with Image.open(io.BytesIO(encoded)) as wanted:
            assert image.mode == "RGB" and np.array_equal(image, wanted)
        assert images.paths[index] == manifest.path(index)


def test_it_is_read_by_pytorchs_loader_in_processes_of_its_own(tmp_path):
    write_folders(tmp_path / "val", draw_images(14))
    images = pipeline.images(tmp_path, transform=pixels)
    found = list(DataLoader(images, batch_size=4, num_workers=1))
    assert [tuple(batch.shape) for batch, _ in found] == [(4, 4, 4, 3)] * 3 + [(2, 4, 4, 3)]
    assert torch.equal(found[3][0][0], images[12][0])
    assert torch.cat([labels for _, labels in found]).tolist() == images.labels.tolist()


def test_it_is_a_sequence(tmp_path):
    write_folders(tmp_path / "val", draw_images(5))
    write(tmp_path / "synset_words.txt", b"a apple, red\n")
    images = pipeline.images(tmp_path)
    assert images[-1][1] == images[4][1] and len(list(images)) == 5
    assert [place.name for place in images.paths[1:3]] == [images.paths[i].name for i in (1, 2)]
    with pytest.raises(IndexError):
        images[5]
    assert images.names == ["apple, red", "Z é"] or images.names == ["Z é", "apple, red"]
    assert repr(images).startswith("Images(val: 5 images of 2 classes, hash ")


def test_labels_are_those_of_the_classes_that_are_given(tmp_path):
    write_folders(tmp_path / "val", draw_images(6))
    names = ["Z é", "another", "a"]
    images = pipeline.images(tmp_path, classes=names)
    assert images.classes == names and set(images.labels.tolist()) == {0, 2}
    with pytest.raises(ValueError, match="are not in the training data"):
        pipeline.images(tmp_path, classes=["a"])


def test_images_of_cifar_have_their_held_out_ones(tmp_path):
    cifar_archives.write(tmp_path)
    test = pipeline.images(tmp_path, "val", dataset="cifar-10")
    held = pipeline.images(tmp_path, "val", dataset="cifar-10", held_out=10)
    assert (len(test), len(held)) == (20, 10)
    assert test[0][0].size == (32, 32)


def test_an_image_that_is_cut_is_named_when_it_is_read(tmp_path):
    write_folders(tmp_path / "val", draw_images(3))
    images = pipeline.images(tmp_path)
    place = images.paths[1]
    place.write_bytes(place.read_bytes()[:-200])
    assert images[0][1] is not None
    with pytest.raises(BadImage, match=r"cannot be used: .*\bit\b") as raised:
        images[1]
    assert raised.value.path == place


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": "test"}, "split=test must be train or val"),
        ({"dataset": "cifar-100"}, "dataset=cifar-100 must be cifar-10, or None"),
        ({"held_out": 10}, "held_out=10 is for dataset=cifar-10; leave it out"),
    ],
)
def test_a_wrong_argument_is_a_config_error(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pipeline.images(tmp_path, **given)


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        pipeline.images(tmp_path / "nowhere")
