"""`prepare verify`: reads or decodes every image, and names those that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.config import require
from pipeline.data.images import BadImage
from pipeline.data.index.headers import jpeg_header, size_of_bytes
from pipeline.data.index.manifest import Manifest, open_manifest
from pipeline.data.index.survey import Split
from pipeline.prepare.files import whole_file, write_error, write_json
from pipeline.prepare.options import VerifyOptions
from pipeline.prepare.progress import Progress

if TYPE_CHECKING:
    from pipeline.prepare.decode import Decoder


NO_END = "has no end marker"
"""The reason of a JPEG whose header is right; adding the marker mends it if nothing else lacks."""

_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_CHUNK = 32  # images that one thread reads in a task; a chunk more than threads is in memory


def find_flaw(content: NDArray[np.uint8], width: int, height: int) -> str | None:
    """Return why the encoded image (bytes,) uint8 would fail, None if nothing shows.

    width, height: pixels as the manifest recorded them. Kinds go by the first bytes, as decoders
    do, whatever the file's name.
    """
    found = content.tobytes()
    size = size_of_bytes(found)
    if size == (0, 0):
        return "has no readable header"
    if size != (width, height):
        return f"is {size[0]} x {size[1]} by its header, the manifest recorded {width} x {height}"
    if found.startswith(b"\xff\xd8"):
        return _jpeg_flaw(found)
    if found.startswith(b"\x89PNG") and found.rfind(b"IEND") < 0:
        return "is a PNG file that is cut off"
    recorded = 0
    if found.startswith(b"RIFF"):
        recorded = int.from_bytes(found[4:8], "little") + 8
    elif found.startswith(b"BM"):
        recorded = int.from_bytes(found[2:6], "little")
    if recorded > len(found):
        return f"has {len(found)} bytes, its header says {recorded}: it is cut off"
    return None


def _jpeg_flaw(found: bytes) -> str | None:
    """Return what is wrong behind the frame header: no scan, or none that ends."""
    header = jpeg_header(found)
    # Pillow, which has read an odd header, does not say where it ended.
    scan = found.find(_SCAN) if header is None else header[1]
    if scan < 0:
        return "is cut off in its header"
    # The end mark of a thumbnail in the header comes before the scan, and other bytes may follow.
    return None if found.rfind(_END, scan) >= 0 else NO_END


def with_end(content: NDArray[np.uint8]) -> bytes:
    """Return a JPEG without end marker with one, whose first half may be there."""
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
    """An image as it was found: its bytes unless they cannot be had, and what is wrong at once."""

    image: int
    content: NDArray[np.uint8] | None
    flaw: str | None
    changed: bool = False


def run(options: VerifyOptions) -> None:
    """Writes the report and the exclusion list; ValueError, so exit code 2, if any image is bad."""
    manifests = {
        split: open_manifest(options.root, split, options.cache_dir)
        for split in get_args(Split)
        if (options.root / split).is_dir()
    }
    require(bool(manifests), f"--root {options.root} has neither a folder train nor val")
    threads = options.workers or len(os.sched_getaffinity(0))
    found: list[Finding] = []
    for split, manifest in manifests.items():
        mine = list(_verify(manifest, options, threads))
        found += mine
        bad = sum(finding.verdict == "bad" for finding in mine)
        print(f"{split}: {len(manifest)} images, {bad} bad, {len(mine) - bad} suspect", flush=True)
    exclude = options.report.with_suffix(".exclude.json")
    _write_report(options.report, found)
    write_json(exclude, {"version": 1, "splits": _excluded(manifests, found)})
    print(f"written: {options.report} and {exclude}")
    bad = sum(finding.verdict == "bad" for finding in found)
    repaired = sum(finding.repaired is not None for finding in found)
    if bad:
        raise ValueError(
            f"{bad} of {sum(map(len, manifests.values()))} images would fail in training, "
            f"{repaired} of them are mended in {options.repair}: {options.report} names them"
            if options.repair
            else f"{bad} of {sum(map(len, manifests.values()))} images would fail in training: "
            f"{options.report} names them; replace them, or leave them out by {exclude}"
        )


def _verify(manifest: Manifest, options: VerifyOptions, threads: int) -> Iterator[Finding]:
    total = int(manifest.lengths.sum())
    reads = _read_all(manifest, threads)
    with Progress(f"verifying {manifest.directory}", len(manifest), total) as progress:
        if options.full:
            yield from _decoded(manifest, options, threads, reads, progress)
            return
        unfinished = []
        for chunk in reads:
            for read in chunk:
                if read.flaw == NO_END and options.repair:
                    unfinished.append(read)
                elif read.flaw is not None:
                    yield _finding(manifest, read, "bad", read.flaw)
            progress.add(len(chunk), sum(int(manifest.lengths[read.image]) for read in chunk))
    if unfinished:
        from pipeline.prepare.decode import Decoder  # torch and DALI: only when needed

        with Decoder(manifest, threads) as decoder:
            for read in unfinished:
                finding = _finding(manifest, read, "bad", NO_END)
                yield _mended(manifest, options, decoder, read, finding)


def _decoded(
    manifest: Manifest,
    options: VerifyOptions,
    threads: int,
    reads: Iterable[list[_Read]],
    progress: Progress,
) -> Iterator[Finding]:
    """Findings with the verdict of training's decoder."""
    from pipeline.prepare.decode import Decoder  # torch and DALI: only when needed

    with Decoder(manifest, threads) as decoder:
        for chunk in reads:
            whole = [read for read in chunk if read.content is not None]
            # What will fail goes apart, so that a batch need not be decoded twice.
            for part in (
                [read for read in whole if read.flaw is None],
                *([read] for read in whole if read.flaw is not None),
            ):
                contents = [read.content for read in part if read.content is not None]
                verdicts = decoder.verdicts([read.image for read in part], contents)
                for read, verdict in zip(part, verdicts, strict=True):
                    if verdict.kind == "good" and read.flaw is None:
                        continue
                    kind: Literal["bad", "suspect"] = "bad" if verdict.kind == "bad" else "suspect"
                    words = "; ".join(filter(None, (read.flaw, verdict.reason)))
                    finding = _finding(manifest, read, kind, words)
                    if read.flaw == NO_END and options.repair:
                        finding = _mended(manifest, options, decoder, read, finding)
                    yield finding
            for read in chunk:
                if read.content is None:
                    yield _finding(manifest, read, "bad", str(read.flaw))
            progress.add(len(chunk), sum(int(manifest.lengths[read.image]) for read in chunk))


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


