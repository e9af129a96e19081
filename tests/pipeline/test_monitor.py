"""What a run writes for people: each number once, the same in every place, and in its unit."""

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from one_process import config_of, train_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.monitor import RunMonitor, read_metrics
from pipeline.options import load_config

OF_TIME = ("time", "images_per_sec", "data_wait_sec", "data_wait_share")
OPTIONS = ("--schedule.epochs=2", "--data.global_batch_size=10", "--data.local_batch_size=10")


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    """Two epochs of 5 steps of 10 images; a line every 3 steps."""
    runs = tmp_path_factory.mktemp("monitored")
    yield train_here(small_data, runs, *OPTIONS)
    shutil.rmtree(runs)


@pytest.fixture(scope="module")
def resumed(small_data, run, tmp_path_factory):
    """The same run, as if killed in the middle of a line of its second epoch and started again."""
    runs = tmp_path_factory.mktemp("resumed")
    copy = runs / "test"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step-000000010.pt").unlink()
    lines = (copy / "metrics.jsonl").read_bytes()
    end = lines.index(b'"step": 9,')
    (copy / "metrics.jsonl").write_bytes(lines[: end + 30])
    yield train_here(small_data, runs, *OPTIONS)
    shutil.rmtree(runs)


def board(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    return accumulator.Reload()


def scalars(run: Path) -> dict[tuple[str, int], list[float]]:
    """Every value in TensorBoard by (tag, images seen)."""
    found: dict[tuple[str, int], list[float]] = {}
    accumulator = board(run)
    for tag in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(tag):
            found.setdefault((tag, event.step), []).append(event.value)
    return found


def test_a_run_has_its_files(run):
    names = {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "log.txt", "lock"}
    assert {path.name for path in run.iterdir()} == names


def test_the_stored_configuration_reads_back_equal_and_says_what_it_ran_on(small_data, run):
    config = load_config([f"--config={run}/config.yaml"], "", "")
    assert config == config_of(small_data, run.parent, *OPTIONS)
    comments = (run / "config.yaml").read_text()
    for name in ("# python: 3.", "# torch: ", "# numpy: ", "# nvidia-dali-cuda", "# commit: "):
        assert name in comments


def test_metrics_have_their_lines_in_order(run):
    lines = read_metrics(run / "metrics.jsonl")
    assert [(line["event"], line["step"], line["epoch"]) for line in lines] == [
        ("train", 3, 0), ("val", 5, 0), ("train", 6, 1), ("train", 9, 1), ("train", 10, 1),
        ("val", 10, 1), ("done", 10, 1),
    ]  # fmt: skip
    assert all(line["position"] == 10 * line["step"] for line in lines)
    assert sorted(line["time"] for line in lines) == [line["time"] for line in lines]


def test_metrics_have_their_fields_in_their_ranges(run):
    lines = read_metrics(run / "metrics.jsonl")
    always = {"event", "step", "position", "epoch", "top1", "top5", "time"}
    speed = {"lr", "images_per_sec", "data_wait_sec", "data_wait_share"}
    fields = {
        "train": always
        | speed
        | {"loss", "gradient_norm", "loss_scale", "skipped_steps", "excluded"},
        "val": always | {"loss", "images", "excluded"},
        "done": always | {"best_top1"},
    }
    for line in lines:
        assert set(line) == fields[line["event"]]
        assert 0 <= line["top1"] <= line["top5"] <= 1
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
        if line["event"] == "train":
            assert line["images_per_sec"] > 0
            assert line["data_wait_sec"] >= 0
            assert 0 <= line["data_wait_share"] <= 1
    base_lr = config_of(run, run, *OPTIONS).optim.base_lr
    assert {line["lr"] for line in lines if "lr" in line} == {base_lr * 10 / 256}
    validations = [line for line in lines if line["event"] == "val"]
    assert [line["images"] for line in validations] == [30, 30]
    assert all((line["top1"] * 30).is_integer() for line in validations)
    assert lines[-1]["best_top1"] == max(line["top1"] for line in validations)


def assert_the_board_holds_the_metrics(run: Path) -> None:
    """Each scalar of metrics.jsonl stands in TensorBoard once, at its position, and no other."""
    wanted = {
        (f"{line['event']}/{name}", line["position"]): [pytest.approx(value, rel=1e-6)]
        for line in read_metrics(run / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("event", "step", "position", "images", "time") and line["event"] != "done"
    }
    assert scalars(run) == wanted


def test_tensorboard_holds_the_same_scalars_by_images_seen(run):
    assert_the_board_holds_the_metrics(run)
    tags = {tag for tag, _ in scalars(run)}
    for name in ("loss", "lr", "top1", "top5", "images_per_sec", "data_wait_share", "loss_scale"):
        assert f"train/{name}" in tags
    assert {"train/skipped_steps", "train/gradient_norm", "val/top1", "val/top5"} <= tags


def test_tensorboard_holds_augmented_images_the_configuration_and_hparams(run):
    accumulator = board(run)
    pictures = accumulator.Images("train/augmented")
    assert [picture.step for picture in pictures] == [0, 50]  # once an epoch
    assert {(picture.width, picture.height) for picture in pictures} == {(96, 96)}  # 3 x 3 of 32
    assert len({picture.encoded_image_string for picture in pictures}) == 2
    (text,) = accumulator.Tensors("config/text_summary")
    assert "depth: 18" in text.tensor_proto.string_val[0].decode()
    summary = accumulator.summary_metadata["_hparams_/session_start_info"]
    assert b"data.global_batch_size" in summary.plugin_data.content


def test_the_log_is_plain_lines_with_their_time(run):
    lines = (run / "log.txt").read_text().splitlines()
    assert all(line[:2] == "20" and line[19] == " " for line in lines)
    text = "\n".join(lines)
    assert "ResNet-18 v1.5 on 1 rank (cpu), AMP bf16" in text
    assert "data: 50 train and 30 val images, 10 classes" in text
    assert "batch: 10 = 1 ranks x 10 images x 1 accumulated; steps 0 to 10" in text
    assert "epoch 1 validation: top1 " in text
    assert "finished: top-1 " in text
    assert "\r" not in text


def test_after_a_resume_no_step_appears_twice_and_none_is_missing(run, resumed):
    def timeless(folder: Path) -> list[dict]:
        lines = read_metrics(folder / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in OF_TIME} for line in lines]

    assert timeless(resumed) == timeless(run)
    assert_the_board_holds_the_metrics(resumed)
    assert "resuming from" in (resumed / "log.txt").read_text()


def test_a_cut_last_line_is_left_out_and_said(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"event": "train", "step": 1}\n{"event": "train", "st')
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        assert read_metrics(path) == [{"event": "train", "step": 1}]
    assert f"a line of {path} is cut and left out" in caplog.text


def line(event: str, position: int, **more: float) -> dict:
    shared = {"step": position // 10, "position": position, "epoch": 0, "loss": 1.0, "top1": 0.5}
    if event == "train":
        shared |= {"lr": 0.1, "images_per_sec": 1.0, "data_wait_share": 0.1, "images": 30}
    return {**shared, "top5": 0.6, "images": 30, **more}


@pytest.mark.parametrize(
    ("position", "validations", "kept"),
    [
        (100, 1, [("train", 30), ("val", 50), ("train", 60)]),
        (60, 1, [("train", 30), ("val", 50), ("train", 60)]),
        (50, 1, [("train", 30), ("val", 50)]),
        (50, 0, [("train", 30)]),  # the validation is still to come
        (40, 0, [("train", 30)]),
        (0, 0, []),
    ],
)
def test_lines_beyond_the_checkpoint_are_taken_back(tmp_path, position, validations, kept):
    config = config_of(tmp_path, tmp_path)
    first = RunMonitor(tmp_path, config, 0, 0, 60)
    first.train(line("train", 30))
    first.val(line("val", 50))
    first.train(line("train", 60))
    first.done(line("val", 60))
    first.close()
    again = RunMonitor(tmp_path, config, position, validations, 100)
    again.train(line("train", 90))
    again.close()
    written = [(found["event"], found["position"]) for found in read_metrics(again._path)]
    assert written == [*kept, ("train", 90)]
    assert_the_board_holds_the_metrics(tmp_path)


def test_metrics_refuse_what_json_has_not(tmp_path):
    monitor = RunMonitor(tmp_path, config_of(tmp_path, tmp_path), 0, 0, 60)
    monitor.train(line("train", 10, gradient_norm=None))
    with pytest.raises(ValueError, match="not JSON compliant"):
        monitor.train(line("train", 20, loss=math.nan))
    monitor.close()
    (whole,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(whole)["gradient_norm"] is None


def test_a_grid_is_made_of_the_largest_square_of_images(tmp_path):
    monitor = RunMonitor(tmp_path, config_of(tmp_path, tmp_path), 0, 0, 60)
    monitor.images(np.zeros((5, 7, 7, 3), np.uint8), 20)
    monitor.close()
    (picture,) = board(tmp_path).Images("train/augmented")
    assert (picture.width, picture.height, picture.step) == (14, 14, 20)
