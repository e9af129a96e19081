"""Every kind of image file: refused by its header or decoded to Pillow's pixels, and never a crash.

DALI decodes in a process of its own, as it may end that.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jobs
import numpy as np
import pytest
from image_zoo import zoo
from PIL import Image

from pipeline.data.images import BadImage
from pipeline.data.index.headers import header_of, image_size
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.index.window import opened
from pipeline.data.parser import parser_flaw
from pipeline.prepare.verify import find_flaw

TOLERANCE = 3  # levels: a CMYK or YCbCr conversion rounds otherwise, a palette of 16 bits too

DECODE = """
import pickle, sys
from pathlib import Path
import numpy as np
from pipeline.data.dali import DecodeSettings, as_lists
from pipeline.data.dali.graph import make_decoding_pipeline
from pipeline.data.dali.reasons import cause
from pipeline.data.dali.source import read_patiently
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
import torch
manifest = open_manifest(Path(sys.argv[1]), "train")
settings = DecodeSettings("cpu", torch.device("cpu"), 1, prefetch=1)
found, pipe, inputs = {}, None, []
for image in range(len(manifest)):
    name = manifest.path(image).name
    if manifest.widths[image] == 0 or manifest.widths[image] * manifest.heights[image] > 10**8:
        continue
    try:
        content = read_patiently(manifest, image)
    except BadImage as error:
        found[name] = f"kept out: {error.reason}"
        continue
    whole = np.array([[manifest.heights[image], manifest.widths[image]]], np.int32)
    inputs.append(as_lists(([content], np.zeros((1, 2), np.int32), whole)))
    if pipe is None:
        pipe = make_decoding_pipeline(lambda: inputs[-1], 1, settings)
        pipe.build()
    try:
        found[name] = np.array(pipe.run()[0].at(0))
    except RuntimeError as error:
        found[name], pipe = cause(str(error)), None
    inputs = inputs[-2:]
Path(sys.argv[2]).write_bytes(pickle.dumps(found))
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.getbasetemp() / "zoo/train/a"
    folder.mkdir(parents=True)
    names = zoo(folder)
    for path in folder.iterdir():  # the index takes images by name
        path.rename(path.with_name(f"{path.name}.jpg"))
    return {f"{name}.jpg": verdict for name, verdict in names.items()}


@pytest.fixture(scope="module")
def manifest(verdicts, tmp_path_factory) -> Manifest:
    return open_manifest(tmp_path_factory.getbasetemp() / "zoo", "train")


@pytest.fixture(scope="module")
def decoded(manifest, tmp_path_factory) -> dict[str, np.ndarray | str]:
    """Pixels by file name, or why there are none."""
    out = tmp_path_factory.mktemp("decoded") / "pixels"
    root = manifest.directory.parent
    command = [sys.executable, "-c", DECODE, str(root), str(out)]
    ran = subprocess.run(command, cwd=jobs.REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return pickle.loads(out.read_bytes())


def files(manifest: Manifest) -> Iterator[tuple[int, str, bytes]]:
    for image in range(len(manifest)):
        path = manifest.path(image)
        yield image, path.name, path.read_bytes()


def by_pillow(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8; 16 bits by their upper half, which Pillow itself would clip."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I;16"):
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, -1)
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def test_the_zoo_is_large_and_every_verdict_is_in_it(verdicts):
    assert len(verdicts) >= 900
    counts = {kind: list(verdicts.values()).count(kind) for kind in ("good", "refused", "bad")}
    assert min(counts.values()) >= 20, counts


def test_the_index_refuses_what_is_to_be_refused_and_reading_gives_the_reason(manifest, verdicts):
    wrong = []
    for image, name, content in files(manifest):
        refused = manifest.widths[image] == 0
        if verdicts[name] != "any" and refused != (verdicts[name] == "refused"):
            wrong.append((name, verdicts[name], header_of(content).flaw))
        if refused:
            with pytest.raises(BadImage) as caught:
                manifest.read(image)
            assert len(caught.value.reason) > 8 and not caught.value.changed, name
    assert wrong == []


