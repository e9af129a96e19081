"""Tar archives: packed shards, webdataset shards, and ImageNet's own archive of archives.

Read by a parser of its own because Python's tarfile takes 40 us of a core for a member where this
takes 11, and does not read an image's first bytes along with its header. Formats: v7, ustar, GNU
(long names, base-256 sizes) and pax (POSIX.1-2001), as GNU tar's manual lays them out.

The class of an image is, in this order:
- what has the same key (its path up to the first dot of its name): `key.cls`, or "label", "cls" or
  "class" of `key.json`, the first of them; a number from 0, or a name; two files must agree;
- the folder that holds it, `<class>/<file>`;
- the archive's own name, where the image's name begins with it: `n01440764_10026.JPEG` in
  `n01440764.tar`. An archive inside an archive is walked in place.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from pipeline.data.index.headers import image_size
from pipeline.data.index.passed import HIDDEN, LINKS, SPECIAL
from pipeline.data.index.sidecars import SIDECARS, Sidecars, key_of
from pipeline.data.index.tar_members import FILES, FOLDER, Member, check_file, members
from pipeline.data.index.tar_members import LINKS as LINK_KINDS
from pipeline.data.index.window import Entry, Window, is_image
from pipeline.system.words import printable

_MOST_DEEP = 4  # archives in archives: ImageNet's has one level


def walk(window: Window) -> list[Entry]:
    """Return the images of an archive in its order, each named by the last part of its path.

    Names that begin with a dot and what is no image by extension are passed over, counted by
    `window.passed`. BadContainer, with the byte, for a compressed, damaged or cut archive, a path
    with `..`, an image or label that is a link, a name that occurs twice, a key with two images or
    with labels that differ, and an image whose class cannot be known.
    """
    window.check_not_compressed()
    return _walk_range(window, 0, window.length, window.path.name.encode(errors="surrogateescape"))


def _walk_range(
    window: Window, begin: int, end: int, archive: bytes, depth: int = 0
) -> list[Entry]:
    entries: list[Entry] = []
    images: dict[bytes, tuple[Member, tuple[int, int]]] = {}
    sidecars = Sidecars(window)
    for member in map(_normal, members(window, begin, end)):
        name = member.path.rpartition(b"/")[2].lower()
        if not member.path:  # `./`, the root of the archive
            continue
        if _is_hidden(window, member):
            window.passed.add(HIDDEN, member.path)
        elif member.kind == FOLDER:
            continue
        elif is_image(name):
            _check_image(window, member, images)
            # Now, while the first page of the image is at hand.
            images[member.path] = member, image_size(window, member.offset, member.length)
        elif name.endswith(SIDECARS):
            sidecars.add(member)
        elif member.kind not in FILES:
            window.passed.add(LINKS if member.kind in LINK_KINDS else SPECIAL, member.path)
        elif name.endswith(b".tar"):
            _check_depth(window, member, depth)
            inner = member.path.rpartition(b"/")[2]
            last = member.offset + member.length
            entries += _walk_range(window, member.offset, last, inner, depth + 1)
        else:
            window.passed.add_file(name, member.path)
    _check_samples(window, [member for member, _ in images.values()], sidecars)
    in_folders = (path for path in images if b"/" in path)
    top = b"/".join(next(in_folders, b"").split(b"/")[:-2])
    for member, size in images.values():
        label = _class_of(window, member, archive, sidecars, top)
        name = member.path.rpartition(b"/")[2]
        entries.append(Entry(label, name, member.offset, member.length, *size))
    return entries


def _check_depth(window: Window, member: Member, depth: int) -> None:
    if depth == _MOST_DEEP:
        reason = f"{_shown(member)} is an archive that lies in more than {_MOST_DEEP} others"
        raise window.bad(member.header, reason, "unpack the outer ones")


def _normal(member: Member) -> Member:
    """Return the member without the `.` parts of its path."""
    if not member.path.startswith(b".") and b"/." not in member.path:
        return member
    parts = member.path.split(b"/")
    return member._replace(path=b"/".join(part for part in parts if part != b"."))


def _is_hidden(window: Window, member: Member) -> bool:
    """Return whether any name in the path begins with a dot; BadContainer for `..`."""
    if not member.path.startswith(b".") and b"/." not in member.path:
        return False
    if b".." in member.path.split(b"/"):
        reason = f"the member {_shown(member)} has .. in its path"
        fix = "write the archive again from inside the folder (tar -C <folder> -cf x.tar .)"
        raise window.bad(member.header, reason, fix)
    return True


def _check_samples(window: Window, images: Iterable[Member], sidecars: Sidecars) -> None:
    """Raise BadContainer for a second image with the key of a label file: a webdataset sample has
    one. Settles the label files.

    Without label files, names in a class folder may have any dots.
    """
    first: dict[bytes, Member] = {}
    for member in images if sidecars.keys else ():
        key = key_of(member.path)
        other = first.setdefault(key, member)
        if other is not member and key in sidecars.keys:
            reason = f"has the key of {_shown(other)}"
            fix = "leave one image for each key, give masks and the like another extension"
            raise _bad_image(window, member, reason, fix)
    sidecars.settle(first)


def _check_image(window: Window, member: Member, seen: Collection[bytes]) -> None:
    check_file(window, member, "image")
    if member.path in seen:
        fix = "write the archive again, each image once"
        raise _bad_image(window, member, "comes a second time", fix)


def _bad_image(window: Window, member: Member, reason: str, fix: str) -> Exception:
    return window.bad(member.header, f"the image {_shown(member)} {reason}", fix)


def _shown(member: Member) -> str:
    return printable(os.fsdecode(member.path))


def _class_of(
    window: Window, member: Member, archive: bytes, sidecars: Sidecars, top: bytes
) -> bytes | int:
    """Return an image's label, from its sidecar, its folder, or the archive's own name.

    top: the folder that class folders lie in, by the first image that lies in one.
    """
    folder, _, name = member.path.rpartition(b"/")
    above, _, own = folder.rpartition(b"/")
    if sidecars:
        label = sidecars.label(member.path)
        if label is None:
            fix = "add it: every image needs one if any has"
            raise _bad_image(window, member, "has no label file next to it", fix)
        return label
    if not own:
        stem = archive[: -len(b".tar")] if archive.lower().endswith(b".tar") else archive
        if name.startswith(stem + b"_"):
            return stem
        fix = "write members as <class>/<file>, or a <key>.cls next to each <key>.jpg"
        raise _bad_image(window, member, "has no class", fix)
    if above != top:
        where = printable(os.fsdecode(top)) or "the top"
        reason = f"does not lie two levels below {where}, as those before it"
        raise _bad_image(window, member, reason, "write members as <class>/<file>")
    return own
