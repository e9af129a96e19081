"""What stands at each position: labels, padding, epochs, and nothing that depends on the batch."""

import numpy as np
import pytest
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data.crops import CenterCrop, RandomResizedCrop, ScaleJitter
from pipeline.data.images import PADDING_LABEL, BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import epoch_permutation
from pipeline.data.stream import TrainStream, ValStream, train_planner

IMAGES = 23


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """23 training images in 3 classes, each of another size."""
    root = tmp_path_factory.mktemp("stream")
    for index in range(IMAGES):
        path = root / "train" / f"class{index % 3}" / f"{index:02d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + index, 70 - index)).save(path)
    return root


@pytest.fixture(scope="module")
def manifest(root):
    return open_manifest(root, "train")


def assert_slices_agree(stream, positions):
    """Selecting `positions` at once, in uneven parts and one by one gives the same."""
    whole = stream.select(positions)
    for cuts in ([5, 6, 13], range(1, len(positions))):
        parts = [stream.select(part) for part in np.split(positions, list(cuts))]
        for name in ("positions", "images", "labels"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))
        for name in ("boxes", "flips", "offsets"):
            joined = np.concatenate([getattr(part.plan, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole.plan, name))
    return whole


@pytest.mark.parametrize(
    "planner", [RandomResizedCrop(32, color_std=0.1), ScaleJitter(32, (36, 60), color_std=0.1)]
)
def test_a_training_selection_does_not_depend_on_how_positions_are_sliced(manifest, planner):
    whole = assert_slices_agree(TrainStream(manifest, planner, 7), np.arange(15, 40))
    assert len(np.unique(whole.plan.boxes, axis=0)) > 20
    assert set(whole.plan.flips.tolist()) == {0, 1}
    assert np.unique(whole.plan.offsets, axis=0).shape == (25, 3)


def test_training_takes_each_image_once_an_epoch_with_its_label_and_a_new_crop(manifest):
    stream = TrainStream(manifest, RandomResizedCrop(32), 7)
    selection = stream.select(np.arange(3 * IMAGES))
    orders = [epoch_permutation(7, epoch, IMAGES) for epoch in range(3)]
    np.testing.assert_array_equal(selection.images, np.concatenate(orders))
    assert selection.labels.dtype == np.int64
    folders = [manifest.path(int(image)).parent.name for image in selection.images]
    assert folders == [f"class{label}" for label in selection.labels]
    assert len(np.unique(selection.plan.boxes[selection.images == 4], axis=0)) == 3
    other = TrainStream(manifest, RandomResizedCrop(32), 8).select(np.arange(3 * IMAGES))
    assert other.images.tolist() != selection.images.tolist()
    assert other.plan.flips.tolist() != selection.plan.flips.tolist()


def test_validation_is_every_image_in_order_then_padding(manifest):
    stream = ValStream(manifest, CenterCrop(32, 36))
    whole = assert_slices_agree(stream, np.arange(IMAGES + 9))
    assert whole.images[:IMAGES].tolist() == list(range(IMAGES))
    assert whole.labels[:IMAGES].tolist() == manifest.labels.tolist()
    assert whole.labels[IMAGES:].tolist() == [PADDING_LABEL] * 9
    assert PADDING_LABEL == -1
    assert whole.labels.dtype == np.int64
    assert not whole.plan.flips.any()
    assert stream.select(np.arange(50, 54)).labels.tolist() == [PADDING_LABEL] * 4


def test_the_planner_is_the_configured_one():
    crop = train_planner(DataConfig(image_size=64, area=(0.3, 0.9), flip=False, color_std=0.2))
    assert crop == RandomResizedCrop(64, area=(0.3, 0.9), flip=False, color_std=0.2)
    jitter = train_planner(DataConfig(train_crop="scale_jitter", short_side=(230, 250)))
    assert jitter == ScaleJitter(224, (230, 250), flip=True, color_std=None)


def test_an_image_without_a_header_is_named_when_it_is_selected(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "0.JPEG")
    (folder / "1.JPEG").write_text("<html>not found</html>")
    (folder / "2.JPEG").touch()
    stream = ValStream(open_manifest(tmp_path, "train"), CenterCrop(8, 8))
    stream.select(np.array([0]))
    with pytest.raises(BadImage, match=r"1\.JPEG cannot be used: no image header"):
        stream.select(np.array([0, 1]))
    with pytest.raises(BadImage, match=r"2\.JPEG cannot be used: the file is empty"):
        stream.select(np.array([2]))
