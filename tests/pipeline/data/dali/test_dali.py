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


def test_threads_prefetch_and_the_size_of_batches_do_not_change_a_bit(plain):
    stream = TrainStream(plain, RandomResizedCrop(32, color_std=0.1), 0)
    one = draw(stream, chunks_of(7, *range(0, 70, 7)), threads=1, prefetch=1)
    for size, threads, prefetch in ((7, 3, 5), (7, 2, 2), (14, 1, 1)):
        other = draw(
            stream, chunks_of(size, *range(0, 70, size)), threads=threads, prefetch=prefetch
        )
        for name in ("images", "labels"):
            found, wanted = (torch.cat([getattr(b, name) for b in drawn]) for drawn in (other, one))
            assert torch.equal(found, wanted)


def test_the_length_is_exact_and_the_end_is_the_end(plain):
    stream = ValStream(plain, CenterCrop(32, 32))
    with closing(open_loader(stream, chunks_of(3, 0, 3))) as loader:
        assert len(loader) == len(list(loader)) == len(loader) == 2
        assert next(loader, None) is None


def test_the_gpu_graph_is_whole_and_its_operators_are_where_the_pixels_are():
    settings = DecodeSettings("gpu", CPU, threads=1)
    serialised = make_pipeline(lambda: None, 4, settings).serialize()
    for operator in (b"decoders__ImageSlice", b"Resize", b"CropMirrorNormalize"):
        assert operator in serialised
    devices = re.findall(rb"\x06device\x12\x06string\*.(cpu|gpu|mixed)", serialised, re.DOTALL)
    # The decoder is mixed, resize and normalise follow it, the source of inputs stays on the host.
    assert Counter(devices) == {b"mixed": 1, b"gpu": 2, b"cpu": 9}


@pytest.mark.parametrize("output, handed_through", [("float32", 1), ("uint8", 2)])
def test_a_gpu_graph_takes_labels_and_means_to_the_gpu_itself(output, handed_through):
    settings = DecodeSettings("gpu", CPU, threads=1, output=output)
    serialised = make_pipeline(lambda: None, 4, settings).serialize()
    nodes = re.findall(rb"__([a-zA-Z]+)_\d+\x12\x03(cpu|gpu)\x18", serialised)
    inputs = [(b"ExternalSource", b"gpu")] * handed_through
    # The graph's own outputs are the last.
    assert nodes[-1 - handed_through :] == [(b"CropMirrorNormalize", b"gpu"), *inputs]


# Bad files


WHOLE = jpeg()
HTML = b"<html>404</html>"
OTHER = WHOLE.replace(b"\x08\0\x30\0\x3c", b"\x08\0\x28\0\x3c")  # lines of its frame header


def failure_of(stream: ValStream, bad: Path) -> BadImage:
    """Draws batches of which the third holds `bad`, and checks those before it and the end."""
    loader = open_loader(stream, chunks_of(5, 0, 5, 10, 15))
    first, second = next(loader), next(loader)
    assert (first.positions[0], second.positions[0]) == (0, 5)
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


@pytest.mark.parametrize("content, reason, scanned_as", [
    (WHOLE[: len(WHOLE) // 2], "cannot be decoded: it has no end marker", "bad"),
    (WHOLE[: WHOLE.index(b"\xff\xda")], "is cut off in its header", "bad"),
    (WHOLE[:20], "is cut off in its header", "bad"),
    (b"", "the file is empty", "bad"),
    (HTML, "no image header", "bad"),
    (None, "No such file or directory", "good"),
    (WHOLE + b"\0", "the image index recorded", "good"),
    (b"", "the file is empty", "good"),
    (HTML, "the image index recorded", "good"),
    (b"x", "it was 60 x 48 when it was indexed: no image header", "good"),  # as long
    (OTHER, "is 60 x 40 by its header, the image index recorded 60 x 48", "good"),
])  # fmt: skip
def test_a_bad_file_is_named_after_the_batches_before_it(tmp_path, content, reason, scanned_as):
    root = write_plain(tmp_path)
    bad = root / "train" / "a" / "12.JPEG"
    if scanned_as == "good":
        manifest = open_manifest(root, "train")
    size = bad.stat().st_size
    bad.unlink()
    if content is not None:
        whole = {b"x": content * size, OTHER: content.ljust(size, b"\0")[:size]}
        bad.write_bytes(whole.get(content, content))
    if scanned_as == "bad":
        manifest = open_manifest(root, "train")
    assert reason in failure_of(ValStream(manifest, CenterCrop(32, 32)), bad).reason


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
