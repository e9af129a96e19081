"""The drawn sets: a function of their seed, whole or absent, without a short cut to the class."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import jobs
import numpy as np
import pytest
from file_limit import files_up_to
from imagenet_archives import visible_files
from PIL import Image

from pipeline.config import ConfigError
from pipeline.prepare.__main__ import main
from pipeline.prepare.demo import demo_file, demo_image, draw_demo
from pipeline.prepare.drawn import CLASSES
from pipeline.prepare.mini import draw_mini, draw_small
from pipeline.prepare.options import DemoOptions, MiniOptions
from pipeline.system.failure import run_command

MANY = 400


def centre_share(image, side):
    """The middle square as validation cuts it (64 of 72 of the short side), at side x side."""
    height, width = image.shape[:2]
    half = min(height, width) * 64 / 72 / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX, box))


def nearest_centroid_accuracy(features):
    """Centroids of the first half of the images, accuracy on the second; features (N, K)."""
    features, labels = np.array(features), np.arange(len(features)) % len(CLASSES)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    half = len(labels) // 2
    known, known_labels = features[:half], labels[:half]
    centroids = np.stack([known[known_labels == c].mean(axis=0) for c in range(len(CLASSES))])
    distances = np.square(features[half:, None] - centroids).sum(axis=2)
    return float((distances.argmin(axis=1) == labels[half:]).mean())


@pytest.fixture(scope="module")
def files():
    return [Image.open(io.BytesIO(demo_file(0, "train", k))) for k in range(MANY)]


@pytest.fixture(scope="module")
def pixels(files):
    return [np.asarray(file.convert("RGB")) for file in files]


# What version 1 of both generators draws: a change of it needs another version, as sets that are
# there count as the same. Means, not digests, as CPUs differ in the last bit of an exponential.
def test_a_seed_and_a_place_give_one_image():
    keys = [(0, "train", 3), (1, "train", 3), (0, "val", 3), (0, "train", 13), (0, "train", 3)]
    images = [demo_image(*key) for key in keys]
    small = [draw_small(*key)[1] for key in [(0, 0, 0), (0, 0, 10), (0, 1, 0), (1, 0, 0)]]
    assert len({image.tobytes() for image in images}) == 4
    assert images[0].tobytes() == images[4].tobytes()
    assert len({image.tobytes() for image in small}) == 4
    np.testing.assert_array_equal(draw_small(0, 0, 10)[1], small[1])
    first = demo_image(0, "train", 0)
    assert first.shape == (86, 85, 3)
    np.testing.assert_allclose(first.mean((0, 1)), [120.83, 120.93, 123.77], atol=0.02)
    np.testing.assert_allclose(small[0].mean((0, 1)), [125.57, 139.29, 121.15], atol=0.02)


def test_the_demo_set_is_laid_out_as_imagenet_with_every_class_equally_often(tmp_path):
    draw_demo(DemoOptions(tmp_path / "demo", seed=5, train=30, val=10))
    found = visible_files(tmp_path / "demo")
    assert Counter(tuple(name.split("/")[:2]) for name in found) == {
        **{("train", name): 3 for name in CLASSES},
        **{("val", name): 1 for name in CLASSES},
        ("demo.json",): 1,
    }
    assert found["val/circle/circle_00001.JPEG"] == demo_file(5, "val", 1)
    assert list(CLASSES) == sorted(CLASSES)  # labels follow the order of the folders


def test_files_vary_in_size_aspect_quality_and_kind_as_imagenet_does(files):
    modes = Counter(image.mode for image in files)
    assert all(image.format == "JPEG" for image in files)
    assert set(modes) == {"RGB", "L", "CMYK"}
    assert 0.01 * MANY < modes["L"] < 0.08 * MANY
    assert 0.01 * MANY < modes["CMYK"] < 0.08 * MANY
    assert 0.02 * MANY < sum("progressive" in image.info for image in files) < 0.12 * MANY
    sides = np.array([image.size for image in files])
    assert (sides.min() >= 80, sides.max() <= 200) == (True, True)
    assert len({image.size for image in files}) > 200
    aspects = sides[:, 0] / sides[:, 1]
    assert (aspects > 1.2).mean() > 0.4
    assert (aspects < 0.85).mean() > 0.1
    assert (abs(aspects - 1) < 0.05).mean() > 0.05
    # The first quantisation step falls as the quality rises: about 13 at 60, 2 at 95.
    first_steps = {image.quantization[0][0] for image in files}
    assert min(first_steps) <= 3
    assert max(first_steps) >= 11


def test_mean_colour_and_place_do_not_give_the_class(pixels):
    whole = [image.mean(axis=(0, 1)) for image in pixels]
    middle = [centre_share(image, 5)[1:4, 1:4].mean(axis=(0, 1)) for image in pixels]
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    places = []
    for image in pixels:
        crop = centre_share(image, 32).astype(float)
        weight = np.linalg.norm(crop - np.median(crop, axis=(0, 1)), axis=2)
        places.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    for features in (whole, middle, places):
        assert nearest_centroid_accuracy(features) < 0.2  # chance 0.1, standard error 0.02


def test_the_mini_set_holds_the_drawn_images_colour_by_colour(tmp_path):
    draw_mini(MiniOptions(tmp_path / "set", seed=3, train=23, test=10))
    batches = tmp_path / "set" / "cifar-10-batches-bin"
    parts = [batches / f"data_batch_{number}.bin" for number in range(1, 6)]
    train, test = (
        np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32) for path in paths])
        for paths in (parts, [batches / "test_batch.bin"])
    )
    assert len(train) == 23 and len(test) == 10
    for index in (0, 7, 22):
        label, pixels = draw_small(3, 0, index)
        assert train[index, 0] == label == index % 10
        np.testing.assert_array_equal(
            train[index, 1:].reshape(3, 32, 32), pixels.transpose(2, 0, 1)
        )
    assert (batches / "batches.meta.txt").read_text().split() == list(CLASSES)


SMALL = {"train": 10, "test": 10}


def test_a_set_is_drawn_once_and_never_over_another(tmp_path):
    out = tmp_path / "data" / "set"
    assert draw_mini(MiniOptions(out, **SMALL))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not draw_mini(MiniOptions(out, **SMALL))
    with pytest.raises(ConfigError, match=r"--out .* holds a mini set of seed 0 \(now 7\); remove"):
        draw_mini(MiniOptions(out, seed=7, **SMALL))
    with pytest.raises(ConfigError, match=r"train_images 10 \(now 11\)"):
        draw_mini(MiniOptions(out, train=11, test=10))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert os.listdir(out.parent) == ["set"]
    stamp = out / "mini.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"generator_version": 0}))
    with pytest.raises(ConfigError, match=r"generator_version 0 \(now 1\)"):
        draw_mini(MiniOptions(out, **SMALL))
    stamp.write_text("{")
    with pytest.raises(ConfigError, match=f"--out {out} holds a mini set whose mini.json is dam"):
        draw_mini(MiniOptions(out, **SMALL))


def test_a_foreign_folder_or_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"--out .* already holds notes.txt, which is not a mini set; give"
    ):
        draw_mini(MiniOptions(tmp_path, **SMALL))
    with pytest.raises(ConfigError, match=r"--out .*notes.txt is a file; give a folder"):
        draw_mini(MiniOptions(tmp_path / "notes.txt", **SMALL))
    assert visible_files(tmp_path) == {"notes.txt": b"mine"}


def test_an_empty_folder_or_a_link_to_one_is_filled(tmp_path):
    (tmp_path / "disk" / "set").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
    assert draw_mini(MiniOptions(tmp_path / "link", **SMALL))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "set" / "mini.json").exists()


def is_running(pid: str) -> bool:
    """Not where it only waits for its new parent to notice its end."""
    ps = ["ps", "-o", "stat=", "-p", pid]
    return subprocess.run(ps, capture_output=True, text=True).stdout.strip() not in ("", "Z")


def test_a_killed_drawing_leaves_no_set_nor_process_and_the_next_one_starts_again(tmp_path):
    out = tmp_path / "demo"
    argv = [sys.executable, "-m", "pipeline.prepare", "demo", f"--out={out}"]
    drawing = subprocess.Popen([*argv, "--train=100000"], cwd=jobs.REPOSITORY)
    jobs.wait_for(lambda: list(tmp_path.rglob("*.JPEG")), "the first image")
    ps = ["ps", "-o", "pid=", "--ppid", str(drawing.pid)]
    workers = subprocess.run(ps, capture_output=True, text=True, check=True).stdout.split()
    drawing.send_signal(signal.SIGKILL)
    drawing.wait()
    jobs.wait_for(lambda: not any(map(is_running, workers)), "the end of the workers", 20)
    assert [name.startswith(".demo.") for name in os.listdir(tmp_path)] == [True]
    assert draw_demo(DemoOptions(out, train=10, val=10))
    assert len(list(out.rglob("*.JPEG"))) == 20
    assert os.listdir(tmp_path) == ["demo"]


def test_a_full_disk_leaves_nothing(tmp_path):
    with (
        files_up_to(1500),
        pytest.raises(
            ConfigError, match=r"demo does not fit \(File too large\): make room and start again"
        ),
    ):
        draw_demo(DemoOptions(tmp_path / "demo", train=10, val=10))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--train=9", "--test=0", "--seed=-1"])
def test_a_number_out_of_range_is_named(tmp_path, capfd, option):
    with pytest.raises(SystemExit) as ended:
        run_command(main, ["mini", "--out", str(tmp_path / "set"), option])
    assert ended.value.code == 2
    assert f"error: {option} must be" in capfd.readouterr().err
    assert not (tmp_path / "set").exists()
