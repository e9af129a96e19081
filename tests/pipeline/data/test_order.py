"""The global order: a pure function of seed and position, shared out without loss or overlap."""

import hashlib
import threading

import numpy as np
import pytest

from pipeline.data import order
from pipeline.data.batches import (
    Course,
    Partition,
    split_global_batch,
    total_steps,
    validation_chunks,
)
from pipeline.data.order import (
    GlobalOrder,
    Stream,
    epoch_permutation,
    random_words,
    uniform,
)


def test_the_order_differs_between_epochs_and_seeds():
    digests = {GlobalOrder(100, seed).digest(epoch) for seed in range(4) for epoch in range(4)}
    assert len(digests) == 16


def test_the_order_is_well_mixed():
    # Mean displacement of a uniform random permutation is N / 3.
    images = epoch_permutation(seed=0, epoch=0, num_images=30_000)
    assert abs(np.abs(images - np.arange(30_000)).mean() / 10_000 - 1) < 0.02


def test_orders_and_words_are_the_ones_of_scheme_version_1():
    # Golden: computed once with this code (numpy 2.4.6); they hold a numpy upgrade to the same data
    # stream. If they change on purpose, SCHEME_VERSION has to change with them.
    assert order.SCHEME_VERSION == 1
    assert GlobalOrder(1000, seed=0).digest(epoch=0) == "1062080ef2cb015f"
    assert GlobalOrder(12_345, seed=42).digest(epoch=7) == "a297e99c68d2a2bd"
    words = random_words(5, Stream.AUGMENT, start=1000, count=3, words_per_position=8)
    assert hashlib.sha256(words.astype("<u8").tobytes()).hexdigest()[:16] == "4d121229ab8180ba"


def test_words_follow_the_published_philox():
    # Salmon's known answer for philox4x64-10 with key 0 and counter 0 (Random123, kat_vectors).
    # numpy steps the counter before each block.
    bits = np.random.Philox(key=[0, 0], counter=[2**64 - 1] * 4)
    assert [f"{word:016x}" for word in bits.random_raw(4)] == [
        "16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b",
    ]  # fmt: skip


@pytest.mark.parametrize("words_per_position", [4, 8, 28])
@pytest.mark.parametrize("start", [0, 1, 99, 2**40])
def test_a_slice_of_positions_equals_the_same_rows_of_a_bigger_slice(words_per_position, start):
    whole = random_words(9, Stream.AUGMENT, start, 50, words_per_position)
    for first, count in ((0, 50), (1, 1), (17, 20), (49, 1), (50, 0)):
        part = random_words(9, Stream.AUGMENT, start + first, count, words_per_position)
        assert part.shape == (count, words_per_position)
        assert np.array_equal(part, whole[first : first + count])


def test_words_differ_between_seeds_streams_and_positions():
    drawn = [
        random_words(seed, stream, 0, 100, 4).ravel()
        for seed in (0, 1, 2**64 - 1)
        for stream in Stream
    ]
    words = np.concatenate(drawn)
    assert len(np.unique(words)) == len(words)


def test_uniform_covers_zero_to_one_and_never_reaches_it():
    extremes = uniform(np.array([0, 2**11, 2**64 - 1], dtype=np.uint64))
    assert extremes.tolist() == [0.0, 2.0**-53, 1.0 - 2.0**-53]
    draws = uniform(random_words(0, Stream.AUGMENT, 0, 10_000, 4))
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002


@pytest.mark.parametrize(("num_images", "batch"), [(10, 3), (10, 10), (10, 25), (1, 4), (1000, 64)])
def test_each_image_comes_once_per_epoch_across_batches(num_images, batch):
    epochs = 6
    images = GlobalOrder(num_images, seed=1)
    positions = np.arange(epochs * num_images)
    starts = range(0, epochs * num_images, batch)
    stream = np.concatenate([images.images(positions[start : start + batch]) for start in starts])
    assert stream.dtype == np.int64
    for epoch, seen in enumerate(stream.reshape(epochs, num_images)):
        assert np.array_equal(seen, epoch_permutation(1, epoch, num_images))
        assert sorted(seen) == list(range(num_images))


