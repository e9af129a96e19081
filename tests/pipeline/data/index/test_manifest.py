"""The manifest: what the scan finds, when the cache is used, and what bad trees and files get."""

import json
import logging
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from image_writers import png_chunk
from PIL import Image

from pipeline.data.images import BadImage
from pipeline.data.index.arrow_file import write_manifest
from pipeline.data.index.manifest import open_manifest, read_manifest
from pipeline.data.index.scan import Rows
from pipeline.system.failure import TrainingError


def add_image(path: Path, width: int = 12, height: int = 8, kind: str = "jpeg") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (width % 256, height % 256, 90)).save(path, kind)


@pytest.fixture
def root(tmp_path):
    """Three classes, five images, names that sort differently by bytes than by locale."""
    root = tmp_path / "images"
    add_image(root / "train" / "b" / "2.JPEG", 20, 10)
    add_image(root / "train" / "b" / "10.JPEG", 30, 10)
    add_image(root / "train" / "a" / "x.png", 5, 6, "png")
    add_image(root / "train" / "Z é" / "nom à espaces.jpg", 7, 9)
    add_image(root / "train" / "Z é" / "ASCII.webp", 9, 7, "webp")
    return root


def edit_metadata(path: Path, **changes: bytes) -> None:
    table = pa.ipc.open_file(pa.OSFile(str(path))).read_all()
    metadata = table.schema.metadata | {key.encode(): value for key, value in changes.items()}
    table = table.replace_schema_metadata(metadata)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def test_images_are_in_bytewise_order_with_sizes_and_labels(root):
    manifest = open_manifest(root, "train")
    assert manifest.split == "train"
    assert manifest.directory == root / "train"
    assert manifest.classes == ["Z é", "a", "b"]
    names = [str(manifest.path(i).relative_to(root / "train")) for i in range(len(manifest))]
    assert names == ["Z é/ASCII.webp", "Z é/nom à espaces.jpg", "a/x.png", "b/10.JPEG", "b/2.JPEG"]
    assert manifest.labels.tolist() == [0, 0, 1, 2, 2]
    assert manifest.widths.tolist() == [9, 7, 5, 30, 20]
    assert manifest.heights.tolist() == [7, 9, 6, 10, 10]
    assert manifest.lengths.tolist() == [(root / "train" / n).stat().st_size for n in names]
    types = [manifest.labels.dtype, manifest.lengths.dtype, manifest.widths.dtype]
    assert types == [np.int32, np.int64, np.int32]
    for index, name in enumerate(names):
        content = manifest.read(index)
        assert content.dtype == np.uint8
        assert content.tobytes() == (root / "train" / name).read_bytes()


def test_what_is_no_image_is_passed_over(root):
    before = open_manifest(root, "train").digest
    (root / "train" / "a" / "._x.png").write_bytes(b"\0")
    (root / "train" / "a" / "readme.txt").write_text("about")
    (root / "train" / "a" / "folder.jpg").mkdir()
    add_image(root / "train" / ".hidden" / "y.jpg")
    assert open_manifest(root, "train").digest == before


def test_every_format_is_measured_by_its_content_not_its_name(tmp_path):
    kinds = ["jpeg", "png", "bmp", "webp", "tiff"]
    for width, kind in enumerate(kinds, start=1):
        add_image(tmp_path / "val" / "c" / f"{kind}.JPEG", width, 3, kind)
    manifest = open_manifest(tmp_path, "val")
    measured = {manifest.path(i).stem: int(manifest.widths[i]) for i in range(5)}
    assert measured == {kind: width for width, kind in enumerate(kinds, start=1)}


