"""The cause in what DALI reports of a failed batch, on one line."""

from __future__ import annotations

import re

_BEGINS = "encountered:"
_ENDS = ("C++ context:", "Stacktrace", "Current pipeline object")
_PLACE = re.compile(r"\[[^\]\s]+:\d+\]\s*")  # a line of DALI's source
_THREAD = re.compile(r"^Error in thread \d+:\s*")
_NUMBER = re.compile(r"\s*sample #\d+\s*:?")  # of the batch, which is ours
_LONGEST = 200

FAILED = "Failed to decode"
"""The cause that DALI gives for an image that one of its decoders refuses."""


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


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MESSENGER = re.compile(r"^\[(?:ERROR|WARNING|INFO)\]\s*\[\w+\]\s*(?:Could not [^-]*- )?")
_OPENCV = re.compile(r"^\[\s*(?:ERROR|WARN|INFO):\d+@[\d.]+\]\s*global\s+\S+:\d+\s+\w+\s*")
_CODECS = re.compile(
    r"^(?:Corrupt JPEG|Premature end of|Input file read error|Invalid SOS|Unsupported marker|"
    r"Warning: unknown JFIF|Inconsistent progression|libpng (?:warning|error):|"
    r"\w*TIFF\w*: |JPEGLib: |\w+(?:Decode|SetupState|SetupDecode): )"
)


def by_decoders(line: str) -> bool:
    """Whether a line on stderr is of the libraries that decode images."""
    line = _COLOURS.sub("", line)
    return bool(_MESSENGER.match(line) or _OPENCV.match(line) or _CODECS.match(line))


def decoders_words(said: str, failed: bool) -> str:
    """Return the first thing that decoders said of one image on stderr, empty if nothing counts.

    What is told by nvImageCodec or OpenCV themselves counts only if the image failed: for a good
    one it says that a first decoder has left it to a second.
    """
    lines = [line.strip() for line in _COLOURS.sub("", said).splitlines() if line.strip()]
    if not failed:
        lines = [line for line in lines if not (_MESSENGER.match(line) or _OPENCV.match(line))]
    errors = [line for line in lines if "error" in line.lower() and not _OPENCV.match(line)]
    first = next(iter(errors or lines), "")  # later ones follow from it
    return _OPENCV.sub("", _MESSENGER.sub("", first))[:_LONGEST]
