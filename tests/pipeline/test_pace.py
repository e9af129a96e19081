"""A line of metrics made of what the ranks gather: counts, speeds, and shares of the time."""

import pytest
import torch

from pipeline.metrics import TrainWindow
from pipeline.pace import of_all_ranks
from pipeline.phases import PHASES


def rank(images: int, seconds: float, paused: float = 0.0, **phases: float) -> list[float]:
    """What a rank gathers: 8 images a unit of loss, a quarter right."""
    counts = [2.0 * images, images / 4, images / 2, images]
    return [*counts, images, seconds, paused, *(phases.get(p, 0.0) for p in PHASES), 0.5, 0.0, 0.0]


def line(*ranks: list[float]) -> dict:
    return of_all_ranks(torch.tensor(ranks, dtype=torch.float64))


def test_counts_are_of_all_ranks_and_times_their_mean():
    found = line(rank(8, 2.0, data=0.1), rank(8, 2.0, data=0.3))
    assert (found["loss"], found["top1"], found["top5"]) == (2.0, 0.25, 0.5)
    assert found["images_per_sec"] == 8.0
    assert found["data_wait_sec"] == pytest.approx(0.2)
    assert found["data_wait_share"] == pytest.approx(0.1)


def test_the_slowest_rank_is_the_one_that_waits_least_for_others():
    quick = rank(100, 10.0, forward=2.0, backward=3.0, average=4.0, agree=1.0)
    slow = rank(100, 10.0, forward=5.0, backward=4.75, average=0.25)
    found = line(quick, slow, quick)
    assert found["slowest_rank"] == 1
    assert found["slowest_images_per_sec"] == pytest.approx(100 / 9.75)
    assert found["rank_images_per_sec"] == pytest.approx((20 + 100 / 9.75 + 20) / 3)
    assert found["images_per_sec"] == pytest.approx(30.0)
    assert found["communication_share"] == pytest.approx((4 + 0.25 + 4) / 30)


def test_shares_are_of_all_the_time_with_saving_and_validating():
    found = line(rank(10, 6.0, 4.0, forward=1.0, backward=2.0, update=0.5, save=1.0, validate=3.0))
    shares = {name[6:]: value for name, value in found.items() if name.startswith("share_")}
    assert shares == pytest.approx(
        {
            "data_wait": 0.0, "forward": 0.1, "backward": 0.2, "communication": 0.0,
            "agreement": 0.0, "optimizer": 0.05, "checkpoint": 0.1, "validation": 0.3, "rest": 0.25,
        }
    )  # fmt: skip
    assert found["images_per_sec"] == pytest.approx(10 / 6)


def test_shares_never_sum_to_more_than_the_time_there_was():
    found = line(rank(10, 1.0, 1.0, forward=0.75, backward=0.5, save=1.25))
    shares = {name[6:]: value for name, value in found.items() if name.startswith("share_")}
    assert (shares["forward"], shares["checkpoint"], shares["rest"]) == (0.3, 0.5, 0.0)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_memory_stands_in_the_line_of_a_gpu_only():
    assert "gpu_memory_torch_bytes" not in line(rank(1, 1.0))
    first, second = rank(1, 1.0)[:-2], rank(1, 1.0)[:-2]
    found = line([*first, 3e9, 1e9], [*second, 2e9, 5e9])
    assert (found["gpu_memory_torch_bytes"], found["gpu_memory_other_bytes"]) == (3e9, 5e9)


def test_a_windows_vector_is_what_the_line_reads():
    window = TrainWindow(1, torch.device("cpu"))
    window.add(0, torch.tensor(3.0), torch.eye(4, 10), torch.tensor([0, 1, 9, 9]))
    window.fold()
    vector = torch.cat([window.sums, window.timings()]).tolist()
    found = line([*vector, *[0.0] * len(PHASES), 1.5, 0.0, 0.0])
    assert (found["loss"], found["top1"], found["heartbeat_sec"]) == (3.0, 0.5, 1.5)
