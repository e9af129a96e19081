"""Exact means, deviations and principal components of a training set, and their file.

The file belongs to one state of the data and one training crop; it lies next to the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.data.cifar import CifarImages
from pipeline.data.images import ImageSet
from pipeline.data.index.arrow_file import cache_places
from pipeline.data.index.labels import shown
from pipeline.data.normalisation import IMAGENET, Normalisation, color_axes
from pipeline.system.files import content_of, replacing
from pipeline.system.words import shell_word

log = logging.getLogger("trainyard")

_VERSION = 1  # of the file; any other is computed again
_BLOCK_PIXELS = 2**16  # that are float64 at once: what a core's cache holds
# Figures that a difference in rounding between two machines cannot reach.
_AXES_DECIMALS = 6


class PixelSums:
    """Sums over images (H, W, 3) of whole numbers in 0..255, added in any order.

    Sums of products stay below 2**53, where float64 is exact, up to 2.7 million images of 224 x
    224; so the same images give the same bits whatever the batches and threads.
    """

    def __init__(self) -> None:
        self.images = 0
        self._image: NDArray[np.float64] | None = None
        self._products = np.zeros((3, 3))

    def add(self, pixels: NDArray[Any]) -> None:
        """Add B images, (B, H, W, 3)."""
        images = max(1, _BLOCK_PIXELS // (pixels.shape[1] * pixels.shape[2]))
        for start in range(0, len(pixels), images):
            block = pixels[start : start + images]
            exact = np.ascontiguousarray(block, dtype=np.float64)
            total = exact.sum(axis=0)
            self._image = total if self._image is None else self._image + total
            flat = exact.reshape(-1, 3)
            self._products += flat.T @ flat
            self.images += len(block)

    def normalisation(self) -> Normalisation:
        """The mean image, and the other statistics over all pixels of all images. Needs an
        image."""
        assert self._image is not None, "nothing was added"
        image = self._image / self.images
        pixels = self.images * image.shape[0] * image.shape[1]
        mean = self._image.sum(axis=(0, 1)) / pixels
        covariance = self._products / pixels - np.outer(mean, mean)
        std = np.sqrt(np.maximum(np.diag(covariance), 1.0))  # one colour alone: divide by 1
        return Normalisation(
            mean.astype(np.float32),
            std.astype(np.float32),
            image.astype(np.float32),
            principal_axes(covariance),
        )


def principal_axes(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colour axes (3, 3) by rows, largest first, of a covariance (3, 3) of pixels in 0..255.

    An axis could equally point the other way; here its largest component is positive.
    """
    values, vectors = np.linalg.eigh(covariance / 255.0**2)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    largest = vectors[np.argmax(np.abs(vectors), axis=0), range(3)]
    axes = np.round(color_axes(values, vectors * np.sign(largest)), _AXES_DECIMALS)
    return axes + 0.0  # no -0.0, whose sign would be that of rounding, and in the digest


def of_pixels(pixels: NDArray[np.uint8]) -> Normalisation:
    """The statistics of images in memory, (N, H, W, 3)."""
    sums = PixelSums()
    sums.add(pixels)
    return sums.normalisation()


def crop_settings(config: DataConfig) -> dict[str, Any]:
    """The settings of the training crop that the statistics depend on."""
    named: dict[str, Any] = {"train_crop": config.train_crop, "image_size": config.train_size}
    if config.train_crop == "scale_jitter":
        return named | {"short_side": list(config.short_side)}
    return named | {"area": list(config.area)}


def statistics_places(config: DataConfig) -> list[Path]:
    """The paths where the file for this data set and crop may be, best first."""
    crop = json.dumps(crop_settings(config)).encode()
    key = hashlib.sha256(crop).hexdigest()[:8]
    cache = Path(config.cache_dir) if config.cache_dir else None
    places = cache_places(Path(config.root), "train", cache)
    return [place.with_name(f"{place.stem}-mean-{key}.npz") for place in places]


def prepare_command(config: DataConfig) -> str:
    """The command that computes the statistics that `config` asks for."""
    parts = ["python", "-m", "pipeline.prepare", "mean", "--root", config.root]
    for name, value in crop_settings(config).items():
        given = json.dumps(value).replace(" ", "") if isinstance(value, list) else str(value)
        parts += ["--" + name.replace("_", "-"), given]
    if config.cache_dir:
        parts += ["--cache-dir", config.cache_dir]
    return " ".join(map(shell_word, parts))


def save(place: Path, normalisation: Normalisation, images: int, facts: dict[str, Any]) -> None:
    """Writes the file atomically; OSError if that fails.

    `images` is the number of training images used, `facts` what the file belongs to.
    """
    assert normalisation.image is not None, "the statistics of a data set have a mean image"
    header = json.dumps({"version": _VERSION, "images": images, **facts})
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place) as new:
        np.savez(new, header=np.array(header), **normalisation.arrays)


def facts_of(config: DataConfig, digest: str) -> dict[str, Any]:
    """The facts of a statistics file that belongs to the data set `digest` and this crop."""
    return {"data_hash": digest, "crop": crop_settings(config)}


def load(place: Path, facts: dict[str, Any]) -> tuple[Normalisation, int] | str:
    """The statistics at `place` and the number of images used; or why they cannot be used, in
    words."""
    try:
        stored = content_of(place, str(place))
    except FileNotFoundError:
        return f"there is no {place}"
    except OSError as error:
        return f"{place} cannot be read ({error.strerror or error})"
    try:
        with np.load(io.BytesIO(stored), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}  # checks each one's checksum
        header = json.loads(str(arrays["header"]))
        if header.get("version") != _VERSION or any(header.get(n) != v for n, v in facts.items()):
            return f"{place} was computed for other data"
        found = Normalisation(*(arrays[n] for n in ("mean", "std", "image", "color_axes")))
        return found, int(header["images"])
    except Exception as error:  # zipfile and numpy raise nearly anything on damaged headers
        return f"{place} is damaged ({shown(str(error))})"


def normalisation_of(config: DataConfig, train_set: ImageSet) -> Normalisation:
    """The normalisation that `data.mean` asks for: published, or of `train_set`.

    Raises `ValueError` with the command to run where the statistics have not been computed.
    """
    if config.mean == "imagenet":
        return IMAGENET
    if isinstance(train_set, CifarImages):
        found = of_pixels(train_set.pixels)  # less than a second
    else:
        found = _stored(config, train_set.digest, len(train_set))
    return found if config.mean == "pixel" else found.for_shape(None)


def _stored(config: DataConfig, digest: str, images: int) -> Normalisation:
    facts, reasons = facts_of(config, digest), []
    places = statistics_places(config)
    if config.cache_dir:  # a staged copy may have brought them along
        places += statistics_places(dataclasses.replace(config, cache_dir=None))[:1]
    for place in places:
        found = load(place, facts)
        if isinstance(found, str):
            reasons.append(found)
            continue
        normalisation, seen = found
        if seen < images:
            log.warning(
                "warning: the means in %s are of %d of the %d training images; prepare mean "
                "without --images takes all of them", place, seen, images,
            )  # fmt: skip
        return normalisation
    raise ValueError(
        f"data.mean={config.mean} needs the statistics of the training images in this crop "
        f"({', '.join(reasons)}); run: {prepare_command(config)}"
    )
