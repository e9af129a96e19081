"""The curves that are drawn, and how networks are told apart."""

import json

import numpy as np
import pytest
from made_runs import CIFAR, event

from pipeline.model.network import plain, resnet
from pipeline.report import figures
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
    some = figures.styles_of({plain(18), resnet(34, "A")})
    more = figures.styles_of({plain(18), resnet(34, "A"), resnet(34, "B"), resnet(50), plain(34)})
    assert some.items() <= more.items()
    assert len(set(more.values())) == 5


def test_depth_is_a_colour_and_plain_nets_are_dashed():
    networks = (plain(8, "cifar"), plain(20, "cifar"), resnet(20, "A", family="cifar"))
    drawn = figures.styles_of(set(networks))
    shallow, deep, residual = (drawn[network] for network in networks)
    assert deep.colour == residual.colour != shallow.colour
    assert deep.dash == shallow.dash != residual.dash == "-"
