"""Common parts of the drawn data sets: ten shapes, and a folder that is made atomically.

The class decides the outline and nothing else that is the same in both sets. No outline becomes
another class when it is mirrored or rotated.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.config import require
from pipeline.prepare.files import make_folder, read_mark, require_same, writing
from pipeline.system.files import locked

# Polygons of shape (points, 2), x before y, in any unit; the first is filled, a second is a hole.
Outline = tuple[NDArray[np.float64], ...]

_LOCK = ".lock"


def _arc(start: float, stop: float, radius: float = 1.0, points: int = 48) -> NDArray[np.float64]:
    angles = np.linspace(start, stop, points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _arrow(rng: np.random.Generator) -> Outline:
    shaft, head, neck = rng.uniform(0.16, 0.26), rng.uniform(0.6, 0.8), rng.uniform(-0.1, 0.2)
    upper = [(-1, -shaft), (neck, -shaft), (neck, -head), (1, 0)]
    return (np.array(upper + [(x, -y) for x, y in reversed(upper[:-1])]),)


def _circle(rng: np.random.Generator) -> Outline:
    return (_arc(0, 2 * math.pi),)


def _crescent(rng: np.random.Generator) -> Outline:
    tip, inner_centre = rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.5)
    outer = _arc(tip, 2 * math.pi - tip)
    # The inner circle passes through both tips of the outer one.
    to_tip_x, to_tip_y = math.cos(tip) - inner_centre, math.sin(tip)
    tip_angle = math.atan2(to_tip_y, to_tip_x)
    inner = _arc(2 * math.pi - tip_angle, tip_angle, math.hypot(to_tip_x, to_tip_y))
    return (np.concatenate([outer, inner + (inner_centre, 0)]),)


def _cross(rng: np.random.Generator) -> Outline:
    arm = rng.uniform(0.18, 0.28)
    quarter = np.array([(arm, -arm), (1, -arm), (1, arm)])
    turn = np.array([(0, 1), (-1, 0)])
    return (np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]),)


def _heart(rng: np.random.Generator) -> Outline:
    t = np.linspace(0, 2 * math.pi, 64)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return (np.stack([16 * np.sin(t) ** 3, -y], axis=1),)


def _hourglass(rng: np.random.Generator) -> Outline:
    waist, half_width = rng.uniform(0.06, 0.16), rng.uniform(0.7, 0.9)
    right = [(half_width, -1), (waist, 0), (half_width, 1)]
    return (np.array(right + [(-x, y) for x, y in reversed(right)]),)


def _ring(rng: np.random.Generator) -> Outline:
    return (_arc(0, 2 * math.pi), _arc(0, 2 * math.pi, rng.uniform(0.5, 0.65)))


def _square(rng: np.random.Generator) -> Outline:
    return (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),)


def _star(rng: np.random.Generator) -> Outline:
    points = _arc(-math.pi / 2, 1.5 * math.pi, points=11)[:10]
    points[1::2] *= rng.uniform(0.42, 0.52)
    return (points,)


def _triangle(rng: np.random.Generator) -> Outline:
    return (_arc(-math.pi / 2, 1.5 * math.pi, points=4)[:3],)


_OUTLINES: dict[str, Callable[[np.random.Generator], Outline]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _arrow, _circle, _crescent, _cross, _heart, _hourglass, _ring, _square, _star, _triangle,
    )
}  # fmt: skip
CLASSES = tuple(_OUTLINES)  # by label, which is also the order of the folders' names


def _bolt(rng: np.random.Generator) -> Outline:
    bend = rng.uniform(0.1, 0.25)
    upper = [(0.2, -1.0), (-0.6, bend), (-0.05, bend)]
    return (np.array([*upper, (-0.25, 1.0), (0.6, -bend), (0.05, -bend), (0.45, -1.0)]),)


def _chevron(rng: np.random.Generator) -> Outline:
    thick, tip = rng.uniform(0.4, 0.6), rng.uniform(-0.2, 0.0)
    upper = [(-1.0, -0.7), (0.0, tip), (1.0, -0.7)]
    return (np.array(upper + [(x, y + thick) for x, y in reversed(upper)]),)


def _comb(rng: np.random.Generator) -> Outline:
    wide, back = rng.uniform(0.35, 0.5), rng.uniform(-0.5, -0.2)
    rows = [(-1.0, wide - 1.0), (-wide / 2, wide / 2), (1.0 - wide, 1.0)]
    teeth = [[(back, top), (1.0, top), (1.0, bottom), (back, bottom)] for top, bottom in rows]
    inner = [point for tooth in teeth for point in tooth][1:-1]
    return (np.array([(-1.0, -1.0), *inner, (-1.0, 1.0)]),)


def _corner(rng: np.random.Generator) -> Outline:
    arm = rng.uniform(0.45, 0.65)
    inner = [(arm - 1.0, -1.0), (arm - 1.0, 1.0 - arm), (1.0, 1.0 - arm)]
    return (np.array([(-1.0, -1.0), *inner, (1.0, 1.0), (-1.0, 1.0)]),)


def _drop(rng: np.random.Generator) -> Outline:
    radius = rng.uniform(0.5, 0.65)
    opening = math.acos(radius / (2 - radius))  # where the lines from the tip touch the circle
    arc = _arc(opening - math.pi / 2, 1.5 * math.pi - opening, radius) + (0.0, 1.0 - radius)
    return (np.concatenate([arc, [(0.0, -1.0)]]),)


_UNSEEN = (_bolt, _chevron, _comb, _corner, _drop)
UNSEEN = tuple(function.__name__.removeprefix("_") for function in _UNSEEN)
"""Outlines that no drawn data set has, for what a trained network is to learn anew."""
_OUTLINES |= zip(UNSEEN, _UNSEEN, strict=True)


def outline(rng: np.random.Generator, class_name: str) -> Outline:
    """One outline of `class_name`, in a place and a unit of its own."""
    return _OUTLINES[class_name](rng)


def filled(width: int, height: int, polygons: Iterable[NDArray[np.float64]]) -> Image.Image:
    """An outline as a mask of 0 and 255, not antialiased; points and sizes in pixels."""
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for points, ink in zip(polygons, (255, 0), strict=False):
        draw.polygon([(float(x), float(y)) for x, y in points], fill=ink)
    return mask


def draw_once(
    out: Path, kind: str, version: int, seed: int, counts: Sequence[tuple[str, int]],
    draw: Callable[[Path], None],
) -> bool:  # fmt: skip
    """Lets `draw` fill a folder that becomes `out` when complete; `<kind>.json` says what it holds:
    the `version` of the generator, the seed, and the images of each part by `counts`.

    The set grows in a hidden folder next to `out`; what a killed drawing left behind is removed by
    the next one. Returns False when `out` already held exactly this set. ConfigError if it holds
    another one or anything else, a number is out of range, or as `writing`.
    """
    require(seed >= 0, f"--seed={seed} must be 0 or more")
    least = len(CLASSES)
    for part, count in counts:
        require(
            count >= least, f"--{part}={count} must be at least {least}: one image for each class"
        )
    meant = {"generator_version": version, "seed": seed}
    meant |= {f"{part}_images": count for part, count in counts}

    named = f"--out {out}"
    out = out.resolve()  # a link to another disk stays: the set is drawn next to its target

    def is_there() -> bool:
        if not out.exists():
            return False
        known = read_mark("--out", out, out / f"{kind}.json", f"a {kind} set")
        if known is None:
            return False
        advice = "remove the folder, or give another"
        require(bool(known), f"{named} holds a {kind} set whose {kind}.json is damaged; {advice}")
        require_same(f"{named} holds a {kind} set of", known, meant, advice)
        return True

    if is_there():
        return False
    make_folder(out.parent)
    with writing(out), scratch_folder(out) as scratch:
        drawing = scratch / out.name
        drawing.mkdir()
        draw(drawing)
        (drawing / f"{kind}.json").write_text(json.dumps(meant, indent=2) + "\n")
        try:
            drawing.rename(out)
        except OSError:
            if is_there():  # drawn by someone else meanwhile
                return False
            raise
    return True


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A fresh folder next to `out`, locked while in use, removed at the end as are leftovers."""
    prefix, suffix = f".{out.name}.", ".drawing"
    for leftover in out.parent.glob(f"{prefix}*{suffix}"):
        # One that is locked is still being drawn by another.
        with contextlib.suppress(OSError), locked(leftover / _LOCK, wait=False):
            shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=out.parent))
    try:
        with locked(scratch / _LOCK, wait=False):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
