"""Counting, windows that can be saved, and the line of metrics that all ranks make together."""

import math
import re

import pytest
import torch
from torch import tensor

from pipeline.ranks.heartbeat import Heartbeat
from pipeline.train.metrics import (
    TrainWindow,
    correct_counts,
    of_all_ranks,
    of_this_rank,
    run_is_taken,
)
from pipeline.train.monitor.charts import Shown, layout
from pipeline.train.phases import PHASES, Phases
from pipeline.train.state import spread

CPU = torch.device("cpu")


def ranked(*best_first: int, classes: int = 10) -> torch.Tensor:
    """Logits (classes,) whose best classes are `best_first`, in that order."""
    logits = torch.full((classes,), -9.0)
    for place, label in enumerate(best_first):
        logits[label] = 9.0 - place
    return logits


@pytest.mark.parametrize(
    ("logits", "labels", "counts"),
    [
        ([ranked(3, 1, 2, 4, 5), ranked(1, 2, 4, 5, 3), ranked(1, 2, 4, 5, 6)], [3] * 3, [1, 2]),
        ([ranked(0, 1, 2, 3, 4)] * 3, [0, -1, -1], [1, 1]),  # padding counts in neither
        ([ranked(0, 1, 2, 3, 4)] * 3, [-1, -1, -1], [0, 0]),
        ([ranked(0, 1, 2, classes=5), ranked(1, 0, 2, classes=5)], [0, 2], [1]),  # of five
        ([torch.zeros(50)], [0], [1, 1]),  # of equal ones the first, whatever topk names
    ],
)
def test_top1_and_top5_are_counted_as_integers(logits, labels, counts):
    found = correct_counts(torch.stack(logits), tensor(labels))
    assert (found.tolist(), found.dtype) == (counts, torch.int64)


def filled(window: TrainWindow, steps: range, images: int = 4) -> None:
    generator = torch.Generator().manual_seed(9)
    for step in range(steps.stop):
        loss = torch.rand((), generator=generator)
        logits = torch.rand(images, 10, generator=generator)
        if step in steps:
            window.add(step, loss, logits, torch.arange(images))


def test_a_window_weighs_each_batch_by_its_images():
    window = TrainWindow(4, CPU)
    counts = [
        window.add(0, tensor(1.0), torch.stack([ranked(0)]), tensor([0])),
        window.add(1, tensor(3.0), torch.stack([ranked(1), ranked(0), ranked(5)]), tensor([1] * 3)),
    ]
    assert [one[0].item() for one in counts] == [1, 1]
    assert window.fold() is None
    assert window.sums.tolist()[:2] == [10.0, 2.0]
    assert window.sums[3] == 4


def test_folding_at_any_step_and_taking_the_sums_up_again_gives_the_same_bits():
    whole, first, second = (TrainWindow(12, CPU) for _ in range(3))
    filled(whole, range(12))
    whole.fold()
    filled(first, range(5))
    first.fold()
    second.sums.copy_(first.sums)
    filled(second, range(5, 12))
    second.fold()
    assert torch.equal(second.sums, whole.sums)
    assert second.timings()[0] == 7 * 4  # what was taken up again does not count as speed


def test_the_first_loss_that_is_not_finite_is_found_with_its_step():
    window = TrainWindow(5, CPU)
    logits, labels = torch.zeros(2, 10), tensor([0, 1])
    for step, loss in enumerate([1.0, 2.0, math.inf, math.nan]):
        window.add(step + 30, tensor(loss), logits, labels)
    assert window.fold() == (32, math.inf)
    window.restart()
    window.add(34, tensor(1.0), logits, labels)
    assert window.fold() is None


def test_a_pause_is_left_out_of_the_seconds_and_a_restart_forgets_everything():
    window = TrainWindow(3, CPU)
    filled(window, range(3))
    window.fold()
    before = window.timings()[1]
    window.pause(50.0)
    assert before - window.timings()[1] == pytest.approx(50.0, abs=1.0)
    assert window.timings()[2] == 50.0
    window.restart()
    assert window.sums.tolist() == [0, 0, 0, 0]
    assert (window.timings()[0], window.timings()[2]) == (0, 0)
    filled(window, range(3))  # there is room for as many rows again
    window.fold()
    assert window.sums[3] == 12


# The line that ranks make together.


def rank(
    images: int, seconds: float, paused: float = 0.0, memory: tuple[float, ...] = (0.0, 0.0, 0.0),
    **phases: float,
) -> list[float]:  # fmt: skip
    """What a rank gathers: 8 images a unit of loss, a quarter right."""
    counts = [2.0 * images, images / 4, images / 2, images]
    return [
        *counts,
        images,
        seconds,
        paused,
        *(phases.get(p, 0.0) for p in PHASES),
        0.5,
        *memory,
        0.0,
    ]


def line(*ranks: list[float]) -> dict:
    return of_all_ranks(torch.tensor(ranks, dtype=torch.float64))


