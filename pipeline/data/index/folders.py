"""Class folders: `<class>/<file>`, each file one image.

Names that begin with a dot, files that are no images by extension and folders inside class
folders are passed over and counted; symbolic links are followed.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pipeline.data.index.headers import image_size
from pipeline.data.index.passed import HIDDEN, NESTED, Passed
from pipeline.data.index.window import (
    BadContainer,
    Entry,
    Window,
    is_image,
    reading,
    unreadable,
)
from pipeline.system.regular import open_regular


def walk(folder: Path, passed: Passed) -> list[Entry]:
    """Return the images of a class folder in bytewise order of their names, `label` being its own;
    `passed` counts the rest.

    An empty file, or one without a header, is kept: only training with it is an error. ValueError
    if the folder cannot be listed or a file cannot be read, after some tries: what is not known
    must not become part of the manifest.
    """
    place = os.fsencode(folder)
    try:
        names, others = reading(place, lambda: _list(place))
    except OSError as error:
        raise unreadable(f"the class folder {folder}", error) from error
    passed.merge(others)
    label = os.path.basename(place)
    return [Entry(label, name, 0, *_measure(os.path.join(place, name))) for name in names]


def read_size(path: bytes) -> tuple[int, int, int]:
    """Return bytes, width and height of an image file, the last two 0 without a readable header.

    OSError if it cannot be read, or is cut off while it is.
    """
    with open(path, "rb", buffering=0, opener=open_regular) as file:
        length = os.fstat(file.fileno()).st_size
        try:
            return length, *image_size(Window(path, file.fileno(), length), 0, length)
        except BadContainer as error:  # another try may find it whole, or of its new length
            raise OSError(errno.EIO, "it was cut off while it was read", path) from error


def _list(place: bytes) -> tuple[list[bytes], Passed]:
    """Return the names of the images, sorted, and what else lies there."""
    names, others, rest = [], Passed(), []
    with os.scandir(place) as entries:
        for entry in entries:
            if is_image(entry.name) and not entry.name.startswith(b".") and not entry.is_dir():
                names.append(entry.name)
            else:
                rest.append((entry.name, entry.is_dir()))
    label = os.path.basename(place)
    for name, is_folder in sorted(rest):
        if name.startswith(b"."):
            others.add(HIDDEN, label + b"/" + name)
        elif is_folder:
            others.add(NESTED, label + b"/" + name)
        else:
            others.add_file(name, label + b"/" + name)
    return sorted(names), others


def _measure(path: bytes) -> tuple[int, int, int]:
    try:
        return reading(path, lambda: read_size(path))
    except OSError as error:
        fix = "copy it again from its source or remove it"
        raise unreadable(f"the image {os.fsdecode(path)}", error, fix) from error
