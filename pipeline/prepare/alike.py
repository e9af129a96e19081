"""Which images show the same: equal files, and copies of a picture in another size or compression.

By a difference hash, 256 bits that say where a small grey copy gets brighter to the right, and by
the levels of a small copy in colour. Copies differ in a few bits; pictures that somebody took apart
in many, but for those of one scene, such as things before a fixed camera: their levels differ where
the things are.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_BITS = 10
"""Of copies that differ in more bits nothing is known."""

MOST_LEVELS = 16
"""Of pictures whose small copies differ by more levels of 255 somewhere too: a thing of another
colour is there. Compression and other sizes change a cell of a photograph by 5, and by 25 at most
where the whole is 100 pixels wide."""

_SIDE = 16
_NOISE = 2  # levels of 255, by which compression changes what is of one colour
_LEAST_SET = 24  # bits; a picture with fewer is nearly of one colour, and its hash says nothing
_BAND_BYTES = 2  # 16 bands: of 10 bits that differ, at least 6 bands hold none
_NEIGHBOURS = 32  # with which a hash is compared, of those that share a band
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Look:
    """What an image looks like: the digest of its file; its hash, 32 bytes, and a small copy,
    16 x 16 x 3 bytes, both None where the hash says nothing."""

    digest: str
    bits: bytes | None
    small: bytes | None


def look_of(stored: bytes) -> Look:
    """The look of an image from its file."""
    digest = hashlib.sha256(stored).hexdigest()
    try:
        with Image.open(io.BytesIO(stored)) as image:
            image.draft("RGB", (8 * _SIDE, 8 * _SIDE))  # JPEG: decoded at a part of its size
            grey = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
            small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    except Exception:  # Pillow raises many kinds; whether training takes the file, verify says
        return Look(digest, None, None)
    brighter = np.diff(np.asarray(grey, np.int16), axis=1) > _NOISE
    if not _LEAST_SET <= int(brighter.sum()) <= brighter.size - _LEAST_SET:
        return Look(digest, None, None)
    return Look(digest, np.packbits(brighter).tobytes(), small.tobytes())


def groups_of(looks: Sequence[Look]) -> list[int]:
    """For each look the number of the first that shows the same, its own if it is that."""
    parents = list(range(len(looks)))

    def first(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def join(pairs: Iterable[tuple[int, int]]) -> None:
        for one, other in pairs:
            low, high = sorted((first(one), first(other)))
            parents[high] = low

    seen: dict[str, int] = {}
    join((seen.setdefault(look.digest, number), number) for number, look in enumerate(looks))
    known = [number for number, look in enumerate(looks) if look.bits is not None]
    if len(known) > 1:
        hashes = np.frombuffer(b"".join(looks[n].bits or b"" for n in known), np.uint8)
        small = np.frombuffer(b"".join(looks[n].small or b"" for n in known), np.uint8)
        pairs = near(hashes.reshape(len(known), -1), small.reshape(len(known), -1))
        join((known[one], known[other]) for one, other in pairs)
    return [first(number) for number in range(len(looks))]


def near(hashes: NDArray[np.uint8], small: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows of `hashes` (n, 32) that differ in at most `MOST_BITS` bits, and of the
    small copies (n, levels) in at most `MOST_LEVELS` anywhere.

    Only rows that share a band of two bytes are compared, each with the next ones in the order of
    all bytes from that band on: a chain of near ones is found, not every pair in it.
    """
    for begin in range(0, hashes.shape[1], _BAND_BYTES):
        rows = np.roll(hashes, -begin, axis=1)
        order = np.lexsort(rows.T[::-1])
        rows = rows[order]
        bands = rows[:, :_BAND_BYTES]
        for step in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
            share = (bands[step:] == bands[:-step]).all(axis=1).nonzero()[0]
            if len(share) == 0:
                break
            differ = _ONES[rows[share] ^ rows[share + step]].sum(axis=1, dtype=np.int64)
            found = share[differ <= MOST_BITS]
            one, other = order[found], order[found + step]
            levels = np.maximum(small[one], small[other]) - np.minimum(small[one], small[other])
            alike = (levels <= MOST_LEVELS).all(axis=1)
            yield from zip(one[alike].tolist(), other[alike].tolist(), strict=True)
