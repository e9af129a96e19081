"""What a label may be, and whether those that tell the same class agree.

A class has a name, or a number that a list names. Files made by different tools say it twice, in
other words, and a list of names is made by a third one: what they say must be the same.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.system.regular import read_regular

Label = bytes | int
"""A class's name, or its number from 0."""

MOST_DIGITS = 18
"""Of a number in a text file: what does not fit in 64 bits is none."""
LIST_BYTES = 1 << 26

_LOOKS_LIKE_NUMBER = re.compile(r"[+-]*(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)
_MOST_NAME_BYTES = 1024
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# What lists of TensorFlow's models have at 0, where no image is.
_PLACEHOLDERS = (b"background", b"dummy")
_SHOWN = 60


def plain_text(content: bytes) -> bytes | None:
    """Return a text without its UTF-8 byte order mark; None for UTF-16, UTF-32 or binary."""
    if content.startswith(_UTF16_MARKS) or b"\0" in content:
        return None
    return content.removeprefix(_UTF8_MARK)


def label_of(value: object) -> Label | None:
    """Return the label that a text or a number of a file is, None if it is none.

    A text that looks like a number but is no whole one from 0 ("10.0", "-1") would sort as a name
    among names, and is none.
    """
    if type(value) is int:
        return value if 0 <= value < 10**MOST_DIGITS else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS:
        return int(text)
    if not text or _LOOKS_LIKE_NUMBER.fullmatch(text) or re.search(r"[\0\r\n]", text):
        return None
    try:
        name = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which is no character
        return None
    return name if len(name) <= _MOST_NAME_BYTES else None


def shown(value: object) -> str:
    """Return a value for a message, shortened."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_SHOWN:
        return f"a number of over {_SHOWN} digits"  # which Python may refuse to write out
    if isinstance(value, dict | list):
        value = f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} values"
        return value
    words = repr(value[: _SHOWN + 1] if isinstance(value, str | bytes) else value)
    return words if len(words) <= _SHOWN + 3 else words[:_SHOWN] + "..."


class Pairs:
    """Names and numbers of classes where images have both: one to one, or labels contradict."""

    def __init__(self) -> None:
        self._name_of: dict[int, bytes] = {}
        self._number_of: dict[bytes, int] = {}

    def add(self, number: int, name: bytes) -> str | None:
        """Keep that `number` is called `name`; return what was known otherwise, in words."""
        other = self._name_of.setdefault(number, name)
        if other != name:
            return f"class number {number} is {shown(name)} here and {shown(other)} before"
        known = self._number_of.setdefault(name, number)
        if known != number:
            return f"the class {shown(name)} has number {number} here and {known} before"
        return None

    def items(self) -> Iterable[tuple[int, bytes]]:
        """Return (number, name) of each class."""
        return self._name_of.items()


def read_class_list(path: Path) -> list[bytes]:
    """Return the names in a list of classes, by number.

    ValueError if it is no plain text, has empty lines or a name twice; OSError.
    """
    content = plain_text(read_regular(path, LIST_BYTES))
    if content is None:
        raise ValueError(
            f"the class list {path} is not plain text, perhaps UTF-16; save it as UTF-8, one name "
            f"a line"
        )
    # Only what ends lines of text files: a name may hold other separators of Unicode.
    listed = [line.strip() for line in content.strip().splitlines()] or [b""]
    if b"" in listed or len(set(listed)) != len(listed):
        twice = [shown(name) for name, count in sorted(Counter(listed).items()) if count > 1]
        what = f"names classes twice: {', '.join(twice[:3])}" if twice else "has empty lines"
        raise ValueError(f"the class list {path} {what}; write each class once, one a line")
    return listed


def is_placeholder(name: bytes) -> bool:
    """Return whether a list's first name stands for no class."""
    return name.strip(b"_").lower() in _PLACEHOLDERS


def look_alikes(names: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Return pairs of names that differ only in their Unicode form, so that they look the same."""
    names = list(names)
    if all(name.isascii() for name in names):
        return []
    first: dict[str, bytes] = {}
    pairs = []
    for name in names:
        other = first.setdefault(unicode_form(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


def unicode_form(name: bytes | str) -> str:
    """Return the composed form (NFC), which is the same for names that look the same."""
    return unicodedata.normalize("NFC", os.fsdecode(name))
