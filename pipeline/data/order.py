"""Which image stands at which position: pure functions of the seed and the position.

A position counts the images the whole job has consumed. Epoch `p // N` has its own permutation of
the N images, and the image at position p is entry `p % N` of it. World size, threads and restarts
do not enter. Every random number is a raw word of a counter-based Philox4x64-10 generator (Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so any slice of positions is reached
without drawing the ones before it.
"""

import hashlib
import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.data.exclusion import Exclusions

# Part of a checkpoint's fingerprint. Raise it with any change to the words below or to how
# augment.py spends them: the same seed then means other images or other crops.
SCHEME_VERSION = 1

_WORDS_PER_BLOCK = 4  # Philox4x64 yields four words for each value of its counter


class Stream(IntEnum):
    """What random words are drawn for: half of the generator's key, so streams never meet."""

    ORDER = 0
    AUGMENT = 1


def random_words(
    seed: int, stream: Stream, start: int, count: int, words_per_position: int
) -> NDArray[np.uint64]:
    """Return (count, words_per_position) raw words for positions start .. start + count - 1.

    Row i depends on (seed, stream, start + i, words_per_position) alone, whatever slice it was
    drawn in. ValueError if words_per_position is no multiple of 4 or the seed does not fit 64
    bits.
    """
    if words_per_position < 0 or words_per_position % _WORDS_PER_BLOCK:
        raise ValueError(f"words_per_position={words_per_position} must be a multiple of 4")
    block = start * words_per_position // _WORDS_PER_BLOCK
    words = _raw_words(seed, stream, (block, 0), count * words_per_position)
    return words.reshape(count, words_per_position)


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map words to float64 in [0, 1), same shape: the upper 53 bits times 2**-53."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def epoch_permutation(seed: int, epoch: int, num_images: int) -> NDArray[np.int32]:
    """Return the order of one epoch, (num_images,) int32: a stable argsort of raw words.

    The epoch is the second word of the counter, so the words of two epochs never overlap. Takes
    about 0.2 s for ImageNet; `GlobalOrder` makes it in the background.
    """
    words = _raw_words(seed, Stream.ORDER, (0, epoch), num_images)
    return np.argsort(words, kind="stable").astype(np.int32)


def order_digest(seed: int, epoch: int, num_images: int) -> str:
    """Return 16 hex digits that name the order of an epoch, for the log."""
    order = epoch_permutation(seed, epoch, num_images).astype("<i4")
    return hashlib.sha256(order.tobytes()).hexdigest()[:16]


def _raw_words(
    seed: int, stream: Stream, counter: tuple[int, int], count: int
) -> NDArray[np.uint64]:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is not between 0 and 2**64 - 1; choose another seed")
    # random_raw has no distribution on top whose stream could change between numpy versions.
    bits = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array([*counter, 0, 0], np.uint64)
    )
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


