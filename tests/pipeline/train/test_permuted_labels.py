"""A run whose validation images lie in the wrong classes' folders says so."""

import colorsys

import jobs
import pytest
from PIL import Image

CLASSES = 100


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    """A hundred classes, each of one colour; in val, class k holds the images of class k + 37."""
    root = tmp_path_factory.mktemp("permuted")
    for split, images, shift in (("train", 4, 0), ("val", 1, 37)):
        for label in range(CLASSES):
            folder = root / split / f"class{label:03d}"
            folder.mkdir(parents=True)
            hue, level = divmod((label + shift) % CLASSES, 10)
            colour = colorsys.hsv_to_rgb(hue / 10, 1.0, 0.1 + level / 11)
            pixels = tuple(round(255 * one) for one in colour)
            for number in range(images):
                Image.new("RGB", (40, 40), pixels).save(folder / f"{number}.JPEG", quality=95)
    return root


def test_labels_of_val_in_another_order_are_warned_of(permuted, tmp_path):
    ranks = jobs.run(
        jobs.train(
            permuted, tmp_path, "--schedule.epochs=12", "--schedule.drop_epochs=[11]",
            "--data.global_batch_size=40", "--data.local_batch_size=40", "--optim.base_lr=0.8",
            "--data.image_size=16", "--data.val_resize=16",
        )
    )  # fmt: skip
    assert ranks.codes == [0], ranks.text
    assert "the images of val do not lie in their classes' folders" in ranks.text
    assert "python -m pipeline.prepare imagenet" in ranks.text
