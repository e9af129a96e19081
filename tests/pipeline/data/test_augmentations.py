"""Which operations change a view, and how strongly: torchvision's sets, by words of their own."""

import numpy as np
import pytest
from torchvision_views import SIGNED, WITHOUT_STRENGTH, ranges

from pipeline.config import ConfigError, DataConfig
from pipeline.data.augmentations import BINS, Augmentation, Operation
from pipeline.data.crops import RandomResizedCrop
from pipeline.data.effects import NOTHING, Effects, train_effects
from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import Stream, random_words
from pipeline.data.stream import TrainStream, train_stream

SHAPE = (64, 80)
TRIVIAL, RAND = Augmentation("trivial"), Augmentation("rand", 2, 9)


def planned(augmentation: Augmentation, count: int, first: int = 0):
    words = random_words(7, Stream.AUGMENT_KIND, first, count, augmentation.words_per_position)
    return augmentation.plan(words, SHAPE)


@pytest.mark.parametrize("kind", ["trivial", "rand"])
@pytest.mark.parametrize("sign", [1, -1])
def test_strengths_are_torchvisions_at_every_magnitude(kind, sign):
    wanted = ranges(kind, SHAPE)
    magnitudes, signs = np.arange(BINS, dtype=np.float64), np.full(BINS, float(sign))
    for operation in Operation:
        operations = np.full(BINS, operation, np.int32)
        found = Augmentation(kind).strengths(operations, magnitudes, signs, SHAPE)
        if operation in WITHOUT_STRENGTH:
            assert not found.any()
            continue
        strengths = wanted[operation].double().numpy() * (sign if operation in SIGNED else 1)
        if operation in (Operation.TRANSLATE_X, Operation.TRANSLATE_Y):
            # torch.linspace gives 15.99999 for 16 on CPUs with long vectors, and 16 on others.
            strengths = np.trunc(strengths + 1e-4 * sign)
        np.testing.assert_allclose(found, strengths, rtol=1e-6, atol=1e-5)
    assert wanted.keys() | WITHOUT_STRENGTH == set(Operation)


def test_trivial_takes_one_operation_and_any_magnitude_equally_often():
    operations, strengths = planned(TRIVIAL, 40_000)
    assert operations.shape == strengths.shape == (40_000, 1)
    assert operations.dtype == np.int32
    counts = np.bincount(operations[:, 0], minlength=14)
    assert len(counts) == 14
    assert np.abs(counts / 40_000 * 14 - 1).max() < 0.06  # three deviations
    rotated = strengths[operations == Operation.ROTATE]
    values, counts = np.unique(np.round(rotated, 6), return_counts=True)
    np.testing.assert_allclose(values, np.arange(-30, 31) * 4.5)
    zero = values == 0  # of either sign
    assert abs(counts[zero][0] / len(rotated) * 31 - 1) < 0.5
    assert np.abs(counts[~zero] / len(rotated) * 62 - 1).max() < 0.7


def test_rand_takes_several_of_one_magnitude_with_either_sign():
    operations, strengths = planned(Augmentation("rand", 3, 10), 5000)
    assert operations.shape == (5000, 3)
    assert (operations[:, 0] != operations[:, 1]).mean() > 0.9, "each is chosen for itself"
    assert set(np.round(strengths[operations == Operation.ROTATE], 6)) == {10.0, -10.0}
    assert set(strengths[operations == Operation.POSTERIZE]) == {7.0}  # of 6.67 bits
    assert set(strengths[operations == Operation.SOLARIZE]) == {170.0}


