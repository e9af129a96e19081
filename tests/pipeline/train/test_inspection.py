"""What a validation shows: hits by class, and its most certain mistakes; no count is changed."""

import numpy as np
import pytest
import torch
from torch import tensor

from pipeline.data.dali import Batch
from pipeline.evaluate.result import Tally
from pipeline.ranks.world import World
from pipeline.train.metrics import correct_counts, predicted_classes
from pipeline.train.precision import Precision
from pipeline.train.validation import Inspection, count, validate

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


def test_hits_are_counted_by_class_and_change_no_other_count():
    batches = drawn()
    seen = Inspection(4, keep_mistakes=True)
    arguments = (Given(), batches, Precision("off", CPU), World(), 59)
    assert validate(*arguments, seen) == validate(*arguments)
    labels = torch.cat([batch.labels for batch in batches])
    right = torch.cat([Given()(batch.images).argmax(1) for batch in batches]) == labels
    assert seen.images.tolist() == [int((labels == c).sum()) for c in range(4)]
    assert seen.hits.tolist() == [int((right & (labels == c)).sum()) for c in range(4)]
    assert seen.images.sum() == 58
    found = seen.class_top1()
    assert found["class_top1_worst"] <= found["class_top1_median"] <= found["class_top1_best"]
    assert found["class_top1_best"] == pytest.approx(float((seen.hits / seen.images).max()))


def test_hits_by_class_sum_up_to_the_top1_count_where_scores_are_equal():
    """As bf16 makes them. Of equal scores `topk` names another one than the first."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 3, (64, 50), generator=draw).float()
    assert (scores.topk(5).indices[:, 0] != scores.argmax(1)).any()  # else this shows nothing
    labels = scores.argmax(1)
    labels[:8] = (labels[:8] + 1) % 50
    batch = Batch(torch.zeros(64, 1, 1, 1), labels, np.arange(64))
    seen, tally = Inspection(50, keep_mistakes=True), Tally(50, CPU)
    for observer in (seen, tally):
        counted = count([(batch, scores, scores)], World(), 64, "this test", observer)
    top1, top5 = correct_counts(scores, labels).tolist()
    assert (counted.top1_correct, counted.top5_correct) == (top1, top5)
    assert (int(seen.hits.sum()), int(seen.images.sum())) == (top1, 64)
    assert tally.confusion.diagonal().tolist() == seen.hits.tolist()
    assert int(tally.top5.sum()) == top5
    assert top1 == 56


def test_a_network_that_finds_all_classes_alike_predicts_the_first():
    scores = torch.zeros(2, 50)
    assert predicted_classes(scores).tolist() == [0, 0]
    assert correct_counts(scores, tensor([0, 49])).tolist()[0] == 1
    assert correct_counts(scores[:1], tensor([0])).tolist() == [1, 1]  # whatever five topk names


def test_the_most_certain_mistakes_of_all_batches_are_kept():
    batches = drawn()
    seen = Inspection(4, keep_mistakes=True)
    for batch in batches:
        seen.add(batch, Given()(batch.images))
    images, answers = seen.found()
    wrong = []
    for batch in batches:
        shares = torch.softmax(Given()(batch.images), 1)
        for label, row in zip(batch.labels.tolist(), shares, strict=True):
            if label >= 0 and int(row.argmax()) != label:
                wrong.append((label, int(row.argmax()), float(row.max())))
    assert len(wrong) > 16
    assert answers == sorted(wrong, key=lambda one: -one[2])[:15]
    guessed = Given()(images).argmax(1).tolist()
    assert guessed == [predicted for _, predicted, _ in answers]


def test_a_mistake_never_names_the_true_class_where_rounding_makes_shares_equal():
    logits = tensor([[0.0, 1e-9, -9.0, -9.0]])
    shares = torch.softmax(logits, 1)[0]
    assert shares[0] == shares[1]  # else this shows nothing
    seen = Inspection(4, keep_mistakes=True)
    seen.add(batch_of([0], logits), logits)
    assert seen.found()[1] == [(0, 1, float(shares[1]))]


def test_without_mistakes_or_batches_there_is_nothing_to_show():
    seen = Inspection(4, keep_mistakes=True)
    assert seen.counts().tolist() == [0] * 8
    assert seen.class_top1() == {}
    assert seen.found()[1] == []
    seen.add(batch_of([0, 1, -1], 5 * torch.eye(4)[:3]), 5 * torch.eye(4)[:3])
    assert seen.found()[1] == []
    assert len(seen.found()[0]) == 0
