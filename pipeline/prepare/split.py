"""`prepare split`: one folder of class folders becomes a data set with train and val.

Which images become val depends on what they show and on the seed, and not on their names or on the
order of a listing. Images that show the same are one group, which stays on one side: a network
tested on what it has seen would look better than it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import ConfigError, require
from pipeline.data.index.passed import HIDDEN, NESTED, OUTSIDE, Passed
from pipeline.data.index.survey import is_container, name_few
from pipeline.data.index.window import is_image
from pipeline.prepare.alike import Look, groups_of, look_of
from pipeline.prepare.drawn import scratch_folder
from pipeline.prepare.files import make_folder, write_json, writing
from pipeline.prepare.options import SplitOptions
from pipeline.system.console import Bar, counted, say
from pipeline.system.regular import open_regular

_MARK = "split.json"
_WORDS = {"links": "hard links to", "symlinks": "symbolic links to", "copies": "copies of"}


def run(options: SplitOptions) -> None:
    """Makes the data set and prints its counts; ConfigError if it cannot."""
    _require_empty(options.to)
    passed = Passed()
    classes = _classes(options.from_, passed)
    groups = _groups(classes, options)
    _require_apart(options.from_, classes, groups)
    val = split(groups, {name: len(files) for name, files in classes.items()}, options)
    _make(options, classes, val)
    for name, files in classes.items():
        held = sum((name, file) in val for file in files)
        say(f"{name}: {len(files) - held} train, {held} val")
    if passed:
        say(f"passed over: {passed.words()}")
    _tell_contradictions(groups)
    images = sum(map(len, classes.values()))
    alike = images - len(groups)
    twins = f"{alike} show the same as another, on whose side they are" if alike else ""
    say(
        f"{options.to}: {len(classes)} classes, {images - len(val)} train and {len(val)} val "
        f"images, {_WORDS[options.files]} those in {options.from_}; "
        f"{twins or 'no two show the same'}"
    )


def _require_empty(target: Path) -> None:
    if not os.path.lexists(target):
        return
    require(target.is_dir(), f"--to {target} is no folder; give an empty or a new one")
    with _reading(target):
        there = sorted(os.listdir(target))
    require(
        not there,
        f"--to {target} is not empty, it holds {name_few(there)}; give an empty or a new folder",
    )


Place = tuple[str, str]
"""The names of a class folder and of a file in it."""


@dataclass
class Group:
    """Images that show the same, in order; `key` is the least digest of their files."""

    key: str
    images: list[Place] = field(default_factory=list)

    def of(self, name: str) -> int:
        """How many of them are of a class."""
        return sum(one == name for one, _ in self.images)


def _classes(source: Path, passed: Passed) -> dict[str, list[str]]:
    """The files of each class folder, both in bytewise order. Raises `ConfigError` if there are no
    class folders, or one alone, or one has fewer than two images."""
    found: dict[str, list[str]] = {}
    with _reading(source):
        names = sorted(os.listdir(source), key=os.fsencode)
    for name in names:
        if name.startswith("."):
            passed.add(HIDDEN, name)
        elif not (source / name).is_dir():
            passed.add(OUTSIDE, name)
        else:
            found[name] = _images(source, name, passed)
    packed = [name for name in names if is_container(os.fsencode(name))]
    inside = f", and what is packed, as {packed[0]} is, is not looked into" if packed else ""
    require(
        bool(found),
        f"--from {source} holds no class folders{inside}; give a folder with a folder of images "
        "for each class",
    )
    split_already = {"train", "val"} <= found.keys() and not any(found.values())
    require(
        not split_already,
        f"--from {source} holds train and val, so it is split already; give it as data.root, or "
        f"split {source / 'train'}",
    )
    few = [
        f"{name} ({counted(len(files), 'image')})"
        for name, files in found.items()
        if len(files) < 2
    ]
    require(
        not few,
        f"--from {source}: each class needs at least 2 images, one for train and one for val, and "
        f"these have fewer: {name_few(few)}; add images, or move the folders away",
    )
    require(
        len(found) > 1,
        f"--from {source} holds one class folder alone, {next(iter(found))}, and a network tells "
        "two or more apart; give a folder with a folder of images for each class",
    )
    return found


def _images(source: Path, name: str, passed: Passed) -> list[str]:
    files = []
    with _reading(source / name):
        entries = sorted(os.scandir(source / name), key=lambda entry: os.fsencode(entry.name))
    for entry in entries:
        place = f"{name}/{entry.name}"
        if entry.name.startswith("."):
            passed.add(HIDDEN, place)
        elif entry.is_dir():
            passed.add(NESTED, place)
        elif is_image(os.fsencode(entry.name)):
            files.append(entry.name)
        else:
            passed.add_file(os.fsencode(entry.name), os.fsencode(place))
    return files


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; repair it, or move it away"
        ) from error


def _groups(classes: Mapping[str, list[str]], options: SplitOptions) -> list[Group]:
    """The images by what they show, in an order that the seed and what they show determine."""
    images = [(name, file) for name, files in classes.items() for file in files]
    with (
        Bar(len(images), "comparing", unit=" images", stream=sys.stderr) as bar,
        ThreadPoolExecutor(options.workers) as pool,
    ):
        looks: list[Look] = []
        for look in pool.map(lambda image: _look(options.from_.joinpath(*image)), images):
            looks.append(look)
            bar.move(len(looks))
    groups: dict[int, Group] = {}
    for image, look, first in zip(images, looks, groups_of(looks), strict=True):
        group = groups.setdefault(first, Group(look.digest))
        group.images.append(image)
        group.key = min(group.key, look.digest)
    return sorted(groups.values(), key=lambda group: _drawn(options.seed, group.key))


def _drawn(seed: int, key: str) -> bytes:
    """A group's place in the order of a seed: of images that are added or removed, the others keep
    their order."""
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _look(path: Path) -> Look:
    with _reading(path), open(path, "rb", opener=open_regular) as file:
        return look_of(file.read())


def _require_apart(source: Path, classes: Mapping[str, list[str]], groups: list[Group]) -> None:
    """Raises `ConfigError` for a class all of whose images show the same."""
    whole = {
        name: group.of(name)
        for group in groups
        for name in {one for one, _ in group.images}
        if group.of(name) == len(classes[name])
    }
    require(
        not whole,
        f"--from {source}: all images of {name_few(sorted(whole))} show the same, so they cannot "
        "be on two sides; add other images, or move the folder away",
    )


def _tell_contradictions(groups: list[Group]) -> None:
    """Says which images of different classes show the same."""
    of_several = [group for group in groups if len({name for name, _ in group.images}) > 1]
    if not of_several:
        return
    images = of_several[0].images
    other = next(image for image in images if image[0] != images[0][0])
    say(
        f"{counted(len(of_several), 'picture')} in more than one class, the first in "
        f"{'/'.join(images[0])} and {'/'.join(other)}: the labels contradict each other; keep the "
        "right ones"
    )


def split(groups: list[Group], sizes: Mapping[str, int], options: SplitOptions) -> set[Place]:
    """The images that become val. Raises `ConfigError` if groups leave a class without one side.

    Class by class, groups are taken in their order as long as they fit into what is wanted; if
    none fits, the smallest.
    """
    wanted = {name: wanted_val(size, options.val) for name, size in sizes.items()}
    held = dict.fromkeys(sizes, 0)
    chosen: set[Place] = set()

    def fits(group: Group) -> bool:
        names = {name for name, _ in group.images}
        return all(held[name] + group.of(name) < sizes[name] for name in names)

    def take(group: Group) -> None:
        chosen.update(group.images)
        for name, _ in group.images:
            held[name] += 1

    of_class: dict[str, list[Group]] = {name: [] for name in sizes}
    for group in groups:
        for name in {one for one, _ in group.images}:
            of_class[name].append(group)
    for name in sizes:
        own = [group for group in of_class[name] if group.images[0] not in chosen]
        for group in own:
            if group.of(name) <= wanted[name] - held[name] and fits(group):
                take(group)
        if held[name] == 0:
            possible = [group for group in own if fits(group)]
            require(
                bool(possible),
                f"the images of {name} show the same as those of other classes, so that none is "
                "left for val; move the copies away",
            )
            take(min(possible, key=lambda group: group.of(name)))
    return chosen


def wanted_val(size: int, share: float) -> int:
    """How many of a class's `size` images become val: the nearest number, halves up, but at least 1
    and at most all but one."""
    return max(1, min(size - 1, int(share * size + 0.5)))


def _make(options: SplitOptions, classes: Mapping[str, list[str]], val: set[Place]) -> None:
    """Makes the data set next to its place and puts it there when it is whole."""
    target = options.to.resolve()
    make_folder(target.parent)
    with writing(target), scratch_folder(target) as scratch:
        made = scratch / target.name
        for name, files in classes.items():
            for part in ("train", "val"):
                (made / part / name).mkdir(parents=True)
            for file in files:
                part = "val" if (name, file) in val else "train"
                _place(options, options.from_ / name / file, made / part / name / file)
        about = {"from": str(options.from_), "val": options.val, "seed": options.seed}
        write_json(made / _MARK, about)
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()  # empty, as was seen
        made.rename(target)


def _place(options: SplitOptions, source: Path, target: Path) -> None:
    source = source.resolve()  # of a link, what it points to
    if options.files == "symlinks":
        target.symlink_to(source)
    elif options.files == "copies":
        shutil.copy2(source, target)
    else:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            raise ConfigError(
                f"{source} cannot have a hard link in {options.to} ({error.strerror}); give "
                "--files copies or --files symlinks"
            ) from error
