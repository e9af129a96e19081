"""TensorBoard's pages and its table of hyperparameters, as they are written."""

from collections import Counter

from made_lines import line
from one_process import config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.train.folder import RunFolder
from pipeline.train.monitor.board import STACKED, curves, layout
from pipeline.train.monitor.monitor import RunMonitor


def compared(runs, name, *options):
    """The names of a run's columns as TensorBoard sorts them, and its values."""
    config = config_of(runs, runs, *options)
    folder = runs / name
    folder.mkdir()
    RunMonitor(RunFolder(folder), config, 0, 0, 100).close()
    board = EventAccumulator(str(folder / "tensorboard")).Reload()

    def content(tag):
        return HParamsPluginData.FromString(board.summary_metadata[tag].plugin_data.content)

    infos = content("_hparams_/experiment").experiment.hparam_infos
    columns = [info.name for info in sorted(infos, key=lambda info: (not info.differs, info.name))]
    values = content("_hparams_/session_start_info").session_start_info.hparams
    return columns, {key: getattr(v, v.WhichOneof("kind")) for key, v in values.items()}


def test_the_first_five_columns_tell_runs_apart_that_people_compare(tmp_path):
    columns, first = compared(tmp_path, "first")
    same, second = compared(tmp_path, "second", "--optim.base_lr=0.3", "--run.seed=5")
    assert columns == same
    assert columns[:5] == [
        "data.global_batch_size", "model.network", "optim.base_lr", "run.seed", "schedule.epochs"
    ]  # fmt: skip
    differ = {name for name in columns[:5] if first[name] != second[name]}
    assert differ == {"optim.base_lr", "run.seed"}
    assert (first["data.root"], first["model.network"]) == (str(tmp_path), "CIFAR ResNet-8 A")


def test_a_run_whose_length_is_set_in_steps_has_that_among_the_five(tmp_path):
    columns, values = compared(tmp_path, "run", "--schedule.epochs=null", "--schedule.steps=40")
    assert columns[4] == "schedule.steps"
    assert (values["schedule.steps"], values["schedule.epochs"]) == (40, "null")


def test_what_is_true_or_false_is_a_label_and_no_number(tmp_path):
    assert compared(tmp_path, "run")[1]["model.residual"] == "true"


def test_no_line_is_drawn_in_two_charts_and_titles_name_the_lines():
    titles = Counter()
    drawn = Counter()
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


def test_the_error_is_drawn_in_percent_and_edges_come_after_all_curves():
    shares = {f"share_{name}": 1 / len(STACKED) for name in STACKED}
    drawn = dict(curves({"event": "train", **line("train", 10, top1=0.25, **shares)}))
    assert drawn["train/error_percent"] == 75.0
    edges = [tag for tag in drawn if not tag.startswith("train/")]
    assert len(edges) == len(STACKED) + 1
    assert min(edges) > "val/top5"
