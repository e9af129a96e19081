"""Tar archives: packed shards, webdataset shards, and ImageNet's own archive of archives.

Read by a parser of its own because Python's tarfile takes 40 us of a core for a member where this
takes 11, and does not read an image's first bytes along with its header. Formats: v7, ustar, GNU
(long names, base-256 sizes) and pax (POSIX.1-2001), as GNU tar's manual lays them out.

The class of an image is, in this order:
- what has the same key (its path up to the first dot of its name): `key.cls`, or "label", "cls" or
  "class" of `key.json`; a number from 0, or a name;
- the folder that holds it, `<class>/<file>`;
- the archive's own name, where the image's name begins with it: `n01440764_10026.JPEG` in
  `n01440764.tar`. An archive inside an archive is walked in place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.data.index.headers import image_size
from pipeline.data.index.window import Entry, Window, is_image

_BLOCK = 512
_FILES, _WITHOUT_CONTENT = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
_LINKS = (b"1", b"2")
_LONG_NAME, _PAX, _PAX_FOR_ALL, _SPARSE = b"L", (b"x", b"X"), b"g", b"S"
_SIDECARS, _LABEL_KEYS = (b".cls", b".json"), ("label", "cls", "class")
_ZEROS_BYTES = 1 << 20


class Member(NamedTuple):
    """One member of an archive.

    path: without leading `/` or `./`. kind: its type flag (b"0": a file). header: where what
    describes it begins. offset, length: its content.
    """

    path: bytes
    kind: bytes
    header: int
    offset: int
    length: int


def walk(window: Window) -> list[Entry]:
    """Return the images of an archive in its order, each named by the last part of its path.

    Names that begin with a dot, counted by `window.hidden`, and what is no image by extension are
    passed over. BadContainer, with the byte, for a compressed, damaged or cut archive, a path with
    `..`, an image that is a link, a name that occurs twice, a key with two images, and an image
    whose class cannot be known.
    """
    window.check_not_compressed()
    return _walk_range(window, 0, window.length, window.path.name.encode(errors="surrogateescape"))


def _walk_range(window: Window, begin: int, end: int, archive: bytes) -> list[Entry]:
    entries: list[Entry] = []
    images: dict[bytes, tuple[Member, tuple[int, int]]] = {}
    labels: dict[bytes, bytes | int] = {}
    samples: set[bytes] = set()
    for member in map(_normal, members(window, begin, end)):
        name = member.path.rpartition(b"/")[2]
        if _is_hidden(window, member):
            window.hidden += is_image(name)
            continue
        if is_image(name):
            _check_image(window, member, images)
            # Now, while the first page of the image is at hand.
            images[member.path] = member, image_size(window, member.offset, member.length)
        elif name.endswith(b".tar") and member.kind in _FILES:
            entries += _walk_range(window, member.offset, member.offset + member.length, name)
        elif name.endswith(_SIDECARS) and member.kind in _FILES:
            samples.add(_key(member.path))
            label = _sidecar_label(window, member)
            if label is not None:
                labels[_key(member.path)] = label
    _check_samples(window, [member for member, _ in images.values()], samples)
    in_folders = (path for path in images if b"/" in path)
    top = b"/".join(next(in_folders, b"").split(b"/")[:-2])
    for member, size in images.values():
        label = _class_of(window, member, archive, labels, top)
        name = member.path.rpartition(b"/")[2]
        entries.append(Entry(label, name, member.offset, member.length, *size))
    return entries


def _normal(member: Member) -> Member:
    """Return the member without the `.` parts of its path."""
    if not member.path.startswith(b"./") and b"/./" not in member.path:
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


def _check_samples(window: Window, images: Iterable[Member], samples: Collection[bytes]) -> None:
    """Raise BadContainer for a second image with the key of a label file: a webdataset sample has
    one.

    Without label files, names in a class folder may have any dots.
    """
    first: dict[bytes, Member] = {}
    for member in images if samples else ():
        key = _key(member.path)
        other = first.setdefault(key, member)
        if other is not member and key in samples:
            reason = f"has the key of {_shown(other)}"
            fix = "leave one image for each key, give masks and the like another extension"
            raise _bad_image(window, member, reason, fix)


def _check_image(window: Window, member: Member, seen: Collection[bytes]) -> None:
    again = "write the archive again"
    if member.kind in _LINKS:
        fix = f"{again} with tar --dereference --hard-dereference"
        raise _bad_image(window, member, "is a link, not a file", fix)
    if member.kind not in _FILES:
        raise _bad_image(window, member, "is no plain file", f"{again} without --sparse")
    if member.path in seen:
        raise _bad_image(window, member, "comes a second time", f"{again}, each image once")


def _bad_image(window: Window, member: Member, reason: str, fix: str) -> Exception:
    return window.bad(member.header, f"the image {_shown(member)} {reason}", fix)


def _shown(member: Member) -> str:
    return member.path.decode(errors="replace")


def _key(path: bytes) -> bytes:
    """Return the path up to the first dot of the file's name, as webdataset groups members."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash + name.split(b".", 1)[0]