def test_positions_may_come_in_any_order_and_from_several_threads():
    images = GlobalOrder(97, seed=2)
    expected = np.concatenate([epoch_permutation(2, epoch, 97) for epoch in range(20)])
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            positions = rng.integers(0, len(expected), 30)
            wrong.extend(positions[images.images(positions) != expected[positions]])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_in_the_background_is_raised_to_the_caller(monkeypatch):
    images = GlobalOrder(10, seed=0)

    def fail(seed: int, epoch: int, num_images: int) -> None:
        raise MemoryError(f"no room for epoch {epoch}")

    monkeypatch.setattr(order, "epoch_permutation", fail)
    with pytest.raises(MemoryError, match="no room for epoch 1"):
        images.images(np.array([12]))


@pytest.mark.parametrize("sizes, expected", [
    ((256, 256, 1), (256, 1)),
    ((256, 32, 8), (32, 1)),
    ((256, 100, 1), (64, 4)),  # 3 does not divide 256
    ((96, 32, 1), (32, 3)),
    ((9, 4, 1), (3, 3)),
    ((64, 1000, 2), (32, 1)),
])  # fmt: skip
def test_split_takes_the_fewest_equal_micro_batches(sizes, expected):
    assert split_global_batch(*sizes) == expected


@pytest.mark.parametrize("sizes, message", [
    ((100, 32, 3), "100 is not divisible by 3 ranks; the nearest that are: 99 and 102"),
    ((2, 32, 3), "2 is not divisible by 3 ranks; the nearest that is: 3"),
    ((1009, 256, 1), "1009 leaves 1 rank only micro-batches of 1 under data.local_batch_size=256; "
     "the nearest that splits well is 1008"),
])  # fmt: skip
def test_a_global_batch_that_cannot_be_split_is_refused(sizes, message):
    with pytest.raises(ValueError, match=f"^data.global_batch_size={message}$"):
        split_global_batch(*sizes)


@pytest.mark.parametrize(
    ("global_batch", "micro", "ranks"), [(12, 3, 1), (12, 3, 2), (12, 3, 4), (8, 8, 1), (30, 1, 5)]
)
def test_partitions_cover_each_position_once(global_batch, micro, ranks):
    partitions = [Partition(global_batch, micro, rank, ranks) for rank in range(ranks)]
    for step in range(3):
        taken = [p.positions(step, m) for p in partitions for m in range(p.accumulation)]
        assert all(len(chunk) == micro and chunk.dtype == np.int64 for chunk in taken)
        first = step * global_batch
        assert np.concatenate(taken).tolist() == list(range(first, first + global_batch))


def test_chunks_are_the_same_at_every_world_size():
    def chunks(ranks: int) -> list[list[int]]:
        parts = [Partition(24, 2, rank, ranks) for rank in range(ranks)]
        return [p.positions(5, m).tolist() for p in parts for m in range(p.accumulation)]

    assert chunks(1) == chunks(2) == chunks(3) == chunks(6) == chunks(12)


@pytest.mark.parametrize("epochs, num_images, global_batch, steps", [
    (90, 1_281_167, 256, 450_411),  # 115,305,030 / 256 = 450,410.27
    (1, 10, 5, 2),
    (1, 10, 4, 3),
    (1, 10, 100, 1),
    (0.5, 10, 5, 1),
    (0.1, 1000, 100, 1),  # the double 0.1 is above one tenth
    (0.3, 1000, 100, 3),  # 0.1 + 0.2 in doubles is not
    (1e-6, 1000, 100, 1),
])  # fmt: skip
def test_total_steps_is_an_exact_ceiling(epochs, num_images, global_batch, steps):
    assert total_steps(epochs, num_images, global_batch) == steps


@pytest.mark.parametrize("batch, done", [(4, [0, 0, 0, 1, 1, 2, 2]), (25, [0, 2, 5])])
def test_epochs_done_counts_whole_epochs(batch, done):
    course = Course(images=10, batch=batch, total_steps=len(done))
    assert [course.epochs_done(step) for step in range(len(done))] == done


@pytest.mark.parametrize("num_images", [1, 5, 16, 17, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_validation_chunk_is_run_once(num_images, ranks):
    shares = [validation_chunks(num_images, 4, rank, ranks) for rank in range(ranks)]
    taken = [chunk for share in shares for chunk in share]
    assert taken == list(range(-(-num_images // 4)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