class GlobalOrder:
    """The image index at every position, for a data set of `num_images` and a seed.

    Holds the permutations of the epochs in use (4 bytes an image each) and prepares the next one
    in a background thread. Safe to call from several threads.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        """Raise ValueError unless num_images is in 1 .. 2**31 - 1."""
        if not 1 <= num_images < 2**31:
            raise ValueError(f"num_images={num_images} must be between 1 and 2**31 - 1")
        self.num_images = num_images
        self.seed = seed
        self._lock = threading.Lock()
        self._permutations: dict[int, Future[NDArray[np.int32]]] = {}
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="epoch-order")

    def images(
        self, positions: NDArray[np.int64], exclusions: Exclusions | None = None
    ) -> NDArray[np.int64]:
        """Return the image indices at `positions`, both (B,) int64; positions may span epochs.

        A position whose image is excluded has the next one of its epoch that is not. An error met
        while a permutation was made in the background is raised here.
        """
        epochs, places = np.divmod(positions, self.num_images)
        images = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            images[chosen] = self._permutation(int(epoch))[places[chosen]]
        if exclusions is None:
            return images
        for i in exclusions.places(images, positions):
            order = self._permutation(int(epochs[i]))
            images[i] = exclusions.replacement(order, int(places[i]), int(positions[i]))
        return images

    def _permutation(self, epoch: int) -> NDArray[np.int32]:
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


def split_global_batch(
    global_batch_size: int, local_batch_size: int, world_size: int
) -> tuple[int, int]:
    """Return (micro-batch size, accumulation): the fewest equal micro-batches that fit a rank.

    The micro-batch holds at most `local_batch_size` images, and micro-batch * accumulation *
    world_size equals `global_batch_size`. ValueError if the global batch cannot be shared equally
    by the ranks, or only in micro-batches less than half as large as they could be.
    """
    for name, value in (("global", global_batch_size), ("local", local_batch_size)):
        if value < 1:
            raise ValueError(f"data.{name}_batch_size={value} must be at least 1")
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        below, above = share * world_size, (share + 1) * world_size
        nearest = f"nearest that are: {below} and {above}" if below else f"nearest that is: {above}"
        raise ValueError(
            f"data.global_batch_size={global_batch_size} is not divisible by {world_size} ranks; "
            f"the {nearest}"
        )
    fewest = accumulation = -(-share // local_batch_size)
    while share % accumulation:
        accumulation += 1
    if accumulation > 2 * fewest:
        # A prime share would go image by image, which batch normalisation cannot live on.
        part = fewest * world_size
        near = round(global_batch_size / part) * part
        raise ValueError(
            f"data.global_batch_size={global_batch_size} leaves {world_size} ranks only "
            f"micro-batches of {share // accumulation} under data.local_batch_size="
            f"{local_batch_size}; the nearest that splits well is {near}"
        )
    return share // accumulation, accumulation


@dataclass(frozen=True)
class Partition:
    """Which positions a rank takes in each step.

    Step t is cut into G / b chunks of b consecutive positions; rank r runs chunks rA .. (r+1)A -
    1 in order (A = accumulation). At the same b the chunks, and so the groups batch normalisation
    sees, are the same sets at every world size. ValueError if G is no multiple of b times the
    world size.
    """

    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        """Check that every rank gets whole chunks."""
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} must be between 0 and {self.world_size - 1}")
        if self.micro_batch_size < 1 or self.global_batch_size < 1:
            raise ValueError(
                f"batch sizes must be at least 1, not {self.global_batch_size} (global) and "
                f"{self.micro_batch_size} (micro)"
            )
        if self.global_batch_size % (self.micro_batch_size * self.world_size):
            raise ValueError(
                f"data.global_batch_size={self.global_batch_size} is not a multiple of "
                f"{self.world_size} ranks times micro-batches of {self.micro_batch_size}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches each rank runs in a step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def positions(self, step: int, micro: int) -> NDArray[np.int64]:
        """Return the positions (b,) int64 of this rank's micro-batch `micro` of `step`."""
        assert 0 <= micro < self.accumulation, f"micro-batch {micro} of {self.accumulation}"
        chunk = self.rank * self.accumulation + micro
        start = step * self.global_batch_size + chunk * self.micro_batch_size
        return np.arange(start, start + self.micro_batch_size, dtype=np.int64)


def total_steps(epochs: float, num_images: int, global_batch_size: int) -> int:
    """Return ceil(epochs * N / G), exact: 0.1 means one tenth, not the binary number beside it.

    ValueError if `epochs` is not a positive finite number.
    """
    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"epochs={epochs} must be a positive number")
    return math.ceil(Fraction(str(epochs)) * num_images / global_batch_size)


def epochs_done(next_step: int, num_images: int, global_batch_size: int) -> int:
    """Return how many whole epochs lie before `next_step`: next_step * G // N."""
    return next_step * global_batch_size // num_images


def validation_chunks(num_images: int, batch_size: int, rank: int, world_size: int) -> range:
    """Return the chunks a rank validates; chunk c is images [cb, min((c+1)b, N)).

    The ranges are contiguous, differ in length by at most one and cover each of the ceil(N / b)
    exactly once. A rank gets none when there are fewer chunks than ranks.
    """
    chunks = -(-num_images // batch_size)
    return range(rank * chunks // world_size, (rank + 1) * chunks // world_size)
