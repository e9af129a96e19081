"""Bytes inside an image that are not its own, as RecordIO may have."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GAP_BYTES = 4


def without_gaps(content: NDArray[np.uint8], gaps: Sequence[int]) -> NDArray[np.uint8]:
    """Return `content` without the 4 bytes at each of the `gaps`, counted before any is taken."""
    own = np.ones(len(content), dtype=bool)
    for gap in gaps:
        own[gap : gap + GAP_BYTES] = False
    return content[own]
