"""`prepare index`: indexes a data set ahead of time; a job's start only opens the index."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from pipeline.config import require
from pipeline.data.index.manifest import Manifest, cached_manifest, open_manifest
from pipeline.data.index.survey import Split, other_name
from pipeline.prepare.options import IndexOptions
from pipeline.system.console import say

log = logging.getLogger("trainyard")


def run(options: IndexOptions) -> None:
    """Makes the manifests of both splits, or finds them up to date, and prints what they hold.

    A job finds them if it has the same `cache_dir`. ValueError as `open_manifest`, also if val has
    a class that train does not have.
    """
    root, cache, classes = options.root, options.cache_dir, None
    for split in get_args(Split):
        started = time.monotonic()
        scanned = options.again or cached_manifest(root, split, cache) is None
        manifest = open_manifest(root, split, cache, classes, options.again)
        classes = manifest.classes
        seconds = max(time.monotonic() - started, 1e-3)
        done = "up to date, opened"
        rate = ""
        if scanned:
            done, rate = "scanned", f", {len(manifest) / seconds:,.0f} files/s"
        say(
            f"{split}: {len(manifest):,} images of {len(set(manifest.labels.tolist()))} classes, "
            f"{manifest.lengths.sum() / 1e9:.2f} GB, hash {manifest.digest[:12]}, "
            f"{done} in {seconds:.1f} s{rate}"
        )


def manifests_of(
    root: Path,
    cache_dir: Path | None = None,
    option: str = "root",
    tell: Callable[..., object] = log.warning,
) -> dict[Split, Manifest]:
    """The manifests of the splits that a data set has; ConfigError, naming `option`, for none.

    `tell` takes the warning of a missing split that is there under another name. `cache_dir` as in
    `open_manifest`.
    """
    splits: list[Split] = [split for split in get_args(Split) if (root / split).is_dir()]
    others = [other_name(root, split) for split in get_args(Split) if split not in splits]
    words = "; ".join(filter(None, others))
    neither = f"--{option} {root} has neither a folder train nor val"
    require(bool(splits), f"{neither}: {words}" if words else neither)
    if words:
        tell("%s", words)
    return {split: open_manifest(root, split, cache_dir) for split in splits}
