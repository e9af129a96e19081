"""What else sees the lines of a run's metrics: each observer gets the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Observer:
    """Sees a run on rank 0; this one looks away. What it raises ends the run on all ranks."""

    def see(self, line: Mapping[str, Any]) -> None:
        """Takes one line of metrics.jsonl, which is written by then."""

    def advance(self, position: int) -> None:
        """Takes the number of images that the run has seen, after each step."""

    def close(self) -> None:
        """Comes at the end of this start of the run, whatever ends it."""
