"""ImageNet from its archives: right labels, the same bytes, and nothing half done."""

from __future__ import annotations

import os
import signal
import tarfile
from pathlib import Path

import pytest
from imagenet_archives import (
    WNIDS,
    Archives,
    killed_at_file,
    options,
    small_archives,
    tar_of,
    visible_files,
)

from pipeline.config import ConfigError
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare import files, imagenet

VAL = "ILSVRC2012_val_{:08}.JPEG"


def expected(archives: Archives) -> dict[str, bytes]:
    """Path below the split's folder: bytes, for class folders."""
    found = {
        f"train/{wnid}/{name}": content
        for wnid, images in archives.train.items()
        for name, content in images.items()
    }
    for label, name in zip(archives.truth, sorted(archives.val), strict=True):
        found[f"val/{WNIDS[label - 1]}/{name}"] = archives.val[name]
    return found


def in_shards(out: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(out.rglob("shard-*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                reader = shard.extractfile(member)
                assert reader is not None
                name = f"{path.parent.name}/{member.name}"
                assert name not in found
                found[name] = reader.read()
    return found


def test_class_folders_hold_every_image_unchanged_under_its_wnid(tmp_path, capsys):
    archives = small_archives()
    paths = archives.write(tmp_path / "archives")
    out = tmp_path / "out"
    imagenet.run(options(paths, out))
    words = "n01440764 tench, Tinca tinca\nn02100735 English setter\n"
    words += "n02119789 kit fox, Vulpes macrotis\nn03661043 library\n"
    found = visible_files(out)
    assert found.pop("synset_words.txt").decode() == words
    assert found == expected(archives)
    assert f"18 train and 6 val images of 4 classes written to {out}" in capsys.readouterr().out
    train, val = open_manifest(out, "train"), open_manifest(out, "val")
    assert (len(train), len(val)) == (18, 6)
    assert train.classes == sorted(WNIDS)
    assert sorted(path.name for path in (out / ".trainyard").iterdir()) == [
        "imagenet.json", "lock", "train.arrow", "val.arrow",
    ]  # fmt: skip


@pytest.mark.parametrize("shard_bytes", [1000, 21_000, 10**6])
def test_shards_hold_the_same_and_are_the_same_whatever_the_workers(
    tmp_path, monkeypatch, shard_bytes
):
    monkeypatch.setattr(imagenet, "_MB", shard_bytes)
    archives = small_archives()
    paths = archives.write(tmp_path / "archives")
    imagenet.run(options(paths, tmp_path / "a", layout="shards", shard_mb=1, workers=1))
    imagenet.run(options(paths, tmp_path / "b", layout="shards", shard_mb=1, workers=4))
    assert in_shards(tmp_path / "a") == expected(archives)
    assert visible_files(tmp_path / "a") == visible_files(tmp_path / "b")
    numbers = sorted(path.name for path in (tmp_path / "a" / "train").iterdir())
    assert numbers == [f"shard-{i:06}.tar" for i in range(len(numbers))]
    # Each class is a tar of 10 to 20 KB.
    assert len(numbers) in {1000: range(20, 99), 21_000: (2, 3), 10**6: (1,)}[shard_bytes]
    names = list(in_shards(tmp_path / "a"))
    assert names == sorted(names)


def test_folders_and_shards_are_the_same_data_to_a_manifest(tmp_path):
    paths = small_archives().write(tmp_path / "archives")
    imagenet.run(options(paths, tmp_path / "folders"))
    imagenet.run(options(paths, tmp_path / "shards", layout="shards"))
    for split in ("train", "val"):
        folders = open_manifest(tmp_path / "folders", split)
        shards = open_manifest(tmp_path / "shards", split)
        assert folders.digest == shards.digest
        assert folders.labels.tolist() == shards.labels.tolist()
        assert all((folders.read(i) == shards.read(i)).all() for i in range(len(folders)))


def test_a_second_call_finds_all_there_and_another_one_is_refused(tmp_path, capsys):
    paths = small_archives().write(tmp_path / "archives")
    out = tmp_path / "out"
    imagenet.run(options(paths, out))
    times = {path: path.stat().st_ctime_ns for path in out.rglob("*.JPEG")}
    capsys.readouterr()
    imagenet.run(options(paths, out))
    assert "18 train and 6 val images of 4 classes are already in" in capsys.readouterr().out
    assert {path: path.stat().st_ctime_ns for path in times} == times
    with pytest.raises(ConfigError, match=r"begun with layout folders \(now shards\), shard_mb"):
        imagenet.run(options(paths, out, layout="shards"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    with pytest.raises(ConfigError, match=r"already holds thesis, which is not a data set"):
        imagenet.run(options(paths, tmp_path / "home"))


# Files before those of train: the mark, and 6 val images or their one shard.
@pytest.mark.parametrize(("layout", "file", "before"), [("folders", 80, 7), ("shards", 5, 2)])
def test_after_a_kill_the_next_call_ends_as_if_there_had_been_none(tmp_path, layout, file, before):
    # 1.2 MB and more for each class.
    paths = small_archives(train_per_class=30, padding=40_000).write(tmp_path / "archives")
    out, whole = tmp_path / "out", tmp_path / "whole"
    more = {"layout": layout, "shard_mb": 1, "workers": 1}
    given = (paths | {"out": out} | more).items()
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in given]
    assert killed_at_file(file, "imagenet", *argv) == -signal.SIGKILL
    half = out / ".trainyard" / "train"
    assert not (out / "train").exists(), "half a split has its final name"
    kept = {path: path.stat().st_ino for path in half.rglob("*") if path.is_file()}
    assert len(kept) == file - before - 1
    for folder in (out, whole):
        imagenet.run(options(paths, folder, **more))
    assert visible_files(out) == visible_files(whole)
    moved = {out / "train" / path.relative_to(half): inode for path, inode in kept.items()}
    assert {path: path.stat().st_ino for path in moved} == moved
    assert set(os.listdir(out / ".trainyard")) == set(os.listdir(whole / ".trainyard"))


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    paths = small_archives().write(tmp_path / "archives")
    monkeypatch.setattr(files, "_RESERVE_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match=r"GB free, but \d+\.\d\d GB are needed"):
        imagenet.run(options(paths, tmp_path / "out"))
    assert visible_files(tmp_path / "out") == {}


def _with_first(name):
    def change(archives):
        archives.train[WNIDS[0]] = {name: b"x", **archives.train[WNIDS[0]]}
        archives.train_counts[WNIDS[0]] += 1

    return change


WRONG = {
    "fewer images of val": (
        lambda archives: archives.val.popitem(),
        "holds 5 images, but the devkit has 6 validation labels",
    ),
    "another number": (
        lambda archives: archives.val.update({VAL.format(9): archives.val.pop(VAL.format(3))}),
        "has ILSVRC2012_val_00000004.JPEG where image 3 is due",
    ),
    "a name of two lines": (
        lambda archives: archives.val.update({"a\nb.JPEG": archives.val.pop(VAL.format(1))}),
        r"has .*where image 1 is due",
    ),
    "fewer classes": (
        lambda archives: archives.train.pop(WNIDS[2]),
        "holds 3 archives, but the devkit has 4 classes",
    ),
    "another class": (
        lambda archives: archives.train.update(n99999999=archives.train.pop(WNIDS[2])),
        f"has no {WNIDS[2]}.tar, the class of 'library'",
    ),
    "fewer images of a class": (
        lambda archives: archives.train[WNIDS[1]].popitem(),
        f"{WNIDS[1]}.tar in --train-tar .* holds 3 images, but the devkit counts 4",
    ),
    **{
        name: (_with_first(name), "is no plain name of a file or folder: refused")
        for name in ("../escaped.JPEG", "/tmp/escaped.JPEG", "a/b.JPEG", "..", ".x")
    },
}


@pytest.mark.parametrize("wrong", WRONG)
def test_archives_that_do_not_go_together_or_leave_their_folder_are_refused(tmp_path, wrong):
    change, message = WRONG[wrong]
    archives = small_archives()
    change(archives)
    with pytest.raises(ConfigError, match=message):
        imagenet.run(options(archives.write(tmp_path / "archives"), tmp_path / "deep" / "out"))
    assert not (tmp_path / "deep" / "out" / "train").exists()
    assert not list(tmp_path.rglob("escaped.JPEG"))


def test_a_link_in_an_archive_is_refused(tmp_path):
    paths = small_archives().write(tmp_path / "archives")
    with tarfile.open(paths["val_tar"], "w") as archive:
        link = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ConfigError, match=r"at byte 0 .* is a link or another special file"):
        imagenet.run(options(paths, tmp_path / "out"))


@pytest.mark.parametrize("layout", ["folders", "shards"])
def test_names_with_spaces_and_letters_beyond_ascii_are_kept(tmp_path, layout):
    archives = small_archives()
    images = archives.train[WNIDS[0]]
    images[f"füchse im schnee {'ü' * 90}_1.JPEG"] = images.pop(f"{WNIDS[0]}_1.JPEG")
    out = tmp_path / "out ö"
    imagenet.run(options(archives.write(tmp_path / "archive ä"), out, layout=layout))
    found = visible_files(out) if layout == "folders" else in_shards(out)
    assert expected(archives).items() <= found.items()


@pytest.mark.parametrize(("archive", "share"), [("train_tar", 0.6), ("val_tar", 0.2)])
def test_a_truncated_archive_is_told_with_the_byte(tmp_path, archive, share):
    paths = small_archives(20, 20).write(tmp_path / "archives")
    length = paths[archive].stat().st_size
    os.truncate(paths[archive], int(length * share) // 512 * 512 - 200)
    with pytest.raises(ValueError, match=rf"{paths[archive]} cannot be used: at byte \d+"):
        imagenet.run(options(paths, tmp_path / "out"))
    assert visible_files(tmp_path / "out") == {}


def test_an_inner_archive_that_is_damaged_is_told_with_the_byte(tmp_path):
    archives = small_archives()
    paths = archives.write(tmp_path / "archives")
    inner = tar_of(archives.train[WNIDS[1]])
    whole = bytearray(paths["train_tar"].read_bytes())
    at = whole.index(inner)
    second = inner.index(f"{WNIDS[1]}_2.JPEG".encode())
    whole[at + second : at + second + 400] = b"\x55" * 400
    paths["train_tar"].write_bytes(whole)
    with pytest.raises(ValueError, match=rf"at byte {at + second} no tar header begins"):
        imagenet.run(options(paths, tmp_path / "out"))


@pytest.mark.parametrize("images", [0, 1])
def test_sets_of_no_and_of_one_image_per_class(tmp_path, images):
    archives = small_archives(val_images=images)
    for wnid, found in archives.train.items():
        archives.train[wnid] = dict(list(found.items())[:images])
        archives.train_counts[wnid] = images
    imagenet.run(options(archives.write(tmp_path / "archives"), tmp_path / "out"))
    assert expected(archives).items() <= visible_files(tmp_path / "out").items()
    assert len(list((tmp_path / "out").rglob("*.JPEG"))) == 5 * images
