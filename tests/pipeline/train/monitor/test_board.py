"""TensorBoard's event files, pages and table of hyperparameters, as they are written."""

import logging
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from made_lines import line
from one_process import config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.system.files import Room
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.board import STACKED, Board, curves, event_files, layout
from pipeline.train.monitor.monitor import RunMonitor


def read(folder):
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()


def losses(folder):
    return [(event.step, event.value) for event in read(folder).Scalars("train/loss")]


@pytest.fixture
def make_run(tmp_path):
    """Makes a run below `tmp_path` whose loss is the same at 10, 20, ... images; its folder."""

    def make(name: str, loss: float = 1.0, start: int = 0, seen: int = 60, options=()):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = config_of(tmp_path, tmp_path, *options)
        monitor = RunMonitor(RunFolder(folder), config, start, 0, 100)
        for position in range(start + 10, seen, 10):
            monitor.train(line("train", position, loss=loss))
        monitor.close()
        return folder

    return make


def test_a_start_takes_back_what_came_before_also_when_the_clock_has_jumped(make_run, monkeypatch):
    now = time.time()
    for jump_sec, position in ((0, 0), (0, 20), (-86400, 20), (3600, 10)):
        monkeypatch.setattr(time, "time", lambda: now + jump_sec)  # noqa: B023  (used at once)
        run = make_run("run", start=position)
        assert [step for step, _ in losses(run)] == [10, 20, 30, 40, 50]
    assert len(event_files(run / "tensorboard")) == 4


def test_a_run_that_is_copied_whole_goes_on_in_its_copy(make_run, tmp_path):
    shutil.copytree(make_run("own", seen=30), tmp_path / "elsewhere")
    assert losses(make_run("elsewhere", start=20))[-1] == (50, 1.0)


def test_a_run_that_lost_its_metrics_goes_on_with_its_curves_and_says_so(make_run, caplog):
    run = make_run("own", 1.0)
    (run / "metrics.jsonl").unlink()
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        make_run("own", 3.0, start=40)
    assert f"metrics.jsonl is missing in {run} and starts over at 40 images seen" in caplog.text
    assert losses(run) == [(10, 1.0), (20, 1.0), (30, 1.0), (50, 3.0)]


def test_curves_whose_files_are_gone_are_redrawn_from_the_metrics(make_run):
    run = make_run("own", 1.0, seen=40)
    shutil.rmtree(run / "tensorboard")
    make_run("own", 3.0, start=20)
    assert losses(run) == [(10, 1.0), (20, 1.0), (30, 3.0), (40, 3.0), (50, 3.0)]
    assert "custom_scalars__config__" in read(run).Tags()["tensors"]


@pytest.mark.parametrize("kept", [True, False])
def test_pictures_of_a_validation_that_stays_are_drawn_again(tmp_path, kept):
    grey, folder = np.full((8, 8, 3), 90, np.uint8), tmp_path / "tensorboard"
    validation = {"event": "val", **line("val", 50), "time": time.time()}
    first = Board(folder, 0, [], Room(tmp_path))
    for tag in ("train/augmented", "val/mistakes", "val/classes"):
        first.picture(tag, grey, 50)
    first.close()
    again = Board(folder, 50, [validation] if kept else [], Room(tmp_path))
    again.picture("train/augmented", grey, 50)
    again.close()
    found = read(tmp_path)
    images = {tag: [event.step for event in found.Images(tag)] for tag in found.Tags()["images"]}
    assert images.pop("train/augmented") == [50]
    wanted = [50] if kept else []
    assert images == {"val/mistakes": wanted, "val/classes": wanted}


# The table of hyperparameters.


def compared(run):
    """The names of a run's columns as TensorBoard sorts them, and its values."""
    metadata = read(run).summary_metadata

    def content(tag):
        return HParamsPluginData.FromString(metadata[tag].plugin_data.content)

    infos = content("_hparams_/experiment").experiment.hparam_infos
    columns = [info.name for info in sorted(infos, key=lambda info: (not info.differs, info.name))]
    values = content("_hparams_/session_start_info").session_start_info.hparams
    return columns, {key: getattr(v, v.WhichOneof("kind")) for key, v in values.items()}


def test_the_first_five_columns_tell_runs_apart_that_people_compare(make_run, tmp_path):
    columns, first = compared(make_run("first"))
    same, second = compared(make_run("other", options=["--optim.base_lr=0.3", "--run.seed=5"]))
    assert columns == same
    assert columns[:5] == [
        "data.global_batch_size", "model.network", "optim.base_lr", "run.seed", "schedule.epochs"
    ]  # fmt: skip
    differ = {name for name in columns[:5] if first[name] != second[name]}
    assert differ == {"optim.base_lr", "run.seed"}
    assert (first["data.root"], first["model.network"]) == (str(tmp_path), "CIFAR ResNet-8 A")
    assert first["model.residual"] == "true"  # a label and no number


def test_a_run_whose_length_is_set_in_steps_has_that_among_the_five(make_run):
    options = ["--schedule.epochs=null", "--schedule.steps=40"]
    columns, values = compared(make_run("run", options=options))
    assert columns[4] == "schedule.steps"
    assert (values["schedule.steps"], values["schedule.epochs"]) == (40, "null")


# The pages.


def test_no_line_is_drawn_in_two_charts_and_titles_name_the_lines():
    titles, drawn = Counter(), Counter()
    for page in layout(gpu=True).category:
        assert "images seen (STEP)" in page.title
        for chart in page.chart:
            titles[chart.title] += 1
            drawn.update(series.value for series in chart.margin.series)
            names = chart.title.partition(": ")[2]
            if len(chart.margin.series) > 1:
                assert len(names.split(" \N{BLACK DIAMOND} ")) >= 2
    assert set(titles.values()) | set(drawn.values()) == {1}
    (stack,) = [title for title in titles if title.startswith("where the time goes")]
    places = [stack.index(name.replace("_", " ")) for name in STACKED]
    assert places == sorted(places)


@pytest.mark.parametrize("grows", [False, True])
def test_crops_that_grow_have_a_chart_beside_the_speed_they_change(tmp_path, grows):
    folder = tmp_path / "run"
    folder.mkdir()
    monitor = RunMonitor(RunFolder(folder), config_of(tmp_path, tmp_path), 0, 0, 100)
    monitor.train(line("train", 10, **({"image_size": 32} if grows else {})))
    monitor.close()
    (event,) = read(folder).Tensors(CONFIG_SUMMARY_TAG)
    speed = Layout.FromString(event.tensor_proto.string_val[0]).category[1]
    drawn = [series.value for chart in speed.chart for series in chart.margin.series]
    assert ("train/image_size" in drawn) == grows


def test_the_error_is_drawn_in_percent_and_edges_come_after_all_curves():
    shares = {f"share_{name}": 1 / len(STACKED) for name in STACKED}
    drawn = dict(curves({"event": "train", **line("train", 10, top1=0.25, **shares)}))
    assert drawn["train/error_percent"] == 75.0
    edges = [tag for tag in drawn if not tag.startswith("train/")]
    assert len(edges) == len(STACKED) + 1
    assert min(edges) > "val/top5"
