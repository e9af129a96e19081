"""What the report says of depth is what the runs say."""

import json

import pytest
from made_runs import CIFAR, event

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
    """Of the only table: the plain nets by depth, then the residual ones."""
    (table,) = (block for block in blocks if isinstance(block, Table))
    return table.rows


def test_it_is_a_heading_a_sentence_and_a_table(section):
    blocks = section({
        (False, 8): [20, 21], (False, 20): [30, 31], (True, 8): [19, 20], (True, 20): [15, 16],
    })  # fmt: skip
    heading, sentence, table = blocks
    assert heading.text == "Degradation: does a deeper net train worse?"
    assert sentence.text.count(". ") == 0 and sentence.text.endswith(".")
    assert table.rows == [
        ("CIFAR plain-8", "2", "20.50 (20.00 to 21.00)", "21.50 (21.00 to 22.00)", "", ""),
        ("CIFAR plain-20", "2", "30.50 (30.00 to 31.00)", "31.50 (31.00 to 32.00)", "+10.00",
         "worse"),
        ("CIFAR ResNet-8 A", "2", "19.50 (19.00 to 20.00)", "20.50 (20.00 to 21.00)", "", ""),
        ("CIFAR ResNet-20 A", "2", "15.50 (15.00 to 16.00)", "16.50 (16.00 to 17.00)", "-4.00",
         "better"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("finals", "changes"),  # of plain-8, plain-20, ResNet-8 and ResNet-20
    [
        ((20, 30, 19, 15), [("+10.00", "worse"), ("-4.00", "better")]),
        (
            (20, 20.5, 19, 18.5),
            [("+0.50", "no difference shown"), ("-0.50", "no difference shown")],
        ),
        ((30, 20, 30, 15), [("-10.00", "better"), ("-15.00", "better")]),
        ((20, 30, 19, 24), [("+10.00", "worse"), ("+5.00", "worse")]),
    ],
)
def test_single_runs_differ_by_more_than_counting_allows_or_not(section, finals, changes):
    kinds = [(residual, depth) for residual in (False, True) for depth in (8, 20)]
    found = rows(section({kind: [error] for kind, error in zip(kinds, finals, strict=True)}))
    assert [row[4:] for row in found[1::2]] == changes
    if finals[0] == 20:
        # 1 line of 50 steps of 128 images: two standard deviations of counting 20% are 1 point.
        assert found[0][2] == "20.00 (19.00 to 21.00)"


def test_every_deeper_net_is_compared_with_the_shallowest(section):
    depths = {(residual, depth): [20] for residual in (False, True) for depth in (8, 20, 14)}
    found = rows(section(depths))
    nets = [f"{net}-{depth}{a}" for net, a in (("plain", ""), ("ResNet", " A"))
            for depth in (8, 14, 20)]  # fmt: skip
    assert [row[0] for row in found] == [f"CIFAR {net}" for net in nets]
    assert [bool(row[5]) for row in found] == [False, True, True] * 2


def test_runs_that_differ_otherwise_are_said_to(section, make_run):
    finals = {(False, 8): [20], (False, 20): [30], (True, 8): [19], (True, 20): [15]}
    assert "differ in" not in words(section(finals))
    other = DRAWN | {"model.depth": 8, "optim.base_lr": 0.2}
    runs = [read_run(folder) for folder in make_run.below.iterdir()]
    runs.append(read_run(make_run("other", other, last=19, **SIZE)))
    said = words(degradation_blocks({"": runs}))
    (line,) = (line for line in said.splitlines() if "differ in" in line)
    assert "other" in line and line.endswith(" differ in optim.base_lr as well.")


def test_without_four_finished_runs_there_is_no_section(section, make_run):
    assert section({(False, 8): [20], (False, 20): [30], (True, 8): [19]}) == []
    runs = [read_run(folder) for folder in make_run.below.iterdir()]
    residual = DRAWN | {"model.depth": 20}
    runs.append(read_run(make_run("half", residual, last=15, finished=False, **SIZE)))
    assert degradation_blocks({"drawn": runs}) == []
    runs.append(read_run(make_run("whole", residual, last=15, **SIZE)))
    assert "Left out as unfinished: half." in words(degradation_blocks({"drawn": runs}))


def test_the_final_error_is_that_of_the_last_images(make_run):
    folder = make_run("a", DRAWN, **SIZE)
    lines = [
        event("train", step, position=10 * step, top1=top1)
        for step, top1 in [(900, 0.1), (960, 0.5), (1000, 0.9)]
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    final = final_training_error(read_run(folder))
    assert final.images == 1000  # 600 images of the second line, 400 of the third
    assert final.error == pytest.approx(100 * (0.6 * 0.5 + 0.4 * 0.1))
    (folder / "metrics.jsonl").write_text("")
    assert final_training_error(read_run(folder)) is None
