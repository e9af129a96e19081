"""TensorBoard on a finished run, looked at with a real browser; the screenshots stay in pytest's
folder of this test."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NAMES, Page, find_browser, open_browser
from made_lines import line
from one_process import config_of, train_here

from pipeline.train.folder import RunFolder
from pipeline.train.monitor.monitor import RunMonitor

OPTIONS = ("--schedule.epochs=3", "--data.global_batch_size=10", "--data.local_batch_size=10")
_OF_AN_EMPTY_CHART = 5  # its axes and buttons
_URL = re.compile(r"http://\S+:\d+/")


@pytest.fixture(scope="module")
def server(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of TensorBoard over a small run of three epochs, and the beginning of another."""
    runs = tmp_path_factory.mktemp("runs")
    train_here(small_data, runs, *OPTIONS, "--run.log_every_steps=2")
    begin_another(small_data, runs)
    argv = [sys.executable, "-m", "tensorboard.main", f"--logdir={runs}", "--port=0"]
    with subprocess.Popen(
        [*argv, "--host=127.0.0.1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stderr is not None
        found = (_URL.search(line) for line in child.stderr)
        address = next((match.group() for match in found if match), None)
        assert address is not None, "TensorBoard did not start"
        yield address
        child.terminate()


def begin_another(small_data: Path, runs: Path) -> None:
    """A run of other settings, of which nothing is trained."""
    config = config_of(
        small_data, runs, *OPTIONS, "--run.name=other", "--optim.base_lr=0.037", "--run.seed=77"
    )
    config.run.path.mkdir()
    monitor = RunMonitor(RunFolder(config.run.path), config, 0, 0, 150)
    monitor.train(line("train", 20))
    monitor.val(line("val", 50, best_top1=0.5))
    monitor.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} is installed")
    with open_browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


_CARDS = "all.filter(n => n.tagName && n.tagName.endsWith('-CHART-CARD'))"
_MISSING = "n.nodeType === 3 && n.data.includes('Missing Tags')"


def drawn(title: str) -> str:
    """JavaScript: how many curves and marks the chart called `title` has."""
    return (
        f"{_CARDS}"
        ".map(card => Array.from(nodes(card)))"
        f".filter(card => card.some(n => n.nodeType === 3 && n.data.includes('{title}')))"
        ".flat().filter(n => n.tagName === 'path').length"
    )


def test_the_pages_have_their_charts_in_order_and_two_runs_are_two_lines(server, page, tmp_path):
    page.open(f"{server}#custom_scalars&_smoothingWeight=0", 1500, 2600)
    page.wait_for("all.some(n => n.nodeType === 3 && n.data.includes('weight norm, fc'))")
    for title in ("error in validation", "gradient norm", "share of the time that computes"):
        page.wait_for(f"{drawn(title)} > {_OF_AN_EMPTY_CHART}")
    text = page.text()
    for name in ("learning: ", "speed: ", "health: ", "validation: ", "stages: ", "under IMAGES"):
        assert name in text
    for name in ("GPU memory", "loss scale", "steps skipped", "excluded", "slowest rank"):
        assert name not in text  # there is none
    assert page.evaluate(f"all.filter(n => {_MISSING}).length") == 0
    assert page.screenshot(tmp_path / "pages.png").stat().st_size > 20_000
    titles = page.evaluate(f"{_CARDS}.map(card => card.title)")
    assert titles[:5] == [
        "error in validation, %", "error in training, %",
        "loss: \N{BLACK MEDIUM SQUARE} train \N{BLACK DIAMOND} val", "learning rate",
        "images per second, all ranks",
    ]  # fmt: skip
    assert len(titles) == len(set(titles))  # charts of two runs are the same ones
    legend = page.evaluate(
        "all.filter(n => n.className === 'match-list-entry')"
        ".map(n => n.textContent.trim().split(/\\s+/).join(' '))"
    )
    for mark, tag in (("\N{BLACK MEDIUM SQUARE}", "train"), ("\N{BLACK DIAMOND}", "val")):
        assert f"{mark} {tag}/loss (test/tensorboard)" in legend


def test_the_learning_page_fits_a_screen(server, page, tmp_path):
    page.open(f"{server}#custom_scalars&_smoothingWeight=0", 1280, 800)
    page.wait_for(f"{drawn('learning rate')} > {_OF_AN_EMPTY_CHART}")
    page.screenshot(tmp_path / "learning.png")
    ends = page.evaluate(f"{_CARDS}.map(card => card.getBoundingClientRect().bottom)")
    assert len([end for end in ends if 0 < end <= 800]) == 4


def test_pictures_of_training_mistakes_and_classes_are_shown(server, page, tmp_path):
    page.open(f"{server}#images", 1500, 1400)
    page.wait_for("all.filter(n => n.tagName === 'IMG' && n.naturalWidth > 0).length === 3")
    text = page.text()
    assert {"train/augmented", "val/mistakes", "val/classes"} <= set(text.split())
    assert page.screenshot(tmp_path / "images.png").stat().st_size > 20_000


def test_runs_are_compared_by_what_most_often_differs(server, page, tmp_path):
    page.open(f"{server}#hparams", 1700, 900)
    page.wait_for("all.some(n => n.nodeType === 3 && n.data.includes('val/best_top1'))")
    page.wait_for("all.some(n => n.nodeType === 3 && n.data.includes('0.037'))")
    ticked = "all.filter(n => n.tagName === 'PAPER-CHECKBOX' && n.checked)"
    assert page.evaluate(f"{ticked}.map(n => n.textContent.trim())")[:5] == [
        "data.global_batch_size", "model.network", "optim.base_lr", "run.seed", "schedule.epochs"
    ]  # fmt: skip
    text = page.text()
    for value in ("0.037000", "77.000", "CIFAR ResNet-8 A", "data.root"):
        assert value in text
    assert page.screenshot(tmp_path / "hparams.png").stat().st_size > 20_000
