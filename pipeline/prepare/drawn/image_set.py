"""A folder of drawn data: whole or not there, drawn once for the parameters it was asked for."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipeline.prepare.drawn.shapes import CLASSES
from pipeline.system.files import locked

_LOCK = ".lock"


def draw_once(
    out: Path, kind: str, version: int, seed: int, counts: Mapping[str, int],
    draw: Callable[[Path], None],
) -> bool:  # fmt: skip
    """Lets `draw` fill a folder that becomes `out` when complete; `<kind>.json` says what it holds:
    the `version` of the generator, the seed, and the images of each part by `counts`.

    The set grows in a hidden folder beside `out`; what a killed drawing left behind is removed by
    the next one. Returns False when `out` already held exactly this set. ValueError if it holds
    another one or anything else, or a number is out of range.
    """
    if seed < 0:
        raise ValueError(f"--seed={seed} must be 0 or more")
    for part, count in counts.items():
        if count < len(CLASSES):
            raise ValueError(
                f"--{part}={count} must be at least {len(CLASSES)}: one image for each class"
            )
    parameters = {"generator_version": version, "seed": seed}
    parameters |= {f"{part}_images": count for part, count in counts.items()}
    out = out.resolve()  # a link to another disk stays: the set is drawn beside its target
    if _holds_set(out, kind, parameters):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with _scratch_folder(out) as scratch:
        drawing = scratch / out.name
        drawing.mkdir()
        draw(drawing)
        (drawing / f"{kind}.json").write_text(json.dumps(parameters, indent=2) + "\n")
        try:
            drawing.rename(out)
        except OSError:
            if _holds_set(out, kind, parameters):  # drawn by someone else meanwhile
                return False
            raise
    return True


def say_drawn(out: Path, counts: Mapping[str, int], drawn: bool) -> None:
    """Prints where the images lie, and whether they were `drawn` now."""
    parts = " and ".join(f"{count} {part}" for part, count in counts.items())
    print(f"{parts} images {'drawn in' if drawn else 'are in'} {out}")


def _holds_set(out: Path, kind: str, parameters: Mapping[str, int]) -> bool:
    """True: `out` holds the set with these parameters; False: absent or empty; else ValueError."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise ValueError(
            f"{out} is a file, but the {kind} set needs a folder: choose another --out"
        )
    if not any(out.iterdir()):
        return False
    try:
        found = json.loads((out / f"{kind}.json").read_text())
    except (OSError, ValueError):
        raise ValueError(
            f"{out} is not empty and holds no {kind} set ({kind}.json is missing or unreadable): "
            "choose another --out or remove the folder"
        ) from None
    if found != parameters:
        raise ValueError(
            f"{out} holds a {kind} set drawn with {_as_words(found)}, not "
            f"{_as_words(parameters)}: choose another --out or remove the folder"
        )
    return True


def _as_words(parameters: object) -> str:
    return json.dumps(parameters).replace('"', "").strip("{}")


@contextlib.contextmanager
def _scratch_folder(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, locked while in use, removed at the end as are leftovers."""
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
