"""The whole report of runs: which plots it draws, and what both pages hold."""

import re

import pytest
from made_runs import CIFAR, RunMaker
from PIL import Image

from pipeline.report.document import write_report
from pipeline.report.runs import read_runs

DRAWN = CIFAR | {"data.root": "data/drawn"}
SIZE = {"steps": 1000, "epoch": 100, "val": 1000}
PLOTS = {
    f"curves-1-cifar-{name}.png" for name in ("plain-residual", "all", "early", "gradient-norm")
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of plain and residual nets of three depths, those of 14 layers trained briefly."""
    below = tmp_path_factory.mktemp("report")
    make = RunMaker(below / "runs")
    runs = [
        make(f"{'res' if residual else 'plain'}-{depth}",
             DRAWN | {"model.residual": residual, "model.depth": depth}, **SIZE | {"steps": steps})
        for residual in (False, True) for depth, steps in ((8, 1000), (20, 1000), (14, 250))
    ]  # fmt: skip
    (below / "curves-9-old.png").write_text("of an earlier report")
    write_report(below, read_runs(runs))
    return below


def test_plain_against_residual_nets_are_drawn(whole):
    assert {path.name for path in whole.iterdir()} == PLOTS | {"index.html", "report.md", "runs"}
    for name in PLOTS:
        with Image.open(whole / name) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # not an empty sheet
    text = (whole / "report.md").read_text()
    assert set(re.findall(r"\]\((.*?\.png)\)", text)) == PLOTS
    assert (whole / "index.html").read_text().count("<img ") == 4


@pytest.mark.parametrize("page", ["index.html", "report.md"])
def test_each_page_says_when_and_from_what_it_was_made(whole, page):
    text = (whole / page).read_text()
    made = r"Made on 20\d\d-\d\d-\d\d \d\d:\d\d by python -m pipeline.report at commit \w+.* from"
    assert re.search(made + " the files of 6 runs", text)
    for part in ("abc1234", "torch 2.13.0", "plain-20", "2026-09-2", str(whole / "runs/res-8")):
        assert part in text
    assert text.count("Thin: top-1 error over the augmented training images") == 3


def test_early_convergence_without_a_curve_is_left_out_and_said(whole):
    text = (whole / "report.md").read_text()
    assert "Early convergence is not drawn for 14 layers: a curve needs two" in text


@pytest.mark.parametrize(
    ("nets", "steps", "plots", "said"),
    [
        (
            [True],
            1000,
            {"all", "gradient-norm"},
            "## Curves",
        ),
        ([True], 0, set(), "| rTrue | CIFAR ResNet-20 A | 0 | unfinished |"),
        # One line of each kind.
        ([True, False], 50, {"plain-residual", "all", "gradient-norm"}, "not drawn for 20 layers"),
    ],
)
def test_a_plot_is_drawn_where_there_is_enough_for_it(make_run, tmp_path, nets, steps, plots, said):
    size = {"steps": steps, "epoch": 100, "val": 1000, "finished": steps > 0}
    runs = [make_run(f"r{net}", DRAWN | {"model.residual": net}, **size) for net in nets]
    out = tmp_path / "report"
    out.mkdir()
    write_report(out, read_runs(runs))
    names = {path.name for path in out.glob("*.png")}
    assert names == {f"curves-1-cifar-{plot}.png" for plot in plots}
    assert said in (out / "report.md").read_text()


def report(tmp_path, runs):
    out = tmp_path / "report"
    out.mkdir(exist_ok=True)
    write_report(out, read_runs(runs))
    return (out / "report.md").read_text()


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


OWN = {"data.root": "/home/me/photos of cells", "model.depth": 18}


def test_the_report_of_ones_own_images_has_what_there_is_and_no_more(make_run, tmp_path):
    text = report(tmp_path, [make_run("cells", OWN, train=2000, val=624, steps=800)])
    assert headings(text) == ["# cells", "## Curves", "## Where the numbers come from"]
    assert "yet run" not in text and "paper" not in text
    row = next(line for line in text.splitlines() if line.startswith("| cells |"))
    assert row == "| cells | ResNet-18 B | 102.4 | 10.00 | 11.00 / 5.00 | 102.4 |"


@pytest.mark.parametrize(
    ("number", "title"), [(2, "# r0 and r1"), (3, "# r0, r1 and r2"), (4, "# 4 runs")]
)
def test_the_title_names_a_few_runs_and_counts_more(make_run, tmp_path, number, title):
    runs = [make_run(f"r{i}", OWN, steps=0, finished=False) for i in range(number)]
    assert headings(report(tmp_path, runs))[0] == title


def test_paths_are_no_headings(make_run, tmp_path):
    text = report(tmp_path, [make_run("a", OWN), make_run("b", CIFAR)])
    assert [h for h in headings(text) if h.startswith("### ")][:2] == [
        "### photos of cells", "### CIFAR-10",
    ]  # fmt: skip
    assert "/home/me/photos of cells" in text.partition("## Where the numbers")[2]


def test_two_folders_of_one_name_are_told_apart(make_run, tmp_path):
    roots = ["/a/photos", "/b/photos"]
    text = report(tmp_path, [make_run(r[1], OWN | {"data.root": r}) for r in roots])
    assert [h for h in headings(text) if h.startswith("### ")] == [f"### {r}" for r in roots]


def test_a_run_without_validation_has_no_column_for_it(make_run, tmp_path):
    folder = make_run("a", OWN)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if '"event": "val"' not in line))
    text = report(tmp_path, [folder])
    assert "alidation error" not in text and "None has validated." in text


def test_runs_come_in_the_order_of_their_numbers(make_run, tmp_path):
    text = report(tmp_path, [make_run(f"lr-{i}", OWN | {"run.seed": i}) for i in (10, 9, 1)])
    assert re.findall(r"^\| (lr-\d+) \|", text, re.M)[:3] == ["lr-1", "lr-9", "lr-10"]
    assert "seed=10" in text