def shares(found: dict) -> dict:
    return {name[6:]: value for name, value in found.items() if name.startswith("share_")}


@pytest.mark.parametrize("taken", [False, True])
def test_all_ranks_learn_from_the_line_that_another_start_has_the_run(taken):
    heartbeat, window = Heartbeat(), TrainWindow(1, CPU)
    rows = [
        of_this_rank(window, Phases(heartbeat, CPU), heartbeat, False, found)
        for found in (taken, False)
    ]
    assert run_is_taken(torch.stack(rows)) is taken


def test_counts_are_of_all_ranks_and_times_their_mean():
    found = line(rank(8, 2.0, data_wait=0.1), rank(8, 2.0, data_wait=0.3))
    assert (found["loss"], found["top1"], found["top5"]) == (2.0, 0.25, 0.5)
    assert found["images_per_sec"] == 8.0
    assert found["data_wait_sec"] == pytest.approx(0.2)
    assert found["data_wait_share"] == pytest.approx(0.1)
    assert "gpu_memory_torch_bytes" not in found


def test_the_slowest_rank_is_the_one_that_waits_least_for_others():
    quick = rank(100, 10.0, forward=2.0, backward=3.0, communication=4.0, agreement=1.0)
    slow = rank(100, 10.0, forward=5.0, backward=4.75, communication=0.25)
    found = line(quick, slow, quick)
    assert found["slowest_rank"] == 1
    assert found["slowest_images_per_sec"] == pytest.approx(100 / 9.75)
    assert found["rank_images_per_sec"] == pytest.approx((20 + 100 / 9.75 + 20) / 3)
    assert found["images_per_sec"] == pytest.approx(30.0)
    assert found["communication_share"] == pytest.approx((4 + 0.25 + 4) / 30)


def test_shares_are_of_all_the_time_with_saving_and_validating():
    spent = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5, "checkpoint": 1.0}
    found = line(rank(10, 6.0, 4.0, **spent, validation=3.0))
    assert shares(found) == pytest.approx(
        {
            "data_wait": 0.0, "forward": 0.1, "backward": 0.2, "communication": 0.0,
            "agreement": 0.0, "optimizer": 0.05, "checkpoint": 0.1, "validation": 0.3, "rest": 0.25,
        }
    )  # fmt: skip
    assert found["images_per_sec"] == pytest.approx(10 / 6)


def test_shares_never_sum_to_more_than_the_time_there_was():
    found = shares(line(rank(10, 1.0, 1.0, forward=0.75, backward=0.5, checkpoint=1.25)))
    assert (found["forward"], found["checkpoint"], found["rest"]) == (0.3, 0.5, 0.0)
    assert sum(found.values()) == pytest.approx(1.0)


def test_memory_is_that_of_the_fullest_rank_and_has_its_chart():
    found = line(rank(1, 1.0, memory=(3e9, 2e8, 1e9)), rank(1, 1.0, memory=(2e9, 4e8, 5e9)))
    memory = {name: value for name, value in found.items() if name.startswith("gpu_memory_")}
    assert memory == {
        "gpu_memory_torch_bytes": 3e9, "gpu_memory_dali_bytes": 4e8, "gpu_memory_other_bytes": 5e9,
    }  # fmt: skip
    pages = layout(Shown(fields=tuple(memory)))
    charts = [chart for page in pages.category for chart in page.chart]
    (drawn,) = [chart for chart in charts if chart.title.startswith("GPU memory")]
    assert all(re.search(drawn.multiline.tag[0], f"train/{name}") for name in memory)


def test_what_a_rank_gathers_is_what_the_line_reads():
    window, heartbeat = TrainWindow(1, CPU), Heartbeat()
    window.add(0, tensor(3.0), torch.eye(4, 10), tensor([0, 1, 9, 9]))
    window.fold()
    window.pause(-1.0)  # as if it had begun a second ago
    found = of_all_ranks(
        of_this_rank(window, Phases(heartbeat, CPU), heartbeat, dali_on_gpu=False).unsqueeze(0)
    )
    assert (found["loss"], found["top1"]) == (3.0, 0.5)
    assert 0 < found["images_per_sec"] < 4


# BN's running statistics of several ranks.


@pytest.mark.parametrize(
    ("rows", "channels", "wanted"),
    [
        ([[1.0, -2.0, 3.0, 0.5, 4.0, 1.0]] * 4, [3, 3], 0.0),  # means of 3 channels, variances
        # Two layers, of 2 and 1 channels: only the second's mean differs, by 1 of deviation 4.
        (
            [[0.0, 1.0, 1.0, 1.0, 3.0, 16.0], [0.0, 1.0, 1.0, 1.0, 5.0, 16.0]],
            [2, 2, 1, 1],
            math.sqrt((1 / 4) ** 2 / 3),
        ),
    ],
)
def test_the_spread_of_statistics_is_in_standard_deviations_of_an_activation(
    rows, channels, wanted
):
    assert spread(tensor(rows), channels) == pytest.approx(wanted, rel=1e-4)
