"""How image sizes are read, and what a scan reports as it runs."""

import errno
import io
import logging
import os
import threading
import time
from functools import partial

import numpy as np
import pytest
from container_writers import draw_images, packed, tar_of, write, write_folders
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from terminal import on_terminal

from pipeline.data.index import folders, tar
from pipeline.data.index import scan as scanning
from pipeline.data.index.headers import header_of, image_size, size_of_bytes
from pipeline.data.index.jpeg import read_jpeg, usual_jpeg
from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.window import BadContainer, Window, opened
from pipeline.data.parser import parser_flaw
from pipeline.system import console, files

KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "unsampled": {"subsampling": 0},
    "with a comment": {"comment": b"a comment of some length " * 9},
    "with a colour profile": {"icc_profile": bytes(range(256)) * 300},
    "with restart markers": {"restart_marker_blocks": 2},
    "turned": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
}


def jpeg(mode: str = "RGB", **options) -> bytes:
    encoded = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 201, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def size_by_pillow(content: bytes) -> tuple[int, int]:
    try:
        return JpegImageFile(io.BytesIO(content)).size
    except Exception:
        return 0, 0


def decoded_by_pillow(content: bytes) -> bool:
    try:
        JpegImageFile(io.BytesIO(content)).load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_have_the_size_that_pillow_reads(mode, kind):
    content = jpeg(mode, **KINDS[kind])
    assert size_of_bytes(content) == size_by_pillow(content) == (201, 300)


def test_a_jpeg_cut_behind_its_header_has_its_size_and_before_it_none():
    content = jpeg("RGB", comment=b"a comment")
    scan = content.index(b"\xff\xda") + 14
    headers = {cut: header_of(content[:cut]) for cut in range(1000)}
    assert {headers[cut].size for cut in range(scan, 1000)} == {(201, 300)}
    assert {headers[cut] for cut in range(3, scan)} == {((0, 0), "is cut off in its header")}


@pytest.mark.parametrize("seed", range(3))
def test_a_jpeg_with_other_bytes_has_the_size_that_pillow_reads_if_it_is_decoded(seed):
    """A byte changed in the header: what Pillow decodes and DALI's parser takes keeps its size."""
    rng = np.random.default_rng(seed)
    content = jpeg()
    for place, value in zip(rng.integers(2, 700, 300), rng.integers(0, 256, 300), strict=True):
        changed = content[:place] + bytes([value]) + content[place + 1 :]
        header, by_pillow = header_of(changed), size_by_pillow(changed)
        usual = usual_jpeg(changed)
        assert usual is None or usual == read_jpeg(io.BytesIO(changed))
        parsed = parser_flaw(np.frombuffer(changed, np.uint8), by_pillow) is None
        if parsed and decoded_by_pillow(changed):
            assert header == (by_pillow, "")
        assert header.size in ((0, 0), by_pillow)


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "tiff"])
def test_other_formats_are_measured_inside_a_container(tmp_path, kind):
    encoded = io.BytesIO()
    Image.new("RGB", (31, 17)).save(encoded, kind)
    before, content = b"x" * 10_001, encoded.getvalue()
    (tmp_path / "x").write_bytes(before + content + b"\xff\xd8 another")
    with opened(tmp_path / "x") as window:
        assert image_size(window, len(before), len(content)) == (31, 17)
        assert image_size(window, 0, 50) == (0, 0)


def test_nothing_behind_an_image_is_read_as_part_of_it(tmp_path):
    content = jpeg()
    (tmp_path / "x").write_bytes(content)
    with opened(tmp_path / "x") as window:
        assert image_size(window, 0, len(content)) == (201, 300)
        assert image_size(window, 0, 100) == (0, 0)


def test_a_scan_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    write_folders(tmp_path / "val", draw_images(3))
    packed(tmp_path / "train", draw_images(3))

    def slowly(walk, *places):
        time.sleep(0.3)
        return walk(*places)

    monkeypatch.setattr(console, "LINE_SEC", 0.05)
    monkeypatch.setitem(scanning._WALKS, "tar", partial(slowly, tar.walk))
    monkeypatch.setattr(folders, "walk", partial(slowly, folders.walk))
    open_manifest(tmp_path, "train")
    open_manifest(tmp_path, "val")
    assert f"{tmp_path}/train: 0 of 3 tar archives, 0.0 GB passed" in caplog.text
    assert f"{tmp_path}/val: 0 of 2 class folders\n" in caplog.text


SCAN_ON_RANK_1 = """
import sys
from pathlib import Path
from pipeline.data.index.manifest import open_manifest
from pipeline.system.console import start_logging
start_logging(rank=1)
open_manifest(Path(sys.argv[1]), "train")
"""


