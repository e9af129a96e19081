"""`benchmark train`: whole runs of pipeline.train at a tiny size."""

from __future__ import annotations

import json

import jobs
import pytest

from pipeline.benchmark.__main__ import parse
from pipeline.benchmark.options import TrainOptions
from pipeline.benchmark.photos import make_photos
from pipeline.benchmark.train import settings
from pipeline.config import ConfigError
from pipeline.data.batches import total_steps

TINY = ("--device=cpu", "--depths=18", "--size=32", "--batch=4", "--steps=1")


def test_a_run_from_jpegs_is_measured_line_by_line(tmp_path):
    path = tmp_path / "found.json"
    more = ("--rounds=2", "--files=6", "--classes=3", f"--json={path}")
    ended = jobs.run(["-m", "pipeline.benchmark", "train", *TINY, *more], TMPDIR=str(tmp_path))
    assert ended.codes == [0], ended.text
    found = json.loads(path.read_text())
    raw = found["raw"]
    assert found["ratios"] == {}  # the aims are those of a GPU
    assert len(raw["resnet18_images_per_sec"]["rounds"]) == 2  # two more lines warm up
    assert all(0 <= wait <= 1 for wait in raw["resnet18_data_wait_share"]["rounds"])
    assert raw["resnet18_run_sec"] > 0
    assert "Horovod" in raw["launched_as"]
    assert found["settings"]["device"] == "cpu"
    assert "resnet18" in ended.text
    assert not list(tmp_path.glob("tmp*"))  # photos and runs are gone


def test_a_run_that_fails_tells_its_reason(tmp_path):
    make_photos(tmp_path / "data", 4, classes=2)
    options = ("--rounds=1", f"--data={tmp_path / 'data'}")
    ended = jobs.run(["-m", "pipeline.benchmark", "train", *TINY, *options])
    assert ended.codes == [1]
    assert "error: the run of ResNet-18 failed: " in ended.text
    assert str(tmp_path / "data" / "val") in ended.text
    assert not (tmp_path / "data" / ".trainyard").exists()  # nothing is written beside the data


@pytest.mark.parametrize("images", [1, 7, 2048, 56_320, 1_281_167])
def test_the_length_of_a_run_is_its_lines_of_metrics(images):
    options = TrainOptions(batch=256, rounds=9, steps=20)
    chosen = settings(options, 50, "cuda", images)
    assert total_steps(chosen["schedule.epochs"], images, 256) == (9 + 2) * 20
    assert chosen["data.decode"] == "gpu"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--depths=20"], "--depths=20 must be some of 18, 34, 50, 101, 152"),
        (["--classes=9", "--files=8"], "--classes=9 must not be more than --files=8"),
        (["--steps=0"], "--steps=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(argv, message):
    with pytest.raises(ConfigError) as caught:
        parse(["train", *argv])
    assert message in str(caught.value)
