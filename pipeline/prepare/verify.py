"""`prepare verify`: reads or decodes every image, and names those that cannot be used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import BadImage
from pipeline.data.index.headers import header_of
from pipeline.data.index.manifest import Manifest
from pipeline.data.index.whole import NO_END, file_flaw
from pipeline.data.parser import other_size, parser_flaw
from pipeline.prepare.checksums import damaged_images
from pipeline.prepare.files import Progress, make_folder, whole_file, write_json
from pipeline.prepare.index import manifests_of
from pipeline.prepare.options import VerifyOptions
from pipeline.system.console import say

if TYPE_CHECKING:
    from pipeline.prepare.decode import Decoder, Verdict


_END = b"\xff\xd9"  # of a JPEG
_CHUNK = 32  # images that one thread reads in a task; a chunk more than threads is in memory


def find_flaw(content: NDArray[np.uint8], width: int, height: int) -> str | None:
    """The reason why the encoded image (bytes,) uint8 would fail, None if none is visible.

    width, height: pixels as the image index recorded them. The format is taken from the first
    bytes, as decoders do, whatever the file's name.
    """
    found = content.tobytes()
    header = header_of(found)
    if not header.flaw and header.size != (width, height):
        return other_size(header.size, (width, height))
    if header.flaw and (width, height) == (0, 0):
        return header.flaw
    return (None if header.flaw else file_flaw(found)) or parser_flaw(content, (width, height))


def with_end(content: NDArray[np.uint8]) -> bytes:
    """The bytes of a JPEG with its missing end marker added, whose first half may be there."""
    found = content.tobytes()
    return found + (_END[1:] if found.endswith(_END[:1]) else _END)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    split: str
    image: int
    path: str
    bytes: int
    verdict: Literal["bad", "suspect"]
    reason: str
    changed: bool = False
    repaired: str | None = None


@dataclass(frozen=True)
class _Read:
    """An image as it was read: its bytes, unless unreadable, and any immediate flaw."""

    image: int
    content: NDArray[np.uint8] | None
    flaw: str | None
    changed: bool = False


def run(options: VerifyOptions) -> None:
    """Writes the report and the exclusion list; ValueError, so exit code 2, if any image is bad."""
    manifests = manifests_of(options.root, options.cache_dir)
    found: list[Finding] = []
    splits: dict[str, object] = {}
    counts: list[str] = []
    for split, manifest in manifests.items():
        mine = _verify(manifest, options)
        found += mine
        bad = [finding for finding in mine if finding.verdict == "bad"]
        excluded = [finding.image for finding in bad if not finding.changed]
        splits[split] = {"data_hash": manifest.digest, "images": excluded}
        suspect = len(mine) - len(bad)
        counts.append(f"{split}: {len(manifest)} images, {len(bad)} bad, {suspect} suspect")
    exclude = options.report.with_suffix(".exclude.json")
    with whole_file(options.report) as new, open(new, "w", encoding="utf-8") as file:
        for finding in found:
            file.write(json.dumps(dataclasses.asdict(finding)) + "\n")
    write_json(exclude, {"version": 1, "splits": splits})
    say(*counts, f"written: {options.report} and {exclude}")
    count = sum(finding.verdict == "bad" for finding in found)
    if count:
        advice = f"replace them, or leave them out by {exclude}"
        if options.repair:
            repaired = sum(finding.repaired is not None for finding in found)
            advice = f"{repaired} of them are repaired in {options.repair}"
        raise ValueError(
            f"{count} of {sum(map(len, manifests.values()))} images would fail in training: "
            f"{options.report} names them; {advice}"
        )


def _verify(manifest: Manifest, options: VerifyOptions) -> list[Finding]:
    """The findings in a split, in the order of its images."""
    found: list[Finding] = []
    unfinished: list[tuple[int, _Read]] = []  # each with its place in `found`
    with contextlib.ExitStack() as stack:

        def listen() -> Decoder:
            from pipeline.prepare import decode  # torch and DALI: only when needed

            return stack.enter_context(decode.listening(manifest, options.threads))

        decoder = listen() if options.full else None
        damaged = damaged_images(manifest, options.threads) if options.full else {}
        # Begun after the decoder, which takes over what C code writes to stderr.
        what, total = f"verifying {manifest.directory}", int(manifest.lengths.sum())
        with Progress(what, len(manifest), total) as progress:
            for read_chunk in _read_all(manifest, options.threads):
                chunk = [_with_flaw(read, damaged.get(read.image)) for read in read_chunk]
                verdicts = {} if decoder is None else _decoded(decoder, chunk)
                for read in chunk:
                    kind, words = verdicts.get(read.image, ("bad" if read.flaw else "good", ""))
                    if read.image in damaged:
                        kind = "bad"
                    if kind == "good" and read.flaw is None:
                        continue
                    if options.repair and read.flaw == NO_END:
                        unfinished.append((len(found), read))
                    own = None if read.flaw and read.flaw in words else read.flaw
                    reason = "; ".join(filter(None, (own, words)))
                    verdict: Literal["bad", "suspect"] = "bad" if kind == "bad" else "suspect"
                    found.append(_finding(manifest, read, verdict, reason))
                progress.add(len(chunk), sum(int(manifest.lengths[read.image]) for read in chunk))
        if options.repair and unfinished:
            decoder = decoder or listen()
            for place, read in unfinished:
                found[place] = _repaired(manifest, options.repair, decoder, read, found[place])
    return found


def _with_flaw(read: _Read, flaw: str | None) -> _Read:
    return read if flaw is None or read.flaw else dataclasses.replace(read, flaw=flaw)


def _decoded(decoder: Decoder, chunk: list[_Read]) -> dict[int, Verdict]:
    """Verdicts on the images that could be read."""
    whole = {r.image: r.content for r in chunk if r.content is not None and r.flaw is None}
    verdicts = decoder.verdicts(whole)
    # What will fail goes apart, so that a batch need not be decoded twice.
    for read in chunk:
        if read.content is not None and read.flaw is not None:
            verdicts |= decoder.verdicts({read.image: read.content})
    return verdicts


def _read_all(manifest: Manifest, threads: int) -> Iterator[list[_Read]]:
    """Every image in order, in chunks."""
    starts = range(0, len(manifest), _CHUNK)
    ahead: deque[Future[list[_Read]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        for start in starts:
            ahead.append(pool.submit(_read_chunk, manifest, start))
            if len(ahead) > threads + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read_chunk(manifest: Manifest, start: int) -> list[_Read]:
    last = min(start + _CHUNK, len(manifest))
    sizes = zip(
        manifest.widths[start:last].tolist(), manifest.heights[start:last].tolist(), strict=True
    )
    found = []
    for image, (width, height) in enumerate(sizes, start):
        try:
            content = manifest.read(image)
        except BadImage as error:
            found.append(_Read(image, None, error.reason, error.changed))
        else:
            found.append(_Read(image, content, find_flaw(content, width, height)))
    return found


def _finding(
    manifest: Manifest, read: _Read, verdict: Literal["bad", "suspect"], reason: str
) -> Finding:
    path, length = str(manifest.path(read.image)), int(manifest.lengths[read.image])
    return Finding(manifest.split, read.image, path, length, verdict, reason, read.changed)


def _repaired(
    manifest: Manifest, folder: Path, decoder: Decoder, read: _Read, finding: Finding
) -> Finding:
    """Copies the image with an end marker to `folder`, if it then decodes without a warning."""
    assert read.content is not None, "an image without an end marker was read"
    repaired = with_end(read.content)
    verdict = decoder.verdicts({read.image: np.frombuffer(repaired, np.uint8)})[read.image]
    if verdict.kind != "good":
        reason = f"{NO_END} and is cut off: {verdict.reason}"
        return dataclasses.replace(finding, reason=reason)
    source = manifest.path(read.image)
    if not source.is_file():  # in a container, which is not rewritten
        return finding
    place = folder / manifest.split / source.relative_to(manifest.directory)
    make_folder(place.parent)
    with whole_file(place) as new:
        new.write_bytes(repaired)
    return dataclasses.replace(finding, reason=f"{NO_END}, nothing else", repaired=str(place))
