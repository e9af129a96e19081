"""The drawn shapes: a function of the seed, in CIFAR-10's format, whole or absent."""

import hashlib

import numpy as np
import pytest

from pipeline.prepare.__main__ import main
from pipeline.prepare.drawn.mini import draw_mini, draw_small
from pipeline.prepare.drawn.shapes import CLASSES
from pipeline.system.failure import run_command

ROW = 1 + 3 * 32 * 32


def rows(path):
    return np.fromfile(path, np.uint8).reshape(-1, ROW)


def test_the_files_hold_the_drawn_images_colour_by_colour(tmp_path):
    assert draw_mini(tmp_path / "set", seed=3, train_images=23, test_images=10)
    batches = tmp_path / "set" / "cifar-10-batches-bin"
    train = np.concatenate([rows(batches / f"data_batch_{n}.bin") for n in range(1, 6)])
    assert len(train) == 23 and len(rows(batches / "test_batch.bin")) == 10
    for index in (0, 7, 22):
        label, pixels = draw_small(3, 0, index)
        assert train[index, 0] == label == index % 10
        np.testing.assert_array_equal(
            train[index, 1:].reshape(3, 32, 32), pixels.transpose(2, 0, 1)
        )
    names = (batches / "batches.meta.txt").read_text().split()
    assert names == list(CLASSES)


def test_every_image_is_another_one():
    images = [draw_small(*key)[1] for key in [(0, 0, 0), (0, 0, 10), (0, 1, 0), (1, 0, 0)]]
    assert len({hashlib.sha256(image.tobytes()).digest() for image in images}) == 4
    np.testing.assert_array_equal(draw_small(0, 0, 10)[1], images[1])


def test_a_set_is_drawn_once_and_never_over_another(tmp_path):
    draw_mini(tmp_path / "set", train_images=10, test_images=10)
    assert not draw_mini(tmp_path / "set", train_images=10, test_images=10)
    with pytest.raises(ValueError, match=r"holds a mini set drawn with .*seed: 0.*choose another"):
        draw_mini(tmp_path / "set", seed=1, train_images=10, test_images=10)


@pytest.mark.parametrize("option", ["--train=9", "--test=0", "--seed=-1"])
def test_a_number_out_of_range_is_named(tmp_path, capfd, option):
    with pytest.raises(SystemExit) as ended:
        run_command(main, ["mini", "--out", str(tmp_path / "set"), option])
    assert ended.value.code == 2
    assert f"error: {option} must be" in capfd.readouterr().err
    assert not (tmp_path / "set").exists()
