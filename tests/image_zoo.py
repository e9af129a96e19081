"""Image files of every kind, whole and broken, with what must become of each.

Verdicts: "good" (decodes to Pillow's pixels), "refused" (by its header, when it is indexed), "bad"
(it cannot be decoded, which is met when it is), or "any" (a mutant, or a file of which Pillow has
no pixels: one of these, the same for all who look, and no crash).
"""

import random
from pathlib import Path
from typing import Literal

from zoo_bmp import bmps
from zoo_jpeg import jpegs
from zoo_parts import Specimen, Specimens, of_mode, saved
from zoo_png import pngs, webps
from zoo_tiff import tiffs

Verdict = Literal["good", "refused", "bad", "any"]

VERDICTS = Path(__file__).with_name("zoo_verdicts.txt")
"""Lines of a verdict and a file name: DALI 2.4.0 on a CPU beside Pillow 13.0.0, 2026-11-29."""


def zoo(folder: Path, seed: int = 0, mutants: int = 12) -> dict[str, Verdict]:
    """Writes the files, `mutants` of each of twelve, and returns the verdict by file name."""
    known = dict(reversed(line.split()) for line in VERDICTS.read_text().splitlines())
    found: dict[str, Verdict] = {}
    for name, content in specimens(seed, mutants):
        assert name not in found, name
        (folder / name).write_bytes(content)
        found[name] = "any" if name.startswith("mutant-") else known[name]
    return found


def specimens(seed: int = 0, mutants: int = 12) -> list[Specimen]:
    """The name and the content of each; the same for the same seed."""
    whole = [*jpegs(), *pngs(), *bmps(), *webps(), *tiffs(), *_others()]
    return whole + [*_mutants(whole, random.Random(seed), mutants)]


def _others() -> Specimens:
    image = of_mode("RGB")
    for kind in ("GIF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "SGI", "AVIF", "MPO"):
        if kind == "MPO":
            yield "other-mpo.jpg", saved(image, kind, save_all=True, append_images=[image])
        else:
            yield f"other-{kind.lower()}.jpg", saved(image, kind)
    for name, content in {
        "empty": b"",
        "text": b"not an image, sorry",
        "html": b"<html>404</html>",
        "zeros": bytes(4096),
        "magic-jpeg": b"\xff\xd8",
        "magic-jpeg-3": b"\xff\xd8\xff",
        "magic-png": b"\x89PNG\r\n\x1a\n",
        "magic-bmp": b"BM",
        "magic-riff": b"RIFF\x20\0\0\0WEBP",
        "magic-tiff": b"II*\0",
        "magic-ii": b"II",
        "magic-mm": b"MM\0*",
    }.items():
        yield f"other-{name}.jpg", content


_MUTATED = (
    "jpeg-RGB-baseline.jpg", "jpeg-L-progressive.jpg", "jpeg-CMYK-baseline.jpg", "png-2-8.png",
    "png-3-4-interlaced-trns.png", "bmp-40-8.bmp", "bmp-124-24.bmp", "webp-RGB-lossy.webp",
    "webp-RGBA-lossless.webp", "tiff-RGB-None.tif", "tiff-MM-big-tiles.tif", "tiff-turned-1-L.tif",
)  # fmt: skip
_HEADER_BYTES = {"jpeg": 640, "png": 60, "bmp": 80, "webp": 60, "tiff": 200}


def _mutants(whole: list[Specimen], rng: random.Random, each: int) -> Specimens:
    """One to three bytes of a header changed."""
    contents = dict(whole)
    for name in _MUTATED:
        stem, _, suffix = name.rpartition(".")
        reach = min(_HEADER_BYTES[name.partition("-")[0]], len(contents[name]))
        for number in range(each):
            mutant = bytearray(contents[name])
            for _ in range(rng.randint(1, 3)):
                value = rng.choice([0, 1, 2, 8, 16, 127, 128, 255, rng.randrange(256)])
                mutant[rng.randrange(2, reach)] = value
            yield f"mutant-{stem}-{number:02}.{suffix}", bytes(mutant)