def _sidecar_label(window: Window, member: Member) -> bytes | int | None:
    """Return the label that a .cls or .json holds, None for a .json about other things."""
    content = window.read(member.offset, member.length).decode(errors="surrogateescape").strip()
    value: object = content
    if member.path.endswith(b".json"):
        try:
            about = json.loads(content)
        except ValueError as error:
            raise window.bad(member.offset, f"{member.path!r} is no JSON ({error})") from error
        found = [about[key] for key in _LABEL_KEYS if key in about] if type(about) is dict else []
        if not found:
            return None
        value = found[0]
    if isinstance(value, str) and value and not value.lstrip("-").isdecimal():
        return value.encode(errors="surrogateescape")
    try:
        number = int(value) if isinstance(value, int | str) and type(value) is not bool else -1
    except ValueError:
        number = -1
    if number >= 0:
        return number
    fix = "write a class name, or its number from 0"
    raise window.bad(member.offset, f"{member.path!r} holds no label but {value!r}", fix)


def _class_of(
    window: Window, member: Member, archive: bytes, labels: Mapping[bytes, bytes | int], top: bytes
) -> bytes | int:
    """Return an image's label, from its sidecar, its folder, or the archive's own name.

    top: the folder that class folders lie in, by the first image that lies in one.
    """
    folder, _, name = member.path.rpartition(b"/")
    above, _, own = folder.rpartition(b"/")
    if labels:
        label = labels.get(_key(member.path))
        if label is None:
            fix = "add it: every image needs one if any has"
            raise _bad_image(window, member, "has no label file next to it", fix)
        return label
    if not own:
        stem = archive.removesuffix(b".tar")
        if name.startswith(stem + b"_"):
            return stem
        fix = "write members as <class>/<file>, or a <key>.cls next to each <key>.jpg"
        raise _bad_image(window, member, "has no class", fix)
    if above != top:
        where = top.decode(errors="replace") or "the top"
        reason = f"does not lie two levels below {where}, as those before it"
        raise _bad_image(window, member, reason, "write members as <class>/<file>")
    return own


def members(window: Window, begin: int, end: int) -> Iterator[Member]:
    """Walk an archive that lies between the bytes `begin` and `end` of a file.

    BadContainer, with the byte, if it is damaged, cut off or has no end mark.
    """
    at, header, pax, pax_for_all = begin, begin, dict[bytes, bytes](), dict[bytes, bytes]()
    while True:
        if at + _BLOCK > end:
            reason = f"the archive {'continues' if at > end else 'stops'} without tar's end mark"
            raise window.bad(min(at, end), f"{reason}: it is cut off")
        block = window.read(at, _BLOCK)
        if block.count(0) == _BLOCK:
            _check_zeros(window, at, end)
            return
        name, kind, length = _header(window, at, block)
        length = _octal(window, at, pax[b"size"], 10) if b"size" in pax else length
        length = 0 if kind in _WITHOUT_CONTENT else length
        content, following = at + _BLOCK, at + _BLOCK + length + -length % _BLOCK
        if content + length > end:
            reason = f"begins a member of {length} bytes, but the archive ends at {end}"
            raise window.bad(at, f"{reason}: it is cut off")
        if kind == _LONG_NAME:
            pax[b"path"] = window.read(content, length).split(b"\0", 1)[0]
        elif kind in _PAX:
            pax |= _pax_records(window, content, length)
        elif kind == _PAX_FOR_ALL:
            pax_for_all |= _pax_records(window, content, length)
        elif kind != b"K":  # the long name of a link's target
            described = pax_for_all | pax
            sparse = any(key.startswith(b"GNU.sparse.") for key in described)
            path = described.get(b"path", name).strip(b"/").removeprefix(b"./")
            yield Member(path, _SPARSE if sparse else kind, header, content, length)
            pax, header = {}, following
        at = following


def _header(window: Window, at: int, block: bytes) -> tuple[bytes, bytes, int]:
    """Return name, type and content length of a header block."""
    # The checksum counts its own eight bytes as spaces.
    if _octal(window, at, block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise window.bad(at, "no tar header begins: the file is damaged or no tar archive")
    name = block[:100].split(b"\0", 1)[0]
    # POSIX: more of the name; GNU ("ustar  ") keeps other things there.
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name, block[156:157], _octal(window, at, block[124:136])


def _octal(window: Window, at: int, field: bytes, base: int = 8) -> int:
    """Return the number in a header field: digits, or big-endian binary behind a byte 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        number = int(field.split(b"\0", 1)[0].strip() or b"0", base)
    except ValueError:
        number = -1
    if number < 0:
        raise window.bad(at, "no tar header begins: the file is damaged or no tar archive")
    return number


def _pax_records(window: Window, offset: int, length: int) -> dict[bytes, bytes]:
    """Return the `<length> <key>=<value>\\n` records of a pax header."""
    content, found = window.read(offset, length), {}
    while content:
        digits, _, _ = content.partition(b" ")
        size = int(digits) if digits.isdigit() else 0
        record, content = content[len(digits) + 1 : size], content[size:]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not (equals and record.endswith(b"\n")):
            raise window.bad(offset, "is a pax header that cannot be read")
        found[key] = value
    return found


def _check_zeros(window: Window, at: int, end: int) -> None:
    """Raise BadContainer if data follow the end mark: a second, joined archive would go unseen."""
    while at < end:
        content = window.read(at, min(_ZEROS_BYTES, end - at))
        rest = content.lstrip(b"\0")
        if rest:
            fix = "keep joined archives apart, or join them with tar --concatenate"
            raise window.bad(at + len(content) - len(rest), "something follows the end mark", fix)
        at += len(content) or _ZEROS_BYTES
