"""A line of metrics made of what the ranks gather: counts, speeds, and shares of the time."""

import pytest
import torch

from pipeline.train.metrics import TrainWindow
from pipeline.train.monitor.board import layout
from pipeline.train.metrics import of_all_ranks
from pipeline.train.phases import PHASES

NO_GPU = [0.0, 0.0, 0.0]


def rank(images: int, seconds: float, paused: float = 0.0, **phases: float) -> list[float]:
    """What a rank gathers: 8 images a unit of loss, a quarter right."""
    counts = [2.0 * images, images / 4, images / 2, images]
    return [*counts, images, seconds, paused, *(phases.get(p, 0.0) for p in PHASES), 0.5, *NO_GPU]


def line(*ranks: list[float]) -> dict:
    return of_all_ranks(torch.tensor(ranks, dtype=torch.float64))


def test_counts_are_of_all_ranks_and_times_their_mean():
    found = line(rank(8, 2.0, data_wait=0.1), rank(8, 2.0, data_wait=0.3))
    assert (found["loss"], found["top1"], found["top5"]) == (2.0, 0.25, 0.5)
    assert found["images_per_sec"] == 8.0
    assert found["data_wait_sec"] == pytest.approx(0.2)
    assert found["data_wait_share"] == pytest.approx(0.1)


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
    shares = {name[6:]: value for name, value in found.items() if name.startswith("share_")}
    assert shares == pytest.approx(
        {
            "data_wait": 0.0, "forward": 0.1, "backward": 0.2, "communication": 0.0,
            "agreement": 0.0, "optimizer": 0.05, "checkpoint": 0.1, "validation": 0.3, "rest": 0.25,
        }
    )  # fmt: skip
    assert found["images_per_sec"] == pytest.approx(10 / 6)


def test_shares_never_sum_to_more_than_the_time_there_was():
    found = line(rank(10, 1.0, 1.0, forward=0.75, backward=0.5, checkpoint=1.25))
    shares = {name[6:]: value for name, value in found.items() if name.startswith("share_")}
    assert (shares["forward"], shares["checkpoint"], shares["rest"]) == (0.3, 0.5, 0.0)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_memory_stands_in_the_line_of_a_gpu_only():
    assert "gpu_memory_torch_bytes" not in line(rank(1, 1.0))
    first, second = rank(1, 1.0)[:-3], rank(1, 1.0)[:-3]
    found = line([*first, 3e9, 2e8, 1e9], [*second, 2e9, 4e8, 5e9])
    memory = {name: value for name, value in found.items() if name.startswith("gpu_memory_")}
    assert memory == {
        "gpu_memory_torch_bytes": 3e9, "gpu_memory_dali_bytes": 4e8, "gpu_memory_other_bytes": 5e9,
    }  # fmt: skip
    charts = [chart for page in layout(gpu=True).category for chart in page.chart]
    (drawn,) = [chart for chart in charts if chart.title.startswith("GPU memory, bytes: ")]
    assert [line.value for line in drawn.margin.series] == [f"train/{name}" for name in memory]


def test_a_windows_vector_is_what_the_line_reads():
    window = TrainWindow(1, torch.device("cpu"))
    window.add(0, torch.tensor(3.0), torch.eye(4, 10), torch.tensor([0, 1, 9, 9]))
    window.fold()
    vector = torch.cat([window.sums, window.timings()]).tolist()
    found = line([*vector, *[0.0] * len(PHASES), 1.5, *NO_GPU])
    assert (found["loss"], found["top1"], found["heartbeat_sec"]) == (3.0, 0.5, 1.5)
