"""How far a scan is: a bar on a terminal, a line of the log now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from pipeline.data.index.survey import Tree
from pipeline.data.index.window import Window
from pipeline.system.console import Bar

log = logging.getLogger("trainyard")


class ScanProgress(Bar):
    """Counts a tree's sources: class folders by number, containers by the bytes passed in them.

    The bar is drawn by a process whose log tells such things: of a job's ranks that is rank 0.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree, self._by_number = tree, tree.kind == "folders"
        super().__init__(
            len(tree.sources) if self._by_number else sum(_size(tree, s) for s in tree.sources),
            f"scanning {tree.directory}",
            unit=" folders" if self._by_number else "B",
            stream=sys.stderr,
            wanted=log.isEnabledFor(logging.INFO),
        )

    def show(self, done: int, images: int, windows: Sequence[Window]) -> None:
        """`done` sources are walked through and hold `images`; `windows` are those begun."""
        passed = sum(window.position for window in windows)
        self.move(done if self._by_number else passed, f"{images} images")
        if self.line_due():
            walked = f", {passed / 1e9:.1f} GB passed" if windows else ""
            log.info(
                "%s: %d of %d %s%s",
                self._tree.directory, done, len(self._tree.sources), self._tree.source_noun, walked,
            )  # fmt: skip


def _size(tree: Tree, name: str) -> int:
    try:
        return os.stat(tree.directory / name).st_size
    except OSError:  # the walk says what is wrong with it
        return 0
