"""How far a scan is: a bar on a terminal, a line of the log now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.data.index.survey import Tree
from pipeline.data.index.window import Window

log = logging.getLogger("trainyard")

_LINE_SEC = 10.0
_BAR_SEC = 0.2


class ScanProgress:
    """Counts a tree's sources: class folders by number, containers by the bytes passed in them.

    The bar is drawn on stderr where that is a terminal, by a process whose log tells such things:
    of a job's ranks that is rank 0. A context manager, which takes the bar away at its end.
    """

    def __init__(self, tree: Tree) -> None:
        """Shows nothing yet."""
        self._tree = tree
        self._stack = ExitStack()
        self._bar: tqdm[None] | None = None
        self._said = time.monotonic()

    def __enter__(self) -> ScanProgress:
        """Draws the bar, if there is one; lines of the log do not break it meanwhile."""
        if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):
            by_number = self._tree.kind == "folders"
            total = len(self._tree.sources) if by_number else self._stored_bytes()
            self._bar = self._stack.enter_context(
                tqdm(
                    total=total,
                    desc=f"scanning {self._tree.directory}",
                    unit=" folders" if by_number else "B",
                    unit_scale=not by_number,
                    leave=False,
                    dynamic_ncols=True,
                )
            )
            self._stack.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the bar away."""
        self._stack.close()

    @property
    def interval_sec(self) -> float:
        """How often `show` should be called."""
        return _LINE_SEC if self._bar is None else _BAR_SEC

    def show(self, done: int, images: int, windows: Sequence[Window]) -> None:
        """`done` sources are walked through and hold `images`; `windows` are those begun."""
        passed = sum(window.position for window in windows)
        if self._bar is not None:
            now = done if self._tree.kind == "folders" else passed
            self._bar.set_postfix_str(f"{images} images", refresh=False)
            self._bar.update(now - self._bar.n)
        elif time.monotonic() - self._said > _LINE_SEC:
            self._said = time.monotonic()
            walked = f", {passed / 1e9:.1f} GB passed" if windows else ""
            log.info(
                "%s: %d of %d %s%s",
                self._tree.directory, done, len(self._tree.sources), self._tree.source_noun, walked,
            )  # fmt: skip

    def _stored_bytes(self) -> int:
        return sum(_size(self._tree, name) for name in self._tree.sources)


def _size(tree: Tree, name: str) -> int:
    try:
        return os.stat(tree.directory / name).st_size
    except OSError:  # the walk says what is wrong with it
        return 0