def test_large_images_are_measured_and_the_exif_turn_is_not_applied(tmp_path):
    folder = tmp_path / "val" / "c"
    add_image(folder / "turned.jpg", 40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (40, 20)).save(folder / "turned.jpg", exif=exif)
    # A header above twice Pillow's limit, where Image.open raises DecompressionBombError.
    add_image(folder / "vast.png", kind="png")
    vast = (folder / "vast.png").read_bytes()
    size = struct.pack(">II", 20_000, 20_000)
    header = png_chunk(b"IHDR", size + vast[24:29])
    (folder / "vast.png").write_bytes(vast[:8] + header + vast[33:])
    limit = Image.MAX_IMAGE_PIXELS
    manifest = open_manifest(tmp_path, "val")
    assert list(zip(manifest.widths, manifest.heights, strict=True)) == [(40, 20), (20_000, 20_000)]
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_data_hash_ignores_place_and_time(root, tmp_path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert open_manifest(copy, "train").digest == open_manifest(root, "train").digest


def test_the_data_hash_sees_class_name_bytes_and_size():
    def digest(file=b"c/a.jpg", length=5, width=3, height=2):
        columns = [np.array([value]) for value in (0, length, width, height)]
        return Rows(["c"], [file], *columns).digest()

    others = [digest(b"d/a.jpg"), digest(b"c/b.jpg"), digest(length=6), digest(width=4)]
    assert len({digest(), *others, digest(height=4), digest(width=2, height=3)}) == 7
    # Golden: sha256 of "c/a.jpg\0" "5\0" "3\0" "2\n", by sha256sum.
    assert digest() == "3fcb5dd95c8f224bfff07007bc0220ca8a8d13404bde649c4376118c1bdee7f0"


def test_a_second_opening_uses_the_cache(root, caplog):
    caplog.set_level(logging.INFO)
    first = open_manifest(root, "train")
    assert "scanned 5 images" in caplog.text
    written = (root / ".trainyard" / "train.arrow").stat()
    caplog.clear()
    second = open_manifest(root, "train")
    assert "scanned" not in caplog.text
    assert (root / ".trainyard" / "train.arrow").stat() == written
    assert second.digest == first.digest
    assert second.labels.tolist() == first.labels.tolist()
    assert os.listdir(root / ".trainyard") == ["train.arrow"]


@pytest.mark.parametrize("change", ["add", "remove", "add a class", "rename a class"])
def test_a_changed_tree_is_scanned_again(root, change):
    before = open_manifest(root, "train")
    if change == "add":
        add_image(root / "train" / "a" / "new.jpg")
    elif change == "remove":
        (root / "train" / "b" / "2.JPEG").unlink()
    elif change == "add a class":
        add_image(root / "train" / "c" / "new.jpg")
    else:
        (root / "train" / "b").rename(root / "train" / "d")
    after = open_manifest(root, "train")
    assert after.digest != before.digest
    assert len(after) == len(list((root / "train").glob("*/*")))


def test_an_open_manifest_survives_the_rewriting_of_its_file(root):
    before = open_manifest(root, "train")
    add_image(root / "train" / "a" / "new.jpg")
    assert len(open_manifest(root, "train")) == 6
    assert before.labels.tolist() == [0, 0, 1, 2, 2]
    assert before.path(4).name == "2.JPEG"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped bit", "older version"])
def test_a_damaged_or_older_cache_is_rebuilt_and_said_so(root, caplog, damage):
    open_manifest(root, "train")
    cache = root / ".trainyard" / "train.arrow"
    content = bytearray(cache.read_bytes())
    cache.unlink()  # a map still open ends the process when its file is cut, as any map does
    if damage == "cut":
        cache.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "text":
        cache.write_text("not an Arrow file")
    elif damage == "flipped bit":
        content[content.index(np.array([9, 7, 5, 30, 20], np.int32).tobytes())] ^= 1
        cache.write_bytes(content)
    else:
        cache.write_bytes(content)
        edit_metadata(cache, version=b"0")
    rebuilt = open_manifest(root, "train")
    assert f"the image index {cache} is not used: " in caplog.text
    assert rebuilt.widths.tolist() == [9, 7, 5, 30, 20]
    caplog.clear()
    open_manifest(root, "train")
    assert "not used" not in caplog.text


def test_the_cache_goes_where_it_is_told(root, tmp_path, user_cache):
    cache = tmp_path / "a cache"
    open_manifest(root, "train", cache_dir=cache)
    assert [path.suffix for path in cache.iterdir()] == [".arrow"]
    assert not (root / ".trainyard").exists()
    other = tmp_path / "other"
    shutil.copytree(root / "train", other / "train")
    open_manifest(other, "train", cache_dir=cache)
    assert len(list(cache.iterdir())) == 2
    assert not user_cache.exists()


def test_next_to_read_only_data_the_user_cache_is_used(root, user_cache, caplog):
    caplog.set_level(logging.INFO)
    # A file in the way: root, who runs the tests in containers, may write to any directory.
    (root / ".trainyard").write_text("")
    first = open_manifest(root, "train")
    assert len(list(user_cache.glob("*-train.arrow"))) == 1
    caplog.clear()
    assert open_manifest(root, "train").digest == first.digest
    assert "scanned" not in caplog.text


def test_no_place_for_the_cache_is_an_error(root, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    wanted = rf"{root}/train cannot be written to {blocked} \(File exists\); set data.cache_dir to"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(root, "train", cache_dir=blocked)


def test_validation_labels_follow_the_training_classes(root, caplog):
    add_image(root / "val" / "b" / "1.jpg")
    classes = open_manifest(root, "train").classes
    for _ in ("scanned", "from the cache"):
        caplog.clear()
        val = open_manifest(root, "val", classes=classes)
        assert (val.classes, val.labels.tolist(), val.labels.dtype) == (classes, [2], np.int32)
        assert f"{root}/val has no images of 2 of the 3 training classes: Z é, a; " in caplog.text
    assert open_manifest(root, "val").labels.tolist() == [0]


def test_a_class_that_is_not_in_training_is_named(root):
    for name in ("a", "new", "n2", "n3", "n4"):
        add_image(root / "val" / name / "1.jpg")
    wanted = r"/val has 4 class folder\(s\) that are not in .* data: n2, n3, n4 and 1 more; "
    with pytest.raises(ValueError, match=wanted):
        open_manifest(root, "val", classes=["a", "b"])


NO_IMAGES = r"/val holds no images \(.jpeg .*set data.root"


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        ([], "the data directory .* does not exist; .*demo, .* split, or lay "),
        (["train/a/1.jpg"], "has no folder val; lay the images out as .*/val/<class>"),
        (
            ["train/a/1.jpg", "validation/a/1.jpg"],
            "has no folder val, and there is a folder validation; rename it to val, or link it: "
            "ln -s validation /.*/val$",
        ),
        (["train/a/1.jpg", "test/a/1.jpg", "valid/a/1.jpg"], "there is a folder valid; rename it"),
        (["train/a/1.jpg", "Val/a/1.jpg"], "there is a folder Val; rename it"),
        (
            ["train/a/1.jpg", "validation"],
            "has no folder val; lay the images out as .*/val/<class>",
        ),
        (
            ["a b/1.jpg", "c/1.jpg", "notes/1.txt", "2.jpg"],
            "holds 2 class folders and no train and val; make them with python -m pipeline.prepare "
            "split --from (/.*/data) --to \\1-split --val 0.2, and set data.root=\\1-split$",
        ),
        (["notes/1.txt"], "has no folder val; lay the images out as .*/val/<class>"),
        (["val/1.jpg", "val/2.jpg"], "val holds 2 images but no class folders, .*/val/<class>/"),
        (["val/.hidden"], NO_IMAGES),
        (["val/a/notes.txt", "val/b/notes.txt"], NO_IMAGES),
        (
            ["val/a/1.jpg", "val/b/notes.txt"],
            r"1 class folder\(s\) of .* hold no images: b, only 1 .txt file .*; fill",
        ),
    ],
)
def test_what_is_no_data_set_says_how_to_lay_it_out(tmp_path, images, wanted):
    for name in images:
        add_image(tmp_path / "data" / name)
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path / "data", "val")


