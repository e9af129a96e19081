"""Files like ImageNet's photographs, for measuring how fast they are read and decoded."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

# (width, height, share). Most of ImageNet has its longer side at 500 pixels.
_SIZES = ((500, 375, 0.62), (375, 500, 0.16), (500, 333, 0.16), (500, 400, 0.06))
_QUALITY = 90
# Photographs have amplitude spectra near 1/f (Field, "Relations between the statistics of natural
# images and the response properties of cortical cells", 1987). With the exponent and the contrast
# here a file has 82 KB on average (standard deviation 15 KB).
_EXPONENT = 1.2
_CONTRAST = 38.5


def make_photos(
    root: Path,
    count: int,
    seed: int = 0,
    classes: int = 1,
    split: Literal["train", "val"] = "train",
    scale: float = 1.0,
) -> None:
    """Makes `<root>/<split>/photo_000/*.JPEG` and so on, round the classes: `count` files of about
    500 x 375 pixels times `scale`, at 1 of 82 KB. Raises `FileExistsError` if they are there."""
    folders = [root / split / f"photo_{label:03d}" for label in range(classes)]
    for folder in folders:
        folder.mkdir(parents=True)

    def make(index: int) -> None:
        content = photo(np.random.default_rng([seed, index]), scale)
        (folders[index % classes] / f"photo_{index:06d}.JPEG").write_bytes(content)

    with ThreadPoolExecutor(2) as pool:  # FFTs and JPEG encoding release the GIL
        list(pool.map(make, range(count)))


def photo(rng: np.random.Generator, scale: float = 1.0) -> bytes:
    """One file: grey 1/f noise with fainter colour noise over it, 4:2:0, as cameras write it."""
    sides = _SIZES[rng.choice(len(_SIZES), p=[share for *_, share in _SIZES])][:2]
    width, height = (max(1, round(side * scale)) for side in sides)
    contrast = _CONTRAST * rng.lognormal(0.0, 0.4)
    grey = _noise(rng, height, width)
    colour = [_noise(rng, height, width) for _ in range(3)]
    pixels = np.stack([128 + contrast * (grey + 0.3 * tint) for tint in colour], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32 of mean 0 and variance 1 with an amplitude spectrum of 1/f."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    noise = np.fft.irfft2(white / frequency**_EXPONENT, s=(height, width))
    return np.asarray(noise / noise.std(), dtype=np.float32)
