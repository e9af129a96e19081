"""`prepare split`: train and val out of one folder, each class in proportion, copies together."""

import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ConfigError
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.__main__ import main
from pipeline.prepare.alike import MOST_BITS, MOST_LEVELS, groups_of, look_of, near
from pipeline.prepare.split import wanted_val

Listing = dict[str, dict[str, set[str]]]


def picture(number: int, size: tuple[int, int] = (60, 40), quality: int = 90) -> bytes:
    """A picture of soft colours, another one for every number."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return stored.getvalue()


def made(root: Path, **counts: int) -> Path:
    """A folder with so many pictures of each class, all different."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index:02d}.jpg").write_bytes(picture(number))
            number += 1
    return root


def split(source: Path, target: Path, *options: str, val: float = 0.2) -> Listing:
    """What a split gives: the files by part and class."""
    main(["split", f"--from={source}", f"--to={target}", f"--val={val}", *options])
    return {
        part: {one.name: set(os.listdir(one)) for one in (target / part).iterdir()}
        for part in ("train", "val")
    }


@pytest.fixture
def source(tmp_path) -> Path:
    return made(tmp_path / "photos", cat=10, dog=5, bird=2)


def test_each_class_is_split_in_proportion(source, tmp_path, capsys):
    found = split(source, tmp_path / "own")
    counts = {part: {n: len(f) for n, f in classes.items()} for part, classes in found.items()}
    assert counts["val"] == {"cat": 2, "dog": 1, "bird": 1}
    assert counts["train"] == {"cat": 8, "dog": 4, "bird": 1}
    for name in ("cat", "dog", "bird"):
        both = [found[part][name] for part in ("train", "val")]
        assert both[0] | both[1] == set(os.listdir(source / name)) and not both[0] & both[1]
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["bird: 1 train, 1 val", "cat: 8 train, 2 val", "dog: 4 train, 1 val"]
    assert said[3] == (
        f"{tmp_path}/own: 3 classes, 13 train and 4 val images, hard links to those in {source}; "
        "no two show the same"
    )


def test_a_training_reads_what_it_makes(source, tmp_path):
    split(source, tmp_path / "own")
    train, val = (open_manifest(tmp_path / "own", part) for part in ("train", "val"))
    assert train.classes == val.classes == ["bird", "cat", "dog"]
    assert (len(train), len(val)) == (13, 4)


@pytest.mark.parametrize(
    ("size", "share", "wanted"),
    [(10, 0.2, 2), (12, 0.2, 2), (13, 0.2, 3), (5, 0.5, 3), (100, 0.001, 1), (2, 0.9, 1),
     (10, 0.99, 9)],
)  # fmt: skip
def test_the_share_is_rounded_to_the_nearest_and_leaves_one_on_each_side(size, share, wanted):
    assert wanted_val(size, share) == wanted


def test_the_same_call_gives_the_same_split_and_another_seed_another(source, tmp_path):
    first = split(source, tmp_path / "a", val=0.4)
    assert split(source, tmp_path / "b", val=0.4) == first
    others = [split(source, tmp_path / str(n), f"--seed={n}", val=0.4) for n in (1, 2, 3)]
    assert any(other != first for other in others)


def test_the_split_depends_on_what_images_show_and_not_on_their_names(source, tmp_path):
    first = split(source, tmp_path / "a", val=0.4)
    for number, path in enumerate(sorted(source.glob("cat/*"), reverse=True)):
        path.rename(path.with_name(f"new-{number:02d}.jpg"))
    second = split(source, tmp_path / "b", val=0.4)

    def held(root: Path, listing: Listing) -> set[bytes]:
        return {(root / "val" / "cat" / name).read_bytes() for name in listing["val"]["cat"]}

    assert held(tmp_path / "a", first) == held(tmp_path / "b", second)


