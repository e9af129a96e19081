"""Orders that a configuration asks for: of all images, or of classes in turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.data.images import ImageSet
from pipeline.data.order import GlobalOrder, Order, Stream, permutation

_NAMED = 1 << 14  # positions in a digest: each round is drawn by itself, 0.1 ms for each
_ROUNDS = 0  # in the place of a class's number, which is one more


class BalancedOrder(Order):
    """Every class equally often, whatever its number of images.

    With C classes, turn t = p // repeats is of round t // C, in which every class has one turn, in
    an order of its own. A class shows its images in orders of its own: in round q, one of n images
    shows the one at place q % n of its order number q // n. An epoch is N positions long, as
    everywhere, and not each image once: rounds go on across epochs. Each image stands `repeats`
    times in a row.

    Any position is reached without those before it. What is kept are the orders in use, 4 bytes an
    image: a class's order is made when it is first met, in O(n log n), and used n times.
    """

    def __init__(self, image_set: ImageSet, seed: int, repeats: int = 1) -> None:
        """Raises `ValueError` for a class without images."""
        super().__init__(len(image_set), seed)
        self._repeats, self._classes = repeats, list(image_set.classes)
        counts = np.bincount(image_set.labels, minlength=len(self._classes))
        if not counts.all():
            name = self._classes[int(np.argmin(counts))]
            raise ValueError(
                f"data.sampling=balanced takes each class in turn, and class {name} has no image "
                f"in {image_set.split}; add some, remove the class, or set data.sampling=each"
            )
        self._counts = counts.astype(np.int64)
        self._members = np.argsort(image_set.labels, kind="stable").astype(np.int32)
        self._begins = np.cumsum(self._counts) - self._counts
        self._lock = threading.Lock()
        self._rounds: dict[int, NDArray[np.int32]] = {}
        self._orders: dict[int, tuple[int, NDArray[np.int32]]] = {}

    def images(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image indices at `positions`, both (B,) int64."""
        labels, rounds = self._turns(positions)
        passes, places = np.divmod(rounds, self._counts[labels])
        images = np.empty(len(positions), dtype=np.int64)
        # Sorted by class and pass, so that each order is looked up once.
        sorted_by = np.lexsort((passes, labels))
        changes = np.diff(labels[sorted_by]).astype(bool) | np.diff(passes[sorted_by]).astype(bool)
        for chosen in np.split(sorted_by, np.flatnonzero(changes) + 1):
            if len(chosen):
                order = self._order(int(labels[chosen[0]]), int(passes[chosen[0]]))
                images[chosen] = order[places[chosen]]
        return images

    def replacements(self, position: int) -> Iterator[int]:
        """Yield the images after the one at `position` in its class's order, from the end on to the
        beginning."""
        labels, rounds = self._turns(np.array([position], dtype=np.int64))
        count = int(self._counts[labels[0]])
        number, place = divmod(int(rounds[0]), count)
        order = self._order(int(labels[0]), number)
        for step in range(1, count):
            yield int(order[(place + step) % count])

    def drawn_from(self, position: int) -> str:
        """Return in words what the image at `position` is one of."""
        label = int(self._turns(np.array([position], dtype=np.int64))[0][0])
        return f"training images of class {self._classes[label]}"

    def digest(self, epoch: int) -> str:
        """Return 16 hex digits that name the order of the beginning of an epoch, for the log."""
        return self._digest_from(epoch * self.num_images, min(self.num_images, _NAMED))

    def _turns(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the class at each position and its round, both (B,) int64."""
        rounds, turns = np.divmod(positions // self._repeats, len(self._classes))
        numbers, rows = np.unique(rounds, return_inverse=True)
        orders = np.stack([self._round(int(number)) for number in numbers])
        return orders[rows, turns].astype(np.int64), rounds

    def _round(self, number: int) -> NDArray[np.int32]:
        """Return the order of the classes in a round, (C,)."""
        with self._lock:
            found = self._rounds.get(number)
        if found is None:
            place = (number, _ROUNDS)
            found = permutation(self.seed, Stream.CLASS_ORDER, place, len(self._classes))
            with self._lock:
                # Batches are prepared nearly in order: a few rounds suffice.
                if len(self._rounds) >= 4:
                    del self._rounds[min(self._rounds)]
                self._rounds[number] = found
        return found

    def _order(self, label: int, number: int) -> NDArray[np.int32]:
        """Return order `number` of the images of a class, (n,)."""
        with self._lock:
            kept, found = self._orders.get(label, (-1, self._members))
        if kept != number:
            begin, count = int(self._begins[label]), int(self._counts[label])
            chosen = permutation(self.seed, Stream.CLASS_ORDER, (number, label + 1), count)
            found = self._members[begin : begin + count][chosen]
            with self._lock:
                self._orders[label] = number, found
        return found


def make_order(image_set: ImageSet, config: DataConfig, seed: int) -> Order:
    """The order of training that `config` asks for. Raises `ValueError` for a class without images
    where each has its turn."""
    if config.sampling == "balanced":
        return BalancedOrder(image_set, seed, config.repeats)
    return GlobalOrder(len(image_set), seed, config.repeats)
