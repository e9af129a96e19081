"""The members of a tar archive: v7, ustar, GNU and pax headers (POSIX.1-2001, GNU tar's manual).

Bounded in memory: of a header's records only those that say where a member lies are kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.data.index.window import Window, is_number
from pipeline.system.words import printable

FILES = (b"0", b"\0", b"7")
"""Type flags of plain files."""
LINKS = (b"1", b"2")
FOLDER = b"5"

_BLOCK = 512
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
_LONG_NAME, _PAX, _PAX_FOR_ALL, _SPARSE = b"L", (b"x", b"X"), b"g", b"S"
_LONGEST_HEADER = 1 << 22  # a pax header or long name: paths have at most 4096 bytes
_LONGEST_PATH = 1 << 16
_ZEROS_BYTES = 1 << 20
_OCTAL = re.compile(rb"\s*([0-7]*)\s*")
_IS_SPARSE = b"GNU.sparse."
_KINDS = {
    b"1": "a link", b"2": "a link", b"3": "a character device", b"4": "a block device",
    b"5": "a folder", b"6": "a FIFO",
}  # fmt: skip
_NO_HEADER = "no tar header begins: the file is damaged or no tar archive"


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
        if len(block) < _BLOCK:  # of a stream, whose end is not known before
            raise window.bad(at, "the archive stops without tar's end mark: it is cut off")
        if block.count(0) == _BLOCK:
            _check_zeros(window, at, end)
            return
        name, kind, length = _header(window, at, block)
        length = _pax_size(window, header, pax[b"size"]) if b"size" in pax else length
        length = 0 if kind in _WITHOUT_CONTENT else length
        content, following = at + _BLOCK, at + _BLOCK + length + -length % _BLOCK
        if content + length > end:
            reason = f"begins a member of {length} bytes, but the archive ends at {end}"
            raise window.bad(at, f"{reason}: it is cut off")
        if kind in (_LONG_NAME, *_PAX, _PAX_FOR_ALL) and length > _LONGEST_HEADER:
            reason = f"begins a header of {length} bytes, where paths and sizes take less than 4 MB"
            raise window.bad(at, reason, "write the archive again")
        if kind == _LONG_NAME:
            pax[b"path"] = window.read(content, length).split(b"\0", 1)[0]
        elif kind in _PAX:
            pax |= _pax_records(window, content, length)
        elif kind == _PAX_FOR_ALL:
            pax_for_all |= _pax_records(window, content, length)
        elif kind != b"K":  # the long name of a link's target
            described = pax_for_all | pax
            sparse = _IS_SPARSE in described
            path = described.get(b"path", name).strip(b"/").removeprefix(b"./")
            if b"\0" in path or len(path) > _LONGEST_PATH:
                reason = f"begins a member whose path of {len(path)} bytes no file can have"
                raise window.bad(header, reason, "write the archive again")
            yield Member(path, _SPARSE if sparse else kind, header, content, length)
            pax, header = {}, following
        at = following


def check_file(window: Window, member: Member, what: str) -> None:
    """Raise BadContainer for what has no bytes of its own in the archive, or not all of them."""
    if member.kind in FILES:
        return
    kind = _KINDS.get(member.kind, "no plain file")
    fix = {
        "a link": "with tar --dereference --hard-dereference",
        "no plain file": "without --sparse",
    }
    reason = f"the {what} {printable(os.fsdecode(member.path))} is {kind}"
    reason += ", not a file" if kind != "no plain file" else ""
    fix_words = f"write the archive again {fix.get(kind, 'without it')}"
    raise window.bad(member.header, reason, fix_words)


def _header(window: Window, at: int, block: bytes) -> tuple[bytes, bytes, int]:
    """Return name, type and content length of a header block."""
    # The checksum counts its own eight bytes as spaces.
    if _octal(window, at, block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise window.bad(at, _NO_HEADER)
    name = block[:100].split(b"\0", 1)[0]
    # POSIX: more of the name; GNU ("ustar  ") keeps other things there.
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name, block[156:157], _octal(window, at, block[124:136])


def _octal(window: Window, at: int, field: bytes) -> int:
    """Return the number in a header field: octal digits, or big-endian behind a byte 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    found = _OCTAL.fullmatch(field.split(b"\0", 1)[0])
    if found is None:
        raise window.bad(at, _NO_HEADER)
    return int(found[1] or b"0", 8)


def _pax_size(window: Window, header: int, value: bytes) -> int:
    if not is_number(value):
        reason = f"is a pax header with the size {value[:24]!r}, which is no number of bytes"
        raise window.bad(header, reason, "write the archive again")
    return int(value)


def _pax_records(window: Window, offset: int, length: int) -> dict[bytes, bytes]:
    """Return those of the `<length> <key>=<value>\\n` records of a pax header that are used."""
    content, found, at = window.read(offset, length), dict[bytes, bytes](), 0
    while at < len(content):
        blank = content.find(b" ", at, at + 20)
        digits = content[at:blank] if blank > 0 else b""
        end = at + int(digits) if is_number(digits) else 0
        equals = content.find(b"=", blank, end)
        if equals < 0 or end > len(content) or content[end - 1 : end] != b"\n":
            raise window.bad(offset, "is a pax header that cannot be read")
        key = content[blank + 1 : equals]
        if key in (b"path", b"size"):
            found[key] = content[equals + 1 : end - 1]
        elif key.startswith(_IS_SPARSE):
            found[_IS_SPARSE] = b""
        at = end
    return found


def _check_zeros(window: Window, at: int, end: int) -> None:
    """Raise BadContainer if data follow the end mark: a second, joined archive would go unseen."""
    while at < end:
        content = window.read(at, min(_ZEROS_BYTES, end - at))
        if not content:  # the end of a stream
            return
        rest = content.lstrip(b"\0")
        if rest:
            fix = "keep joined archives apart, or join them with tar --concatenate"
            raise window.bad(at + len(content) - len(rest), "something follows the end mark", fix)
        at += len(content)
