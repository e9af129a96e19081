"""A user's script that calls the API on every rank: `api_ranks.py FILE`, whose settings are JSON;
for tests/pipeline/api/test_ranks.py."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pipeline
from pipeline.api import Observer, TrainingError


class Interrupts(Observer):
    """Stops the run as a scheduler does."""

    def advance(self, position: int) -> None:
        if position == 9 * 8:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Trains with a stop, goes on, tests; then lets a callback fail if it is asked to."""
    given = json.loads(Path(sys.argv[1]).read_text())
    settings, breaks_at = given["settings"], given["breaks at"]
    called: list[str] = []
    if breaks_at is not None:
        _break(settings, breaks_at)
        return
    stopped = pipeline.train(settings, observers=[Interrupts()])
    result = pipeline.train(settings, on_metrics=lambda line: called.append(line["event"]))
    found = pipeline.evaluate(result.folder)
    print(json.dumps({
        "stopped": [stopped.stopped, stopped.step],
        "finished": result.finished,
        "correct": [[one.step, one.top1_correct, one.loss] for one in result.history],
        "best": result.best.step,
        "called": called,
        "tested": [found.images, found.top1_correct, found.loss, int(found.confusion.sum())],
        "handler": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    }))  # fmt: skip


def _break(settings: dict[str, object], event: str) -> None:
    def fails(line: Mapping[str, Any]) -> None:
        if line["event"] == event:
            raise ZeroDivisionError("of the callback")

    try:
        pipeline.train(settings, on_metrics=fails)
    except (ZeroDivisionError, TrainingError) as error:
        print(json.dumps({"raised": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main()
