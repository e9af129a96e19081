"""Class folders: `<class>/<file>`, each file one image.

Names that begin with a dot, files that are no images by extension and folders inside class
folders are passed over; symbolic links are followed.
"""

import os
from pathlib import Path

from pipeline.data.containers.common import BadContainer, Entry, Window, is_image
from pipeline.data.containers.headers import image_size


def walk(folder: Path) -> list[Entry]:
    """Return the images of a class folder in bytewise order of their names, `label` being its own.

    A file that cannot be read counts as 0 bytes without a header: only training with it is an
    error. BadContainer if the folder itself cannot be listed.
    """
    place = os.fsencode(folder)
    try:
        with os.scandir(place) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if is_image(entry.name) and not entry.name.startswith(b".") and not entry.is_dir()
            )
    except OSError as error:
        raise BadContainer(
            f"the class folder {folder} cannot be read: {error.strerror}; "
            f"give this user the right to read it"
        ) from error
    label = os.path.basename(place)
    return [Entry(label, name, 0, *_measure(folder, os.path.join(place, name))) for name in names]


def _measure(folder: Path, path: bytes) -> tuple[int, int, int]:
    """Return bytes, width and height; what cannot be found out is 0."""
    length = 0
    try:
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            return length, *image_size(Window(folder, file.fileno(), length), 0, length)
    except (OSError, BadContainer):  # the latter if it is cut off meanwhile
        return length, 0, 0
