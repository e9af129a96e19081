"""What an epoch looks like without some of its images."""

import numpy as np
import pytest

from pipeline.data.exclusion import Exclusions
from pipeline.data.order import GlobalOrder, epoch_permutation

N, SEED = 10, 3
POSITIONS = np.arange(3 * N, dtype=np.int64)


def images(exclusions: Exclusions) -> list[int]:
    return exclusions.images(GlobalOrder(N, SEED), POSITIONS).tolist()


def test_a_position_of_an_excluded_image_takes_the_next_of_its_epoch_and_no_other_changes():
    order = epoch_permutation(SEED, 1, N).tolist()
    bad = order[4]
    plain, without = images(Exclusions()), images(Exclusions().listed([bad], N))
    changed = [p for p in range(3 * N) if plain[p] != without[p]]
    assert changed == [N + 4, 2 * N + epoch_permutation(SEED, 2, N).tolist().index(bad)]
    assert without[N + 4] == order[5]
    assert without[:N] == plain[:N], "excluded from epoch 1 on only"


def test_the_last_position_of_an_epoch_takes_its_first_image():
    order = epoch_permutation(SEED, 0, N).tolist()
    assert images(Exclusions().listed([order[-1]], 0))[N - 1] == order[0]


def test_neighbours_that_are_excluded_too_are_passed_over():
    order = epoch_permutation(SEED, 0, N).tolist()
    found = images(Exclusions().listed(order[2:5], 0))
    assert found[2:5] == [order[5]] * 3


def test_an_image_that_failed_is_out_there_and_from_the_next_step_on_but_not_between():
    exclusions = Exclusions().failed([(7, 9)], images_per_step=4)
    held = [position for position in range(20) if exclusions.holds(7, position)]
    assert held == [9, *range(12, 20)]


def test_a_replacement_that_fails_in_turn_is_replaced_there():
    order = epoch_permutation(SEED, 0, N).tolist()
    exclusions = Exclusions().failed([(order[2], 2), (order[3], 2)], images_per_step=8)
    found = images(exclusions)
    assert found[2] == order[4]
    assert found[3] == order[3], "its own position is in the same step, where it has not failed"


def test_what_ranks_find_in_a_step_comes_to_the_same_in_any_order():
    found = [(5, 20), (5, 17), (2, 19), (2, 30)]
    together = Exclusions().failed(found, 8)
    apart = Exclusions()
    for one in reversed(found):
        apart = apart.failed([one], 8)
    assert together.rows() == apart.rows() == [[2, 24, 19, 30], [5, 24, 17, 20]]
    assert repr(together) == repr(apart)
    assert Exclusions(together.rows()).rows() == together.rows()


def test_any_slice_of_positions_gives_the_same_images():
    exclusions = Exclusions([[1, 0], [2, 12], [7, 28, 25]])
    order = GlobalOrder(N, SEED)
    slices = [exclusions.images(order, POSITIONS[start : start + 4]) for start in range(0, 30, 4)]
    assert np.concatenate(slices).tolist() == images(exclusions)


def test_no_image_left_is_an_error():
    with pytest.raises(ValueError, match="^no training images are left, all are excluded; repair"):
        images(Exclusions().listed(range(N), 0))
