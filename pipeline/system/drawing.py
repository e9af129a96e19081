"""How the progress bar looks. A module of its own, as it needs tqdm where `console` does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

_LEAST_BAR = 10  # cells


class Drawing(tqdm):  # type: ignore[misc]
    """tqdm's bar with words behind it, which are left out one by one where they leave no bar.

    Its own postfix begins with a comma, and is cut at its end.
    """

    words: tuple[tuple[int, str], ...] = ()
    """What stands behind the bar, each with its rank: the highest goes first."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm fills the bar's form with."""
        known: dict[str, Any] = super().format_dict
        room = known["ncols"] or 1000
        room -= len(f"{known['prefix'] or ''}100%|| ") + _LEAST_BAR
        fitting = _fitting(self.words, room)
        return {**known, "words": fitting, "postfix": fitting}


def _fitting(words: Sequence[tuple[int, str]], columns: int) -> str:
    """As many of the ranked `words` as fit, in their order."""
    left = list(words)
    while len(text := " ".join(word for _, word in left)) > columns and len(left) > 1:
        left.remove(max(left))
    return text