def test_half_of_a_data_set_is_told_where_the_whole_is(root):
    add_image(root / "val" / "a" / "1.jpg")
    wanted = "train is a half of a data set; set data.root=(/.*), which holds train and val$"
    with pytest.raises(ValueError, match=wanted) as raised:
        open_manifest(root / "train", "train")
    assert f"data.root={root}, " in str(raised.value)


def test_images_next_to_the_class_folders_are_reported(root, caplog):
    add_image(root / "train" / "stray.jpg")
    assert len(open_manifest(root, "train")) == 5
    assert (
        f"{root}/train: not used are 1 image outside class folders and containers (the first "
        "stray.jpg)"
    ) in caplog.text


def test_files_without_a_header_are_kept_and_warned_of_once(root, caplog):
    (root / "train" / "a" / "page.jpg").write_text("<html>not found</html>")
    (root / "train" / "a" / "void.jpg").write_bytes(b"")
    (root / "train" / "a" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    manifest = open_manifest(root, "train")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        f"3 of 8 images in {root}/train have no header that is decoded: a/cut.jpg, a/page.jpg, "
        f"a/void.jpg; training fails when it meets one, or excludes it, by data.bad_images; python "
        f"-m pipeline.prepare verify says why for each"
    ]
    reasons = {}
    for index in np.flatnonzero(manifest.widths == 0):
        assert manifest.heights[index] == 0
        with pytest.raises(BadImage) as caught:
            manifest.read(index)
        assert caught.value.path == manifest.path(index)
        reasons[caught.value.path.name] = caught.value.reason
    assert reasons == {
        "page.jpg": "no image header",
        "void.jpg": "the file is empty",
        "cut.jpg": "is cut off in its header",
    }