def test_a_deviation_spreads_the_magnitude_of_each_operation():
    operations, strengths = planned(Augmentation("rand", 2, 21, std=1.5), 40_000)
    found = 255 - strengths[operations == Operation.SOLARIZE]
    magnitudes = found / 255 * 30
    assert abs(magnitudes.mean() - 21) < 0.1
    assert abs(magnitudes.std() - 1.5) < 0.1
    operations, strengths = planned(Augmentation("rand", 2, 29, std=9.0), 1000)
    edges = Augmentation("rand").strengths(
        np.full(2, Operation.ROTATE, np.int32), np.array([0.0, 30.0]), np.ones(2), SHAPE
    )
    rotated = np.abs(strengths[operations == Operation.ROTATE])
    assert rotated.min() >= edges[0]
    assert rotated.max() == edges[1], "clipped at the end"


@pytest.mark.parametrize("augmentation", [TRIVIAL, Augmentation("rand", 3, 15, 2.0)])
def test_a_position_does_not_depend_on_its_batch(augmentation):
    operations, strengths = planned(augmentation, 64, first=100)
    for start, stop in ((0, 1), (1, 7), (7, 64)):
        part = planned(augmentation, stop - start, first=100 + start)
        np.testing.assert_array_equal(part[0], operations[start:stop])
        np.testing.assert_array_equal(part[1], strengths[start:stop])


def test_words_are_spent_as_in_scheme_version_1():
    # Golden: computed once with this code (numpy 2.4.6). If they change on purpose, SCHEME_VERSION
    # has to change with them.
    operations, strengths = planned(RAND, 4)
    assert operations.tolist() == [[5, 3], [2, 3], [13, 7], [13, 11]]
    wanted = [[-9.0, 10.0], [0.09, 10.0], [0.0, 0.27], [0.0, 178.5]]
    np.testing.assert_allclose(strengths, wanted, rtol=1e-12)


def test_crops_stay_as_they_are_and_each_effect_is_as_it_is_alone(small_data):
    manifest, crop, positions = open_manifest(small_data, "train"), RandomResizedCrop(32), range(60)
    at = np.array(positions)
    both = train_effects(DataConfig(augment="trivial", erase=0.5))
    plans = [
        TrainStream(manifest, crop, 3, effects=effects).select(at).plan
        for effects in (NOTHING, Effects(both.augmentation), Effects(None, both.erasing), both)
    ]
    for plan in plans[1:]:
        for name in ("boxes", "flips", "offsets"):
            np.testing.assert_array_equal(getattr(plan, name), getattr(plans[0], name))
    assert plans[0].operations is plans[0].strengths is plans[0].erased is None
    np.testing.assert_array_equal(plans[3].operations, plans[1].operations)
    np.testing.assert_array_equal(plans[3].strengths, plans[1].strengths)
    np.testing.assert_array_equal(plans[3].erased, plans[2].erased)


def test_the_configuration_chooses_the_operations(small_data):
    manifest = open_manifest(small_data, "train")
    rand = {"augment_ops": 3, "augment_magnitude": 21, "augment_std": 1.5}
    assert train_stream(manifest, DataConfig(**rand), 0).effects == NOTHING
    found = train_stream(manifest, DataConfig(augment="trivial", **rand), 0).effects
    assert found == Effects(Augmentation("trivial"))
    found = train_stream(manifest, DataConfig(augment="rand", **rand), 0).effects
    assert found == Effects(Augmentation("rand", 3, 21, 1.5))


@pytest.mark.parametrize("settings, message", [
    ({"augment_ops": 0}, r"data\.augment_ops=0 must be at least 1"),
    ({"augment_magnitude": 31}, r"data\.augment_magnitude=31 must lie in \[0, 30\]"),
    ({"augment_std": -0.5}, r"data\.augment_std=-0\.5 must be at least 0"),
    ({"augment": "trivial", "mean": "pixel"},
     r"data\.augment=trivial moves pixels .* data\.mean=pixel .*; set data\.mean=channel, or"),
    ({"augment": "rand", "dataset": "cifar-10", "train_crop": "padded", "image_size": 32,
      "short_side": (32, 32)},
     r"data\.augment=rand is not for data\.dataset=cifar-10, .*; set data\.augment=none"),
])  # fmt: skip
def test_what_cannot_be_augmented_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)
