"""JPEGs decoded on a GPU: pixels near the CPU's, bad files named, memory as foreseen."""

import io
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data.crops import CenterCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.dali.settings import decoder_memory
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET
from pipeline.data.stream import TrainStream, ValStream

pytestmark = pytest.mark.gpu

BATCH = 16
LEVELS = 3.0  # mean difference in 0..255 allowed: another chroma upsampling and inverse DCT


def jpeg(width: int, height: int, seed: int) -> bytes:
    """Smooth colours, as photographs have them."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    grown = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    grown.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def write(root, bad: bytes | None = None):
    """32 images in a class; number 20 holds `bad` if given."""
    folder = root / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(2 * BATCH):
        (folder / f"{i:02d}.JPEG").write_bytes(jpeg(300 + 20 * i, 500 - 5 * i, i))
    if bad is not None:
        (folder / "20.JPEG").write_bytes(bad)
    return open_manifest(root, "train")


def settings(manifest, decoder, output="float32") -> DecodeSettings:
    memory = decoder_memory(DataConfig(), (manifest,))
    return DecodeSettings(decoder, torch.device("cuda", 0), 4, 3, output, memory=memory)


def open_loader(stream, count, how) -> Loader:
    chunks = (np.arange(i * BATCH, (i + 1) * BATCH) for i in range(count))
    return Loader(stream, chunks, count, BATCH, how)


@pytest.mark.parametrize("output", ["float32", "float16", "uint8"])
def test_pixels_are_near_those_of_the_cpu(tmp_path, output):
    manifest = write(tmp_path)
    stream = TrainStream(manifest, RandomResizedCrop(224, color_std=0.1), 0)
    found = []
    for decoder in ("cpu", "gpu"):
        with closing(open_loader(stream, 2, settings(manifest, decoder, output))) as loader:
            found.append([batch.images.float().cpu() for batch in loader])
    scale = torch.from_numpy(IMAGENET.std).view(1, 3, 1, 1)
    for on_cpu, on_gpu in zip(*found, strict=True):
        error = (on_cpu - on_gpu).abs() * scale
        assert error.mean() < LEVELS
        assert error.flatten(1).mean(1).max() < 2 * LEVELS  # and no image is another one


WHOLE = jpeg(300, 300, 99)
BAD = {
    "half": WHOLE[: len(WHOLE) // 2],
    "without end marker": WHOLE[:-2],
    "header only": WHOLE[: WHOLE.index(b"\xff\xda")],
    "text": b"<html>404</html>",
    "gif": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    "empty": b"",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_after_the_batch_before_it(tmp_path, kind):
    manifest = write(tmp_path, BAD[kind])
    stream = ValStream(manifest, CenterCrop(224, 224))
    with closing(open_loader(stream, 2, settings(manifest, "gpu"))) as loader:
        assert next(loader).positions[0] == 0
        if kind == "without end marker":  # the GPU's decoders may be content with all its pixels
            try:
                assert torch.isfinite(next(loader).images).all()
            except BadImage as error:
                assert error.path.name == "20.JPEG"
            return
        with pytest.raises(BadImage) as error:
            next(loader)
        assert error.value.path.name == "20.JPEG"


def used_bytes() -> int:
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info(0)
    return total - free


def test_memory_stays_below_what_the_hints_say_and_does_not_grow(tmp_path):
    manifest = write(tmp_path)
    stream = TrainStream(manifest, RandomResizedCrop(224), 0)
    how = settings(manifest, "gpu")
    torch.zeros(1, device="cuda")
    before, seen = used_bytes(), []
    with closing(open_loader(stream, 220, how)) as loader:
        for number, _ in enumerate(loader):
            if number >= 19:
                seen.append(used_bytes())
    memory = how.memory
    pixels = BATCH * memory.width * memory.height * 3
    foreseen = how.threads * memory.device_padding_bytes + (how.prefetch + 2) * pixels
    assert max(seen) - before < 4 * foreseen + 2**30  # 1 GiB: nvJPEG's and DALI's own
    assert max(seen) - seen[0] <= 64 * 2**20  # over 200 batches; pools grow in large pieces
