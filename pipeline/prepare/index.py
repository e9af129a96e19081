"""`prepare index`: a data set's manifests made ahead of time; a job's start only opens them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.index.manifest import cached_manifest, open_manifest
from pipeline.data.index.survey import Split
from pipeline.prepare.options import IndexOptions


@dataclass(frozen=True)
class Indexed:
    """One split that `index` went through.

    images, classes: how many; bytes: of all encoded images. digest: the data hash. seconds: how
    long it took. scanned: False if its manifest was up to date.
    """

    split: Split
    images: int
    classes: int
    bytes: int
    digest: str
    seconds: float
    scanned: bool

    def __str__(self) -> str:
        """Say it in one line."""
        rate = f", {self.images / self.seconds:,.0f} files/s" if self.scanned else ""
        return (
            f"{self.split}: {self.images:,} images of {self.classes} classes, "
            f"{self.bytes / 1e9:.2f} GB, hash {self.digest[:12]}, "
            f"{'scanned' if self.scanned else 'up to date, opened'} in {self.seconds:.1f} s{rate}"
        )


def run(options: IndexOptions) -> None:
    """Indexes both splits and says what they hold."""
    for split in index(options.root, options.cache_dir, options.again):
        print(split)


def index(root: Path, cache_dir: Path | None = None, again: bool = False) -> list[Indexed]:
    """Make, or find up to date, the manifests of `<root>/train` and `<root>/val`.

    `cache_dir` and `again` as in `open_manifest`; a job finds them if it has the same `cache_dir`.
    ValueError as there, also if val has a class that train lacks.
    """
    found: list[Indexed] = []
    classes: list[str] | None = None
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        started = time.monotonic()
        scanned = again or cached_manifest(root, split, cache_dir) is None
        manifest = open_manifest(root, split, cache_dir, classes, again)
        classes = manifest.classes
        seconds = max(time.monotonic() - started, 1e-3)
        length, size = len(manifest), int(manifest.lengths.sum())
        present = len(set(manifest.labels.tolist()))
        found.append(Indexed(split, length, present, size, manifest.digest, seconds, scanned))
    return found