def _mended(
    manifest: Manifest, options: VerifyOptions, decoder: Decoder, read: _Read, finding: Finding
) -> Finding:
    """Copies the image with an end marker, if it then decodes without a warning."""
    assert read.content is not None and options.repair is not None, "checked by the caller"
    mended = with_end(read.content)
    (verdict,) = decoder.verdicts([read.image], [np.frombuffer(mended, dtype=np.uint8)])
    if verdict.kind != "good":
        reason = f"{NO_END} and is cut off: {verdict.reason}"
        return dataclasses.replace(finding, reason=reason)
    source = manifest.path(read.image)
    if not source.is_file():  # in a container, which is not written anew
        return finding
    place = options.repair / manifest.split / source.relative_to(manifest.directory)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(place, error) from error
    with whole_file(place) as new:
        new.write_bytes(mended)
    return dataclasses.replace(finding, reason=f"{NO_END}, nothing else", repaired=str(place))


def _write_report(path: Path, found: list[Finding]) -> None:
    with whole_file(path) as new, open(new, "w", encoding="utf-8") as file:
        for finding in found:
            file.write(json.dumps(dataclasses.asdict(finding)) + "\n")


def _excluded(manifests: dict[Split, Manifest], found: list[Finding]) -> dict[str, object]:
    return {
        split: {
            "data_hash": manifest.digest,
            "images": [
                finding.image
                for finding in found
                if finding.split == split and finding.verdict == "bad" and not finding.changed
            ],
        }
        for split, manifest in manifests.items()
    }
