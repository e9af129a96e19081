"""TensorBoard's event files, pages and table of hyperparameters, as they are written."""

import logging
import shutil
import time
from collections import Counter
from dataclasses import replace

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
from pipeline.train.monitor.board import Board, event_files
from pipeline.train.monitor.charts import Shown, curves, layout
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


HAS_ALL = Shown(
    ranks=8, top5=True, ema=True, scales_loss=True, excludes=True,
    fields=("image_size", "gpu_memory_torch_bytes", "gradient_norm_stem", "weight_norm_stem"),
)  # fmt: skip
"""A run that has something to show in every chart."""


def charts_of(pages):
    """The charts of each page by its first word: title and tags."""
    return {
        page.title.partition(":")[0]: {
            chart.title: [one.value for one in chart.margin.series] or list(chart.multiline.tag)
            for chart in page.chart
        }
        for page in pages.category
    }


@pytest.mark.parametrize("has", [Shown(), HAS_ALL])
def test_a_chart_draws_a_line_of_a_run_or_two_and_none_twice(has):
    drawn = Counter()
    for page in layout(has).category:
        assert "images seen (STEP)" in page.title
        for chart in page.chart:
            tags = [series.value for series in chart.margin.series] or list(chart.multiline.tag)
            drawn.update(tags)
            # More bands than one, all of which a run is without, are "Missing Tags".
            assert len(tags) == 1 or (len(tags) == 2 and tags[0].startswith("train/"))
            assert (" \N{BLACK DIAMOND} " in chart.title) == (len(tags) == 2)
    assert set(drawn.values()) == {1}
    assert len(charts_of(layout(has))["learning"]) == 4  # which fit a screen


@pytest.mark.parametrize(
    ("more", "tags"),
    [
        ({"ranks": 2}, {"train/communication_share", "val/bn_spread",
                        "where_time_goes/slowest_rank_percent_behind"}),
        ({"top5": True}, {"val/top5"}),
        ({"ema": True}, {"val/ema_error_percent", "val/ema_loss"}),
        ({"scales_loss": True}, {"train/loss_scale", "train/skipped_steps"}),
        ({"excludes": True}, {"train/excluded", "val/excluded"}),
        ({"fields": ("image_size",)}, {"train/image_size"}),
        ({"fields": ("gpu_memory_torch_bytes",)}, {"^train/gpu_memory_.*_bytes$"}),
    ],
)  # fmt: skip
def test_a_chart_is_there_when_the_run_has_something_to_show(more, tags):
    def all_tags(has):
        pages = charts_of(layout(has)).values()
        return {tag for page in pages for tags in page.values() for tag in tags}

    least = Shown(top5=False)
    assert all_tags(replace(least, **more)) - all_tags(least) == tags


def test_what_a_run_has_to_show_is_known_by_its_start_and_its_settings(tmp_path):
    def titles(name, ranks, *options, sums="fast", **fields):
        config = config_of(tmp_path, tmp_path, f"--run.name={name}", *options)
        config.run.path.mkdir()
        monitor = RunMonitor(RunFolder(config.run.path), config, 0, 0, 100, top5=False)
        monitor.write("start", {"step": 0, "position": 0, "ranks": ranks, "sums": sums})
        monitor.train(line("train", 10, **fields))
        monitor.close()
        (event,) = read(config.run.path).Tensors(CONFIG_SUMMARY_TAG)
        pages = charts_of(Layout.FromString(event.tensor_proto.string_val[0]))
        return {title for page in pages.values() for title in page}

    few = titles("few", 1)
    every = titles(
        "every", 2, "--optim.amp=fp16", "--optim.ema_decay=0.9", "--data.bad_images=exclude",
        image_size=32,
    )  # fmt: skip
    assert few < every
    assert {title.partition(":")[0] for title in every - few} == {
        "share of the step that waits for gradients", "slowest rank behind the mean, %",
        "spread of BN statistics over ranks", "loss scale", "steps skipped", "images excluded",
        "error of the average of the weights, %", "loss of the average of the weights",
        "side of the training crop, pixels",
    }  # fmt: skip
    assert titles("two", 2) - titles("fixed", 2, sums="fixed") == {
        "spread of BN statistics over ranks"
    }, "it is 0 where sums are in a fixed order"


def test_errors_are_drawn_in_percent_and_sums_of_time_after_all_curves():
    shares = {f"share_{name}": 0.125 for name in ("forward", "backward", "optimizer", "validation")}
    speeds = {"rank_images_per_sec": 100.0, "slowest_images_per_sec": 75.0}
    drawn = dict(curves({"event": "train", **line("train", 10, top1=0.25, **shares, **speeds)}))
    assert drawn["train/error_percent"] == 75.0
    sums = {tag: value for tag, value in drawn.items() if not tag.startswith("train/")}
    assert sums == {
        "where_time_goes/computing": 0.375,
        "where_time_goes/validating_and_saving": 0.125,
        "where_time_goes/slowest_rank_percent_behind": 25.0,
    }
    assert min(sums) > "val/top5"


def test_what_a_start_without_tensorboard_missed_is_drawn_by_the_next(make_run):
    make_run("run", seen=40)
    make_run("run", start=30, seen=60, options=["--run.loggers=[]"])
    assert losses(make_run("run", start=50, seen=80)) == [(at, 1.0) for at in range(10, 80, 10)]
