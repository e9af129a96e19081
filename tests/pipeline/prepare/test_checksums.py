"""What `prepare verify --full` sees of containers that decoding does not."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from container_writers import (
    NUMBERS,
    draw_images,
    image_record,
    recordio_of,
    slim_examples,
    tar_of,
    tfrecord_of,
    write,
    write_class_list,
)

from pipeline.data.index.manifest import open_manifest
from pipeline.prepare import verify
from pipeline.prepare.checksums import damaged_images
from pipeline.prepare.options import VerifyOptions
from pipeline.system import console

IMAGES = draw_images(6)


def flip_kept_time(path: Path, at: int, mask: int = 1) -> None:
    """Change bits as a disk does: the time of the file stays."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def verified(root: Path) -> list[dict[str, object]]:
    report = root / "r.jsonl"
    try:
        verify.run(VerifyOptions(root, full=True, report=report))
    except ValueError as error:
        assert "would fail in training" in str(error)
    return [json.loads(line) for line in report.read_text().splitlines()]


@pytest.mark.parametrize("where", ["label", "pixels", "checksum", "name"])
def test_one_bit_of_a_tfrecord_is_found_by_its_checksum(tmp_path, where):
    path = write(tmp_path / "train" / "x.tfrecord", tfrecord_of(slim_examples(IMAGES, NUMBERS)))
    write_class_list(tmp_path / "train")
    manifest = open_manifest(tmp_path, "train")
    assert verified(tmp_path) == []
    content = path.read_bytes()
    third = manifest.read(2).tobytes()
    begin = content.index(third)
    records = [tfrecord_of([one]) for one in slim_examples(IMAGES, NUMBERS)]
    place = next(i for i, one in enumerate(records) if third in one)
    start = sum(map(len, records[:place]))
    record = records[place]
    at = {
        "label": start + record.index(b"image/class/label") + len(b"image/class/label") + 6,
        "pixels": begin + len(third) - 40,
        "checksum": start + len(record) - 1,
        "name": start + record.index(b"image/filename") + len(b"image/filename") + 8,
    }[where]
    flip_kept_time(path, at, mask=3 if where == "label" else 1)  # 1 becomes 2, and 2 becomes 1
    if where == "label":  # walking again shows it before its checksum is read
        with pytest.raises(ValueError, match="has other images than its image index: its TFRecord"):
            verify.run(VerifyOptions(tmp_path, full=True, report=tmp_path / "r.jsonl"))
        open_manifest(tmp_path, "train", again=True)  # indexed with the damage
    if where == "name":
        open_manifest(tmp_path, "train", again=True)
    (line,) = verified(tmp_path)
    assert line["verdict"] == "bad"
    assert "its record does not match its checksum: pixels, label or name" in str(line["reason"])
    excluded = json.loads((tmp_path / "r.exclude.json").read_text())["splits"]["train"]["images"]
    assert excluded == [line["image"]]


def test_a_label_of_recordio_that_changed_in_place_is_found_by_walking_again(tmp_path):
    records = [image_record(NUMBERS[label], content) for label, _, content in IMAGES]
    path = write(tmp_path / "train" / "x.rec", recordio_of(records))
    write_class_list(tmp_path / "train")
    open_manifest(tmp_path, "train")
    assert verified(tmp_path) == []
    content = path.read_bytes()
    assert content[12:16] == b"\0\0\0\0"
    before = path.stat()
    path.write_bytes(content[:12] + b"\0\0\x80\x3f" + content[16:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match="has other images than its image index: its RecordIO"):
        verify.run(VerifyOptions(tmp_path, full=True, report=tmp_path / "r.jsonl"))


def test_a_bit_of_a_tar_header_is_found_with_its_byte(tmp_path):
    members = [(f"{label}/{name}", content) for label, name, content in IMAGES]
    path = write(tmp_path / "train" / "x.tar", tar_of(members))
    open_manifest(tmp_path, "train")
    flip_kept_time(path, path.read_bytes().index(b"a/", 600))
    with pytest.raises(ValueError, match="at byte [0-9]+ no tar header begins|other images"):
        verify.run(VerifyOptions(tmp_path, full=True, report=tmp_path / "r.jsonl"))


def test_containers_are_walked_once_by_a_call_that_indexes_and_warned_of_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train = tmp_path / "train"
    numbered = slim_examples(IMAGES, NUMBERS)
    path = write(train / "x-00000-of-00002", tfrecord_of([*numbered, *slim_examples(IMAGES, None)]))
    write(train / f"{path.name}.idx", b"no index\n")
    write(train / "classes.txt", "a\nZ é\nmore\n".encode())
    warnings = ["is not used: its line 1", "the last 1 have no images", "takes each twice", "00001"]
    for walks, times in ((1, 1), (1, 0)):  # indexed by this call, and by one before
        caplog.clear()
        assert verified(tmp_path) == []
        assert caplog.text.count("scanned 12 images") == walks
        assert [caplog.text.count(one) for one in warnings] == [times] * 4
    # What changes in place after that is still found.
    flip_kept_time(path, path.read_bytes().index(b"image/filename") + 30)
    with pytest.raises(ValueError, match="at byte|other images"):
        verify.run(VerifyOptions(tmp_path, full=True, report=tmp_path / "r.jsonl"))


def test_the_checksums_progress_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SEC", -1.0)
    for number in range(2):
        path = tmp_path / "train" / f"{number}.tfrecord"
        write(path, tfrecord_of(slim_examples(IMAGES[number::2], None)))
    assert damaged_images(open_manifest(tmp_path, "train"), threads=2) == {}
    begin = f"checking the records' checksums in {tmp_path / 'train'}: "
    lines = [one for one in capsys.readouterr().err.splitlines() if one.startswith(begin)]
    assert len(lines) == 6
    assert lines[-1].startswith(f"{begin}6 of 6 files, 0.00 of 0.00 GB")
