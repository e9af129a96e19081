"""`prepare demo`: ten classes of shapes on clutter, drawn as JPEG files of photos' sizes."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.index.survey import Split
from pipeline.prepare.drawn.image_set import draw_once, say_drawn
from pipeline.prepare.drawn.shapes import CLASSES, draw_image
from pipeline.prepare.options import DemoOptions

_GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same images
# Shares of the rare kinds. In ImageNet they are rarer still; here a few thousand files must hold
# some of each.
_GREY_SHARE, _CMYK_SHARE, _PROGRESSIVE_SHARE = 0.04, 0.03, 0.06


def draw_demo(
    out: Path,
    seed: int = 0,
    train_images: int = 3000,
    val_images: int = 1000,
    processes: int | None = None,
) -> bool:
    """Draws `out/train/<class>/<name>.JPEG` and `out/val/<class>/<name>.JPEG`, all or nothing.

    The images are spread evenly over the ten classes; every seed gives others. `processes` draw at
    once, None meaning one for each core this process may use, without effect on the images.

    Returns False when `out` already held exactly this set. ValueError if a number is out of range,
    or `out` holds another set or anything else; RuntimeError if a drawing process failed, whose
    own error stands on stderr.
    """
    workers = len(os.sched_getaffinity(0)) if processes is None else processes
    if workers < 1:
        raise ValueError(f"processes is {workers}, but at least 1 is needed to draw the demo set")
    counts: dict[Split, int] = {"train": train_images, "val": val_images}

    def draw(folder: Path) -> None:
        _draw_all(folder, seed, counts, workers)

    numbers = {"train": train_images, "val": val_images}
    return draw_once(out, "demo", _GENERATOR_VERSION, seed, numbers, draw)


def demo_image(seed: int, split: Split, index: int) -> NDArray[np.uint8]:
    """Pixels of one image before JPEG coding, (H, W, 3) uint8 RGB; its label is `index % 10`."""
    return draw_image(_generator(seed, split, index, "pixels"), CLASSES[index % len(CLASSES)])


def demo_file(seed: int, split: Split, index: int) -> bytes:
    """The same image as the bytes of its JPEG file."""
    rng = _generator(seed, split, index, "file")
    image = Image.fromarray(demo_image(seed, split, index))
    kind = rng.uniform()
    if kind < _GREY_SHARE:
        image = image.convert("L")
    elif kind < _GREY_SHARE + _CMYK_SHARE:
        image = image.convert("CMYK")
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=int(rng.integers(60, 96)),
        progressive=bool(rng.uniform() < _PROGRESSIVE_SHARE),
    )
    return buffer.getvalue()


def _generator(seed: int, split: Split, index: int, purpose: str) -> np.random.Generator:
    # Pixels and file draw from separate streams: a change of one leaves the other as it was.
    key = [seed, ("train", "val").index(split), index, ("pixels", "file").index(purpose)]
    return np.random.default_rng(key)


def _draw_all(drawing: Path, seed: int, counts: dict[Split, int], processes: int) -> None:
    for split in counts:
        for class_name in CLASSES:
            (drawing / split / class_name).mkdir(parents=True)
    if processes == 1:
        _draw_share(drawing, seed, counts, 0, 1)
        return
    # Not fork: the caller may run threads. Not a pool: its workers outlive a killed parent.
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(
            target=_draw_share_in_worker, args=(drawing, seed, counts, k, processes), daemon=True
        )
        for k in range(processes)
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
                worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode != 0]
    if failed:
        raise RuntimeError(f"a drawing process of the demo set ended with exit code {failed[0]}")


def _draw_share_in_worker(
    drawing: Path, seed: int, counts: dict[Split, int], first: int, stride: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too and ends this process
    _draw_share(drawing, seed, counts, first, stride)


def _draw_share(
    drawing: Path, seed: int, counts: dict[Split, int], first: int, stride: int
) -> None:
    parent = multiprocessing.parent_process()
    for split, count in counts.items():
        for index in range(first, count, stride):
            if parent is not None and not parent.is_alive():
                return
            class_name = CLASSES[index % len(CLASSES)]
            path = drawing / split / class_name / f"{class_name}_{index:05d}.JPEG"
            path.write_bytes(demo_file(seed, split, index))


def run(options: DemoOptions) -> None:
    """Draws the set unless it is there; ValueError where `out` holds anything else."""
    drawn = draw_demo(options.out, options.seed, options.train, options.val)
    say_drawn(options.out, {"train": options.train, "val": options.val}, drawn)
