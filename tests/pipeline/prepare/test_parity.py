"""`prepare parity`: DALI, Pillow and torchvision agree, and it says so when they do not."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.benchmark.photos import make_photos
from pipeline.config import ConfigError
from pipeline.data.crops import CenterCrop
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

ROOT = Path(__file__).parents[3]


def command(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pipeline.prepare", "parity", f"--root={root}", *options]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)


def test_every_view_is_compared_and_the_worst_image_named(tmp_path):
    make_photos(tmp_path, 5, classes=2)
    make_photos(tmp_path, 3, seed=1, classes=2, split="val")
    done = command(tmp_path, "--images=18")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "DALI cpu - " in line]
    assert [line.split(": 32 images, max ")[0] for line in lines] == [
        "train random_resized_crop: DALI cpu - Pillow",
        "train scale_jitter: DALI cpu - Pillow",
        "val center_crop: DALI cpu - Pillow",
        "val center_crop: DALI cpu - torchvision",
    ]
    for line in lines:
        split = line.split()[0]
        assert f"worst {tmp_path / split / 'photo_00'}" in line


def test_a_split_that_is_not_there_is_left_out(tmp_path, capsys):
    make_photos(tmp_path, 3, split="val")
    run(ParityOptions(tmp_path, images=2))
    text = capsys.readouterr().out
    assert "train" not in text.replace(str(tmp_path), "")
    assert "val center_crop: DALI cpu - torchvision: 2 images" in text


def test_the_manifests_of_a_cache_folder_are_used_and_size_the_decoders_memory(tmp_path, capsys):
    make_photos(tmp_path / "data", 3, split="val")
    cache = tmp_path / "cache"
    run(ParityOptions(tmp_path / "data", images=2, cache_dir=cache))
    assert "val center_crop: DALI cpu - Pillow: 2 images" in capsys.readouterr().out
    assert [path.suffix for path in cache.iterdir()] == [".arrow"]
    assert not (tmp_path / "data" / ".trainyard").exists()
    manifest = open_manifest(tmp_path / "data", "val", cache)
    memory = decoders_for([manifest])["cpu"].memory
    assert (memory.width, memory.height) == (manifest.widths.max(), manifest.heights.max())


def test_no_split_and_wrong_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has neither a folder train nor val"):
        run(ParityOptions(tmp_path))
    with pytest.raises(ConfigError, match="--images=0 must be at least 1"):
        ParityOptions(tmp_path, images=0)
    with pytest.raises(ConfigError, match="none is not a folder"):
        ParityOptions(Path("none"))


def test_an_image_that_cannot_be_decoded_is_named_with_exit_code_2(tmp_path):
    make_photos(tmp_path, 3, split="val")
    bad = tmp_path / "val" / "photo_000" / "photo_000001.JPEG"
    bad.write_bytes(bad.read_bytes()[:20_000])
    done = command(tmp_path, "--images=3")
    assert done.returncode == 2
    assert f"error: the image {bad} cannot be used" in done.stderr


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
    difference.add(Path("good.JPEG"), np.zeros_like(error), mask)
    difference.add(Path("off.JPEG"), error, mask)
    difference.mean = float(error.mean())  # as if all images were like it
    with pytest.raises(ValueError, match="1 of 2 comparisons are above .*worst off.JPEG"):
        judge([Difference("train scale_jitter", "cpu", "Pillow"), difference])


def test_what_is_within_tolerance_passes_and_keeps_its_figures():
    mask = np.ones((2, 2), dtype=bool)
    difference = Difference("val center_crop", "cpu", "Pillow")
    for value in (1.0, 0.0):
        error = np.zeros((2, 2, 3), dtype=np.float32)
        error[0, 0] = value
        difference.add(Path(f"{value}.JPEG"), error, mask)
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
