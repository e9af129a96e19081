"""Averaged scores and exact counts, against a plain loop in numpy."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluate.members import Network, scored
from pipeline.evaluate.result import Tally
from pipeline.ranks.world import World
from pipeline.train.metrics import Validation, correct_counts
from pipeline.train.precision import Precision
from pipeline.train.validation import count, logits_of

CPU = torch.device("cpu")
CLASSES = 7


def network(seed: int) -> Network:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)).eval()
    return partial(logits_of, model, Precision("off", CPU))


def batches(views: int, images: int = 20, chunk: int = 6):
    """Chunks of `images`, each `views` times in a row with other pixels."""
    torch.manual_seed(5)
    labels = torch.arange(images) * 3 % CLASSES
    for start in range(0, images, chunk):
        own = labels[start : start + chunk]
        for _ in range(views):
            pixels = torch.randn(len(own), 3, 2, 2)
            yield SimpleNamespace(images=pixels, labels=own, positions=None)


def counted(
    networks, loader, views: int, images: int = 20, classes: int = CLASSES
) -> tuple[Validation, Tally]:
    tally = Tally(classes, CPU)
    found = scored(networks, loader, views, World())
    return count(found, World(), images, classes, "the evaluation", tally), tally


@pytest.mark.parametrize(("views", "checkpoints"), [(1, 1), (4, 1), (1, 3), (4, 3)])
def test_probabilities_are_averaged_over_views_and_networks(views, checkpoints):
    networks = [network(seed) for seed in range(checkpoints)]
    totals, tally = counted(networks, batches(views), views)
    confusion, top5, losses = np.zeros((CLASSES, CLASSES), int), np.zeros(CLASSES, int), []
    given = list(batches(views))
    for start in range(0, len(given), views):
        mean = 0.0
        for batch in given[start : start + views]:
            for one in networks:
                logits = one(batch.images).detach().double().numpy()
                powers = np.exp(logits - logits.max(1, keepdims=True))
                mean = mean + powers / powers.sum(1, keepdims=True) / (views * checkpoints)
        for label, scores in zip(batch.labels.tolist(), mean, strict=True):
            ranked = np.argsort(-scores)
            confusion[label, ranked[0]] += 1
            top5[label] += label in ranked[:5]
            losses.append(-np.log(scores[label]))
    assert tally.confusion.tolist() == confusion.tolist()
    assert tally.top5.tolist() == top5.tolist()
    assert totals.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert (totals.images, totals.top1_correct) == (20, int(np.trace(confusion)))
    assert 0 < totals.top1_correct < totals.top5_correct == top5.sum() < 20


class Said(nn.Module):
    """Gives what it is shown: the logits are the images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_padding_counts_nowhere_and_an_unreadable_image_as_wrong():
    labels = torch.tensor([3, -1, -2, 0, -1])
    scores = torch.randn(5, CLASSES)
    scores[0, 3] = scores[3, 0] = 9.0
    shown = SimpleNamespace(images=scores, labels=labels)
    totals, tally = counted([partial(logits_of, Said(), Precision("off", CPU))], [shown], 1, 3)
    assert totals.top1_correct == correct_counts(scores, labels)[0] == 2
    assert totals.top5_correct == correct_counts(scores, labels)[1] == 2
    assert (totals.images, tally.unreadable, int(tally.confusion.sum())) == (3, 1, 2)
    log_probabilities = scores.log_softmax(1)
    mean = -(log_probabilities[0, 3] + log_probabilities[3, 0]) / 2
    assert totals.loss == pytest.approx(float(mean))


def test_an_image_that_turns_out_unreadable_in_a_later_view_counts_as_wrong():
    first, *others = list(batches(3, images=4, chunk=4))
    later = SimpleNamespace(images=first.images, labels=torch.tensor([-2, *first.labels[1:]]))
    totals, tally = counted([network(0)], [first, others[0], later], 3, images=4)
    assert (totals.images, tally.unreadable, int(tally.confusion.sum())) == (4, 1, 3)
