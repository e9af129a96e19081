"""The warm-up that waits for the training error: when it ends, and what has no say in it.

One run in one process, and the same run that 2 ranks begin, that is stopped inside a window and
that one rank finishes.
"""

import math
import re
import shutil

import jobs
import pytest
from jobs import SABOTEUR
from one_process import train_here
from run_files import checkpoint_steps, metrics, newest_checkpoint

# Of the steps 0 to 99 about 85% of the images are wrong, of 100 to 199 about 75%.
GLOBAL_BATCH, STEPS, STOPPED_AT, PEAK = 8, 205, 150, 8.0 * 8 / 256
OPTIONS = (
    "--data.local_batch_size=4", "--model.family=cifar", "--model.depth=8", "--optim.base_lr=8",
    "--schedule.epochs=null", "--schedule.drop_epochs=null", "--schedule.drop_steps=[203]",
    "--schedule.warmup_start_factor=0.5", "--schedule.warmup_until_error=0.8",
)  # fmt: skip
LENGTH = f"--schedule.steps={STEPS}"


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """The folder of the run that nothing interrupted, with metrics of every step."""
    runs = tmp_path_factory.mktemp("whole")
    yield train_here(small_data, runs, *OPTIONS, LENGTH, "--run.log_every_steps=1")
    shutil.rmtree(runs)


@pytest.fixture(scope="module")
def stopped(small_data, tmp_path_factory):
    """The folder of the same run, shorter, that 2 ranks left before step 150, and their output."""
    runs = tmp_path_factory.mktemp("stopped")
    settings = [
        *jobs.small_settings(small_data, runs), *OPTIONS, "--schedule.steps=160",
        "--run.log_every_steps=7",
    ]  # fmt: skip
    ranks = jobs.run([str(SABOTEUR), f"stop-step:{STOPPED_AT - 1}:1", *settings], ranks=2)
    assert ranks.codes == [75, 75], ranks.text
    yield runs / "test"
    shutil.rmtree(runs)


def train_lines(run):
    """The lines of metrics of training by the number of steps done."""
    return {line["step"]: line for line in metrics(run) if line["event"] == "train"}


def hits(lines, first, last):
    """Right answers of the steps [first, last) of lines of one step each."""
    return sum(round(lines[step + 1]["top1"] * GLOBAL_BATCH) for step in range(first, last))


def test_it_ends_after_the_first_fixed_window_below_the_error(whole):
    lines = train_lines(whole)
    errors = [1 - hits(lines, first, first + 100) / (100 * GLOBAL_BATCH) for first in (0, 100)]
    assert errors[0] >= 0.8 > errors[1], "this run shows nothing; choose another lr"
    assert f"schedule: lr {PEAK:g}, warm-up at {PEAK / 2:g} until the training err" in log_of(whole)
    said = re.findall(r"warm-up ended at step (\d+), training error (\S+)%", log_of(whole))
    assert said == [("200", f"{100 * errors[1]:.2f}")]
    # Line n is that of step n - 1: the peak is in force from step 200 on, until the drop.
    expected = [PEAK / 2] * 200 + [PEAK] * 3 + [PEAK / 10] * 2
    assert [lines[step + 1]["lr"] for step in range(STEPS)] == pytest.approx(expected, rel=1e-12)


def log_of(run):
    return (run / "log.txt").read_text(encoding="utf-8")


def test_a_run_in_steps_is_validated_after_each_epoch_and_at_its_end(whole):
    validated = [line["step"] for line in metrics(whole) if line["event"] == "val"]
    epochs = STEPS * GLOBAL_BATCH // 50
    assert validated == [*(math.ceil(50 * e / GLOBAL_BATCH) for e in range(1, epochs + 1)), STEPS]
    assert checkpoint_steps(whole)[-1] == STEPS
    assert newest_checkpoint(whole)["warmup"] == {"end": 200, "hits": 0}


def test_a_checkpoint_holds_what_all_ranks_have_counted_in_the_open_window(whole, stopped):
    content = newest_checkpoint(stopped)
    assert content["step"] == STOPPED_AT
    assert content["warmup"] == {"end": None, "hits": hits(train_lines(whole), 100, STOPPED_AT)}


def test_stopped_inside_a_window_it_ends_at_the_same_step_on_other_ranks(
    small_data, whole, stopped, tmp_path
):
    shutil.copytree(stopped, tmp_path / "test")
    # The run has grown, too: from 160 steps to 205.
    run = train_here(small_data, tmp_path, *OPTIONS, LENGTH, "--run.log_every_steps=1")
    found, wanted = train_lines(run), train_lines(whole)
    after = range(STOPPED_AT + 1, STEPS + 1)
    # The first line after the stop began before it, and counts other images.
    assert [found[step]["lr"] for step in after] == [wanted[step]["lr"] for step in after]
    assert [found[step]["loss"] for step in after[1:]] == pytest.approx(
        [wanted[step]["loss"] for step in after[1:]], rel=1e-12
    )
    told = [re.findall(r"warm-up ended.*", log_of(one)) for one in (run, whole)]
    assert told[0] == told[1] != []
    assert [line["lr"] for step, line in found.items() if step < STOPPED_AT] == [PEAK / 2] * 21
