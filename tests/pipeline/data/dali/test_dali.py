"""DALI does what the plan says: pixels as Pillow's, batches in order, bad files named."""

import io
import re
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from PIL import Image

from pipeline.data.crops import CenterCrop, RandomResizedCrop, ScaleJitter
from pipeline.data.dali import DecodeSettings, Loader, make_pipeline
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.normalisation import IMAGENET
from pipeline.data.stream import TrainStream, ValStream
from pipeline.prepare.parity import execute, inside

CPU = torch.device("cpu")
SIZES = [(500, 375), (375, 500), (640, 480), (97, 131), (33, 31), (64, 200), (17, 900), (900, 700)]
TINY = [(1, 1), (1, 500), (500, 1), (2, 3)]


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth noise at three scales, which is near enough to a photograph for a resize."""
    rng = np.random.default_rng([width, height, seed])
    pixels = np.full((height, width, len(mode)), 128.0)
    for cells, strength in ((3, 90), (12, 40), (60, 20)):
        for channel in range(len(mode)):
            noise = rng.normal(0, strength, (cells, cells)).astype(np.float32)
            grown = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(grown)
    clipped = np.clip(pixels, 0, 255).astype(np.uint8)
    return Image.fromarray(clipped[..., 0] if mode == "L" else clipped, mode)


def jpeg(width: int = 60, height: int = 48, seed: int = 0) -> bytes:
    encoded = io.BytesIO()
    photo(width, height, seed=seed).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Manifest:
    """Every kind of file that ImageNet holds, all named .JPEG."""
    root = tmp_path_factory.mktemp("corpus")
    folder = root / "train" / "a"
    folder.mkdir(parents=True)
    for width, height in SIZES + TINY:
        photo(width, height).save(folder / f"{width}x{height}.JPEG", quality=90)
    photo(301, 203, "L").save(folder / "grey.JPEG")
    photo(301, 203, "CMYK").save(folder / "cmyk.JPEG")
    photo(301, 203).save(folder / "progressive.JPEG", progressive=True)
    photo(301, 203).save(folder / "unsampled.JPEG", subsampling=0)
    photo(301, 203).save(folder / "coarse.JPEG", quality=30)
    photo(301, 203).save(folder / "png.JPEG", "PNG")
    photo(101, 203, "L").save(folder / "grey png.JPEG", "PNG")
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turn by 90 degrees
    photo(301, 203).save(folder / "turned.JPEG", exif=orientation)
    return open_manifest(root, "train")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Manifest:
    """30 small JPEGs in two classes."""
    return open_manifest(write_plain(tmp_path_factory.mktemp("plain")), "train")


def write_plain(root: Path, images: int = 30) -> Path:
    for index in range(images):
        path = root / "train" / ("a" if index < images // 2 else "b") / f"{index:02d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed=index))
    return root


Stream = TrainStream | ValStream


def open_loader(
    stream: Stream, chunks: Sequence[np.ndarray], threads: int = 1, prefetch: int = 2
) -> Loader:
    settings = DecodeSettings("cpu", CPU, threads, prefetch)
    return Loader(stream, chunks, len(chunks), len(chunks[0]), settings)


def chunks_of(size: int, *starts: int) -> list[np.ndarray]:
    return [np.arange(start, start + size) for start in starts]


def draw(stream: Stream, chunks: Sequence[np.ndarray], **settings: int) -> list:
    with closing(open_loader(stream, chunks, **settings)) as loader:
        return list(loader)


def pixels(images: torch.Tensor) -> np.ndarray:
    """A batch in 0..255 units, (B, H, W, 3)."""
    return images.permute(0, 2, 3, 1).numpy() * IMAGENET.std + IMAGENET.mean


@pytest.mark.parametrize(
    "planner",
    [
        CenterCrop(224, 256),
        CenterCrop(64, 72),
        RandomResizedCrop(224, color_std=0.1),
        RandomResizedCrop(64, color_std=0.1),
        ScaleJitter(224, (256, 480), color_std=0.1),
        ScaleJitter(32, (36, 60), color_std=0.1),
    ],
    ids=repr,
)
def test_pixels_are_those_of_pillow(corpus, planner):
    if isinstance(planner, CenterCrop):
        stream = ValStream(corpus, planner)
    else:
        stream = TrainStream(corpus, planner, seed=3)
    positions = np.arange(len(corpus))
    (batch,) = draw(stream, [positions])
    selection = stream.select(positions)
    plan, names = selection.plan, [corpus.path(int(image)).name for image in selection.images]
    wanted = execute(plan, [corpus.read(int(image)) for image in selection.images])
    error = np.abs(pixels(batch.images) - wanted)
    heights, widths = corpus.heights[selection.images], corpus.widths[selection.images]
    within = np.where(inside(plan, heights, widths)[..., None], error, 0)
    for index, name in enumerate(names):
        # Two roundings of a linear filter may differ by one level; CMYK adds its conversion.
        level, mean = (2.01, 0.6) if name == "cmyk.JPEG" else (1.01, 0.25)
        assert within[index].max() <= level, name
        assert error[index].max() <= 6, name
        assert error[index].mean() < mean, name
    if not isinstance(planner, CenterCrop):
        assert set(plan.flips.tolist()) == {0, 1}
        assert np.abs(plan.offsets).max() > 5  # a lost or doubled offset would be seen


def test_the_colour_offset_moves_each_channel_by_itself(plain):
    chunks = [np.arange(20)]
    coloured, plainly = (
        TrainStream(plain, RandomResizedCrop(32, color_std=std), seed=1) for std in (0.1, None)
    )
    (batch,), (reference,) = draw(coloured, chunks), draw(plainly, chunks)
    moved = pixels(batch.images) - pixels(reference.images)
    offsets = coloured.select(chunks[0]).plan.offsets[:, None, None, :]
    np.testing.assert_allclose(moved, np.broadcast_to(offsets, moved.shape), atol=1e-3)


def test_a_batch_is_channels_last_float32_with_int64_labels_and_no_copy(plain):
    (batch,) = draw(TrainStream(plain, RandomResizedCrop(32), 0), [np.arange(6)])
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert not batch.images.is_contiguous()
    assert batch.images._base is not None  # still a view of what DALI wrote
    assert batch.labels.shape == (6,)
    assert batch.labels.dtype == torch.int64
    assert batch.positions.tolist() == list(range(6))


def test_batches_come_in_the_order_of_the_chunks_with_their_labels(plain):
    stream = ValStream(plain, CenterCrop(32, 32))
    chunks = chunks_of(4, 20, 0, 12, 28, 4)
    batches = draw(stream, chunks)
    assert [batch.positions.tolist() for batch in batches] == [chunk.tolist() for chunk in chunks]
    for batch, chunk in zip(batches, chunks, strict=True):
        labels = [plain.labels[p] if p < len(plain) else -1 for p in chunk]
        assert batch.labels.tolist() == labels
        files = [plain.read(min(int(p), len(plain) - 1)) for p in chunk]
        wanted = execute(stream.select(chunk).plan, files)
        assert np.abs(pixels(batch.images) - wanted).mean() < 0.5  # two of these differ by 60


def test_batches_stay_valid_when_later_ones_are_drawn(plain):
    stream = TrainStream(plain, RandomResizedCrop(32), 0)
    with closing(open_loader(stream, chunks_of(5, *range(0, 60, 5)))) as loader:
        kept = []
        for batch in loader:
            kept.append((batch, batch.images.clone(), batch.labels.clone()))
    for batch, images, labels in kept:
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)


def test_threads_and_prefetch_do_not_change_a_bit(plain):
    stream = TrainStream(plain, RandomResizedCrop(32, color_std=0.1), 0)
    chunks = chunks_of(7, *range(0, 70, 7))
    one = draw(stream, chunks, threads=1, prefetch=1)
    for settings in ({"threads": 3, "prefetch": 5}, {"threads": 2, "prefetch": 2}):
        for batch, reference in zip(draw(stream, chunks, **settings), one, strict=True):
            assert torch.equal(batch.images, reference.images)
            assert torch.equal(batch.labels, reference.labels)


def test_an_image_is_the_same_whatever_batch_it_is_in(plain):
    stream = TrainStream(plain, RandomResizedCrop(32, color_std=0.1), 0)
    (whole,) = draw(stream, [np.arange(12)])
    halves = draw(stream, chunks_of(6, 0, 6))
    assert torch.equal(whole.images, torch.cat([half.images for half in halves]))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_length_is_exact_and_the_end_is_the_end(plain, count):
    stream = ValStream(plain, CenterCrop(32, 32))
    with closing(open_loader(stream, chunks_of(3, *range(0, 3 * count, 3)))) as loader:
        assert len(loader) == count
        assert len(list(loader)) == count
        assert len(loader) == count
        assert next(loader, None) is None


def graph(decoder: str):
    return make_pipeline(lambda: None, 4, DecodeSettings(decoder, CPU, threads=1))


def devices(serialised: bytes) -> list[bytes]:
    """The device of every operator."""
    return re.findall(rb"\x06device\x12\x06string\*.(cpu|gpu|mixed)", serialised, re.DOTALL)


def test_the_gpu_graph_is_whole_and_its_operators_are_where_the_pixels_are():
    serialised = graph("gpu").serialize()
    for operator in (b"decoders__ImageSlice", b"Resize", b"CropMirrorNormalize"):
        assert operator in serialised
    # The decoder is mixed, resize and normalise follow it, the source of inputs stays on the host.
    assert Counter(devices(serialised)) == {b"mixed": 1, b"gpu": 2, b"cpu": 9}


@pytest.mark.parametrize(
    ("wrong", "message"), [({"antialiased": True}, "antialiased"), ({"device": "cpu"}, "cpu")]
)
def test_serialising_the_gpu_graph_catches_a_wrong_argument(monkeypatch, wrong, message):
    resize = fn.resize
    monkeypatch.setattr(fn, "resize", lambda *images, **named: resize(*images, **named, **wrong))
    with pytest.raises((KeyError, RuntimeError, ValueError), match=message):
        graph("gpu").serialize()


HEADER = jpeg()[: jpeg().index(b"\xff\xda")]  # all up to the start of the scan

BAD_BEFORE_THE_SCAN = {
    "truncated": (jpeg()[: len(jpeg()) // 2], "cannot be decoded"),
    "header only": (HEADER, "cannot be decoded"),
    "half a header": (jpeg()[:20], "no image header"),
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404</html>", "no image header"),
}
BAD_AFTER_THE_SCAN = {
    "missing": (None, "No such file or directory"),
    "longer": (jpeg() + b"\0", "the manifest recorded"),
    "emptied": (b"", "the file is empty"),
    "text": (b"<html>404</html>", "the manifest recorded"),
}


def failure_of(stream: ValStream, bad: Path) -> BadImage:
    """Draws batches of which the third holds `bad`, and checks those before it and the end."""
    loader = open_loader(stream, chunks_of(5, 0, 5, 10, 15))
    first, second = next(loader), next(loader)
    assert (first.positions[0], second.positions[0]) == (0, 5)
    for batch in (first, second):
        wanted = execute(
            stream.select(batch.positions).plan,
            [stream.manifest.read(int(position)) for position in batch.positions],
        )
        assert np.abs(pixels(batch.images) - wanted).mean() < 0.5
    with pytest.raises(BadImage) as error:
        next(loader)
    assert error.value.path == bad
    assert str(bad) in str(error.value)
    close_in_time(loader)
    return error.value


def close_in_time(loader: Loader) -> None:
    closing_thread = threading.Thread(target=loader.close, daemon=True)
    closing_thread.start()
    closing_thread.join(timeout=30)
    assert not closing_thread.is_alive(), "close() hangs"


@pytest.mark.parametrize("kind", BAD_BEFORE_THE_SCAN)
def test_a_file_that_was_always_bad_is_named_after_the_batches_before_it(tmp_path, kind):
    content, reason = BAD_BEFORE_THE_SCAN[kind]
    root = write_plain(tmp_path)
    bad = root / "train" / "a" / "12.JPEG"
    bad.write_bytes(content)
    stream = ValStream(open_manifest(root, "train"), CenterCrop(32, 32))
    assert reason in failure_of(stream, bad).reason


@pytest.mark.parametrize("kind", BAD_AFTER_THE_SCAN)
def test_a_file_that_went_bad_after_the_scan_is_named(tmp_path, kind):
    content, reason = BAD_AFTER_THE_SCAN[kind]
    root = write_plain(tmp_path)
    stream = ValStream(open_manifest(root, "train"), CenterCrop(32, 32))
    bad = root / "train" / "a" / "12.JPEG"
    bad.unlink()
    if content is not None:
        bad.write_bytes(content)
    assert reason in failure_of(stream, bad).reason


def test_a_file_replaced_by_rubbish_of_the_same_length_is_named(tmp_path):
    root = write_plain(tmp_path)
    stream = ValStream(open_manifest(root, "train"), CenterCrop(32, 32))
    bad = root / "train" / "a" / "12.JPEG"
    bad.write_bytes(b"x" * bad.stat().st_size)
    assert "cannot be decoded" in failure_of(stream, bad).reason


def test_the_first_of_several_bad_files_of_a_batch_is_named(tmp_path):
    root = write_plain(tmp_path)
    for index in (11, 13, 14):
        path = root / "train" / "a" / f"{index}.JPEG"
        path.write_bytes(path.read_bytes()[:600])
    stream = ValStream(open_manifest(root, "train"), CenterCrop(32, 32))
    failure_of(stream, root / "train" / "a" / "11.JPEG")


@pytest.mark.parametrize("drawn", [0, 1, 3])
def test_closing_early_does_not_hang(plain, drawn):
    stream = TrainStream(plain, RandomResizedCrop(32), 0)
    loader = open_loader(stream, chunks_of(5, *range(0, 500, 5)), prefetch=3)
    for _ in range(drawn):
        next(loader)
    close_in_time(loader)
