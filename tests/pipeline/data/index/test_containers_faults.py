"""What damaged, closed, compressed and vanishing containers get."""

import gc
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from container_writers import (
    WRITERS,
    contents,
    draw_images,
    packed,
    recordio,
    write_folders,
)

from pipeline.data.crops import CenterCrop
from pipeline.data.images import BadImage
from pipeline.data.index import recordio as records
from pipeline.data.index import tar
from pipeline.data.index import tfrecord as tfrecords
from pipeline.data.index import window as common
from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.window import opened
from pipeline.data.stream import ValStream
from pipeline.system import files

WALKS = dict(zip(WRITERS, (tar.walk, tar.walk, tfrecords.walk, records.walk), strict=True))


@pytest.mark.parametrize("write", WRITERS)
def test_no_images_in_any_container_is_an_error(tmp_path, write):
    write(tmp_path / "train", [])
    with pytest.raises(ValueError, match=r"/train holds no images .*set data.root"):
        open_manifest(tmp_path, "train")


@pytest.mark.parametrize("write", WRITERS)
def test_a_container_that_is_cut_is_an_error_with_the_byte(tmp_path, write):
    write(tmp_path / "train", draw_images(9))
    path = next(path for path in (tmp_path / "train").iterdir() if "classes" not in path.name)
    size = path.stat().st_size
    if path.suffix == ".tar":
        size = len(path.read_bytes().rstrip(b"\0")) + 512  # one block of the end mark may stay
    for length in (size - 600, size // 2, 100, 7):
        os.truncate(path, length)
        with pytest.raises(ValueError, match="at byte [0-9]+ .*it is cut off; copy it anew") as got:
            open_manifest(tmp_path, "train")
        assert str(path) in str(got.value)
    assert not (tmp_path / ".trainyard").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_other_bytes_where_a_record_begins_are_an_error_with_the_byte(tmp_path, write):
    write(tmp_path / "train", draw_images(9))
    path = next(path for path in (tmp_path / "train").iterdir() if "classes" not in path.name)
    content = path.read_bytes()
    path.write_bytes(b"\x55" * 4 + content[4:])
    with pytest.raises(ValueError, match=f"{path} cannot be used: at byte 0 .*damaged or no"):
        open_manifest(tmp_path, "train")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"])
def test_a_compressed_container_is_known_by_its_bytes(tmp_path, write, magic):
    write(tmp_path / "train", draw_images(3))
    path = next(path for path in (tmp_path / "train").iterdir() if "classes" not in path.name)
    path.write_bytes(magic + b"\1" * 600)
    with pytest.raises(ValueError, match=r"cannot be read by byte range; unpack that"):
        open_manifest(tmp_path, "train")


@pytest.mark.parametrize("write", WRITERS)
def test_a_shard_that_shrinks_after_indexing_is_a_changed_image(tmp_path, write):
    write(tmp_path / "train", draw_images(9))
    manifest = open_manifest(tmp_path, "train")
    before = contents(manifest)
    bad = 0
    for path in (tmp_path / "train").iterdir():
        os.truncate(path, 200)
    for image in range(len(manifest)):
        with pytest.raises(BadImage, match="its container was changed or cut") as caught:
            manifest.read(image)
        bad += caught.value.changed
        assert caught.value.path == manifest.path(image)
        assert " at byte " in str(caught.value) and "train/" in str(caught.value)
    assert bad == len(before)


@pytest.mark.parametrize("write", WRITERS)
def test_a_shard_that_shrinks_while_it_is_indexed_is_an_error(tmp_path, write, monkeypatch):
    write(tmp_path / "train", draw_images(9))
    path = next(path for path in (tmp_path / "train").iterdir() if "classes" not in path.name)
    monkeypatch.setattr(common, "_READ_BYTES", 16)  # or it would all be read at once
    with opened(path) as window:
        window.read(0, 1)
        os.truncate(path, 700)
        with pytest.raises(ValueError, match="at byte [0-9]+ it was cut off while it was read"):
            WALKS[write](window)


@pytest.mark.parametrize("write", WRITERS)
def test_a_container_that_goes_away_is_a_changed_image(tmp_path, write):
    write(tmp_path / "train", draw_images(3))
    manifest = open_manifest(tmp_path, "train")
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(BadImage, match="it cannot be read: No such file") as caught:
        manifest.read(0)
    assert caught.value.changed


def test_mixed_kinds_are_an_error(tmp_path):
    packed(tmp_path / "train", draw_images(3))
    write_folders(tmp_path / "train", draw_images(3))
    recordio(tmp_path / "train", draw_images(3))
    with pytest.raises(ValueError) as caught:
        open_manifest(tmp_path, "train")
    assert str(caught.value) == (
        f"{tmp_path}/train holds 2 class folders (Z é, a) and 3 tar archives (shard-000000.tar, "
        f"shard-000001.tar, shard-000002.tar) and 3 RecordIO files (train0.rec, train1.rec, "
        f"train2.rec), of which only one kind can be the data set; move the others to another "
        f"folder"
    )


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a b.tar.zst", "a.TAR.XZ"])
def test_a_compressed_archive_is_known_by_its_name(tmp_path, name):
    packed(tmp_path / "train", draw_images(3))
    (tmp_path / "train" / name).touch()
    with pytest.raises(ValueError, match=f"compressed archives, .*: {name}; uncompress them"):
        open_manifest(tmp_path, "train")


@pytest.fixture
def unprivileged():
    """A folder of a user who may not read everything, and that user for the time of the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    yield folder, (lambda: os.seteuid(65534) if root else None)
    if root:
        os.seteuid(0)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("closed", ["split", "container", "class folder"])
def test_what_may_not_be_read_is_an_error_that_says_so(unprivileged, closed, monkeypatch):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    folder, drop_rights = unprivileged
    if closed == "class folder":
        write_folders(folder / "train", draw_images(3))
        path = folder / "train" / "a"
    else:
        packed(folder / "train", draw_images(3))
        path = folder / "train" / ("shard-000001.tar" if closed == "container" else "")
    path.chmod(0)
    drop_rights()
    with pytest.raises(ValueError, match="cannot be read: Permission denied; give this user"):
        open_manifest(folder, "train", cache_dir=folder)


def test_an_image_that_may_not_be_read_ends_the_scan(unprivileged, monkeypatch):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    folder, drop_rights = unprivileged
    write_folders(folder / "train", draw_images(3))
    path = next((folder / "train" / "a").iterdir())
    path.chmod(0)
    drop_rights()
    wanted = f"the image {path} cannot be read: Permission denied; give this user the right to read"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(folder, "train", cache_dir=folder)
    assert not list(folder.glob("*.arrow"))


def test_an_old_manifest_that_cannot_be_replaced_is_not_passed_by(unprivileged, monkeypatch):
    folder, drop_rights = unprivileged
    write_folders(folder / "train", draw_images(3))
    open_manifest(folder, "train")
    (folder / "user").mkdir()
    (folder / "user").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "user"))
    (folder / ".trainyard").chmod(0o555)
    drop_rights()
    wanted = f"cannot be written to {folder}/.trainyard .Permission denied.; set data.cache_dir"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(folder, "train", again=True)


def test_a_container_that_may_not_be_read_any_more_is_a_changed_image(unprivileged):
    folder, drop_rights = unprivileged
    packed(folder / "train", draw_images(3))
    manifest = open_manifest(folder, "train", cache_dir=folder)
    for path in (folder / "train").iterdir():
        path.chmod(0)
    drop_rights()
    with pytest.raises(BadImage, match="it cannot be read: Permission denied") as caught:
        manifest.read(0)
    assert caught.value.changed


def test_a_bad_image_in_a_container_is_kept_and_warned_of(tmp_path, caplog):
    images = [*draw_images(2), ("a", "page.jpg", b"<html>"), ("a", "void.jpg", b"")]
    packed(tmp_path / "train", images)
    manifest = open_manifest(tmp_path, "train")
    assert "2 of 4 images in" in caplog.text and "a/page.jpg, a/void.jpg" in caplog.text
    reasons = []
    for image in np.flatnonzero(manifest.widths == 0):
        with pytest.raises(BadImage) as caught:
            manifest.read(image)
        assert not caught.value.changed
        reasons.append(caught.value.reason)
    assert reasons == ["no image header", "the file is empty"]


def test_few_files_stay_open_while_many_threads_read(tmp_path):
    paths = []
    for number in range(40):
        paths.append(os.fsencode(tmp_path / str(number)))
        (tmp_path / str(number)).write_bytes(bytes([number]) * 5000)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        files = None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.collect()  # or what earlier tests left open might be closed while this one counts
    before = len(os.listdir("/proc/self/fd"))
    wrong = []

    def read(files: ContainerFiles, seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(1000):
            number = choose.randrange(40)
            if files.read(number, 10, 4000).tobytes() != bytes([number]) * 4000:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(files, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) - before == 16  # a quarter of 64
    del files, threads
    assert len(os.listdir("/proc/self/fd")) == before


OPEN_AGAIN_AND_AGAIN = """
import sys
from pathlib import Path
from pipeline.data.index.manifest import open_manifest
while True:
    open_manifest(Path(sys.argv[1]), "train")
    print("made", flush=True)
    (Path(sys.argv[1]) / ".trainyard" / "train.arrow").unlink()
"""


def test_a_kill_while_indexing_leaves_a_whole_manifest_or_none(tmp_path, caplog):
    packed(tmp_path / "train", draw_images(300))
    digest = open_manifest(tmp_path, "train").digest
    for delay_sec in (0.0, 0.004, 0.009, 0.015):
        argv = [sys.executable, "-c", OPEN_AGAIN_AND_AGAIN, str(tmp_path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"made\n"
            time.sleep(delay_sec)
            child.kill()
        assert open_manifest(tmp_path, "train").digest == digest
    assert "is not used" not in caplog.text


def test_a_full_disk_costs_no_manifest_that_was_there(tmp_path):
    write_folders(tmp_path / "train", draw_images(300))
    open_manifest(tmp_path, "train", tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    before = kept.read_bytes()
    write_folders(tmp_path / "train", draw_images(301))
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline.data.index.manifest import open_manifest\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "open_manifest(Path(sys.argv[1]), 'train', Path(sys.argv[1]) / 'cache')\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert "cannot be written to" in done.stderr and "(File too large)" in done.stderr
    assert [kept.read_bytes()] == [before]
    assert list((tmp_path / "cache").iterdir()) == [kept]


def test_an_image_that_cannot_be_decoded_is_named_with_its_container(tmp_path):
    from pipeline.data.dali import DecodeSettings, Loader

    images = list(draw_images(9, ("a",)))
    images[4] = ("a", images[4][1], images[4][2][:700])
    packed(tmp_path / "train", images)
    manifest = open_manifest(tmp_path, "train")
    bad = next(i for i in range(9) if f"a/{images[4][1]} " in str(manifest.path(i)))
    stream = ValStream(manifest, CenterCrop(16, 16))
    settings = DecodeSettings("cpu", torch.device("cpu"), threads=1)
    loader = Loader(stream, [np.arange(9)], 1, 9, settings)
    with closing(loader), pytest.raises(BadImage, match="cannot be decoded") as caught:
        next(loader)
    assert caught.value.path == manifest.path(bad)
    assert f"{tmp_path}/train/shard-000001.tar:a/{images[4][1]} at byte " in str(caught.value)