def test_a_scan_draws_a_bar_on_a_terminal_on_rank_0_only(tmp_path):
    write_folders(tmp_path / "train", draw_images(3))
    packed(tmp_path / "val", draw_images(3))
    said, shown = on_terminal(["-m", "pipeline.prepare", "index", f"--root={tmp_path}"])
    assert f"scanned 3 images in {tmp_path}/train" in said
    assert f"scanning {tmp_path}/train:" in shown and "/2" in shown
    assert f"scanning {tmp_path}/val:" in shown
    assert shown.rpartition("\r")[2].strip() == ""  # the line is clean again
    (tmp_path / ".trainyard" / "train.arrow").unlink()
    assert on_terminal(["-c", SCAN_ON_RANK_1, str(tmp_path)]) == ("", "")


def test_a_file_that_comes_back_while_it_is_scanned_is_measured(tmp_path, caplog):
    write_folders(tmp_path / "train", [("a", "1.jpg", jpeg())])
    (tmp_path / "train" / "a" / "2.jpg").symlink_to(tmp_path / "away")
    timer = threading.Timer(0.3, (tmp_path / "away").write_bytes, [jpeg()])
    timer.start()
    manifest = open_manifest(tmp_path, "train")
    timer.join()
    assert manifest.widths.tolist() == [201, 201]
    assert f"{tmp_path}/train/a/2.jpg cannot be read: No such file" in caplog.text
    assert "tried again in 0.1 s" in caplog.text


def test_a_link_to_nowhere_ends_the_scan_and_nothing_is_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    write_folders(tmp_path / "train", [("a", "1.jpg", jpeg())])
    link = tmp_path / "train" / "a" / "2.jpg"
    link.symlink_to("nowhere")
    wanted = f"the image {link} cannot be read: No such file or directory; put back what it links"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "train")
    assert not (tmp_path / ".trainyard").exists()


def test_a_read_of_a_container_that_fails_for_a_while_is_tried_again(tmp_path, monkeypatch):
    write(tmp_path / "train" / "x.tar", tar_of([("a/1.jpg", jpeg(icc_profile=b"p" * 70_000))]))
    pread, failures = os.pread, [2, 5, 9]

    def passing_fault(*where):
        if failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(*where)

    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,) * 3)
    monkeypatch.setattr(os, "pread", passing_fault)
    manifest = open_manifest(tmp_path, "train")
    assert (manifest.widths.tolist(), failures) == ([201], [])
    failures += range(4)
    with pytest.raises(ValueError, match="x.tar cannot be read: Input/output error; copy it"):
        open_manifest(tmp_path, "train", again=True)


@pytest.mark.parametrize("cuts", [1, 9])
def test_an_image_that_is_cut_off_while_it_is_scanned_is_measured_again(
    tmp_path, monkeypatch, caplog, cuts
):
    path, whole, pread = tmp_path / "train" / "a" / "1.jpg", jpeg(), os.pread
    write(path, whole)

    def cutting(*where):
        nonlocal cuts
        os.truncate(path, 700)
        found = pread(*where)
        cuts -= 1
        path.write_bytes(whole)
        return found if cuts >= 0 else pread(*where)

    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    monkeypatch.setattr(os, "pread", cutting)
    cut_off = f"{path} cannot be read: it was cut off while it was read; "
    if cuts == 1:
        assert open_manifest(tmp_path, "train").widths.tolist() == [201]
    else:
        with pytest.raises(ValueError, match=f"^the image {cut_off}copy .* or remove it$"):
            open_manifest(tmp_path, "train")
    assert f"{cut_off}tried again" in caplog.text


def test_a_split_that_the_disk_refuses_is_to_be_replaced_by_a_copy(tmp_path, monkeypatch):
    write(tmp_path / "train" / "a" / "1.jpg", jpeg())

    def refused(place):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), place)

    monkeypatch.setattr(os, "scandir", refused)
    wanted = f"^{tmp_path}/train cannot be read: Stale file handle; set data.root to a copy$"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "train")


def test_a_header_that_cannot_be_read_is_not_taken_for_none(tmp_path):
    """Pillow reads on behind a long colour profile, and raises OSError for bad headers itself."""
    content = jpeg(icc_profile=b"p" * 70_000)
    (tmp_path / "x").write_bytes(content)
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    window = Window(tmp_path / "x", descriptor, len(content))
    window.read(0, 1)
    os.truncate(tmp_path / "x", 5000)
    with pytest.raises(BadContainer, match="cut off while it was read"):
        image_size(window, 0, len(content))
    window.read(0, 1)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        image_size(window, 0, len(content))


def test_a_tiff_of_one_bit_that_is_refused_says_what_helps():
    def flaw(kind: str, **more: str) -> str:
        buffer = io.BytesIO()
        Image.new("1", (40, 30)).save(buffer, kind, **more)
        return header_of(buffer.getvalue()).flaw

    assert flaw("TIFF").endswith("(tag 258), as one of 1 bit may without compression; save it as "
                                 "PNG, or with a compression")  # fmt: skip
    assert [flaw("PNG"), flaw("TIFF", compression="tiff_lzw")] == ["", ""]
