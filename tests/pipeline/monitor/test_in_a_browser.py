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
from one_process import train_here

OPTIONS = ("--schedule.epochs=3", "--data.global_batch_size=10", "--data.local_batch_size=10")
_OF_AN_EMPTY_CHART = 5  # its axes and buttons
_URL = re.compile(r"http://\S+:\d+/")


@pytest.fixture(scope="module")
def server(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of TensorBoard over one small run of three epochs."""
    runs = tmp_path_factory.mktemp("runs")
    train_here(small_data, runs, *OPTIONS, "--run.log_every_steps=2")
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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} is installed")
    with open_browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def drawn(title: str) -> str:
    """JavaScript: how many curves and marks the chart called `title` has."""
    return (
        "all.filter(n => n.tagName && n.tagName.endsWith('-CHART-CARD'))"
        ".map(card => Array.from(nodes(card)))"
        f".filter(card => card.some(n => n.nodeType === 3 && n.data.includes('{title}')))"
        ".flat().filter(n => n.tagName === 'path').length"
    )


def test_the_four_pages_have_their_charts(server, page, tmp_path):
    page.open(f"{server}#custom_scalars&_smoothingWeight=0", 1500, 2600)
    page.wait_for("all.some(n => n.nodeType === 3 && n.data.includes('seconds waited for data'))")
    for title in ("error, as the paper draws it", "gradient norm by stage", "stacked up to 1"):
        page.wait_for(f"{drawn(title)} > {_OF_AN_EMPTY_CHART}")
    text = page.text()
    for name in (
        "learning",
        "speed",
        "health",
        "data",
        "train/error",
        "val/error",
        "weight_norm_fc",
    ):
        assert name in text
    assert "GPU memory" not in text  # there is none
    assert page.screenshot(tmp_path / "pages.png").stat().st_size > 20_000


def test_pictures_of_training_mistakes_and_classes_are_shown(server, page, tmp_path):
    page.open(f"{server}#images", 1500, 1400)
    page.wait_for("all.filter(n => n.tagName === 'IMG' && n.naturalWidth > 0).length === 3")
    text = page.text()
    assert {"train/augmented", "val/mistakes", "val/classes"} <= set(text.split())
    assert page.screenshot(tmp_path / "images.png").stat().st_size > 20_000


def test_runs_are_compared_by_their_settings_and_results(server, page, tmp_path):
    page.open(f"{server}#hparams", 1500, 900)
    page.wait_for("all.some(n => n.nodeType === 3 && n.data.includes('val/best_top1'))")
    page.wait_for("all.some(n => n.nodeType === 3 && n.data.includes('model.depth'))")
    assert page.screenshot(tmp_path / "hparams.png").stat().st_size > 20_000
