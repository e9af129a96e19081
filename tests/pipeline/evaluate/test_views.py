"""The views of a test image are the crops and scales they are called, against Pillow and numpy."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config, DataConfig
from pipeline.data.crops import PLACES, Crop, WholeImage
from pipeline.evaluate.protocol import ViewProtocol
from pipeline.prepare.parity import execute

SIZE, RESIZE = 224, 256


def smooth_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sides(*images: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    heights = np.array([image.height for image in images], np.int32)
    return heights, np.array([image.width for image in images], np.int32)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (256, 256), (97, 131)])
def test_ten_crops_are_slices_of_the_resized_image_and_their_mirrors(size):
    image = smooth_image(*size)
    width, height = (RESIZE * side // min(size) for side in size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    top, left = round((height - SIZE) / 2), round((width - SIZE) / 2)
    slices = [
        resized[top : top + SIZE, left : left + SIZE],
        resized[:SIZE, :SIZE],
        resized[:SIZE, -SIZE:],
        resized[-SIZE:, :SIZE],
        resized[-SIZE:, -SIZE:],
    ]
    slices += [one[:, ::-1] for one in slices]
    config = Config(DataConfig(image_size=SIZE, val_resize=RESIZE))
    views = ViewProtocol("10-crop").views(config)
    assert len(views) == len(set(views)) == len(slices) == 10
    for view, expected in zip(views, slices, strict=True):
        plan = view.plan(*sides(image))
        (found,) = execute(plan, [file_of(image)])
        assert np.abs(found - expected).max() <= 1, view  # a pixel of shift would be far more


def test_crops_lie_inside_images_of_any_size():
    sizes = np.random.default_rng(0).integers(1, 3000, (2, 2000)).astype(np.int32)
    sizes[:, 0] = 0  # planned as one pixel
    for place in PLACES:
        boxes = Crop(SIZE, RESIZE, place).plan(*sizes).boxes.astype(np.float64)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= np.maximum(sizes, 1).T).all()
    assert WholeImage(32).plan(*sizes[:, :1]).shape == (32, 32)


@pytest.mark.parametrize(
    ("size", "short_side", "shape"),
    [((500, 375), 224, (224, 298)), ((333, 500), 640, (960, 640)), ((60, 60), 480, (480, 480))],
)
def test_a_whole_image_keeps_its_aspect_and_truncates_the_longer_side(size, short_side, shape):
    image = smooth_image(*size)
    plan = WholeImage(short_side).plan(*sides(image))
    assert plan.shape == shape
    (found,) = execute(plan, [file_of(image)])
    expected = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR), np.float32)
    assert np.array_equal(found, expected)
    (mirrored,) = execute(WholeImage(short_side, True).plan(*sides(image)), [file_of(image)])
    assert np.array_equal(mirrored, expected[:, ::-1])
