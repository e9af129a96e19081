"""Counting: top-1 and top-5, padding, windows that can be saved, and what is left off the clock."""

import math

import pytest
import torch
from torch import tensor

from pipeline.train.metrics import TrainWindow, Validation, correct_counts

CPU = torch.device("cpu")


def ranked(*best_first: int, classes: int = 10) -> torch.Tensor:
    """Logits (classes,) whose best classes are `best_first`, in that order."""
    logits = torch.full((classes,), -9.0)
    for place, label in enumerate(best_first):
        logits[label] = 9.0 - place
    return logits


def test_top1_and_top5_are_counted_as_integers():
    logits = torch.stack(
        [ranked(3, 1, 2, 4, 5), ranked(1, 3, 2, 4, 5), ranked(1, 2, 4, 5, 3), ranked(1, 2, 4, 5, 6)]
    )
    counts = correct_counts(logits, tensor([3, 3, 3, 3]))
    assert counts.tolist() == [1, 3]
    assert counts.dtype == torch.int64


def test_padding_counts_in_neither():
    logits = torch.stack([ranked(0, 1, 2, 3, 4)] * 3)
    assert correct_counts(logits, tensor([0, -1, -1])).tolist() == [1, 1]
    assert correct_counts(logits, tensor([-1, -1, -1])).tolist() == [0, 0]


def test_with_fewer_than_five_classes_top5_means_any():
    logits = torch.stack([ranked(0, 1, 2, classes=3), ranked(1, 0, 2, classes=3)])
    assert correct_counts(logits, tensor([0, 2])).tolist() == [1, 2]


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
    whole = TrainWindow(12, CPU)
    filled(whole, range(12))
    whole.fold()
    first, second = TrainWindow(12, CPU), TrainWindow(12, CPU)
    filled(first, range(5))
    first.fold()
    second.sums.copy_(first.sums)
    filled(second, range(5, 12))
    second.fold()
    assert torch.equal(second.sums, whole.sums)


def test_the_first_loss_that_is_not_finite_is_found_with_its_step():
    window = TrainWindow(5, CPU)
    logits, labels = torch.zeros(2, 10), tensor([0, 1])
    for step, loss in enumerate([1.0, 2.0, math.inf, math.nan]):
        window.add(step + 30, tensor(loss), logits, labels)
    assert window.fold() == (32, math.inf)
    window.restart()
    window.add(34, tensor(1.0), logits, labels)
    assert window.fold() is None


def test_restarting_forgets_everything():
    window = TrainWindow(3, CPU)
    filled(window, range(3))
    window.fold()
    window.pause(2.0)
    window.restart()
    assert window.sums.tolist() == [0, 0, 0, 0]
    assert window.timings()[0] == 0
    assert window.timings()[2] == 0
    filled(window, range(3))  # there is room for as many rows again
    window.fold()
    assert window.sums[3] == 12


def test_images_taken_up_again_do_not_count_as_speed():
    window = TrainWindow(3, CPU)
    window.sums.copy_(tensor([1.0, 1.0, 1.0, 100.0]))
    filled(window, range(2))
    window.fold()
    assert window.sums[3] == 108
    assert window.timings()[0] == 8


def test_a_pause_is_left_out_of_the_seconds():
    window = TrainWindow(1, CPU)
    before = window.timings()[1]
    window.pause(50.0)
    assert before - window.timings()[1] == pytest.approx(50.0, abs=1.0)
    assert window.timings()[2] == 50.0


def test_a_validation_gives_fractions_of_its_images():
    result = Validation(images=30, top1_correct=3, top5_correct=18, loss=1.0)
    assert (result.top1, result.top5) == (0.1, 0.6)
