"""Images that a run continues without, because their files cannot be used.

The number of images and the data hash stay as they are. In training a position whose image is
excluded takes the next image in that epoch's order that is not (where classes are balanced, in its
class's order), and every other position keeps its own. In validation an excluded image counts as
wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import ImageSet
from pipeline.data.index.labels import shown
from pipeline.data.order import Order
from pipeline.system.regular import read_regular

_LIST_BYTES = 1 << 28


class Exclusions:
    """Excluded training images. Immutable; `failed` and `listed` return new ones.

    An image that failed at a position is excluded there, and at any position from the next step
    on. Not elsewhere in the same step, whose other positions may already be used: that depends on
    the number of ranks, and the order of images must not.
    """

    def __init__(self, rows: Iterable[Iterable[int]] = ()) -> None:
        """Takes `rows` as `rows()` returns them: image, position from which it is excluded, and the
        positions before that where it failed."""
        self._rows = {row[0]: list(row) for row in sorted(map(tuple, rows))}
        self._images = np.array(list(self._rows), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        """The same text for the same exclusions, as the digest over ranks needs it."""
        return f"Exclusions({self.rows()})"

    def __contains__(self, image: int) -> bool:
        return image in self._rows

    def rows(self) -> list[list[int]]:
        """Rows by image: image, position from which it is excluded, earlier positions where it
        failed."""
        return list(map(list, self._rows.values()))

    def failed(self, found: Iterable[tuple[int, int]], images_per_step: int) -> Exclusions:
        """These exclusions and `found`, pairs of an image and the position where it failed."""
        rows = dict(self._rows)
        for image, position in found:
            next_step = (position // images_per_step + 1) * images_per_step
            _, since, *failed = rows.get(image, [image, next_step])
            rows[image] = [image, min(since, next_step), *sorted({*failed, position})]
        return Exclusions(rows.values())

    def listed(self, images: Iterable[int], position: int) -> Exclusions:
        """These exclusions and `images`, from `position` on, which begins a step."""
        return Exclusions([*self.rows(), *([i, position] for i in images if i not in self)])

    def holds(self, image: int, position: int) -> bool:
        """Whether `image` may not be taken at `position`."""
        if image not in self._rows:
            return False
        _, since, *failed = self._rows[image]
        return position >= since or position in failed

    def images(self, order: Order, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images at `positions` of `order`, both (B,) int64.

        A position whose image is excluded has the next one of `Order.replacements` that is not.
        Raises ValueError if no image is left.
        """
        images = order.images(positions)
        for i in np.flatnonzero(np.isin(images, self._images)):
            position = int(positions[i])
            if self.holds(int(images[i]), position):
                images[i] = self._replacement(order, position)
        return images

    def _replacement(self, order: Order, position: int) -> int:
        for image in order.replacements(position):
            if not self.holds(image, position):
                return image
        raise ValueError(
            f"no {order.drawn_from(position)} are left, all are excluded; repair those that "
            "python -m pipeline.prepare verify names"
        )


@dataclass(frozen=True)
class Found:
    """An image that cannot be used, where it was met, and why."""

    image: int
    position: int
    error: str


def read_list(path: Path, split: str, manifest: ImageSet) -> list[int]:
    """The images of `split` in an exclusion list of `prepare verify`; empty if it has none.

    Raises `ValueError` if the file is no such list or describes other data.
    """
    try:
        content = json.loads(read_regular(path, _LIST_BYTES), object_pairs_hook=_once)
        entry = content["splits"].get(split)
        images = [] if entry is None else entry["images"]
        digest = manifest.digest if entry is None else entry["data_hash"]
    except OSError as error:
        raise ValueError(f"data.exclude={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(_no_list(path)) from error
    if type(images) is not list or type(digest) is not str:
        raise ValueError(_no_list(path))
    if digest != manifest.digest:
        raise ValueError(
            f"data.exclude={path} was made for other data: hash of {split} {digest[:16]} there, "
            f"{manifest.digest[:16]} here; verify this data set"
        )
    if _version(content) != 1:
        raise ValueError(_no_list(path))
    # By type: true is an int to Python, and 1.9 or "3" would become one.
    wrong = [one for one in images if type(one) is not int or not 0 <= one < len(manifest)]
    if wrong:
        raise ValueError(
            f"{_no_list(path)}: its images of {split} hold {shown(wrong[0])}, which is no number "
            f"of an image from 0 to {len(manifest) - 1}; verify this data set"
        )
    return images


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; ValueError for a name that stands twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a name twice")
    return found


def _version(content: dict[str, object]) -> object:
    version = content.get("version")
    return version if type(version) is int else None


def _no_list(path: Path) -> str:
    return f"data.exclude={path} is not an exclusion list of python -m pipeline.prepare verify"


def too_many(count: int, most: int) -> ValueError:
    """The error of a run that excludes more than it may."""
    return ValueError(
        f"{count} images are excluded and data.max_excluded={most}; check the data set with "
        "python -m pipeline.prepare verify, or allow more"
    )
