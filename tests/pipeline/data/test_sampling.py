"""Balanced classes and repeated images: what stands at a position is a function of it alone."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.config import ConfigError, DataConfig
from pipeline.data.exclusion import Exclusions
from pipeline.data.order import GlobalOrder, epoch_permutation
from pipeline.data.sampling import BalancedOrder, make_order

COUNTS = (7, 1, 20)  # images of each class
N = sum(COUNTS)
SEED = 3


@dataclass
class Labelled:
    """As much of an image set as an order asks for."""

    labels: np.ndarray
    classes: list[str]
    split: str = "train"

    def __len__(self) -> int:
        return len(self.labels)


def labelled(counts: tuple[int, ...] = COUNTS) -> Labelled:
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    shuffled = np.random.default_rng(0).permutation(labels)
    return Labelled(shuffled, [f"class{label}" for label in range(len(counts))])


IMAGES = labelled()


def balanced(repeats: int = 1) -> BalancedOrder:
    return BalancedOrder(IMAGES, SEED, repeats)


def seen(order, positions) -> np.ndarray:
    return order.images(np.asarray(positions, dtype=np.int64))


def test_every_class_has_one_turn_in_each_round_in_an_order_of_its_own():
    labels = IMAGES.labels[seen(balanced(), range(300 * 3))].reshape(300, 3)
    assert (np.sort(labels, axis=1) == [0, 1, 2]).all()
    assert len(np.unique(labels, axis=0)) == 6, "all orders of three classes"


def test_a_class_shows_each_of_its_images_once_before_any_of_them_again():
    images = seen(balanced(), range(3 * 140))
    for label, count in enumerate(COUNTS):
        of_class = images[IMAGES.labels[images] == label].reshape(-1, count)
        assert (np.sort(of_class, axis=1) == np.flatnonzero(IMAGES.labels == label)).all()
        assert count == 1 or len(np.unique(of_class, axis=0)) > 1, "each pass has its own order"


@pytest.mark.parametrize("repeats", [1, 3])
def test_any_position_is_reached_without_those_before_it(repeats):
    whole = seen(balanced(repeats), range(500))
    positions = np.random.default_rng(1).permutation(500)
    found = np.concatenate([seen(balanced(repeats), part) for part in np.split(positions, 20)])
    np.testing.assert_array_equal(found, whole[positions])
    order = balanced(repeats)  # what is kept from batch to batch changes nothing
    found = np.concatenate([seen(order, part) for part in np.split(positions, 50)])
    np.testing.assert_array_equal(found, whole[positions])


def test_repeats_stand_next_to_each_other_and_an_epoch_has_fewer_images():
    order = GlobalOrder(N, SEED, repeats=3)
    for epoch in range(2):
        images = seen(order, range(epoch * N, (epoch + 1) * N))
        wanted = np.repeat(epoch_permutation(SEED, epoch, N), 3)[:N]
        np.testing.assert_array_equal(images, wanted)
        assert len(set(images.tolist())) == -(-N // 3)
    of_classes = seen(balanced(3), range(3 * 30))
    np.testing.assert_array_equal(of_classes, np.repeat(seen(balanced(), range(30)), 3))


def test_the_orders_digest_names_sampling_and_repeats():
    plain = DataConfig()
    changes = ({}, {"repeats": 2}, {"sampling": "balanced"}, {"sampling": "balanced", "repeats": 2})
    orders = [make_order(IMAGES, dataclasses.replace(plain, **one), SEED) for one in changes]
    assert orders[0].digest(1) == GlobalOrder(N, SEED).digest(1)
    assert len({order.digest(epoch) for order in orders for epoch in range(2)}) == 8
    # Golden: computed once with this code (numpy 2.4.6). If they change on purpose,
    # SCHEME_VERSION has to change with them.
    assert [order.digest(1) for order in orders] == [
        "432e2d4abb18519b", "ad30a5da97349891", "b79448a5efd652cd", "2a5e589dec508ae8",
    ]  # fmt: skip


def test_the_digest_of_many_images_in_few_classes_is_of_the_beginning():
    """Each round is drawn by itself: of a million images in two classes there are half a million,
    and a run would wait for all of them before it begins."""
    order = BalancedOrder(labelled((20_000, 20_000)), SEED)
    drawn, of_round = [], order._round
    order._round = lambda number: drawn.append(number) or of_round(number)
    names = {order.digest(epoch) for epoch in range(3)}
    assert len(names) == 3
    assert len(drawn) == len(set(drawn)) == 3 * (1 << 14) // 2
    assert drawn[-1] == 2 * 20_000 + (1 << 13) - 1


@pytest.mark.parametrize("repeats", [1, 2])
def test_an_excluded_image_gives_way_to_the_next_of_its_class(repeats):
    order = balanced(repeats)
    positions = np.arange(600, dtype=np.int64)
    plain = order.images(positions)
    bad = int(np.flatnonzero(IMAGES.labels == 2)[5])
    found = Exclusions().listed([bad], 300).images(order, positions)
    changed = np.flatnonzero(found != plain)
    assert changed.tolist() == [p for p in range(300, 600) if plain[p] == bad]
    assert len(changed) >= 4
    assert (IMAGES.labels[found[changed]] == 2).all()
    # The next in the class's order of that pass, from the end on to the beginning.
    of_class = [p for p in range(0, 600, repeats) if IMAGES.labels[plain[p]] == 2]
    for position in changed.tolist():
        turn = of_class.index(position - position % repeats)
        first = turn - turn % 20
        after = first + (turn + 1 - first) % 20
        if after < len(of_class):
            assert found[position] == plain[of_class[after]]


def test_repeats_of_an_excluded_image_are_replaced_alike():
    order = GlobalOrder(N, SEED, repeats=2)
    permutation = epoch_permutation(SEED, 0, N).tolist()
    found = Exclusions().listed(permutation[3:5], 0).images(order, np.arange(N))
    assert found[6:10].tolist() == [permutation[5]] * 4
    assert Counter(found.tolist())[permutation[5]] == 6


def test_a_class_without_images_left_is_named():
    only = int(np.flatnonzero(IMAGES.labels == 1)[0])
    without = Exclusions().listed([only], 0)
    with pytest.raises(ValueError, match="^no training images of class class1 are left, all are"):
        without.images(balanced(), np.arange(3, dtype=np.int64))


def test_a_class_without_images_is_refused():
    config = DataConfig(sampling="balanced")
    message = (
        "data.sampling=balanced takes each class in turn, and class class1 has no image in train; "
        "add some, remove the class, or set data.sampling=each"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_order(labelled((4, 0, 2)), config, SEED)
    make_order(labelled((4, 0, 2)), DataConfig(), SEED)  # elsewhere it does no harm


def test_repeats_of_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"data\.repeats=0 must be at least 1"):
        DataConfig(repeats=0)
