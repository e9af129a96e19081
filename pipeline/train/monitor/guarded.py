"""A logger that fails: it warns once and never ends a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipeline.train.monitor.observer import Observer

log = logging.getLogger("trainyard")

_SECRET = re.compile(r"(?<=://)[^/\s]*@")


class Guarded(Observer):
    """A logger that is left alone after its first error: what is logged never ends a run."""

    def __init__(self, name: str, inner: Observer) -> None:
        self._name, self._inner = name, inner
        self.wants_pictures = inner.wants_pictures

    def see(self, line: Mapping[str, Any]) -> None:
        self._try(lambda: self._inner.see(line))

    def advance(self, position: int) -> None:
        self._try(lambda: self._inner.advance(position))

    def picture(self, tag: str, pixels: np.ndarray, position: int) -> None:
        self._try(lambda: self._inner.picture(tag, pixels, position))

    def begin_close(self) -> None:
        self._try(self._inner.begin_close)

    def close(self) -> None:
        inner, self._inner = self._inner, Observer()
        self._try(inner.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            warn_of(self._name, error, "gets nothing more from this start")
            self._inner, self.wants_pictures = Observer(), False


def warn_of(
    name: str, error: Exception, and_now: str = "gets nothing more from this start"
) -> None:
    """Logs that a logger failed, and what becomes of it."""
    reason = without_secret(" ".join(str(error).split())) or type(error).__name__
    log.warning(
        "warning: %s of run.loggers failed (%s) and %s; training continues", name, reason, and_now
    )


def without_secret(text: str) -> str:
    """`text` whose addresses have no user and password: what a run writes is for others too."""
    return _SECRET.sub("", text)
