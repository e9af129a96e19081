"""Labels next to images in an archive: `key.cls` and `key.json`, as webdataset has them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection

from pipeline.data.index.labels import Label, label_of, plain_text, shown
from pipeline.data.index.passed import LINKS, SPECIAL, UNUSED_LABELS
from pipeline.data.index.tar_members import FILES, Member, check_file
from pipeline.data.index.tar_members import LINKS as LINK_KINDS
from pipeline.data.index.window import BadContainer, Window
from pipeline.system.words import printable

SIDECARS = (b".cls", b".json")

_LABEL_KEYS = ("label", "cls", "class")
_MOST_BYTES = {b".cls": 1 << 16, b".json": 1 << 24}
_ONE_LABEL = "leave the right one"


class Sidecars:
    """The labels of an archive by the key of their image.

    keys: of every sidecar, with or without a label. Two numbers or two names for one image must
    agree. A number beside a name need not go with it alone: two classes may be called "crane".
    """

    def __init__(self, window: Window) -> None:
        self.keys: set[bytes] = set()
        self._window = window
        self._seen: set[bytes] = set()
        self._labels: dict[bytes, tuple[Label, Member]] = {}
        self._without: list[Member] = []
        self._faults: dict[bytes, BadContainer] = {}

    def __bool__(self) -> bool:
        """Return whether there is any label."""
        return bool(self._labels)

    def label(self, path: bytes) -> Label | None:
        """Return the label of the image at `path`, None if it has none."""
        label, _ = self._labels.get(key_of(path), (None, None))
        return label

    def add(self, member: Member) -> None:
        """Read a sidecar; what is wrong with it is kept for `settle`."""
        key = key_of(member.path)
        self.keys.add(key)
        try:
            label = self._checked(member)
            if label is not None:
                self._keep(key, label, member)
                return
        except BadContainer as error:
            # Without its traceback and cause, which hold the file.
            kept = BadContainer(str(error))
            kept.reason = error.reason
            self._faults.setdefault(key, kept)
        self._without.append(member)

    def settle(self, images: Collection[bytes]) -> None:
        """Count sidecars without an image, given the images' keys.

        BadContainer for one with an image that comes twice, holds no label, or contradicts: a file
        of another kind, such as annotations of all images, may lie in the archive too.
        """
        for key, error in self._faults.items():
            if key in images:
                raise error
        passed = self._window.passed
        for key, (_, member) in self._labels.items():
            if key not in images:
                passed.add(UNUSED_LABELS, member.path)
        for member in self._without:
            name = member.path.rpartition(b"/")[2].lower()
            if key_of(member.path) in images:
                continue
            if member.kind not in FILES:
                passed.add(LINKS if member.kind in LINK_KINDS else SPECIAL, member.path)
            elif name.endswith(b".cls"):
                passed.add(UNUSED_LABELS, member.path)
            else:
                passed.add_file(name, member.path)

    def _checked(self, member: Member) -> Label | None:
        check_file(self._window, member, "label file")
        if member.path in self._seen:
            raise self._bad(
                member, "comes a second time", "write the archive again, each file once"
            )
        self._seen.add(member.path)
        return self._read(member)

    def _keep(self, key: bytes, label: Label, member: Member) -> None:
        known, other = self._labels.setdefault(key, (label, member))
        if type(known) is type(label) and known != label:
            reason = f"has the label {shown(label)}, where {_path(other)} has {shown(known)}"
            raise self._bad(member, reason, _ONE_LABEL)
        if member.path.lower().endswith(b".cls"):  # whichever comes first in the archive
            self._labels[key] = label, member

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
        pairs = found if is_object else []
        there = ([value for name, value in pairs if name == key] for key in _LABEL_KEYS)
        # The first key alone: another may describe the class in other words.
        values = next(filter(None, there), [])
        if not values:
            return None
        label = self._required(member, values[0])
        for value in values[1:]:
            other = label_of(value)
            if other != label:
                reason = f"has the labels {shown(label)} and {shown(value)}"
                raise self._bad(member, reason, _ONE_LABEL)
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
    return printable(os.fsdecode(member.path))
