"""What a run writes for people: each number once, the same in every place, and in its unit."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from made_lines import line as made_line
from one_process import config_of, train_here
from run_files import TIME_FIELDS, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config.reading import load_config
from pipeline.train.events import read_metrics
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.charts import curves
from pipeline.train.monitor.monitor import RunMonitor

OPTIONS = (
    "--schedule.epochs=2", "--data.global_batch_size=10", "--data.local_batch_size=10",
    "--run.expect_top1=1.0",
)  # fmt: skip


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


def test_a_run_has_its_files_and_a_configuration_that_reads_back_equal(small_data, run):
    names = {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "log.txt", "lock"}
    assert {path.name for path in run.iterdir()} == names
    config = load_config([f"--config={run}/config.yaml"], "", "")
    assert config == config_of(small_data, run.parent, *OPTIONS)
    comments = (run / "config.yaml").read_text()
    for name in ("# python: 3.", "# torch: ", "# numpy: ", "# nvidia-dali-cuda", "# commit: "):
        assert name in comments


def test_metrics_have_their_lines_in_order(run):
    _, *lines = read_metrics(run / "metrics.jsonl")
    assert [(line["event"], line["step"], line["epoch"]) for line in lines] == [
        ("train", 3, 0), ("val", 5, 0), ("train", 6, 1), ("train", 9, 1), ("train", 10, 1),
        ("val", 10, 1), ("done", 10, 1),
    ]  # fmt: skip
    assert all(line["position"] == 10 * line["step"] for line in lines)
    assert sorted(line["time"] for line in lines) == [line["time"] for line in lines]


def test_each_start_says_what_it_trains_on_what_and_how_far(run, resumed):
    first = RunFolder(run).last("start")
    assert {name: first[name] for name in first.keys() - {"versions", "time"}} == {
        "event": "start", "step": 0, "position": 0, "total_steps": 10, "ranks": 1,
        "global_batch_size": 10, "micro_batch_size": 10, "accumulation": 1, "sums": "fixed",
        "train_images": 50,
        "val_images": 30, "classes": 10, "network": "CIFAR ResNet-8 A", "device": "cpu",
        "decoder": "cpu",
    }  # fmt: skip
    assert {"python", "torch", "numpy", "commit"} <= first["versions"].keys()
    lines = RunFolder(resumed).lines()
    assert [line["event"] for line in lines].count("start") == 2
    again = RunFolder(resumed).last("start")
    assert again["step"] > 0
    assert again | {"step": 0, "position": 0, "time": 0} == first | {"time": 0}


def test_metrics_have_their_fields_in_their_ranges(run):
    _, *lines = read_metrics(run / "metrics.jsonl")
    always = {"event", "step", "position", "epoch", "top1", "top5", "time"}
    stages = ("stem", "layer1", "layer2", "layer3", "fc")
    norms = {f"{kind}_norm_{stage}" for kind in ("gradient", "weight") for stage in stages}
    counts = {"loss", "lr", "gradient_norm", "loss_scale", "skipped_steps", "excluded"}
    classes = {"class_top1_worst", "class_top1_median", "class_top1_best", "balanced_top1"}
    fields = {
        "train": always | (TIME_FIELDS - {"saved"}) | norms | counts,
        "val": always | {"loss", "images", "excluded", "best_top1", "bn_spread"} | classes,
        "done": always | {"best_top1", "balanced_top1"},
    }
    for line in lines:
        assert set(line) == fields[line["event"]]
        assert 0 <= line["top1"] <= line["top5"] <= 1
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
        if line["event"] == "train":
            assert line["images_per_sec"] > 0
            assert line["data_wait_sec"] >= 0
            shares = {name: value for name, value in line.items() if name.startswith("share_")}
            assert all(0 <= share <= 1 for share in (*shares.values(), line["data_wait_share"]))
            assert sum(shares.values()) == pytest.approx(1.0)
            assert line["slowest_rank"] == 0
            assert line["communication_share"] == pytest.approx(0, abs=0.01)
    base_lr = config_of(run, run, *OPTIONS).optim.base_lr
    assert {line["lr"] for line in lines if "lr" in line} == {base_lr * 10 / 256}
    validations = [line for line in lines if line["event"] == "val"]
    assert [line["images"] for line in validations] == [30, 30]
    assert all((line["top1"] * 30).is_integer() for line in validations)
    assert all(line["bn_spread"] == 0 for line in validations)  # there is one rank
    assert lines[-1]["best_top1"] == max(line["top1"] for line in validations)


def assert_the_board_holds_the_metrics(run: Path) -> None:
    """Each scalar of metrics.jsonl is in TensorBoard once, at its position, and no other."""
    lines = [m for m in read_metrics(run / "metrics.jsonl") if m["event"] in ("train", "val")]
    wanted = {
        (f"{line['event']}/{name}", line["position"]): [pytest.approx(value, rel=1e-6)]
        for line in lines
        for name, value in line.items()
        if name not in ("event", "step", "position", "images", "time")
    }
    derived = {
        (tag, line["position"]): [pytest.approx(value, rel=1e-6)]
        for line in lines
        for tag, value in curves(line)
        if tag.startswith("where_time_goes/") or tag.endswith("/error_percent")
    }
    assert scalars(run) == wanted | derived


def test_tensorboard_holds_the_scalars_by_images_seen_pictures_and_settings(run):
    assert_the_board_holds_the_metrics(run)
    accumulator = board(run)
    pictures = accumulator.Images("train/augmented")
    assert [picture.step for picture in pictures] == [0, 50]  # once an epoch
    assert {(picture.width, picture.height) for picture in pictures} == {(96, 96)}  # 3 x 3 of 32
    assert len({picture.encoded_image_string for picture in pictures}) == 2
    assert [picture.step for picture in accumulator.Images("val/classes")] == [50, 100]
    (text,) = accumulator.Tensors("config/text_summary")
    assert "depth: 8" in text.tensor_proto.string_val[0].decode()
    summary = accumulator.summary_metadata["_hparams_/session_start_info"]
    assert b"data.global_batch_size" in summary.plugin_data.content


def test_the_log_is_plain_lines_with_their_time(run):
    lines = (run / "log.txt").read_text().splitlines()
    assert all(line[:2] == "20" and line[19] == " " for line in lines)
    text = "\n".join(lines)
    assert "CIFAR ResNet-8 A on 1 rank (cpu), AMP bf16" in text
    assert "data: 50 train and 30 val images, 10 classes" in text
    assert "batch: 10 = 1 rank x 10 images x 1 accumulated; steps 0 to 10" in text
    shares = r"top1 \d+\.\d\d% top5 \d+\.\d\d% balanced \d+\.\d\d%"
    assert re.search(rf"epoch 2 validation: {shares} loss \d", text)
    assert re.search(r"epoch 2 step 10 loss \S+ top1 \d+\.\d\d% lr", text)
    for words in ("finished: top-1 ", "below expectation: top-1 ", "limited by: "):
        assert words in text
    assert "\r" not in text


def test_after_a_resume_no_step_appears_twice_and_none_is_missing(run, resumed):
    assert metrics(resumed) == metrics(run)
    assert_the_board_holds_the_metrics(resumed)
    assert "resuming from" in (resumed / "log.txt").read_text()


def test_cut_lines_are_left_out_and_named_in_one_warning_of_a_start(
    small_data, run, tmp_path, capfd
):
    copy = tmp_path / "test"
    shutil.copytree(run, copy)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[1], lines[-1] = lines[1][:20] + "\n", lines[-1][:20]  # its last line is to be written
    (copy / "metrics.jsonl").write_text("".join(lines))
    assert len(read_metrics(copy / "metrics.jsonl")) == len(lines) - 2
    assert capfd.readouterr().err == ""  # who only looks something up has no word on it
    train_here(small_data, tmp_path, *OPTIONS)
    said = [line for line in capfd.readouterr().err.splitlines() if " cut " in line]
    (line,) = [one.partition("warning: ")[2] for one in said]
    where = f"line 2, {len(lines)}"
    wrong = "cut or no event of a run, and left out"
    assert line == f"2 lines of {copy}/metrics.jsonl are {wrong}: {where}"
    assert read_metrics(copy / "metrics.jsonl")[-1]["event"] == "done"


@pytest.mark.parametrize(
    ("position", "validations", "kept"),
    [
        (60, 1, [("train", 30), ("val", 50), ("train", 60)]),
        (50, 1, [("train", 30), ("val", 50)]),
        (50, 0, [("train", 30)]),  # the validation is still to come
        (0, 0, []),
    ],
)
def test_lines_beyond_the_checkpoint_are_taken_back(tmp_path, position, validations, kept):
    config = config_of(tmp_path, tmp_path)
    first = RunMonitor(RunFolder(tmp_path), config, 0, 0, 60)
    first.train(made_line("train", 30))
    first.val(made_line("val", 50))
    first.train(made_line("train", 60))
    first.write("done", made_line("val", 60))
    first.close()
    again = RunMonitor(RunFolder(tmp_path), config, position, validations, 100)
    again.train(made_line("train", 90))
    again.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    written = [(found["event"], found["position"]) for found in lines]
    assert written == [*kept, ("train", 90)]
    assert_the_board_holds_the_metrics(tmp_path)


@pytest.mark.parametrize("stopped_before", [False, True])
def test_pages_come_with_the_first_line_wherever_the_run_begins(tmp_path, stopped_before):
    """A start that a stop ends before its first line leaves none; another's checkpoint, nothing."""
    config = config_of(tmp_path, tmp_path)
    if stopped_before:
        RunMonitor(RunFolder(tmp_path), config, 0, 0, 100).close()
    for position in (20, 40):
        monitor = RunMonitor(RunFolder(tmp_path), config, position, 0, 100)
        monitor.train(made_line("train", position + 10))
        monitor.close()
    tensors = board(tmp_path).Tags()["tensors"]
    assert sorted(tensors) == ["config/text_summary", "custom_scalars__config__"]
    assert len(board(tmp_path).Tensors("custom_scalars__config__")) == 1
    assert "_hparams_/session_start_info" in board(tmp_path).summary_metadata


def test_metrics_refuse_what_json_has_not(tmp_path):
    monitor = RunMonitor(RunFolder(tmp_path), config_of(tmp_path, tmp_path), 0, 0, 60)
    monitor.train(made_line("train", 10, gradient_norm=None))
    with pytest.raises(ValueError, match="not JSON compliant"):
        monitor.train(made_line("train", 20, loss=math.nan))
    monitor.close()
    (whole,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(whole)["gradient_norm"] is None
