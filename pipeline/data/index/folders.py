"""Class folders: `<class>/<file>`, each file one image.

Names that begin with a dot, files that are no images by extension and folders inside class
folders are passed over; symbolic links are followed.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.data.index.headers import image_size
from pipeline.data.index.window import Entry, Window, is_image, reading, unreadable


def walk(folder: Path) -> list[Entry]:
    """Return the images of a class folder in bytewise order of their names, `label` being its own.

    An empty file, or one without a header, is kept: only training with it is an error. BadContainer
    if the folder cannot be listed or a file cannot be read, after some tries: what is not known
    must not become part of the manifest.
    """
    place = os.fsencode(folder)
    try:
        names = reading(place, lambda: _list(place))
    except OSError as error:
        raise unreadable(f"the class folder {folder}", error) from error
    label = os.path.basename(place)
    return [Entry(label, name, 0, *_measure(os.path.join(place, name))) for name in names]


def read_size(path: bytes) -> tuple[int, int, int]:
    """Return bytes, width and height of an image file, the last two 0 without a readable header.

    OSError if it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        return length, *image_size(Window(path, file.fileno(), length), 0, length)


def _list(place: bytes) -> list[bytes]:
    with os.scandir(place) as entries:
        return sorted(
            entry.name
            for entry in entries
            if is_image(entry.name) and not entry.name.startswith(b".") and not entry.is_dir()
        )


def _measure(path: bytes) -> tuple[int, int, int]:
    try:
        return reading(path, lambda: read_size(path))
    except OSError as error:
        raise unreadable(f"the image {os.fsdecode(path)}", error) from error
