"""The words about depth are what the runs say."""

import json

import pytest
from made_runs import CIFAR

from pipeline.report.degradation import degradation_blocks, final_training_error
from pipeline.report.pages import Paragraph, Table
from pipeline.report.runs import read_run

DRAWN = CIFAR | {"data.root": "data/drawn"}
SIZE = {"steps": 1000, "epoch": 100, "val": 1000}


@pytest.fixture
def section(make_run):
    """The section about runs of 8 and 20 layers with given final errors by (residual, depth)."""

    def make(finals: dict[tuple[bool, int], list[float]], **changed) -> list:
        runs = []
        for (residual, depth), errors in finals.items():
            for seed, error in enumerate(errors):
                settings = DRAWN | {
                    "model.residual": residual, "model.depth": depth, "run.seed": seed, **changed,
                }  # fmt: skip
                name = f"{residual}-{depth}-{seed}"
                runs.append(read_run(make_run(name, settings, last=error, **SIZE)))
        return degradation_blocks({"data/drawn": runs})

    return make


def words(blocks: list) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, Paragraph))


def rows(blocks: list) -> list[tuple[str, ...]]:
    """Of the table of changes: the plain nets, then the residual ones."""
    return next(block.rows for block in blocks if isinstance(block, Table))


def test_the_effect_is_told_with_means_and_ranges(section):
    blocks = section({
        (False, 8): [20, 21], (False, 20): [30, 31], (True, 8): [19, 20], (True, 20): [15, 16],
    })  # fmt: skip
    assert "8 and 20 layers: the degradation was seen." in words(blocks)
    shallow, deep = "20.50 (20.00 to 21.00)", "30.50 (30.00 to 31.00)"
    plain, residual = rows(blocks)
    assert plain == ("CIFAR plain-8", shallow, "CIFAR plain-20", deep, "+10.00", "worse")
    assert residual[2:] == ("CIFAR ResNet-20 A", "15.50 (15.00 to 16.00)", "-4.00", "better")
    *_, table = [block for block in blocks if isinstance(block, Table)]
    assert table.rows[0][:4] == ("CIFAR plain-8", "2", "20.50 ± 0.71", "20.00 to 21.00")
    assert len(table.rows) == 4


def test_the_range_of_a_single_run_is_that_of_counting(section):
    blocks = section({(False, 8): [20], (False, 20): [30], (True, 8): [19], (True, 20): [15]})
    assert "the degradation was seen." in words(blocks)
    # 1 line of 50 steps of 128 images: two standard deviations of counting 20% are 1 point.
    assert rows(blocks)[0][1] == "20.00 (19.00 to 21.00)"


def test_an_effect_within_chance_is_not_claimed(section):
    blocks = section({(False, 8): [20], (False, 20): [20.5], (True, 8): [19], (True, 20): [18.5]})
    assert "the degradation was not seen." in words(blocks)
    assert [row[4:] for row in rows(blocks)] == [
        ("+0.50", "no difference shown"),
        ("-0.50", "no difference shown"),
    ]


def test_an_effect_that_is_absent_is_said_to_be(section):
    blocks = section({(False, 8): [30], (False, 20): [20], (True, 8): [30], (True, 20): [15]})
    assert "the degradation was not seen." in words(blocks)
    assert [row[5] for row in rows(blocks)] == ["better", "better"]


def test_a_residual_net_that_gets_worse_too_is_said_to(section):
    blocks = section({(False, 8): [20], (False, 20): [30], (True, 8): [19], (True, 20): [24]})
    assert "seen only in part, as the deeper residual net trains worse too." in words(blocks)
    assert [row[4:] for row in rows(blocks)] == [("+10.00", "worse"), ("+5.00", "worse")]


def test_runs_that_differ_otherwise_are_said_to(section, make_run):
    finals = {(False, 8): [20], (False, 20): [30], (True, 8): [19], (True, 20): [15]}
    assert "differ in" not in words(section(finals))
    other = DRAWN | {"model.depth": 8, "optim.base_lr": 0.2}
    runs = [read_run(folder) for folder in make_run.below.iterdir()]
    runs.append(read_run(make_run("other", other, last=19, **SIZE)))
    assert "These runs differ in optim.base_lr as well." in words(degradation_blocks({"": runs}))


def test_without_four_finished_runs_nothing_is_claimed(section, make_run):
    text = words(section({(False, 8): [20], (False, 20): [30], (True, 8): [19]}))
    assert "Not yet run: this needs finished runs of a plain and of a residual net" in text
    runs = [read_run(folder) for folder in make_run.below.iterdir()]
    residual = DRAWN | {"model.depth": 20}
    runs.append(read_run(make_run("half", residual, last=15, finished=False, **SIZE)))
    assert "Not yet run" in words(degradation_blocks({"data/drawn": runs}))
    runs.append(read_run(make_run("whole", residual, last=15, **SIZE)))
    text = words(degradation_blocks({"data/drawn": runs}))
    assert "Left out as unfinished: half." in text
    assert "the degradation was seen" in text


def test_the_final_error_is_that_of_the_last_images(make_run):
    folder = make_run("a", DRAWN, **SIZE)
    lines = [
        {"event": "train", "step": step, "position": 10 * step, "top1": top1}
        for step, top1 in [(900, 0.1), (960, 0.5), (1000, 0.9)]
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    final = final_training_error(read_run(folder))
    assert final.images == 1000  # 600 images of the second line, 400 of the third
    assert final.error == pytest.approx(100 * (0.6 * 0.5 + 0.4 * 0.1))
    (folder / "metrics.jsonl").write_text("")
    assert final_training_error(read_run(folder)) is None
