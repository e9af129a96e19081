"""What an epoch looks like without some of its images."""

import numpy as np
import pytest

from pipeline.data.exclusion import Exclusions
from pipeline.data.order import GlobalOrder, epoch_permutation

N, SEED = 10, 3
POSITIONS = np.arange(3 * N, dtype=np.int64)


def images(exclusions: Exclusions) -> list[int]:
    return GlobalOrder(N, SEED).images(POSITIONS, exclusions).tolist()


def test_a_position_of_an_excluded_image_takes_the_next_of_its_epoch_and_no_other_changes():
    order = epoch_permutation(SEED, 1, N).tolist()
    bad = order[4]
    plain, without = images(Exclusions()), images(Exclusions({bad: N}))
    changed = [p for p in range(3 * N) if plain[p] != without[p]]
    assert changed == [N + 4, 2 * N + epoch_permutation(SEED, 2, N).tolist().index(bad)]
    assert without[N + 4] == order[5]
    assert without[:N] == plain[:N], "excluded from epoch 1 on only"


def test_the_last_position_of_an_epoch_takes_its_first_image():
    order = epoch_permutation(SEED, 0, N).tolist()
    assert images(Exclusions({order[-1]: 0}))[N - 1] == order[0]


def test_neighbours_that_are_excluded_too_are_passed_over():
    order = epoch_permutation(SEED, 0, N).tolist()
    found = images(Exclusions({order[2]: 0, order[3]: 0, order[4]: 0}))
    assert found[2:5] == [order[5]] * 3


def test_an_image_excluded_later_may_still_replace_one_before():
    order = epoch_permutation(SEED, 0, N).tolist()
    assert images(Exclusions({order[2]: 2, order[3]: 3}))[2] == order[3]


def test_any_slice_of_positions_gives_the_same_images():
    exclusions = Exclusions({1: 0, 2: 12, 7: 25})
    order = GlobalOrder(N, SEED)
    slices = [order.images(POSITIONS[start : start + 4], exclusions) for start in range(0, 30, 4)]
    assert np.concatenate(slices).tolist() == images(exclusions)


def test_of_two_positions_for_an_image_the_first_holds_whatever_the_order():
    one = Exclusions().extended([(5, 20)]).extended([(5, 8), (2, 9)])
    other = Exclusions().extended([(2, 9), (5, 8)]).extended([(5, 20)])
    assert one.pairs() == other.pairs() == [(2, 9), (5, 8)]
    assert repr(one) == repr(other)


def test_no_image_left_is_an_error():
    with pytest.raises(ValueError, match="all 10 training images are excluded"):
        images(Exclusions(dict.fromkeys(range(N), 0)))
