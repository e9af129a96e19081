"""Mixup and cutmix: the pixels and labels of torchvision's, and draws that are a function of the
seed and the position."""

import math

import numpy as np
import pytest
import torch
from torch import tensor

from pipeline.config import DataConfig
from pipeline.data.batches import Partition
from pipeline.data.dali import Batch
from pipeline.train.mixing import Mix, Mixing, Targets, cut, mixed, symmetric_beta

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def batch_of(images: torch.Tensor, first: int = 0) -> Batch:
    count = len(images)
    labels = torch.arange(count, device=images.device) % 10
    return Batch(images, labels, np.arange(first, first + count))


def noise(count: int, side: int = 8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))
    return images.to(dtype).to(memory_format=torch.channels_last)


def mixing(mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0, images: int = 8) -> Mixing:
    data = DataConfig(mixup=mixup, cutmix=cutmix)
    return Mixing(data, seed, Partition(images, images, 0, 1))


def dense(targets: Targets, classes: int) -> torch.Tensor:
    """The mixed targets (B, classes) as one-hot labels make them."""
    assert targets.partners is not None
    own, other = (torch.eye(classes)[one] for one in (targets.labels, targets.partners))
    return targets.share * own + (1 - targets.share) * other


# torchvision 0.29's v2.MixUp and v2.CutMix on two images of 3 x 6 x 8 pixels, 0.00, 0.01, ...,
# with labels 0 and 2 of 4, lambda 0.3; the box's centre is (4, 3).
RAMP = torch.arange(2 * 3 * 6 * 8).reshape(2, 3, 6, 8) / 100


def test_mixup_has_torchvisions_pixels_and_labels():
    found = mixed(RAMP, Mix(0.3))[:, 0, 0, :4]
    torch.testing.assert_close(
        found, tensor([[1.008, 1.018, 1.028, 1.038], [0.432, 0.442, 0.452, 0.462]])
    )
    targets = Targets(tensor([0, 2]), tensor([2, 0]), 0.3)
    torch.testing.assert_close(dense(targets, 4), tensor([[0.3, 0, 0.7, 0], [0.7, 0, 0.3, 0]]))


def test_cutmix_has_torchvisions_box_labels_and_pixels():
    mix = cut(0.3, (4, 3), height=6, width=8)
    assert mix == Mix(0.5, (1, 1, 7, 5))
    targets = Targets(tensor([0, 2]), tensor([2, 0]), mix.share)
    torch.testing.assert_close(dense(targets, 4), tensor([[0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0]]))
    wanted = RAMP.clone()
    wanted[:, :, 1:5, 1:7] = RAMP.roll(1, 0)[:, :, 1:5, 1:7]
    assert torch.equal(mixed(RAMP, mix), wanted)


def test_a_box_is_cut_at_the_edges_and_the_share_is_what_is_left():
    assert cut(0.0, (0, 0), 6, 8) == Mix(1 - 4 * 3 / 48, (0, 0, 4, 3))
    assert cut(0.0, (7, 5), 6, 8) == Mix(1 - 5 * 4 / 48, (3, 2, 8, 6))
    assert cut(1.0, (4, 3), 6, 8).share == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("mix", [Mix(0.25), Mix(0.75, (2, 1, 6, 5))])
def test_each_image_is_mixed_with_one_half_a_batch_away_in_its_own_layout(mix, dtype):
    images = noise(5, dtype=dtype)
    before = images.clone()
    found = mixed(images, mix)
    assert torch.equal(images, before)
    assert (found.dtype, found.stride()) == (images.dtype, images.stride())
    for number in range(5):
        own, partner = images[number].float(), images[number - 2].float()
        if mix.box is None:
            wanted = mix.share * own + (1 - mix.share) * partner
        else:
            wanted = own.clone()
            wanted[:, 1:5, 2:6] = partner[:, 1:5, 2:6]
        torch.testing.assert_close(found[number].float(), wanted, rtol=0, atol=1e-3)


def test_the_targets_are_those_of_the_images_partners():
    both = mixing(mixup=1.0, cutmix=1.0)
    for first in range(0, 64, 8):
        batch = batch_of(noise(8), first)
        images, targets = both(batch)
        mix = both.draw(first, 8, 8)
        if mix.share == 1.0:
            continue
        assert torch.equal(images, mixed(batch.images, mix))
        assert targets.labels is batch.labels and targets.share == mix.share
        assert targets.partners is not None
        assert targets.partners.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_without_mixing_a_batch_stays_what_it_is():
    batch = batch_of(noise(8))
    images, targets = mixing()(batch)
    assert images is batch.images and targets.larger is batch.labels and targets.partners is None
    assert mixing().shown(batch) is batch


def test_hits_are_counted_on_the_label_of_the_larger_share():
    labels, partners = tensor([1, 2]), tensor([2, 1])
    larger = {share: Targets(labels, partners, share).larger for share in (0.0, 0.49, 0.5, 1.0)}
    assert [one is partners for one in larger.values()] == [True, True, False, False]
    assert Targets(labels).larger is labels


