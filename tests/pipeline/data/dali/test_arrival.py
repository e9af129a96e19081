"""Batches reach the device in order and ahead of their use, and a GPU makes nobody wait."""

import shutil
import signal
import sys
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch

from pipeline.data.crops import CenterCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.dali.arrival import DrawnAhead, UntilDone, Uploads
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import TrainStream, ValStream


@contextmanager
def drawing(numbers):
    """A `DrawnAhead` of `numbers`, raising those that are errors; and what was drawn so far."""
    drawn: list = []
    numbers = iter(numbers)

    def draw():
        drawn.append(next(numbers))
        if isinstance(drawn[-1], Exception):
            raise drawn[-1]
        return drawn[-1]

    with closing(DrawnAhead(draw)) as ahead:
        yield ahead, drawn


def test_what_is_drawn_ahead_comes_in_order_and_no_more_is_drawn_than_asked_for():
    with drawing([0, 1, 2, "not asked for"]) as (ahead, drawn):
        assert [ahead.next(last=number == 2) for number in range(3)] == [0, 1, 2]
        assert ahead._coming is None
    assert drawn == [0, 1, 2]


def test_the_next_one_is_drawn_while_one_is_used():
    began, may_end = threading.Event(), threading.Event()
    calls = []

    def draw() -> int:
        calls.append(threading.current_thread())
        if len(calls) == 2:
            began.set()
            assert may_end.wait(30)
        return len(calls)

    with closing(DrawnAhead(draw)) as ahead:
        assert ahead.next(last=False) == 1
        assert began.wait(30)  # although nobody has asked
        may_end.set()
        assert ahead.next(last=True) == 2
    assert threading.main_thread() not in calls


def test_an_error_comes_in_place_of_its_batch_and_drawing_can_go_on():
    with drawing([0, ValueError("bad"), 2]) as (ahead, _):
        assert ahead.next(last=False) == 0
        with pytest.raises(ValueError, match="bad"):
            ahead.next(last=False)
        assert ahead.next(last=True) == 2


def test_after_an_interrupt_stopping_waits_for_the_call_that_runs():
    """Else it would take what the next pass over the data prepares."""
    has_drawn, began, may_end, ended = (threading.Event() for _ in range(4))

    def draw() -> None:
        if not has_drawn.is_set():
            has_drawn.set()
            return
        began.set()
        assert may_end.wait(30)
        ended.set()

    def interrupt() -> None:
        began.wait(30)
        main = threading.main_thread().ident
        while sys._current_frames()[main].f_code.co_name != "wait":  # for the call's result
            time.sleep(0.01)
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    with closing(DrawnAhead(draw)) as ahead:
        ahead.next(last=True)  # has the thread
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            ahead.next(last=False)
        interrupting.join()
        ending = threading.Timer(0.3, may_end.set)
        ending.start()
        ahead.stop()
        was_ended = ended.is_set()
        ending.join()
    assert was_ended


@pytest.mark.parametrize("second", [1, ValueError("nobody asks")])
def test_stopping_forgets_what_was_drawn(second):
    with drawing([0, second, 2]) as (ahead, drawn):
        assert ahead.next(last=False) == 0
        while len(drawn) < 2:
            time.sleep(0.001)
        ahead.stop()
        assert ahead.next(last=True) == 2


def test_what_a_gpu_reads_is_kept_until_it_is_done_in_order():
    kept, done = UntilDone(), [False, False, False]
    for number in range(3):
        kept.keep(object(), lambda number=number: done[number])
    done[1] = True
    kept.release()
    assert len(kept) == 3  # work is done in order: nothing before it is asked for either
    done[0] = True
    kept.release()
    assert len(kept) == 1
    done[2] = True
    kept.release()
    assert len(kept) == 0


# On a GPU

DEVICE = torch.device("cuda", 0)
DECODERS = [
    ("cpu", "float32"), ("cpu", "float16"), ("cpu", "uint8"), ("gpu", "float16"), ("gpu", "uint8"),
]  # fmt: skip


def chunks(count: int, size: int = 8) -> list[np.ndarray]:
    return [np.arange(size * number, size * (number + 1)) for number in range(count)]


def open_loader(manifest, decoder, output, count, device=DEVICE) -> Loader:
    stream = TrainStream(manifest, RandomResizedCrop(64, color_std=0.1), 0)
    settings = DecodeSettings(decoder, device, 2, 2, output)
    return Loader(stream, chunks(count), count, 8, settings)


@pytest.mark.gpu
@pytest.mark.parametrize("decoder, output", DECODERS)
def test_after_the_first_batches_no_batch_makes_the_host_wait(small_data, decoder, output):
    manifest = open_manifest(small_data, "train")
    total, labels = torch.zeros((), device=DEVICE), []
    with closing(open_loader(manifest, decoder, output, 12)) as loader:
        for _ in range(4):  # pools fill
            total += next(loader).images.float().sum()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in loader:
                assert batch.images.device == batch.labels.device == DEVICE
                total += batch.images.float().sum()
                labels.append(batch.labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(total)
    stream = TrainStream(manifest, RandomResizedCrop(64), 0)
    wanted = np.concatenate([stream.select(chunk).labels for chunk in chunks(12)[4:]])
    assert [label for one in labels for label in one.tolist()] == wanted.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("output", ["float32", "float16", "uint8"])
def test_what_is_copied_ahead_is_what_was_decoded(small_data, output):
    manifest = open_manifest(small_data, "train")
    busy = torch.randn(2048, 2048, device=DEVICE)
    with (
        closing(open_loader(manifest, "cpu", output, 30, torch.device("cpu"))) as on_cpu,
        closing(open_loader(manifest, "cpu", output, 30)) as on_gpu,
    ):
        kept = []
        for wanted, batch in zip(on_cpu, on_gpu, strict=True):
            for _ in range(20):  # the copying stream is far ahead of this one
                busy = busy @ busy / busy.norm()
            kept.append((wanted, batch.images.clone(), batch.labels.clone()))
            del batch  # its memory may be given to a later copy, after the clones were made
    for wanted, images, labels in kept:
        assert torch.allclose(images.cpu(), wanted.images, atol=1e-6)
        assert torch.equal(labels.cpu(), wanted.labels)


@pytest.mark.gpu
def test_pinned_memory_is_not_written_before_its_copy_is_done():
    uploads, sent = Uploads(DEVICE), []
    with torch.cuda.stream(uploads._stream):
        torch.cuda._sleep(200_000_000)  # copies wait behind it
    for number in range(20):
        sent.append(uploads.copy((torch.full((1 << 20,), number),)))
    for number, copied in enumerate(sent):
        assert (copied.take()[0] == number).all()


@pytest.mark.gpu
def test_a_bad_file_is_named_by_the_thread_that_is_ahead(small_data, tmp_path):
    root = shutil.copytree(small_data, tmp_path / "data")
    bad = open_manifest(root, "val").path(12)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    stream = ValStream(open_manifest(root, "val"), CenterCrop(64, 64))
    settings = DecodeSettings("cpu", DEVICE, 2, 2)
    with closing(Loader(stream, chunks(3, 5), 3, 5, settings)) as loader:
        assert [int(next(loader).positions[0]) for _ in range(2)] == [0, 5]
        with pytest.raises(BadImage) as error:
            next(loader)
        assert error.value.path == bad
        stream.excluded = frozenset({12})
        loader.start(stream, chunks(4, 5)[2:], 2)
        assert [int(batch.positions[0]) for batch in loader] == [10, 15]
