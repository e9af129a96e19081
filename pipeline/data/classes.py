"""Human-readable names of the classes of a data set. Imports nothing heavy."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("trainyard")

WORDS_FILE = "synset_words.txt"
"""File in data.root, as `prepare imagenet` writes it: a class name and its words, one a line."""


def class_words(root: Path) -> dict[str, str]:
    """Words by class name; empty if the data set has none.

    A file that cannot be read gives no words and a warning, as the caller has a result to show.
    """
    path = root / WORDS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        log.warning(
            "warning: %s cannot be read (%s), so classes have no words; remove it or fix it",
            path, error,
        )  # fmt: skip
        return {}
    pairs = (line.strip().partition(" ") for line in lines)
    return {name: words.strip() for name, _, words in pairs if words}