def test_a_few_images_more_leave_the_others_where_they_were(tmp_path):
    source = made(tmp_path / "photos", cat=40, dog=2)
    first = split(source, tmp_path / "a", val=0.25)
    (source / "cat" / "more.jpg").write_bytes(picture(999))
    second = split(source, tmp_path / "b", val=0.25)
    assert len(first["val"]["cat"] - second["val"]["cat"]) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_one_picture_are_on_one_side(source, tmp_path, capsys, seed):
    for name, stored in (
        ("copy.jpg", picture(3)), ("small.jpg", picture(3, (48, 32))),
        ("poor.jpg", picture(3, quality=60)),
    ):  # fmt: skip
        (source / "cat" / name).write_bytes(stored)
    found = split(source, tmp_path / "own", f"--seed={seed}", val=0.5)
    group = {"03.jpg", "copy.jpg", "small.jpg", "poor.jpg"}
    assert group <= found["train"]["cat"] or group <= found["val"]["cat"]
    assert "; 3 show the same as another, on whose side they are" in capsys.readouterr().out
    assert 4 <= len(found["val"]["cat"]) <= 9


def test_a_copy_in_another_class_is_on_the_same_side(tmp_path, capsys):
    source = made(tmp_path / "photos", cat=6, dog=6)
    (source / "dog" / "00.jpg").write_bytes((source / "cat" / "00.jpg").read_bytes())
    for seed in range(5):
        found = split(source, tmp_path / str(seed), f"--seed={seed}", val=0.5)
        sides = {name: "00.jpg" in found["val"][name] for name in ("cat", "dog")}
        assert sides["cat"] == sides["dog"]
        assert all(len(found[part][name]) >= 1 for part in found for name in ("cat", "dog"))
        assert (
            "1 picture in more than one class, the first in cat/00.jpg and dog/00.jpg: the labels "
            "contradict each other; keep the right ones"
        ) in capsys.readouterr().out


def test_pictures_are_known_by_what_they_show():
    contents = [
        picture(1), picture(1, (90, 60)), picture(2), picture(1, quality=70), b"no image",
        picture(2),
        b"no image", b"none either", flat("white"), flat("black"), flat("white"),
    ]  # fmt: skip
    found = groups_of([look_of(content) for content in contents])
    assert found == [0, 0, 2, 0, 4, 2, 4, 7, 8, 9, 8]


def flat(colour: str) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(stored, "PNG")
    return stored.getvalue()


def test_hashes_that_differ_in_few_bits_are_found_and_no_others():
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 256, (300, 32), dtype=np.uint8)
    copies = np.unpackbits(hashes[:100], axis=1)
    for number, row in enumerate(copies):
        row[draw.permutation(256)[: 1 + number % (2 * MOST_BITS)]] ^= 1
    everything = np.concatenate([hashes, np.packbits(copies, axis=1)])
    wanted = {(n, 300 + n) for n in range(100) if 1 + n % (2 * MOST_BITS) <= MOST_BITS}
    levels = np.zeros((400, 768), np.uint8)
    assert {(min(pair), max(pair)) for pair in near(everything, levels)} == wanted
    levels[300, 5] = MOST_LEVELS + 1
    found = {(min(pair), max(pair)) for pair in near(everything, levels)}
    assert found == wanted - {(0, 300)}


def before_a_camera(number: int, side: int) -> bytes:
    """A thing of `side` pixels somewhere in a scene of 224 that is always the same."""
    scene = np.array(Image.open(io.BytesIO(picture(0, (224, 224), quality=95))))
    draw = np.random.default_rng(number)
    y, x = draw.integers(0, 224 - side, 2)
    scene[y : y + side, x : x + side] = draw.integers(0, 256, 3)
    stored = io.BytesIO()
    Image.fromarray(scene).save(stored, "JPEG")
    return stored.getvalue()


@pytest.mark.parametrize("side", [24, 48])
def test_things_before_one_camera_are_different_pictures(side):
    """Nearly all bits of their hashes are the scene's: a whole class would be one group."""
    contents = [before_a_camera(number, side) for number in range(40)]
    looks = [look_of(content) for content in contents]
    assert all(look.bits is not None for look in looks)
    assert groups_of(looks) == list(range(40))
    again = io.BytesIO()
    Image.open(io.BytesIO(contents[3])).resize((150, 150)).save(again, "JPEG", quality=70)
    assert groups_of([*looks, look_of(again.getvalue())])[-1] == 3


@pytest.mark.parametrize("files", ["links", "symlinks", "copies"])
def test_files_are_links_or_copies(source, tmp_path, files):
    found = split(source, tmp_path / "own", f"--files={files}")
    name = next(iter(found["val"]["cat"]))
    made, original = tmp_path / "own" / "val" / "cat" / name, source / "cat" / name
    content = original.read_bytes()
    assert made.is_symlink() == (files == "symlinks")
    assert made.samefile(original) == (files != "copies")
    shutil.rmtree(source)
    if files != "symlinks":
        assert made.read_bytes() == content


