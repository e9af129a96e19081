"""The cause in what DALI reports of a failed batch, on one line."""

from __future__ import annotations

import re

_BEGINS = "encountered:"
_ENDS = ("C++ context:", "Stacktrace", "Current pipeline object")
_PLACE = re.compile(r"\[[^\]\s]+:\d+\]\s*")  # a line of DALI's source
_THREAD = re.compile(r"^Error in thread \d+:\s*")
_NUMBER = re.compile(r"\s*sample #\d+\s*:?")  # of the batch, which is ours
_LONGEST = 200

_FAILED = "Failed to decode"  # what DALI says of an image that its decoders refuse


def cause(report: str) -> str:
    """Return what DALI says went wrong, without where in its source and in our graph."""
    said = report.rpartition(_BEGINS)[2]
    lines = []
    for line in map(str.strip, said.splitlines()):
        if line.startswith(_ENDS):
            break
        if line and not line.startswith("Critical error"):
            lines.append(line)
    words = _THREAD.sub("", _PLACE.sub("", " ".join(lines)))
    return _NUMBER.sub("", words).strip()[:_LONGEST] or "no reason given"


def cause_of_one(report: str) -> str:
    """Return the same of a batch of one image, whose place in the batch says nothing."""
    said = cause(report)
    return "its data are damaged" if said == _FAILED else said
