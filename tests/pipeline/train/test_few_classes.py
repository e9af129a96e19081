"""Of five classes or fewer nobody counts, draws or says top-5; with unequal classes the balanced
top-1 is another number than top-1."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_lines import line
from one_process import evaluate_here, train_here
from run_files import curves, metrics, newest_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.report import __main__ as report
from pipeline.report.runs import read_run
from pipeline.runs.listing import describe, list_runs
from pipeline.train.checkpoint import write_atomically
from pipeline.train.metrics import balanced_top1, counts_top5
from pipeline.train.monitor.charts import Shown, layout
from pipeline.train.monitor.progress import val_line
from pipeline.train.validation import labels_by_class

TOP5 = ("top5", "top-5")


@pytest.fixture(scope="module")
def data(small_data, tmp_path_factory) -> Path:
    """Three classes of the small set, of 3, 3 and 1 validation images."""
    root = tmp_path_factory.mktemp("few") / "data"
    for split in ("train", "val"):
        for folder in sorted((small_data / split).iterdir())[:3]:
            shutil.copytree(folder, root / split / folder.name)
    for image in sorted(folder.iterdir())[1:]:  # of val, the last class
        (root / "val" / folder.name / image.name).unlink()
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    return train_here(data, tmp_path_factory.mktemp("runs"), "--schedule.epochs=4",
                      "--optim.base_lr=1.6", "--optim.ema_decay=0.5")  # fmt: skip


@pytest.mark.parametrize(("classes", "counts"), [(2, False), (5, False), (6, True)])
def test_top5_says_something_from_six_classes_on(classes, counts):
    assert counts_top5(classes) is counts


def test_a_run_says_nothing_of_top5(run):
    for one in metrics(run):
        assert not [name for name in one if "top5" in name]
    assert not [tag for tag in curves(run) if "top5" in tag]
    log = (run / "log.txt").read_text()
    assert not [word for word in TOP5 if word in log]
    assert "finished: top-1 " in log and ", EMA top-1 " in log
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    pages = board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"top5" not in pages and b"val/ema_error_percent" in pages
    plugin = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    assert b"val/top5" not in plugin and b"val/best_ema_top1" in plugin
    for result in newest_checkpoint(run)["history"]:
        assert result["top5_correct"] is None and result["ema"]["top5_correct"] is None


def test_evaluate_says_nothing_of_it_and_balances_the_classes(run, tmp_path, capsys):
    out, table = tmp_path / "out.json", tmp_path / "table.csv"
    checkpoint = str(run / "checkpoints" / "best.pt")
    evaluate_here("--checkpoint", checkpoint, f"--json={out}", f"--per-class={table}",
                  "--weights=raw")  # fmt: skip
    result, said = json.loads(out.read_text()), capsys.readouterr().out
    assert not [name for name in result if "top5" in name] and "top-5" not in said
    header, *rows = csv.reader(table.read_text().splitlines())
    assert header == ["class", "words", "images", "top1_correct", "top1"]
    shares = [float(row[4]) for row in rows]
    assert [row[2] for row in rows] == ["3", "3", "1"]
    assert result["balanced_top1"] == pytest.approx(sum(shares) / 3)
    assert f"balanced top-1 {result['balanced_top1']:.2%}, loss " in said
    (validated,) = [one for one in metrics(run) if one["event"] == "val"
                    and one["step"] == result["step"]]  # fmt: skip
    assert validated["balanced_top1"] == result["balanced_top1"]


def test_lists_and_reports_read_such_a_run(run, tmp_path):
    seen = read_run(run).evaluations
    assert seen and all(one.top5 is None for one in seen)
    assert "top5" not in describe(list_runs(run.parent), run.parent)
    report.main([str(run), f"--out={tmp_path}/report"])
    pages = [path.read_text() for path in (tmp_path / "report").iterdir() if path.suffix != ".png"]
    assert pages
    (error,) = {f"{one.top1:.2f}" for one in seen if one.weights == "ema"}
    assert not [page for page in pages if f"{error} / " in page]


def test_a_run_whose_earlier_version_counted_it_goes_on_without(data, run, tmp_path):
    """Its history and metrics have top-5, of all images."""
    copy = tmp_path / "test"
    shutil.copytree(run, copy)
    content = newest_checkpoint(copy)
    for result in content["history"]:
        result |= {"top5_correct": result["images"]}
        del result["balanced_top1"]
    write_atomically(copy / "checkpoints" / f"step-{content['step']:09d}.pt", content)
    before = len(metrics(copy))
    train_here(data, tmp_path, "--schedule.epochs=5", "--optim.base_lr=1.6",
               "--optim.ema_decay=0.5")  # fmt: skip
    lines = metrics(copy)
    assert len(lines) > before and "top5" not in lines[-1]


def test_balanced_top1_is_the_mean_over_classes_with_images():
    hits, images = torch.tensor([9, 0, 1, 0]), torch.tensor([10, 0, 2, 4])
    assert balanced_top1(hits, images) == pytest.approx((0.9 + 0.5 + 0.0) / 3)
    assert balanced_top1(hits, torch.zeros(4, dtype=torch.int64)) is None


def test_every_image_counts_in_its_class_also_one_that_cannot_be_read():
    found = labels_by_class(SimpleNamespace(labels=np.array([2, 0, 2], np.int32), classes="abcd"))
    assert found.tolist() == [1, 0, 2, 0]


def test_the_line_of_a_validation_says_what_there_is():
    made = line("val", 50)
    assert val_line(made) == "epoch 1 validation: top1 50.00% top5 60.00% loss 1.0000 (30 images)"
    few = {name: value for name, value in made.items() if name != "top5"}
    ema = {"balanced_top1": 0.25, "ema_top1": 0.75, "ema_loss": 0.5}
    assert val_line(few | ema) == (
        "epoch 1 validation: top1 50.00% balanced 25.00% loss 1.0000, EMA top1 75.00% loss 0.5000 "
        "(30 images)"
    )


@pytest.mark.parametrize("top5", [True, False])
@pytest.mark.parametrize("ema", [True, False])
def test_pages_have_the_charts_that_a_run_can_fill(top5, ema):
    charts = [chart for page in layout(Shown(top5=top5, ema=ema)).category for chart in page.chart]
    tags = [series.value for chart in charts for series in chart.margin.series]
    assert ("val/top5" in tags) is top5
    assert {tag for tag in tags if "ema_" in tag} == (
        {"val/ema_error_percent", "val/ema_loss"} if ema else set()
    )
    assert len(set(tags)) == len(tags)
    assert "val/balanced_top1" in tags
