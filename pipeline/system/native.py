"""What C libraries that decode images write to stderr: which lines are theirs, what they say.

As a program of its own it passes stdin on to stdout, of these lines only the first of each kind. It
imports only Python's own, and lives on to pass the last words of a process that has crashed.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal

_LONGEST = 200
_PAUSE_SEC = 0.1
_NUMBER = re.compile(r"(0x)?[0-9a-f]*[0-9][0-9a-f]*")
_ONCE = "said once; python -m pipeline.prepare verify --full names the files"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MESSENGER = re.compile(r"^\[(?:ERROR|WARNING|INFO)\]\s*\[\w+\]\s*(?:Could not [^-]*- )?")
_OPENCV = re.compile(r"^\[\s*(?:ERROR|WARN|INFO):\d+@[\d.]+\]\s*global\s+\S+:\d+\s+\w+\s*")
_OPENCV_PLACE = re.compile(r"^imdecode_\(''\): |:? OpenCV\([\d.]+\).*$")  # of its source
_CODECS = re.compile(
    r"^(?:Corrupt JPEG|Premature end of|Input file read error|Bogus |Empty JPEG|Not a JPEG file|"
    r"Invalid (?:JPEG|SOS|progressive|component)|Unsupported (?:JPEG|marker|color conv)|"
    r"(?:Quantization|Huffman|Arithmetic) table|Sampling factors too|Maximum supported image|"
    r"JPEG datastream|Warning: unknown JFIF|Inconsistent progression|libpng (?:warning|error):|"
    r"\w*TIFF\w*: |JPEGLib: |: (?:Compression scheme|\w+ compression)|"
    r"\w+(?:Decode|SetupState|SetupDecode): )"
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
    return _OPENCV_PLACE.sub("", _OPENCV.sub("", _MESSENGER.sub("", first)))[:_LONGEST]


def said_once(lines: int, out: int) -> None:
    """Copies what comes from the descriptor `lines` to `out`; of the decoders' lines, one of each
    kind.

    Two are of one kind if they differ in numbers alone. The beginning of a line, such as a bar that
    is drawn, goes on too if nothing follows for a moment.
    """
    kinds, kept = set[str](), b""
    while True:
        waiting = select.select([lines], [], [], _PAUSE_SEC if kept else None)[0]
        found = os.read(lines, 65536) if waiting else b""
        *whole, kept = (kept + found).split(b"\n")
        for line in whole:
            _write(out, _once(line + b"\n", kinds))
        if not found:
            _write(out, _once(kept, kinds))
            kept = b""
            if waiting:
                return


def _once(line: bytes, kinds: set[str]) -> bytes:
    """The line as it is passed on, empty if one of its kind has been."""
    text = line.decode(errors="backslashreplace")
    if not by_decoders(text):
        return line
    words = decoders_words(text, failed=True)
    kind = _NUMBER.sub("#", words)
    if kind in kinds:
        return b""
    kinds.add(kind)
    return f"warning: an image decoder says: {words} ({_ONCE})\n".encode()


def _write(out: int, content: bytes) -> None:
    """Writes all of it, as far as it can be written: on a full disk these lines are lost, and those
    after them may be shown again. Raises `BrokenPipeError` where nobody reads any longer."""
    while content:
        try:
            content = content[os.write(out, content) :]
        except BlockingIOError:  # a pipe that a launcher has made so, which is full
            select.select([], [out], [])
        except BrokenPipeError:
            raise
        except OSError:
            return


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it ends when nobody can write to it any longer
    with contextlib.suppress(OSError):  # nobody reads what it passes on
        said_once(0, 1)
