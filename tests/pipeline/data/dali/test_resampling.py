"""The CPU's resize is DALI's and Pillow's, whole in every odd case, and the same bits anywhere."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from pipeline.data import dali, resampling_kernel
from pipeline.data.dali import DecodeSettings, graph, make_pipeline, resampling
from pipeline.data.normalisation import IMAGENET

Box = tuple[float, float, float, float]  # where it begins and ends: y, x, y, x


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: smooth, with noise that a wrong weight would show in."""
    rng = np.random.default_rng([height, width, seed])
    cells = rng.integers(0, 256, (-(-height // 20) + 1, -(-width // 20) + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 21, (height, width, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def run(
    images: list[np.ndarray],
    boxes: list[Box],
    shape: tuple[int, int],
    flips: list[int] | None = None,
    threads: int = 1,
) -> list[np.ndarray]:
    """All of one batch (B, H, W, 3): resized, the same normalised, and by DALI's own operator."""
    edges = np.array(boxes, np.float32)
    inputs = (
        images,
        np.ascontiguousarray(edges[:, :2]),
        np.ascontiguousarray(edges[:, 2:]),
        np.tile(np.array(shape, np.float32), (len(images), 1)),
        np.array(flips or [0] * len(images), np.int32),
        np.tile(IMAGENET.mean, (len(images), 1)),
    )
    pipe = Pipeline(batch_size=len(images), num_threads=threads, device_id=None)
    with pipe:
        pixels, begin, end, size, mirror, means = fn.external_source(
            source=lambda: inputs, num_outputs=6, batch=True, layout=["HWC", "", "", "", "", ""]
        )
        box = (begin, end)
        pipe.set_outputs(
            resampling.resized(pixels, box, size, mirror),
            resampling.resized(pixels, box, size, mirror, (means, IMAGENET.std)),
            fn.resize(
                pixels, size=size, roi_start=begin, roi_end=end, roi_relative=False,
                interp_type=types.INTERP_LINEAR, antialias=True,
            ),
        )  # fmt: skip
    pipe.build()
    return [output.as_array() for output in pipe.run()]


def random_boxes(count: int, seed: int, least: float = 1.0) -> tuple[list[np.ndarray], list[Box]]:
    """Images of 1 to 400 pixels a side and fractional boxes inside them, some along an edge."""
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for _ in range(count):
        sides = np.maximum(least, np.exp(rng.uniform(0, math.log(400), 2))).astype(int)
        extent = np.maximum(least, sides * rng.uniform(0.05, 1, 2))
        start = (sides - extent) * rng.choice([0.0, 0.37, 1.0], 2)
        images.append(photo(*sides))
        boxes.append((*start, *(start + extent)))
    return images, boxes


def reference(image: np.ndarray, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """The definition, in numpy: two products with matrices of integers."""
    size = np.array(image.shape[:2])
    down, across = (
        matrix(np.float32(box[axis]), np.float32(box[axis + 2]), size[axis], shape[axis])
        for axis in (0, 1)
    )
    rows = (np.einsum("ih,hwc->iwc", down, image.astype(np.int64)) + 64) >> 7
    return ((np.einsum("jw,iwc->ijc", across, rows) + (1 << 20)) >> 21).astype(np.uint8)


def matrix(begin: np.float32, end: np.float32, size: int, count: int) -> np.ndarray:
    """Weights (count, size) of a triangle, each row 1 << 14 in sum, beyond the image its edge."""
    weights = np.zeros((count, size), np.int64)
    scale = (float(end) - float(begin)) / count
    reach = max(1.0, scale)
    for i in range(count):
        centre = float(begin) + (i + 0.5) * scale - 0.5
        pixels = math.floor(centre - reach) + 1 + np.arange(math.ceil(2 * reach))
        sums = np.cumsum(np.maximum(0.0, 1 - np.abs(pixels - centre) / reach))
        parts = np.diff(np.floor(sums / sums[-1] * (1 << 14) + 0.5), prepend=0).astype(np.int64)
        np.add.at(weights[i], np.clip(pixels, 0, size - 1), parts)
    return weights


@pytest.mark.parametrize("shape", [(224, 224), (17, 40), (1, 1)])
def test_pixels_are_nearly_dalis_and_the_definitions_to_the_bit(shape):
    images, boxes = random_boxes(24, seed=shape[0])
    ours, _, dalis = run(images, boxes, shape)
    error = np.abs(ours.astype(int) - dalis)
    assert error.max() <= 1
    assert error.mean() < 0.02
    for image, box, pixels in zip(images, boxes, ours, strict=True):
        np.testing.assert_array_equal(pixels, reference(image, box, shape), str(box))


@pytest.mark.parametrize("shape", [(224, 224), (33, 20)])
def test_pixels_are_those_of_pillow_away_from_the_edges(shape):
    image = photo(500, 400)
    boxes: list[Box] = [
        (30.4, 25.3, 470.9, 375.2), (100.5, 90.25, 340.0, 300.5), (200.0, 200.0, 201.0, 201.5),
        (30.0, 180.2, 470.0, 190.1), (50, 60, 274, 284),
    ]  # fmt: skip
    ours, _, _ = run([image] * len(boxes), boxes, shape)
    for (top, left, bottom, right), pixels in zip(boxes, ours, strict=True):
        wanted = Image.fromarray(image).resize(
            shape[::-1], Image.Resampling.BILINEAR, box=(left, top, right, bottom)
        )
        error = np.abs(pixels.astype(int) - np.asarray(wanted))
        assert error.max() <= 1
        assert error.mean() < 0.25


@pytest.mark.parametrize("sides, box", [
    ((1, 1), (0, 0, 1, 1)),
    ((1, 500), (0, 3.3, 1, 499.5)),
    ((500, 1), (0, 0, 500, 1)),
    ((3, 2), (0, 0, 3, 2)),
    ((40, 50), (39, 49, 40, 50)),  # a pixel in the corner
    ((40, 50), (17.3, 20.7, 18.3, 21.7)),  # and one between pixels
    ((3000, 17), (0.0, 0.5, 3000, 16.5)),
    ((20, 4001), (3, 0, 18, 4001)),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(224, 224), (3, 5), (1, 1)])
def test_odd_boxes_are_those_of_dali(sides, box, shape):
    image = photo(*sides)
    ours, _, dalis = run([image], [box], shape)
    assert np.abs(ours.astype(int) - dalis).max() <= 1
    np.testing.assert_array_equal(ours[0], reference(image, box, shape))


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_an_even_colour_stays_as_it_is_however_many_pixels_make_one(value):
    image = np.full((2000, 1500, 3), value, np.uint8)
    boxes: list[Box] = [(0, 0, 2000, 1500), (3.3, 4.7, 7.9, 8.2), (0.1, 0.2, 1999.3, 1499.9)]
    for shape in ((224, 224), (1, 2)):
        ours, _, _ = run([image] * 3, boxes, shape)
        assert (ours == value).all()


def test_mirrored_is_mirrored_to_the_bit_and_normalised_is_the_same_pixels_scaled():
    images, boxes = random_boxes(12, seed=3)
    flips = [i % 2 for i in range(12)]
    plain, _, _ = run(images, boxes, (64, 50))
    mixed, normalised, _ = run(images, boxes, (64, 50), flips)
    for flip, before, after in zip(flips, plain, mixed, strict=True):
        np.testing.assert_array_equal(after, before[:, ::-1] if flip else before)
    assert normalised.dtype == np.float32
    wanted = (mixed.astype(np.float32) - IMAGENET.mean) * (1 / IMAGENET.std)
    np.testing.assert_array_equal(normalised, wanted)


def test_neither_threads_nor_the_batch_change_a_bit():
    images, boxes = random_boxes(24, seed=5)
    whole = run(images, boxes, (100, 90))
    for many, threads in ((24, 3), (6, 2), (1, 1)):
        parts = [
            run(images[i : i + many], boxes[i : i + many], (100, 90), threads=threads)
            for i in range(0, 24, many)
        ]
        for output in (0, 1):
            found = np.concatenate([part[output] for part in parts])
            np.testing.assert_array_equal(found, whole[output])


def test_functions_are_compiled_where_nothing_can_be_kept(monkeypatch):
    compile_ = resampling_kernel.cfunc
    kept = []

    def without_a_folder(signature, cache=False, **options):
        kept.append(cache)
        if cache:
            raise RuntimeError("cannot cache function '_set_up': no locator available for file")
        return compile_(signature, **options)

    monkeypatch.setattr(resampling_kernel, "cfunc", without_a_folder)
    compiled = resampling_kernel.compiled.__wrapped__
    assert compiled(resampling_kernel._set_up, resampling_kernel.SET_UP).address
    assert kept == [True, False]


def test_a_graph_of_the_gpu_does_not_bring_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "pipeline.data.dali.resampling", None)
    monkeypatch.delattr(dali, "resampling")
    assert not hasattr(graph, "resampling")  # nor is it imported with the module
    settings = DecodeSettings("gpu", torch.device("cpu"), 1)
    assert make_pipeline(lambda: None, 4, settings).serialize()
    with pytest.raises(ImportError):
        make_pipeline(lambda: None, 4, dataclasses.replace(settings, decoder="cpu"))