def test_sizes_are_the_same_from_bytes_and_from_a_window(manifest, tmp_path):
    for image, name, content in files(manifest):
        size = header_of(content).size
        assert (manifest.widths[image], manifest.heights[image]) == size, name
        (tmp_path / "x").write_bytes(b"before" + content + b"\xff\xd8 behind")
        with opened(tmp_path / "x") as window:
            assert image_size(window, 6, len(content)) == size, name


def test_what_is_decoded_is_what_pillow_decodes(manifest, verdicts, decoded):
    wrong = []
    for _image, name, content in files(manifest):
        pixels, wanted = decoded.get(name), by_pillow(content)
        if verdicts[name] == "good":
            assert wanted is not None, name
            same = isinstance(pixels, np.ndarray) and pixels.shape == wanted.shape
            if not same or np.abs(pixels.astype(int) - wanted).max() > TOLERANCE:
                wrong.append((name, pixels if isinstance(pixels, str) else "other pixels"))
        elif verdicts[name] == "bad" and isinstance(pixels, np.ndarray):
            wrong.append((name, "decoded"))
        both = isinstance(pixels, np.ndarray) and wanted is not None
        if both and pixels.shape != wanted.shape:
            wrong.append((name, "another shape"))
    assert wrong == []


def test_only_the_stage_of_one_image_fails_by_itself(decoded):
    """Whatever else DALI could refuse has been kept out of its batches."""
    said = {words for words in decoded.values() if isinstance(words, str)}
    assert {words for words in said if not words.startswith("kept out: ")} <= {"Failed to decode"}


def test_the_fast_verification_agrees_with_the_decoder(manifest, verdicts, decoded):
    """It finds all that the parser refuses, and nothing wrong with what decodes to Pillow's."""
    missed, invented = [], []
    for image, name, content in files(manifest):
        encoded = np.frombuffer(content, np.uint8)
        size = int(manifest.widths[image]), int(manifest.heights[image])
        flaw, parsed = find_flaw(encoded, *size), parser_flaw(encoded, size)
        if size == (0, 0) or parsed is not None:
            if flaw is None:
                missed.append(name)
        elif verdicts[name] == "good" and flaw is not None:
            invented.append((name, flaw))
    assert (missed, invented) == ([], [])


# Whether a JPEG with such a segment behind its first two bytes is decoded.
MARKERS = {
    0x00: False, 0x01: False, 0x02: False, 0xBF: False, 0xC8: False, 0xD0: True, 0xD7: True,
    0xD8: False, 0xD9: False, 0xDC: True, 0xDE: False, 0xDF: False, 0xE0: True,
    0xEF: True, 0xF0: False, 0xF7: False, 0xFD: False, 0xFE: True,
}  # fmt: skip


@pytest.mark.parametrize("marker", MARKERS, ids="{:02X}".format)
def test_each_marker_of_a_jpeg_has_one_verdict(manifest, verdicts, decoded, marker):
    name = f"jpeg-segment-{marker:02X}.jpg.jpg"
    path = manifest.directory / "a" / name
    header = header_of(path.read_bytes())
    assert bool(header.flaw) is not MARKERS[marker]
    assert isinstance(decoded.get(name), np.ndarray) is MARKERS[marker]
    assert Path(path).exists() and (verdicts[name] == "refused") is not MARKERS[marker]


TELL = """
import logging, sys
logging.basicConfig()
from pathlib import Path
from pipeline.data.index.headers import header_of
for path in sorted(Path(sys.argv[1]).glob("tiff-*")):
    header_of(path.read_bytes())
"""


def test_pillow_says_nothing_of_its_own_about_headers(manifest):
    """Of a TIFF of 999 samples it logs an error, of others it warns; neither names the file."""
    command = [sys.executable, "-c", TELL, str(manifest.directory / "a")]
    ran = subprocess.run(command, cwd=jobs.REPOSITORY, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
