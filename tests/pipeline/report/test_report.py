"""The whole report of runs: which plots it draws, and what stands in both pages."""

import re

import pytest
from made_runs import CIFAR
from PIL import Image

from pipeline.report.document import write_report
from pipeline.report.runs import read_runs

DRAWN = CIFAR | {"data.root": "data/drawn"}
SIZE = {"steps": 1000, "epoch": 100, "val": 1000}


@pytest.fixture
def out(tmp_path):
    """The folder of the report."""
    folder = tmp_path / "report"
    folder.mkdir()
    return folder


@pytest.fixture
def four(make_run):
    """Plain and residual nets of 8 and 20 layers on the same drawn data."""
    return [
        make_run(f"{kind}-{depth}", DRAWN | {"model.residual": kind == "res", "model.depth": depth},
                 last=error, **SIZE)
        for kind, depth, error in [("plain", 8, 20), ("plain", 20, 30), ("res", 8, 19),
                                   ("res", 20, 15)]
    ]  # fmt: skip


def test_plain_against_residual_nets_are_drawn(four, out):
    (out / "curves-9-old.png").write_text("of an earlier report")
    write_report(out, read_runs(four))
    names = {path.name for path in out.iterdir()}
    plots = {f"curves-1-cifar-{name}.png"
             for name in ("plain-residual", "all", "early", "gradient-norm")}  # fmt: skip
    assert names == plots | {"index.html", "report.md"}
    for name in plots:
        with Image.open(out / name) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # not an empty sheet
    text = (out / "report.md").read_text()
    assert set(re.findall(r"\]\((.*?\.png)\)", text)) == plots
    assert (out / "index.html").read_text().count("<img ") == 4
    assert "the degradation was seen" in text


def test_both_pages_say_when_and_from_what_they_were_made(four, out):
    write_report(out, read_runs(four))
    for page in ("index.html", "report.md"):
        text = (out / page).read_text()
        assert re.search(
            r"Made on 20\d\d-\d\d-\d\d \d\d:\d\d by python -m pipeline.report at commit \w+.* from "
            "the files of 4 runs",
            text,
        )
        for part in ("abc1234", "torch 2.13.0", "plain-20", "2026-09-2", str(four[0])):
            assert part in text
        assert text.count("Thin: top-1 error over the augmented training images") == 3


def test_a_single_run_has_its_curves(make_run, out):
    write_report(out, read_runs([make_run("a", DRAWN, **SIZE)]))
    names = {path.name for path in out.glob("*.png")}
    assert names == {"curves-1-cifar-all.png", "curves-1-cifar-gradient-norm.png"}
    assert "Not yet run" in (out / "report.md").read_text()


def test_a_run_that_has_just_begun_is_listed_without_curves(make_run, out):
    folder = make_run("a", DRAWN, **SIZE)
    (folder / "metrics.jsonl").write_text("")
    write_report(out, read_runs([folder]))
    text = (out / "report.md").read_text()
    assert "no run has a line of training metrics" in text
    assert "| a | CIFAR ResNet-20 A | data/drawn | 0 | 0 | no | unknown |" in text


def test_one_line_of_each_kind_is_enough(make_run, out):
    run = make_run("a", DRAWN, steps=50, epoch=100, val=1000)
    plain = make_run("b", DRAWN | {"model.residual": False}, steps=50, epoch=100, val=1000)
    write_report(out, read_runs([run, plain]))
    names = {path.name.removeprefix("curves-1-cifar-") for path in out.glob("*.png")}
    assert names == {"plain-residual.png", "all.png", "gradient-norm.png"}


def test_early_convergence_without_a_curve_is_left_out_and_said(four, make_run, out):
    short = [
        make_run(f"short-{residual}", DRAWN | {"model.residual": residual, "model.depth": 14},
                 steps=250, epoch=100, val=1000)
        for residual in (True, False)
    ]  # fmt: skip
    write_report(out, read_runs([*four, *short]))
    text = (out / "report.md").read_text()
    assert "curves-1-cifar-early.png" in text  # of the other depths
    assert "Early convergence on data/drawn is not drawn for 14 layers: a curve needs two" in text
    assert "not drawn for 8" not in text
    write_report(out, read_runs(short))
    text = (out / "report.md").read_text()
    assert "is not drawn for 14 layers" in text
    assert "early.png" not in text and not (out / "curves-1-cifar-early.png").exists()