def test_a_link_between_images_is_followed(source, tmp_path):
    (source / "cat" / "link.jpg").symlink_to("00.jpg")
    found = split(source, tmp_path / "own")
    sides = ["train" if name in found["train"]["cat"] else "val" for name in ("link.jpg", "00.jpg")]
    assert sides[0] == sides[1]
    assert (tmp_path / "own" / sides[0] / "cat" / "link.jpg").stat().st_nlink > 1


def test_hard_links_that_cannot_be_are_refused_with_another_way(source, tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ConfigError, match="cannot have a hard link in .*; give --files copies or"):
        split(source, tmp_path / "own")
    assert sorted(os.listdir(tmp_path)) == ["photos"]  # nothing half made


def test_what_is_no_image_is_passed_over_and_counted(source, tmp_path, capsys):
    (source / "notes.txt").write_text("mine")
    (source / "cat" / "list.txt").write_text("mine")
    (source / "cat" / ".hidden.jpg").write_bytes(picture(50))
    (source / "cat" / "more").mkdir()
    (source / ".cache").mkdir()
    found = split(source, tmp_path / "own")
    assert sum(len(files) for classes in found.values() for files in classes.values()) == 17
    said = capsys.readouterr().out
    assert "2 names that begin with a dot (the first .cache)" in said
    assert "1 folder inside class folders (the first cat/more)" in said
    assert "1 .txt file (the first cat/list.txt)" in said
    assert "1 file outside class folders (the first notes.txt)" in said


def test_an_empty_target_is_filled(source, tmp_path):
    (tmp_path / "own").mkdir()
    assert split(source, tmp_path / "own")["val"]


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({}, [], "--from {source} holds no class folders; give a folder with a folder of images"),
        ({"cat": 3, "dog": 1, "bird": 0}, [], "each class needs at least 2 images, one for train "
         "and one for val, and these have fewer: bird (0 images), dog (1 image); add images, or"),
        ({"cat": 3}, ["--val=1"], "--val=1.0 must lie in (0, 1), such as 0.2 for a fifth"),
        ({"cat": 3}, ["--val=0"], "--val=0.0 must lie in (0, 1)"),
        ({"cat": 3}, ["--seed=-1"], "--seed=-1 must be 0 or more"),
        ({"cat": 3}, ["--files=moves"], "--files moves must be one of links, symlinks, copies"),
        ({"cat": 3}, ["--to={source}/own"], "lie in each other; give a folder apart"),
        ({"cat": 3}, ["--to={full}"], "--to {full} is not empty, it holds file; give an empty or"),
        ({"cat": 3}, ["--to={full}/file"], "--to {full}/file is no folder; give an empty or a new"),
        ({"cat": 3}, ["--from=none"], "--from none is not a folder; give a data set's"),
        ({"cat": 3}, [], "--from {source} holds one class folder alone, cat, and a network tells"),
        ({"train/cat": 3, "val/cat": 2}, [], "--from {source} holds train and val, so it is split "
         "already; give it as data.root, or split {source}/train"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(tmp_path, counts, options, message):
    source, full = tmp_path / "photos", tmp_path / "full"
    for folder in (source, full):
        folder.mkdir()
    made(source, **counts)
    (full / "file").write_text("mine")
    places = {"source": source, "full": full}
    with pytest.raises(ConfigError) as error:
        split(source, tmp_path / "own", *(option.format(**places) for option in options))
    assert message.format(**places) in str(error.value)
    assert not (tmp_path / "own").exists()


def test_packed_classes_are_named(source, tmp_path):
    shutil.make_archive(str(tmp_path / "packed" / "cat"), "tar", source / "cat")
    with pytest.raises(
        ConfigError, match="no class folders, and what is packed, as cat.tar is, is"
    ):
        split(tmp_path / "packed", tmp_path / "own")


def test_a_class_of_one_picture_in_copies_is_refused(tmp_path):
    source = made(tmp_path / "photos", cat=4)
    (source / "dog").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (source / "dog" / name).write_bytes(picture(77))
    with pytest.raises(ConfigError, match="all images of dog show the same, so they cannot be"):
        split(source, tmp_path / "own")
