"""What a validation got wrong: hits by class, and its surest mistakes; no count is changed."""

import numpy as np
import pytest
import torch
from torch import tensor

from pipeline.data.dali import Batch
from pipeline.evaluate.result import Tally
from pipeline.ranks.world import World
from pipeline.train.metrics import correct_counts
from pipeline.train.precision import Precision
from pipeline.train.validation import ErrorAnalysis, count, validate

CPU = torch.device("cpu")


class Given(torch.nn.Module):
    """Gives the logits that an image begins with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4]


def batch_of(labels: list[int], logits: torch.Tensor) -> Batch:
    images = torch.zeros(len(labels), 3, 2, 2)
    images.view(len(labels), -1)[:, :4] = logits
    return Batch(images, tensor(labels), np.arange(len(labels)))


def drawn(batches: int = 5, size: int = 12) -> list[Batch]:
    draw = torch.Generator().manual_seed(3)
    labels = [torch.randint(0, 4, (size,), generator=draw).tolist() for _ in range(batches)]
    labels[-1][-2:] = [-1, -2]  # padding, and an image that cannot be read
    return [batch_of(of, 3 * torch.randn(size, 4, generator=draw)) for of in labels]


def test_hits_by_class_and_the_most_certain_mistakes_change_no_count():
    batches = drawn()
    analysis = ErrorAnalysis(4, keep_mistakes=True, device=CPU)
    arguments = (Given(), batches, Precision("off", CPU), World(), 59, 4)
    assert validate(*arguments, analysis) == validate(*arguments)
    answers = [
        (label, int(row.argmax()), float(row.max()))
        for batch in batches
        for label, row in zip(batch.labels.tolist(), Given()(batch.images).softmax(1), strict=True)
        if label >= 0
    ]
    assert analysis.images.tolist() == [sum(a == c for a, _, _ in answers) for c in range(4)]
    assert analysis.hits.tolist() == [sum(a == b == c for a, b, _ in answers) for c in range(4)]
    assert analysis.images.sum() == 58
    found = analysis.class_top1()
    assert found["class_top1_worst"] <= found["class_top1_median"] <= found["class_top1_best"]
    assert found["class_top1_best"] == pytest.approx(float((analysis.hits / analysis.images).max()))
    wrong = [answer for answer in answers if answer[0] != answer[1]]
    assert len(wrong) > 16
    images, mistakes = analysis.mistakes()
    assert mistakes == sorted(wrong, key=lambda one: -one[2])[:15]
    assert Given()(images).argmax(1).tolist() == [predicted for _, predicted, _ in mistakes]


def test_hits_by_class_sum_up_to_the_top1_count_where_scores_are_equal():
    """As bf16 makes them. Of equal scores `topk` names another one than the first."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 3, (64, 50), generator=draw).float()
    assert (scores.topk(5).indices[:, 0] != scores.argmax(1)).any()  # else this shows nothing
    labels = scores.argmax(1)
    labels[:8] = (labels[:8] + 1) % 50
    batch = Batch(torch.zeros(64, 1, 1, 1), labels, np.arange(64))
    analysis, tally = ErrorAnalysis(50, keep_mistakes=True, device=CPU), Tally(50, CPU)
    for observer in (analysis, tally):
        counted = count([(batch, scores, scores)], World(), 64, 50, "this test", observer)
    top1, top5 = correct_counts(scores, labels).tolist()
    assert (counted.top1_correct, counted.top5_correct) == (top1, top5)
    assert (int(analysis.hits.sum()), int(analysis.images.sum())) == (top1, 64)
    assert tally.confusion.diagonal().tolist() == analysis.hits.tolist()
    assert int(tally.top5.sum()) == top5
    assert top1 == 56


def test_a_mistake_never_names_the_true_class_where_rounding_makes_shares_equal():
    logits = tensor([[0.0, 1e-9, -9.0, -9.0]])
    shares = torch.softmax(logits, 1)[0]
    assert shares[0] == shares[1]  # else this shows nothing
    analysis = ErrorAnalysis(4, keep_mistakes=True, device=CPU)
    analysis.add(batch_of([0], logits), logits)
    assert analysis.mistakes()[1] == [(0, 1, float(shares[1]))]


def test_without_mistakes_or_batches_there_is_nothing_to_show():
    analysis = ErrorAnalysis(4, keep_mistakes=True, device=CPU)
    assert analysis.counts().tolist() == [0] * 8
    assert analysis.class_top1() == {}
    assert analysis.mistakes()[1] == []
    analysis.add(batch_of([0, 1, -1], 5 * torch.eye(4)[:3]), 5 * torch.eye(4)[:3])
    images, mistakes = analysis.mistakes()
    assert (len(images), mistakes) == (0, [])