# Drawn by this code on 2026-11-29. Another number means that a run of the same seed, stopped and
# begun again, mixes otherwise: raise order.SCHEME_VERSION then.
MIXUP = {
    0: 16777216, 1: 6180060, 256: 16461642, 512: 1083, 1024: 16217810, 1000000: 1929635,
    2**40: 16325597,
}  # fmt: skip
CUTMIX = {
    0: (179, 107, 197, 123), 1: (0, 82, 90, 192), 256: (0, 20, 68, 104), 512: (65, 65, 224, 192),
    1024: (156, 0, 224, 59), 1000000: (77, 0, 224, 139), 2**40: (157, 0, 224, 82),
}  # fmt: skip
BOTH = "cmmmccmcccccmmmc"


def test_draws_are_pinned_bit_for_bit():
    for position, grains in MIXUP.items():
        assert mixing(mixup=0.2, seed=7).draw(position, 224, 224) == Mix(grains / 2**24)
    for position, box in CUTMIX.items():
        assert mixing(cutmix=1.0, seed=7).draw(position, 192, 224).box == box
    kinds = [mixing(0.2, 1.0, seed=7).draw(256 * n, 224, 224).box is not None for n in range(16)]
    assert "".join("cm"[not kind] for kind in kinds) == BOTH


def test_a_draw_depends_on_seed_and_position_alone():
    one, other = mixing(0.4, 1.0, seed=1), mixing(0.4, 1.0, seed=2)
    first = [one.draw(p, 32, 32) for p in range(0, 400, 4)]
    assert first == [one.draw(p, 32, 32) for p in range(0, 400, 4)]
    assert len(set(first)) > 90
    assert first != [other.draw(p, 32, 32) for p in range(0, 400, 4)]
    assert 30 < sum(mix.box is None for mix in first) < 70  # with probability 1/2


CUMULATIVE = {
    0.5: lambda x: 2 / math.pi * math.asin(math.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
}


def betas(alpha: float, count: int = 4000) -> list[float]:
    draw = mixing(mixup=alpha, seed=11).draw
    return sorted(draw(position, 8, 8).share for position in range(count))


@pytest.mark.parametrize("alpha", CUMULATIVE)
def test_shares_have_the_beta_distribution(alpha):
    """The greatest distance to the cumulative distribution, 99.9% of which are below 0.031."""
    found, below = betas(alpha), CUMULATIVE[alpha]
    steps = [((n + 0.5) / len(found), below(share)) for n, share in enumerate(found)]
    assert max(abs(a - b) for a, b in steps) < 0.031


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 30.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha):
    found = np.array(betas(alpha))
    variance = 1 / (4 * (2 * alpha + 1))
    assert found.mean() == pytest.approx(0.5, abs=4 * math.sqrt(variance / len(found)))
    assert found.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("alpha", [5e-324, 1e-3, 0.2, 1e3, 1e300])
@pytest.mark.parametrize("words", [(0, 0), (2**64 - 1, 2**64 - 1), (0, 2**62), (2**63, 2**62)])
def test_no_alpha_and_no_words_leave_the_unit_interval(alpha, words):
    share = symmetric_beta(alpha, words)
    assert 0.0 <= share <= 1.0 and (share * 2**24).is_integer()


def test_boxes_lie_in_the_image_and_reach_every_edge():
    draw = mixing(cutmix=1.0, seed=5).draw
    mixes = [draw(position, 6, 8) for position in range(500)]
    boxes = [mix.box for mix in mixes if mix.box is not None]
    assert len(boxes) == len(mixes)
    assert all(0 <= x1 <= x2 <= 8 and 0 <= y1 <= y2 <= 6 for x1, y1, x2, y2 in boxes)
    assert all(
        mix.share == 1 - (x2 - x1) * (y2 - y1) / 48
        for mix, (x1, y1, x2, y2) in zip(mixes, boxes, strict=True)
    )
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes if x2 - x1 == 2]
    assert {x for x, _ in centres} == set(range(1, 8))


@pytest.mark.parametrize(
    ("alphas", "named"),
    [
        ({"cutmix": 1.0}, r"data\.cutmix=1: "),
        ({"mixup": 0.2}, r"data\.mixup=0\.2: "),
        ({"mixup": 0.2, "cutmix": 1.0}, r"data\.mixup=0\.2 and data\.cutmix=1: "),
    ],
)
def test_a_micro_batch_of_one_image_cannot_be_mixed(alphas, named):
    data = DataConfig(global_batch_size=8, local_batch_size=16, **alphas)
    with pytest.raises(ValueError, match=named) as error:
        Mixing(data, 0, Partition(8, 1, 3, 8))
    for part in ("global_batch_size=8 on 8 ranks with data.local_batch_size=16", "fewer ranks"):
        assert part in str(error.value)
    Mixing(DataConfig(global_batch_size=8, local_batch_size=1), 0, Partition(8, 1, 0, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gpu_is_not_waited_for_and_mixes_the_same(dtype):
    both, batches = mixing(1.0, 1.0), [batch_of(noise(8, 32, dtype), 8 * n) for n in range(12)]
    on_gpu = [Batch(b.images.cuda(), b.labels.cuda(), b.positions) for b in batches]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [both(batch) for batch in on_gpu]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, (images, targets) in zip(batches, found, strict=True):
        wanted, labels = both(batch)
        torch.testing.assert_close(images.cpu(), wanted, rtol=0, atol=1e-3)
        assert images.stride() == wanted.stride() and targets.share == labels.share
        assert targets.larger.tolist() == labels.larger.tolist()