def test_a_file_that_changed_since_the_scan_is_a_bad_image(root):
    manifest = open_manifest(root, "train")
    length = int(manifest.lengths[3])
    path = manifest.path(3)
    content = path.read_bytes()
    fix = (
        "if it was replaced on purpose, python -m pipeline.prepare index --again indexes the data "
        "again; runs that began before will see it as other data"
    )
    reasons = []
    for changed in (content[:100], content + b"x", b"", None):
        path.unlink() if changed is None else path.write_bytes(changed)
        with pytest.raises(BadImage) as caught:
            manifest.read(3)
        reasons.append(caught.value.reason)
    assert reasons == [
        f"has 100 bytes, the image index recorded {length} ({fix})",
        f"has {length + 1} bytes, the image index recorded {length} ({fix})",
        "the file is empty",
        "it cannot be read: No such file or directory",
    ]
    assert str(caught.value) == f"the image {path} cannot be used: {caught.value.reason}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("count", [1, 64, 1000])
def test_written_rows_come_back_as_views_of_the_map(tmp_path, count):
    labels = np.sort(np.arange(count, dtype=np.int32) % 3)
    rows = Rows(
        classes=["\udcff", "b", "c"],  # a name that is not UTF-8, as os.fsdecode gives it
        files=[b"\xff/%d.jpg" % index for index in range(count)],
        labels=labels,
        lengths=np.arange(count, dtype=np.int64) + 2**33,
        widths=np.arange(count, dtype=np.int32) + 1,
        heights=np.arange(count, dtype=np.int32) + 2,
    )
    write_manifest(tmp_path / "m.arrow", rows)
    manifest = read_manifest(tmp_path / "m.arrow", "train", Path("/data/train"))
    assert manifest.digest == rows.digest()
    assert manifest.classes == rows.classes
    assert os.fsencode(manifest.path(count - 1)) == b"/data/train/\xff/%d.jpg" % (count - 1)
    for name in ("labels", "lengths", "widths", "heights"):
        view = getattr(manifest, name)
        assert np.array_equal(view, getattr(rows, name))
        assert not view.flags.owndata
        assert not view.flags.writeable


def test_the_cache_file_is_plain_arrow(root):
    open_manifest(root, "train")
    table = pa.ipc.open_file(str(root / ".trainyard" / "train.arrow")).read_all()
    assert table.schema.names == ["file", "label", "length", "width", "height"]
    assert json.loads(table.schema.metadata[b"classes"]) == ["Z é", "a", "b"]
    assert table["file"].to_pylist()[3] == b"b/10.JPEG"


def test_an_index_that_cannot_be_read_for_want_of_threads_is_not_called_damaged(
    root, monkeypatch, caplog
):
    open_manifest(root, "train")

    def refused(*_: object) -> None:
        raise RuntimeError("Resource temporarily unavailable")

    monkeypatch.setattr(pa.ipc, "open_file", refused)
    told = "no more threads may be started .*ulimit -u.*or lower run.threads or data.threads"
    with pytest.raises(TrainingError, match=told):
        open_manifest(root, "train")
    assert "damaged" not in caplog.text
