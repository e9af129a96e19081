"""`prepare parity`: DALI, Pillow and torchvision agree, and it says so when they do not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.benchmark.photos import make_photos
from pipeline.data.crops import CenterCrop
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.options import ParityOptions
from pipeline.prepare.parity import (
    Difference,
    decoders_for,
    execute,
    inside,
    judge,
    run,
    torchvision_center_crop,
)


def test_every_view_is_compared_and_the_worst_image_named(tmp_path, capsys):
    make_photos(tmp_path, 5, classes=2, scale=0.5)
    make_photos(tmp_path, 3, seed=1, classes=2, split="val", scale=0.5)
    run(ParityOptions(tmp_path, images=18))
    lines = [line for line in capsys.readouterr().out.splitlines() if "DALI cpu - " in line]
    assert [line.split(": 32 images, max ")[0] for line in lines] == [
        "train random_resized_crop: DALI cpu - Pillow",
        "train scale_jitter: DALI cpu - Pillow",
        "val center_crop: DALI cpu - Pillow",
        "val center_crop: DALI cpu - torchvision",
    ]
    for line in lines:
        split = line.split()[0]
        assert f"worst {tmp_path / split / 'photo_00'}" in line


def test_one_split_with_the_manifest_of_a_cache_folder_which_sizes_the_decoders_memory(
    tmp_path, capsys
):
    root, cache = tmp_path / "data", tmp_path / "cache"
    make_photos(root, 3, split="val")
    run(ParityOptions(root, images=2, cache_dir=cache))
    text = capsys.readouterr().out
    assert "train " not in text
    assert "val center_crop: DALI cpu - torchvision: 2 images" in text
    assert [path.suffix for path in cache.iterdir()] == [".arrow"]
    assert not (root / ".trainyard").exists()
    manifest = open_manifest(root, "val", cache)
    memory = decoders_for([manifest])["cpu"].memory
    assert (memory.width, memory.height) == (manifest.widths.max(), manifest.heights.max())


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    make_photos(tmp_path, 3, split="val")
    bad = tmp_path / "val" / "photo_000" / "photo_000001.JPEG"
    bad.write_bytes(bad.read_bytes()[:20_000])
    with pytest.raises(BadImage, match=f"the image {bad} cannot be used"):
        run(ParityOptions(tmp_path, images=3))


@pytest.mark.parametrize(
    ("inner", "edge", "everywhere"), [(3.0, 0.0, 0.0), (0.0, 7.0, 0.0), (0.0, 0.0, 0.7)]
)
def test_a_difference_above_tolerance_is_an_error_that_names_the_image(inner, edge, everywhere):
    mask = np.ones((4, 4), dtype=bool)
    mask[0] = False
    error = np.full((4, 4, 3), everywhere, dtype=np.float32)
    error[2, 2, 1] += inner
    error[0, 3, 0] += edge
    difference = Difference("val center_crop", "cpu", "Pillow")
    both = np.stack([np.zeros_like(error), error])
    difference.add([Path("good.JPEG"), Path("off.JPEG")], both, np.stack([mask, mask]))
    difference.mean = float(error.mean())  # as if all images were like it
    with pytest.raises(ValueError, match="1 of 2 comparisons are above .*worst off.JPEG"):
        judge([Difference("train scale_jitter", "cpu", "Pillow"), difference])


def test_what_is_within_tolerance_passes_and_keeps_its_figures():
    mask = np.ones((2, 2), dtype=bool)
    difference = Difference("val center_crop", "cpu", "Pillow")
    for value in (1.0, 0.0):
        error = np.zeros((2, 2, 3), dtype=np.float32)
        error[0, 0] = value
        difference.add([Path(f"{value}.JPEG")], error[None], mask[None])
    judge([difference])
    assert (difference.images, difference.inside, difference.edge) == (2, 1.0, 0.0)
    assert difference.mean == pytest.approx(0.125)
    assert difference.worst == Path("1.0.JPEG")


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (256, 256), (97, 131)])
def test_the_plan_of_validation_is_torchvisions_definition(size):
    pixels = np.random.default_rng(size).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    plan = CenterCrop(224, 256).plan(
        np.array([size[1]], np.int32), np.array([size[0]], np.int32), np.empty((1, 0), np.uint64)
    )
    (mine,) = execute(plan, [buffer.getvalue()])
    theirs = torchvision_center_crop(buffer.getvalue(), 256, 224)
    assert np.abs(mine - theirs).max() <= 1  # one pixel of shift would be far more
    assert inside(plan, np.array([size[1]]), np.array([size[0]])).all()
