"""The demo set: a function of its seed, whole or absent, without a short cut to the class."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.prepare.drawn.demo import demo_file, demo_image, draw_demo
from pipeline.prepare.drawn.shapes import CLASSES

ROOT = Path(__file__).parents[3]
SMALL = {"train_images": 30, "val_images": 10}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def centre_share(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle square as validation cuts it (64 of 72 of the short side), at side x side."""
    height, width = image.shape[:2]
    half = min(height, width) * 64 / 72 / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX, box))


def nearest_centroid_accuracy(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Centroids of the first half of the images, accuracy on the second; features (N, K)."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    half = len(labels) // 2
    known, known_labels = features[:half], labels[:half]
    centroids = np.stack([known[known_labels == c].mean(axis=0) for c in range(len(CLASSES))])
    distances = np.square(features[half:, None] - centroids).sum(axis=2)
    return float((distances.argmin(axis=1) == labels[half:]).mean())


@pytest.fixture(scope="module")
def train_images() -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    return [demo_image(0, "train", k) for k in range(400)], np.arange(400) % len(CLASSES)


def test_the_number_of_processes_does_not_change_a_byte(tmp_path: Path) -> None:
    for processes in (1, 2, 3):
        assert draw_demo(tmp_path / str(processes), processes=processes, **SMALL)
    one = contents(tmp_path / "1")
    assert len(one) == 30 + 10 + 1
    assert contents(tmp_path / "2") == one
    assert contents(tmp_path / "3") == one


def test_another_seed_split_or_index_gives_another_image() -> None:
    images = [demo_image(0, "train", 3), demo_image(1, "train", 3), demo_image(0, "val", 3)]
    images.append(demo_image(0, "train", 13))
    assert len({image.tobytes() for image in images}) == 4
    assert demo_image(0, "train", 3).tobytes() == images[0].tobytes()


def test_layout_is_imagenets_with_every_class_equally_often(tmp_path: Path) -> None:
    draw_demo(tmp_path / "demo", processes=1, **SMALL)
    files = [p.relative_to(tmp_path / "demo").parts for p in (tmp_path / "demo").rglob("*.JPEG")]
    assert Counter(parts[:2] for parts in files) == {
        **{("train", name): 3 for name in CLASSES},
        **{("val", name): 1 for name in CLASSES},
    }
    assert list(CLASSES) == sorted(CLASSES)  # labels follow the order of the folders


def test_files_vary_in_size_aspect_quality_and_kind_as_imagenet_does() -> None:
    images = [Image.open(io.BytesIO(demo_file(0, "train", k))) for k in range(400)]
    count = len(images)
    modes = Counter(image.mode for image in images)
    assert all(image.format == "JPEG" for image in images)
    assert set(modes) == {"RGB", "L", "CMYK"}
    assert 0.01 * count < modes["L"] < 0.08 * count
    assert 0.01 * count < modes["CMYK"] < 0.08 * count
    assert 0.02 * count < sum("progressive" in image.info for image in images) < 0.12 * count
    sides = np.array([image.size for image in images])
    assert sides.min() >= 80
    assert sides.max() <= 200
    assert len({image.size for image in images}) > 200
    aspects = sides[:, 0] / sides[:, 1]
    assert (aspects > 1.2).mean() > 0.4
    assert (aspects < 0.85).mean() > 0.1
    assert (abs(aspects - 1) < 0.05).mean() > 0.05
    # The first quantisation step falls as the quality rises: about 13 at 60, 2 at 95.
    first_steps = {image.quantization[0][0] for image in images}  # type: ignore[attr-defined]
    assert min(first_steps) <= 3
    assert max(first_steps) >= 11


def test_mean_colour_does_not_give_the_class(
    train_images: tuple[list[NDArray[np.uint8]], NDArray[np.int64]],
) -> None:
    images, labels = train_images
    whole = np.array([image.mean(axis=(0, 1)) for image in images])
    middle = np.array([centre_share(image, 5)[1:4, 1:4].mean(axis=(0, 1)) for image in images])
    assert nearest_centroid_accuracy(whole, labels) < 0.2  # chance 0.1, standard error 0.02
    assert nearest_centroid_accuracy(middle, labels) < 0.2


def test_place_does_not_give_the_class(
    train_images: tuple[list[NDArray[np.uint8]], NDArray[np.int64]],
) -> None:
    images, labels = train_images
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    features = []
    for image in images:
        crop = centre_share(image, 32).astype(float)
        weight = np.linalg.norm(crop - np.median(crop, axis=(0, 1)), axis=2)
        features.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    assert nearest_centroid_accuracy(np.array(features), labels) < 0.2


def test_drawing_again_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "data" / "demo"
    assert draw_demo(out, processes=1, **SMALL)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert not draw_demo(out, processes=1, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == times
    assert os.listdir(out.parent) == ["demo"]


def test_a_killed_drawing_leaves_no_set_and_the_next_one_starts_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    program = (
        "from pathlib import Path; from pipeline.prepare.drawn.demo import draw_demo; "
        f"draw_demo(Path({str(out)!r}), train_images=100000, val_images=10, processes=2)"
    )
    drawing = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.JPEG")) and time.monotonic() < deadline:
        time.sleep(0.05)
    drawing.send_signal(signal.SIGKILL)
    drawing.wait()
    left = os.listdir(tmp_path)
    assert len(left) == 1
    assert left[0].startswith(".demo.")
    # The killed drawing's processes notice and end, long before their 100000 images are drawn.
    drawn, seen = len(list(tmp_path.rglob("*.JPEG"))), -1
    deadline = time.monotonic() + 60
    while drawn != seen:
        assert time.monotonic() < deadline, "the drawing processes outlive the killed drawing"
        time.sleep(1)
        drawn, seen = len(list(tmp_path.rglob("*.JPEG"))), drawn
    assert draw_demo(out, processes=1, **SMALL)
    assert len(list(out.rglob("*.JPEG"))) == 40
    assert os.listdir(tmp_path) == ["demo"]


def test_a_failed_drawing_process_fails_the_drawing_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import resource; from pathlib import Path; "
        "from pipeline.prepare.drawn.demo import draw_demo; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); "  # as if the disk were full
        f"draw_demo(Path({str(tmp_path / 'demo')!r}), train_images=30, val_images=10, processes=2)"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "a drawing process of the demo set ended with exit code 1" in result.stderr
    assert "File too large" in result.stderr
    assert os.listdir(tmp_path) == []


def test_another_set_in_the_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    draw_demo(out, processes=1, **SMALL)
    before = contents(out)
    with pytest.raises(ValueError, match=r"drawn with .*seed: 0.*, not .*seed: 7.*another --out"):
        draw_demo(out, seed=7, processes=1, **SMALL)
    with pytest.raises(ValueError, match=r"train_images: 30.*, not .*train_images: 31"):
        draw_demo(out, train_images=31, val_images=10, processes=1)
    stamp = out / "demo.json"
    parameters = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({**parameters, "generator_version": 0}))
    with pytest.raises(ValueError, match="generator_version: 0"):
        draw_demo(out, processes=1, **SMALL)
    assert {**contents(out), "demo.json": b""} == {**before, "demo.json": b""}


def test_a_foreign_folder_or_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and holds no demo set .*another --out"):
        draw_demo(tmp_path, processes=1, **SMALL)
    with pytest.raises(ValueError, match=r"notes.txt is a file, but .*another --out"):
        draw_demo(tmp_path / "notes.txt", processes=1, **SMALL)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_an_empty_folder_or_a_link_to_one_is_filled(tmp_path: Path) -> None:
    (tmp_path / "disk" / "demo").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "demo")
    assert draw_demo(tmp_path / "link", processes=1, **SMALL)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "demo" / "demo.json").exists()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("seed", -1, "--seed=-1 must be 0 or more"),
        ("train_images", 9, "--train=9 must be at least 10"),
        ("val_images", 0, "--val=0 must be at least 10"),
        ("processes", 0, "processes is 0, but at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(
    tmp_path: Path, setting: str, value: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_demo(tmp_path / "demo", **{setting: value})
    assert os.listdir(tmp_path) == []
