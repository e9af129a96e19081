"""The order of images: pure functions of the seed and the position.

A position counts the images the whole job has consumed. Epoch `p // N` has its own permutation of
the N images, and the image at position p is entry `p % N` of it (`sampling` has another order).
World size, threads and restarts have no influence. Every random number is a raw word of a
counter-based Philox4x64-10 generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011), so any slice of positions is reached without drawing the ones before it.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

# Part of a checkpoint's fingerprint. Raise it with any change to the words below or to how
# crops.py spends them: the same seed then means other images or other crops.
SCHEME_VERSION = 1

_WORDS_PER_BLOCK = 4  # Philox4x64 yields four words for each value of its counter


class Stream(IntEnum):
    """The purpose of random words: half of the generator's key, so streams never overlap."""

    ORDER = 0
    AUGMENT = 1
    AUGMENT_KIND = 2
    ERASE = 3
    MIX = 4  # a micro-batch's first position has its words
    CLASS_ORDER = 5


def random_words(
    seed: int, stream: Stream, start: int, count: int, words_per_position: int
) -> NDArray[np.uint64]:
    """Return (count, words_per_position) raw words for positions start .. start + count - 1.

    Row i depends on (seed, stream, start + i, words_per_position) alone, whatever slice it was
    drawn in. words_per_position is a multiple of 4, the seed of 64 bits.
    """
    assert words_per_position % _WORDS_PER_BLOCK == 0, f"{words_per_position} words a position"
    block = start * words_per_position // _WORDS_PER_BLOCK
    words = _raw_words(seed, stream, (block, 0), count * words_per_position)
    return words.reshape(count, words_per_position)


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map words to float64 in [0, 1), same shape: the upper 53 bits times 2**-53."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def draws_of(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return uniform numbers (words per position, B), each decision's row contiguous.

    numpy may use another loop, and round exp or log differently, over strided numbers than over
    contiguous ones; a batch of one is contiguous either way, and a position must not depend on it.
    """
    return uniform(np.ascontiguousarray(words.T))


def between(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return uniform numbers of [0, 1) as such of [low, high), same shape."""
    return low + draws * (high - low)


def epoch_permutation(seed: int, epoch: int, num_images: int) -> NDArray[np.int32]:
    """Return the order of one epoch, (num_images,) int32: a stable argsort of raw words.

    The epoch is the second word of the counter, so the words of two epochs never overlap. Takes
    about 0.2 s for ImageNet; `GlobalOrder` makes it in the background.
    """
    return permutation(seed, Stream.ORDER, (epoch,), num_images)


def permutation(
    seed: int, stream: Stream, place: tuple[int, ...], length: int
) -> NDArray[np.int32]:
    """Return a random order of `length` things, (length,) int32: a stable argsort of raw words.

    `place` are up to three numbers that tell this one from the other orders of `stream`.
    """
    words = _raw_words(seed, stream, (0, *place), length)
    return np.argsort(words, kind="stable").astype(np.int32)


def _raw_words(
    seed: int, stream: Stream, counter: tuple[int, ...], count: int
) -> NDArray[np.uint64]:
    # random_raw has no distribution on top whose stream could change between numpy versions.
    whole = [*counter, *(0 for _ in range(4 - len(counter)))]
    bits = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array(whole, np.uint64)
    )
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


class Order(ABC):
    """The image index at every position, for a data set of `num_images` and a seed.

    Safe to call from several threads.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        assert 1 <= num_images < 2**31, f"{num_images} images, which int32 has to number"
        self.num_images = num_images
        self.seed = seed

    @abstractmethod
    def images(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image indices at `positions`, both (B,) int64; positions may span epochs."""

    @abstractmethod
    def replacements(self, position: int) -> Iterator[int]:
        """Yield the images that may stand for the one at `position`, the next one first."""

    @abstractmethod
    def drawn_from(self, position: int) -> str:
        """Return in words what the image at `position` is one of."""

    def digest(self, epoch: int) -> str:
        """Return 16 hex digits that name the order of an epoch, for the log."""
        return self._digest_from(epoch * self.num_images, self.num_images)

    def _digest_from(self, first: int, count: int) -> str:
        images = self.images(np.arange(first, first + count, dtype=np.int64))
        return hashlib.sha256(images.astype("<i4").tobytes()).hexdigest()[:16]


class GlobalOrder(Order):
    """Epochs of all images, each in its own order, and each image `repeats` times in a row.

    An epoch has N positions however often images are repeated, and so the first ceil(N / repeats)
    images of its permutation (Hoffer et al., "Augment your batch", 2020; used by Wightman et al.,
    "ResNet strikes back", 2021). Repeats have positions of their own, and so other crops. They
    stand next to each other, in one micro-batch or at the border of two, whatever the number of
    ranks; timm's sampler deals them out to the ranks, so that what a micro-batch holds depends on
    their number.

    Holds the permutations of the epochs in use (4 bytes an image each) and prepares the next one
    in a background thread.
    """

    def __init__(self, num_images: int, seed: int, repeats: int = 1) -> None:
        super().__init__(num_images, seed)
        self._repeats = repeats
        self._lock = threading.Lock()
        self._permutations: dict[int, Future[NDArray[np.int32]]] = {}
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="epoch-order")

    def images(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image indices at `positions`, both (B,) int64; positions may span epochs.

        An error met while a permutation was made in the background is raised here.
        """
        epochs, places = np.divmod(positions, self.num_images)
        places //= self._repeats
        images = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            images[chosen] = self.permutation(int(epoch))[places[chosen]]
        return images

    def replacements(self, position: int) -> Iterator[int]:
        """Yield the images after the one at `position` in its epoch's order, from the end on to the
        beginning."""
        epoch, place = divmod(position, self.num_images)
        order, place = self.permutation(epoch), place // self._repeats
        for step in range(1, self.num_images):
            yield int(order[(place + step) % self.num_images])

    def drawn_from(self, position: int) -> str:
        """Return in words what the image at `position` is one of."""
        return "training images"

    def permutation(self, epoch: int) -> NDArray[np.int32]:
        """Return the order of an epoch, (num_images,) int32, and start computing the next one."""
        with self._lock:
            for wanted in (epoch, epoch + 1):
                if wanted not in self._permutations:
                    self._permutations[wanted] = self._background.submit(
                        epoch_permutation, self.seed, wanted, self.num_images
                    )
            # Threads that prepare batches out of order may still be one epoch behind.
            self._permutations = {
                kept: future
                for kept, future in self._permutations.items()
                if epoch - 1 <= kept <= epoch + 1
            }
            future = self._permutations[epoch]
        return future.result()
