"""The loss of mixed, smoothed and weighted labels, by torch's own arithmetic on dense targets."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cifar_archives import write
from one_process import train_here
from torch import Tensor, tensor

from pipeline.config import OptimConfig
from pipeline.system.failure import Reported
from pipeline.train.loss import Loss, balanced_weights
from pipeline.train.mixing import Targets

# torch 2.14: F.cross_entropy with label_smoothing=0.1 of these logits against soft and hard labels.
LOGITS = tensor([[1.0, 2.0, 0.5, -1.0], [0.0, 0.3, 2.0, 1.0]])
SOFT = tensor([[0.7, 0.0, 0.3, 0.0], [0.0, 0.0, 0.7, 0.3]])
MIXED = Targets(tensor([0, 2]), tensor([2, 3]), 0.7)
SMOOTHED = OptimConfig(label_smoothing=0.1)


def test_the_cross_entropy_of_mixed_and_smoothed_labels_is_torchs():
    assert float(Loss(SMOOTHED)(LOGITS, MIXED)) == pytest.approx(1.2887401580810547, rel=1e-6)
    hard = Targets(tensor([0, 2]))
    assert float(Loss(SMOOTHED)(LOGITS, hard)) == pytest.approx(1.0862401723861694, rel=1e-6)


def test_without_mixing_it_is_torchs_own_call_to_the_bit():
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 10
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(Loss(SMOOTHED)(logits, Targets(labels)), wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.7, 0.2, 0.0, 1.0])
def test_bce_is_that_of_the_dense_smoothed_target_in_the_mean(smoothing, share):
    """The targets of timm's BinaryCrossEntropy and its Mixup: 1 - smoothing + smoothing / classes
    for the label, smoothing / classes for all others, mixed."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    targets = Targets(tensor([0, 1, 2, 3, 4, 0]), tensor([1, 1, 0, 4, 0, 2]), share)
    own, other = (torch.eye(5)[one] for one in (targets.labels, targets.partners))
    dense = (share * own + (1 - share) * other) * (1 - smoothing) + smoothing / 5
    wanted = F.binary_cross_entropy_with_logits(logits, dense)
    found = Loss(OptimConfig(loss="bce", label_smoothing=smoothing))(logits, targets)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(one, logits)[0] for one in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_bce_by_hand():
    """ln(1 + exp(-x)) of the label, ln(1 + exp(x)) of each other class."""
    logits, targets = tensor([[2.0, -1.0, 0.0]]), Targets(tensor([0]))
    wanted = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)) / 3
    assert float(Loss(OptimConfig(loss="bce"))(logits, targets)) == pytest.approx(wanted)


def test_balanced_weights_are_scikit_learns():
    """compute_class_weight("balanced", ...): n / (classes * bincount); 1 in the mean of images."""
    labels = np.array([0, 0, 0, 1, 2, 2], dtype=np.int32)
    weights = balanced_weights(labels, ["a", "b", "c"])
    assert weights.tolist() == pytest.approx([6 / 9, 6 / 3, 6 / 6])
    assert weights[labels].mean() == pytest.approx(1.0)


WEIGHTS = tensor([2.0, 0.5, 1.0, 3.0])


def test_weighted_labels_are_torchs_for_dense_targets():
    """Which divides by the number of images too, not by the sum of weights."""
    found = Loss(OptimConfig(), WEIGHTS)(LOGITS, MIXED)
    torch.testing.assert_close(found, F.cross_entropy(LOGITS, SOFT, weight=WEIGHTS))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_an_image_counts_by_the_weight_of_its_label_smoothed_or_not(loss):
    optim = OptimConfig(loss=loss, label_smoothing=0.1)
    each = [
        float(Loss(optim)(LOGITS[n : n + 1], Targets(tensor([label]))))
        for n, label in enumerate((0, 2))
    ]
    found = Loss(optim, WEIGHTS)(LOGITS, Targets(tensor([0, 2])))
    assert float(found) == pytest.approx((2 * each[0] + 1 * each[1]) / 2)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_mean_over_micro_batches_is_that_of_the_whole_batch(loss):
    """So that it does not matter how ranks and accumulation share it."""
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(4))
    labels = tensor([0, 0, 0, 0, 1, 2, 3, 3])
    of = Loss(OptimConfig(loss=loss), WEIGHTS)

    def mean(first: int, end: int) -> Tensor:
        return of(logits[first:end], Targets(labels[first:end], labels[first:end].flip(0), 0.7))

    parts = torch.stack([mean(first, first + 2) for first in range(0, 8, 2)])
    pairs = labels.view(4, 2).flip(1).reshape(8)
    torch.testing.assert_close(parts.mean(), of(logits, Targets(labels, pairs, 0.7)))


def test_half_precision_logits_are_taken_in_float():
    for optim in (OptimConfig(loss="bce"), OptimConfig()):
        found = Loss(optim, WEIGHTS)(LOGITS.bfloat16(), MIXED)
        torch.testing.assert_close(found, Loss(optim, WEIGHTS)(LOGITS.bfloat16().float(), MIXED))
        assert found.dtype == torch.float32


def test_a_class_without_images_cannot_be_balanced_and_is_named(tmp_path):
    write(tmp_path, batches=(8,))  # the ten classes in turn
    options = ("--data.dataset=cifar-10", "--data.train_crop=padded", "--model.depth=8")
    with pytest.raises(Reported, match=r"class_weights=balanced .*, which is 0 for ship, truck; a"):
        train_here(tmp_path, tmp_path / "runs", *options, "--optim.class_weights=balanced")


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_gpu_is_not_waited_for(loss):
    of = Loss(OptimConfig(loss=loss, label_smoothing=0.1), WEIGHTS.cuda())
    logits = LOGITS.cuda().requires_grad_()
    targets = Targets(MIXED.labels.cuda(), MIXED.labels.cuda().roll(1), 0.7)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = of(logits, targets)
        found.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wanted = Loss(OptimConfig(loss=loss, label_smoothing=0.1), WEIGHTS)(
        LOGITS, Targets(MIXED.labels, MIXED.labels.roll(1), 0.7)
    )
    torch.testing.assert_close(found.cpu(), wanted)
