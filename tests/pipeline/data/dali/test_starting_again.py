"""One graph serves pass after pass, and reads its files where they lie for as long as it must."""

import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import pytest
import torch

from pipeline.data.crops import CenterCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader, graph
from pipeline.data.dali.source import Source
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import TrainStream, ValStream


@pytest.fixture(scope="module")
def plain(small_data):
    """30 small JPEGs."""
    return open_manifest(small_data, "val")


def open_loader(
    stream: TrainStream | ValStream, chunks: Sequence[np.ndarray], threads: int = 1,
    prefetch: int = 2,
) -> Loader:  # fmt: skip
    settings = DecodeSettings("cpu", torch.device("cpu"), threads, prefetch)
    return Loader(stream, chunks, len(chunks), max(map(len, chunks)), settings)


def chunks_of(size: int, *starts: int) -> list[np.ndarray]:
    return [np.arange(start, start + size) for start in starts]


@pytest.fixture
def graphs(monkeypatch) -> Callable[[], set[int]]:
    """Returns the numbers of the graphs that are in memory, in the order of their making."""
    made, make_pipeline = [], graph.make_pipeline

    def recorded(*arguments):
        pipe = make_pipeline(*arguments)
        made.append(weakref.ref(pipe))
        return pipe

    monkeypatch.setattr(graph, "make_pipeline", recorded)
    return lambda: {number for number, one in enumerate(made) if one() is not None}


def positions_of(loader) -> list[int]:
    return [int(position) for batch in loader for position in batch.positions]


class Spoilt:
    """An image set that overwrites the memory of a file as soon as nobody keeps it."""

    def __init__(self, manifest) -> None:
        self._manifest = manifest
        self.read_files, self.memory = 0, []

    def __getattr__(self, name):
        return getattr(self._manifest, name)

    def __len__(self) -> int:
        return len(self._manifest)

    def read(self, index: int) -> np.ndarray:
        memory = bytearray(self._manifest.read(index).tobytes())
        content = np.frombuffer(memory, dtype=np.uint8)
        weakref.finalize(content, self._spoil, memory)
        self.read_files += 1
        return content

    def _spoil(self, memory: bytearray) -> None:
        memory[:] = b"x" * len(memory)
        self.memory.append(memory)  # the address stays valid: DALI would read it, not crash


def test_what_is_handed_over_is_kept_until_it_is_given_out(plain):
    files = Spoilt(plain)
    settings = DecodeSettings("cpu", torch.device("cpu"), 1)
    stream = ValStream(files, CenterCrop(32, 32))
    with closing(Source(settings)) as source:
        source.start(stream, chunks_of(5, 0, 5, 10))
        for _ in range(3):
            source()  # DALI keeps addresses, and what else it keeps is not documented
        with pytest.raises(StopIteration):
            source()
        for given_out in range(3):
            gc.collect()
            assert len(files.memory) == 5 * given_out
            assert source.unfinished
            assert source.given_out().selection.positions[0] == 5 * given_out
        gc.collect()
        assert len(files.memory) == 15
        assert not source.unfinished


@pytest.mark.parametrize("prefetch", [1, 2, 4])
def test_pixels_are_right_and_memory_is_free_when_files_die_as_soon_as_they_may(plain, prefetch):
    chunks = chunks_of(8, *range(0, 160, 8))
    stream = TrainStream(plain, RandomResizedCrop(32), 0)
    with closing(open_loader(stream, chunks, 2, prefetch)) as loader:
        wanted = [batch.images for batch in loader]
    files = Spoilt(plain)
    stream = TrainStream(files, RandomResizedCrop(32), 0)
    with closing(open_loader(stream, chunks, 2, prefetch)) as loader:
        for images, batch in zip(wanted, loader, strict=True):
            assert torch.equal(batch.images, images)
            # In use: what DALI has, what is ready for it, and what is being read.
            assert files.read_files - len(files.memory) <= 8 * (2 * prefetch + 3)
        gc.collect()
        assert len(files.memory) == files.read_files == 160


@pytest.mark.parametrize("prefetch", [1, 2, 3])
@pytest.mark.parametrize("batches", [0, 1, 2, 5])
def test_a_loader_started_again_gives_other_chunks_by_the_same_graph(
    plain, graphs, prefetch, batches
):
    stream = ValStream(plain, CenterCrop(32, 32))
    first, second = chunks_of(5, *range(0, 5 * batches, 5)), chunks_of(5, 25, 5, 15, 10)
    with closing(open_loader(stream, [np.arange(5)], 1, prefetch)) as loader:
        loader.start(stream, first, batches)
        assert len(loader) == batches
        assert positions_of(loader) == [position for chunk in first for position in chunk]
        loader.start(stream, second, 4)
        given = list(loader)
        assert graphs() == {0}
    assert graphs() == set()
    with closing(open_loader(stream, second)) as fresh:
        for batch, wanted in zip(given, fresh, strict=True):
            assert torch.equal(batch.images, wanted.images)
            assert torch.equal(batch.labels, wanted.labels)


@pytest.mark.parametrize("drawn", [1, 3])
def test_what_an_unfinished_pass_left_is_not_given_out(plain, drawn):
    stream = ValStream(plain, CenterCrop(32, 32))
    with closing(open_loader(stream, chunks_of(5, *range(0, 25, 5)))) as loader:
        for _ in range(drawn):
            next(loader)
        loader.start(stream, chunks_of(5, 20, 10), 2)
        assert positions_of(loader) == [*range(20, 25), *range(10, 15)]


@pytest.mark.parametrize(
    "share, stands",
    [(0.5, False), (0, True)],
    ids=["DALI cannot decode it", "it cannot be read"],
)
def test_a_loader_starts_again_behind_a_bad_file(small_data, tmp_path, graphs, share, stands):
    root = shutil.copytree(small_data, tmp_path / "data")
    bad = open_manifest(root, "val").path(12)
    bad.write_bytes(bad.read_bytes()[: int(share * bad.stat().st_size)])
    shutil.rmtree(root / ".trainyard")
    stream = ValStream(open_manifest(root, "val"), CenterCrop(32, 32))
    with closing(open_loader(stream, chunks_of(5, 0, 5, 10, 15))) as loader:
        next(loader), next(loader)
        with pytest.raises(BadImage) as error:
            next(loader)
        # Even while the error and its traceback live: two graphs at once may not fit into a GPU.
        assert graphs() == ({0} if stands else set())
        stream.excluded = frozenset({12})
        loader.start(stream, chunks_of(5, 10, 15), 2)
        assert positions_of(loader) == [*range(10, 20)]
        assert graphs() == ({0} if stands else {2})  # 1 was the replay's
        assert str(error.value).startswith(f"the image {bad}")


def test_between_passes_nothing_runs_and_nothing_is_read(plain):
    files = Spoilt(plain)
    stream = ValStream(files, CenterCrop(32, 32))
    with closing(open_loader(stream, chunks_of(5, 0, 5))) as loader:
        assert len(positions_of(loader)) == 10
        gc.collect()
        assert files.read_files == len(files.memory) == 10
        for _ in range(3):
            loader.start(stream, chunks_of(5, 0, 5), 2)
            assert len(positions_of(loader)) == 10
        own = [one for one in threading.enumerate() if one.name.startswith(("plan", "read"))]
        assert len(own) <= 3 + 8  # no more from pass to pass
    assert not [one for one in threading.enumerate() if one in own]
