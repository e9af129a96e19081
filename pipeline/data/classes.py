"""Human-readable names of the classes of a data set. Imports nothing heavy."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.system.regular import read_regular

log = logging.getLogger("trainyard")

WORDS_FILE = "synset_words.txt"
"""File in data.root, as `prepare imagenet` writes it: a class name and its words, one a line."""
_WORDS_BYTES = 1 << 26


def class_words(root: Path) -> dict[str, str]:
    """Words by class name; empty if the data set has none.

    A file that cannot be read gives no words and a warning, as the caller has a result to show.
    """
    path = root / WORDS_FILE
    try:
        # utf-8-sig: without the mark that some editors put before the first name.
        lines = read_regular(path, _WORDS_BYTES).decode("utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning(
            "warning: %s cannot be read (%s), so classes have no words; remove it or fix it",
            path, reason,
        )  # fmt: skip
        return {}
    pairs = (line.strip().partition(" ") for line in lines)
    return {name: words.strip() for name, _, words in pairs if words}
