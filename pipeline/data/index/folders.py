"""Class folders: `<class>/<file>`, each file one image.

Names that begin with a dot, files that are no images by extension and folders inside class
folders are passed over; symbolic links are followed.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.data.index.headers import image_size
from pipeline.data.index.window import BadContainer, Entry, Window, is_image, reading


def walk(folder: Path) -> list[Entry]:
    """Return the images of a class folder in bytewise order of their names, `label` being its own.

    An empty file, or one without a header, is kept: only training with it is an error. BadContainer
    if the folder cannot be listed or a file cannot be read, after some tries: what is not known
    must not become part of the manifest.
    """
    place = os.fsencode(folder)
    try:
        names = reading(folder, lambda: _list(place))
    except OSError as error:
        raise BadContainer(
            f"the class folder {folder} cannot be read: {error.strerror}; "
            f"give this user the right to read it"
        ) from error
    label = os.path.basename(place)
    return [Entry(label, name, 0, *_measure(folder, os.path.join(place, name))) for name in names]


def _list(place: bytes) -> list[bytes]:
    with os.scandir(place) as entries:
        return sorted(
            entry.name
            for entry in entries
            if is_image(entry.name) and not entry.name.startswith(b".") and not entry.is_dir()
        )


def _measure(folder: Path, path: bytes) -> tuple[int, int, int]:
    """Return bytes, width and height, the last two 0 without a readable header."""
    try:
        return _read_size(folder, path)
    except (OSError, BadContainer):
        pass  # or cut off meanwhile; only now is the path made, which costs time
    image = Path(os.fsdecode(path))
    try:
        return reading(image, lambda: _read_size(image, path))
    except OSError as error:
        raise BadContainer(
            f"the image {image} cannot be read: {error.strerror}; {_cure(error)}"
        ) from error


def _read_size(place: Path, path: bytes) -> tuple[int, int, int]:
    with open(path, "rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        return length, *image_size(Window(place, file.fileno(), length), 0, length)


def _cure(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "give this user the right to read it"
    if isinstance(error, FileNotFoundError):  # a link to nowhere, or removed meanwhile
        return "put back what it links to, or remove the link"
    return "copy it anew from its source, or remove it"
