"""Labels next to images in an archive: `key.cls` and `key.json`, as webdataset has them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pipeline.data.index.labels import Label, label_of, plain_text, shown, shown_path
from pipeline.data.index.tar_members import Member
from pipeline.data.index.window import Window

SIDECARS = (b".cls", b".json")

_LABEL_KEYS = ("label", "cls", "class")
_MOST_BYTES = {b".cls": 1 << 16, b".json": 1 << 24}
_ONE_LABEL = "leave the right one"


class Sidecars:
    """The labels of an archive by the key of their image.

    keys: of every sidecar, with or without a label. Two that tell of one image must agree; where
    one has the number and another the name, the archive must have it so throughout.
    """

    def __init__(self, window: Window) -> None:
        self.keys: set[bytes] = set()
        self._window = window
        self._seen: set[bytes] = set()
        self._labels: dict[bytes, tuple[Label, Member]] = {}

    def __bool__(self) -> bool:
        """Return whether there is any label."""
        return bool(self._labels)

    def label(self, path: bytes) -> Label | None:
        """Return the label of the image at `path`, None if it has none."""
        label, _ = self._labels.get(key_of(path), (None, None))
        return label

    def labels(self) -> Iterator[tuple[bytes, Member]]:
        """Return the key of each label, and the member that tells it."""
        return ((key, member) for key, (_, member) in self._labels.items())

    def add(self, member: Member) -> None:
        """Read a sidecar. BadContainer for one that comes twice, holds no label, or contradicts."""
        if member.path in self._seen:
            raise self._bad(
                member, "comes a second time", "write the archive again, each file once"
            )
        self._seen.add(member.path)
        key = key_of(member.path)
        self.keys.add(key)
        label = self._read(member)
        if label is None:
            return
        known, other = self._labels.setdefault(key, (label, member))
        if other is member:
            return
        there = _path(other)
        if type(known) is type(label) and known != label:
            reason = f"has the label {shown(label)}, where {there} has {shown(known)}"
            raise self._bad(member, reason, _ONE_LABEL)
        self._pair(member, known, label)
        if member.path.lower().endswith(b".cls"):  # whichever comes first in the archive
            self._labels[key] = label, member

    def _pair(self, member: Member, *labels: Label) -> None:
        """Keep which number goes with which name."""
        numbers = [label for label in labels if isinstance(label, int)]
        names = [label for label in labels if isinstance(label, bytes)]
        if numbers and names and (wrong := self._window.pairs.add(numbers[0], names[0])):
            raise self._bad(member, f"contradicts labels before it: {wrong}", _ONE_LABEL)

    def _read(self, member: Member) -> Label | None:
        """Return the label that a .cls or .json holds, None for a .json about other things."""
        is_json = member.path.lower().endswith(b".json")
        most = _MOST_BYTES[b".json" if is_json else b".cls"]
        if member.length > most:
            reason = f"has {member.length} bytes, a label file has at most {most}"
            raise self._bad(member, reason, "write a class name, or its number from 0")
        text = plain_text(self._window.read(member.offset, member.length))
        if text is None:
            raise self._bad(member, "is not plain text, perhaps UTF-16", "save it as UTF-8")
        content = text.decode(errors="surrogateescape").strip()
        if is_json:
            return self._of_json(member, content)
        return self._required(member, content)

    def _required(self, member: Member, value: object) -> Label:
        label = label_of(value)
        if label is None:
            fix = "write a class name, or its number from 0"
            raise self._bad(member, f"holds no label but {shown(value)}", fix)
        return label

    def _of_json(self, member: Member, content: str) -> Label | None:
        try:
            found = json.loads(content, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
            raise self._bad(member, f"is no JSON ({reason[:80]})") from error
        # An object is a list of pairs now, in which a key that stands twice shows.
        is_object = isinstance(found, list) and all(type(one) is tuple for one in found)
        pairs = [one for one in found if one[0] in _LABEL_KEYS] if is_object else []
        values = [value for key in _LABEL_KEYS for name, value in pairs if name == key]
        if not values:
            return None
        label = self._required(member, values[0])
        for value in values[1:]:
            other = label_of(value)
            if other is not None and type(other) is type(label) and other != label:
                reason = f"has the labels {shown(label)} and {shown(other)}"
                raise self._bad(member, reason, _ONE_LABEL)
            if other is not None:
                self._pair(member, label, other)
        return label

    def _bad(
        self, member: Member, reason: str, fix: str = "copy it again from its source"
    ) -> Exception:
        return self._window.bad(member.offset, f"{_path(member)} {reason}", fix)


def key_of(path: bytes) -> bytes:
    """Return the path up to the first dot of the file's name, as webdataset groups members."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash + name.split(b".", 1)[0]


def _path(member: Member) -> str:
    return shown_path(member.path)
