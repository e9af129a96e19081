"""What C libraries that decode images write to stderr: which lines are theirs, what they say.

As a command, `python -m pipeline.system.native`, it passes stdin on to stdout, and of these lines
only the first of each kind. It imports nothing heavy, and lives on to pass the last words of a
process that has crashed.
"""

from __future__ import annotations

import re
import signal
import sys
from typing import BinaryIO

_LONGEST = 200
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


def said_once(lines: BinaryIO, out: BinaryIO) -> None:
    """Copies `lines` to `out` as they come; of the decoders' lines, one of each kind.

    Two are of one kind if they differ in numbers alone.
    """
    kinds = set[str]()
    for line in lines:
        text = line.decode(errors="backslashreplace")
        if by_decoders(text):
            words = decoders_words(text, failed=True)
            kind = re.sub(r"(0x)?[0-9a-f]*[0-9][0-9a-f]*", "#", words)
            if kind in kinds:
                continue
            kinds.add(kind)
            line = f"warning: an image decoder says: {words} ({_ONCE})\n".encode()
        out.write(line)
        out.flush()


_ONCE = "said once; python -m pipeline.prepare verify --full names the files"

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it ends when nobody can write to it any longer
    said_once(sys.stdin.buffer, sys.stdout.buffer)
