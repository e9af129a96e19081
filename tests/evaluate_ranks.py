"""Runs several evaluations over the ranks, one after the other: `evaluate_ranks.py FILE`.

`FILE` is a JSON list of command lines of `pipeline.evaluate`; for test_evaluate.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.evaluate.__main__ import main
from pipeline.system.failure import run_command


def evaluate_each(argv: list[str]) -> None:
    """Every rank runs all of them."""
    for command in json.loads(Path(argv[0]).read_text()):
        main(command)


if __name__ == "__main__":
    run_command(evaluate_each, sys.argv[1:])
