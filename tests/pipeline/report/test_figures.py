"""The curves that are drawn, and how networks are told apart."""

import json
import shutil

import numpy as np
import pytest
from made_runs import CIFAR, event
from PIL import Image

from pipeline.model.network import plain, resnet
from pipeline.report import figures, styles
from pipeline.report.runs import read_run


@pytest.fixture
def run_of(make_run):
    """A run with the given lines of training alone."""

    def make(lines):
        folder = make_run("a", CIFAR, steps=800)
        text = "\n".join(json.dumps(event("train", **line)) for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        return read_run(folder)

    return make


def test_curves_are_errors_against_steps(make_run):
    run = read_run(make_run("a", CIFAR, last=10, steps=800))
    training, validation = figures.training_error(run), figures.validation_error(run)
    assert training.steps.tolist() == list(range(50, 801, 50))
    assert training.values[-1] == pytest.approx(10, abs=0.01)
    assert validation.steps.tolist() == [391, 782, 800]
    assert validation.values[-1] == pytest.approx(11, abs=0.01)
    assert training.until(120).steps.tolist() == [50, 100]
    assert figures.learning_rate(run).values.tolist()[::5] == [0.1, 0.1, 0.01, 0.001]


def test_long_curves_are_averaged_over_neighbours(run_of):
    lines = [{"step": step, "top1": 1 - step / 1000} for step in range(1, 602)]
    curve = figures.training_error(run_of(lines))
    assert len(curve.steps) == 201 <= figures.POINTS
    assert curve.steps[[0, 1, -1]].tolist() == [3, 6, 601]
    assert curve.values[:2] == pytest.approx([0.2, 0.5])


def test_gradient_norms_leave_out_what_was_not_finite_and_take_medians(run_of):
    norms = [1.0, None, 3.0, 100.0, 2.0] * 60
    lines = [{"step": i, "gradient_norm": norm} for i, norm in enumerate(norms)]
    curve = figures.gradient_norm(run_of(lines))
    assert len(curve.steps) <= figures.NORM_POINTS
    assert np.all(curve.values <= 3)


def test_a_network_is_drawn_alike_whatever_else_is_drawn():
    some = styles.styles_of({plain(18), resnet(34, "A")})
    more = styles.styles_of({plain(18), resnet(34, "A"), resnet(34, "B"), resnet(50), plain(34)})
    assert some.items() <= more.items()
    assert len(set(more.values())) == 5


def test_depth_is_a_colour_and_plain_nets_are_dashed():
    networks = (plain(8, "cifar"), plain(20, "cifar"), resnet(20, "A", family="cifar"))
    drawn = styles.styles_of(set(networks))
    shallow, deep, residual = (drawn[network] for network in networks)
    assert deep.colour == residual.colour != shallow.colour
    assert deep.dash == shallow.dash != residual.dash == "-"


OWN = {"data.root": "data/own", "model.depth": 18}


@pytest.fixture
def series(make_run):
    """The series of runs with these settings, each named by its number."""

    def make(*settings):
        shutil.rmtree(make_run.below, ignore_errors=True)
        runs = [read_run(make_run(f"run-{i}", OWN | one)) for i, one in enumerate(settings)]
        return styles.series_of(runs, {run.network for run in runs})

    return make


def test_two_runs_of_one_network_have_two_colours_and_say_in_what_they_differ(series):
    first, second = series({"optim.base_lr": 0.1}, {"optim.base_lr": 0.05, "run.seed": 7})
    assert (first.label, second.label) == (
        "run-0: base_lr=0.1 seed=0", "run-1: base_lr=0.05 seed=7",
    )  # fmt: skip
    assert first.style.colour != second.style.colour
    assert first.style.dash == second.style.dash == "-"


def test_runs_that_are_the_same_but_for_their_names_are_told_apart_by_these(series):
    assert [one.label for one in series({}, {})] == ["run-0", "run-1"]


def test_seeds_share_a_colour_where_networks_are_compared(series):
    nets = [{"model.depth": depth, "run.seed": seed} for depth in (18, 34) for seed in (0, 1)]
    shallow, deep = series(*nets)
    assert (shallow.label, deep.label) == ("ResNet-18 B (2 runs)", "ResNet-34 B (2 runs)")
    more = series(*nets, {"optim.base_lr": 0.3})
    labels = [one.label for one in more]
    assert labels[:2] == ["ResNet-18 B, base_lr=0.1 (2 runs)", "ResNet-18 B, base_lr=0.3"]
    assert len({one.style for one in more}) == len(more) == 3


def test_a_sweep_has_a_line_for_each_setting_and_no_two_alike(series):
    rates = [{"optim.base_lr": rate / 100, "run.seed": seed}
             for rate in range(1, 13) for seed in (0, 1)]  # fmt: skip
    found = series(*rates)
    assert [one.label for one in found][:2] == ["base_lr=0.01 (2 runs)", "base_lr=0.02 (2 runs)"]
    assert len({one.style for one in found}) == len(found) == 12


def test_a_long_value_is_cut_in_a_legend(series):
    long, _ = series({"schedule.drop_epochs": list(range(1, 60, 2))}, {})
    assert len(long.label) < 60 and "…" in long.label


def test_two_lines_of_one_label_are_two_in_the_legend(make_run, tmp_path, monkeypatch):
    runs = [read_run(make_run(f"{folder}/same", OWN)) for folder in "ab"]
    series = styles.series_of(runs, {run.network for run in runs})
    assert [one.label for one in series] == ["same", "same"]
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, _: drawn.append(figure))
    figures.draw_gradient_norms(tmp_path / "p.png", [figures.Panel("t", runs, series)])
    (legend,) = [axis.get_legend() for axis in drawn[0].axes]
    assert len(legend.get_lines()) == 2
    assert len({line.get_color() for line in legend.get_lines()}) == 2


def test_a_legend_that_would_hide_the_curves_stands_below_them(make_run, tmp_path):
    sizes = []
    for name, rate in (("a", 0.1), ("b" * 60, 0.2)):
        run = read_run(make_run(name, OWN | {"optim.base_lr": rate}))
        other = read_run(make_run(f"{name}x", OWN))
        runs = [run, other]
        panel = figures.Panel("t", runs, styles.series_of(runs, {run.network}))
        figures.draw_errors(tmp_path / "p.png", [panel])
        with Image.open(tmp_path / "p.png") as image:
            sizes.append(image.height)
    assert sizes[1] > sizes[0]
