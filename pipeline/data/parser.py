"""What the decoder's own parser says of an image, before the image becomes part of a batch.

DALI 2.4 parses all images of a batch before it decodes any, outside the stage in which one image
can fail by itself: there an error, or a box that an image does not have, ends the process by
SIGSEGV if the batch is large enough to be shared by threads. The parser is nvImageCodec's, which
takes 3 to 8 us an image (2 cores, 2026-11-29).
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import BadImage, ImageSet
from pipeline.data.index.headers import header_of
from pipeline.data.index.whole import file_flaw

os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # what it prints names no file
from nvidia import nvimgcodec

_SAMPLES = ("uint8", "uint16")  # what DALI takes and converts rightly


def require_parsed(content: NDArray[np.uint8], image_set: ImageSet, image: int) -> None:
    """Raise BadImage unless the parser finds an image of the recorded size in `content`, (bytes,).

    `changed` if its header is not what was recorded.
    """
    recorded = int(image_set.widths[image]), int(image_set.heights[image])
    reason = parser_flaw(content, recorded)
    if reason is not None:
        changed = header_of(content.tobytes()).size != recorded
        raise BadImage(image_set.path(image), reason, changed)


def parser_flaw(content: NDArray[np.uint8], recorded: tuple[int, int]) -> str | None:
    """Return why DALI could not begin to decode an image of `recorded` (width, height), or None."""
    try:
        parsed = nvimgcodec.CodeStream(content)
        size, samples = (int(parsed.width), int(parsed.height)), str(parsed.dtype)
    except (RuntimeError, TypeError):  # TypeError: of samples that have no name
        return _unparsed(content.tobytes(), recorded)
    if samples not in _SAMPLES:
        return f"cannot be decoded: it has samples of {samples}"
    return None if size == recorded else other_size(size, recorded)


def other_size(size: tuple[int, int], recorded: tuple[int, int]) -> str:
    """Return the reason for an image of another (width, height) than recorded."""
    return (
        f"is {size[0]} x {size[1]} by its header, the image index recorded "
        f"{recorded[0]} x {recorded[1]}"
    )


def _unparsed(content: bytes, recorded: tuple[int, int]) -> str:
    """Return the most exact reason for what the parser, which gives none, has refused."""
    header = header_of(content)
    if header.flaw:
        width, height = recorded
        return f"it was {width} x {height} when it was indexed: {header.flaw}"
    flaw = file_flaw(content)
    return f"cannot be decoded: it {flaw}" if flaw else "cannot be decoded: its header is damaged"
