"""`prepare parity`: DALI's pixels, on the CPU and on the GPU where there is one, against Pillow's.

All execute the same plans on images of the data set itself: both training crops, the centre crop of
validation, and this last also by torchvision's own steps. Differences are in levels of 0..255.

"inside" are the output pixels whose filter stays inside the image; at its edge DALI repeats the
last pixel and Pillow leaves it out.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Config, DataConfig, require
from pipeline.data.crops import CenterCrop, Plan
from pipeline.data.dali import DecodeSettings, Loader, gpu_count
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.images import ImageSet
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET
from pipeline.data.stream import TrainStream, ValStream, train_planner
from pipeline.prepare.options import ParityOptions
from pipeline.ranks.places import Share

_SIZE, _RESIZE = 224, 256
_BATCH = 16
_PILLOW, _TORCHVISION = "Pillow", "torchvision"

Decoder = Literal["cpu", "gpu"]
File = bytes | NDArray[np.uint8]
"""The whole bytes of an image file."""


@dataclass(frozen=True)
class Tolerance:
    """The most that two executors may differ by, in levels of 0..255."""

    inside: float
    edge: float
    mean: float


_ROUNDING = 0.01  # normalised float32 and back
TOLERANCES: dict[Decoder, Tolerance] = {
    # Two roundings of a linear filter, and a CMYK image's conversion; measured: 1 and mean 0.2.
    "cpu": Tolerance(2 + _ROUNDING, 6 + _ROUNDING, 0.5),
    # nvJPEG has a transform and a chroma upsampling of its own, which single pixels at the edges of
    # colours show most. Not measured yet.
    "gpu": Tolerance(64, 64, 3),
}


class Difference:
    """What one comparison has found so far. `view` is the crop, `decoder` where DALI decodes."""

    def __init__(self, view: str, decoder: Decoder, against: str) -> None:
        self.view, self.decoder, self.against = view, decoder, against
        self.images = 0
        self.inside = self.edge = self.mean = 0.0
        self.worst: Path | None = None
        self._worst_mean = 0.0

    def add(self, path: Path, error: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Takes an image in: `error` (H, W, 3), absolute; `mask` (H, W), True inside."""
        own_mean = float(error.mean())
        self.mean = (self.mean * self.images + own_mean) / (self.images + 1)
        self.images += 1
        most = float(error[mask].max(initial=0.0))
        if self.worst is None or (most, own_mean) > (self.inside, self._worst_mean):
            self.worst, self._worst_mean = path, own_mean
        self.inside = max(self.inside, most)
        self.edge = max(self.edge, float(error[~mask].max(initial=0.0)))

    @property
    def name(self) -> str:
        """Crop and both executors."""
        return f"{self.view}: DALI {self.decoder} - {self.against}"

    @property
    def too_large(self) -> bool:
        """Whether it is above the tolerance."""
        allowed = TOLERANCES[self.decoder]
        return self.inside > allowed.inside or self.edge > allowed.edge or self.mean > allowed.mean

    def line(self) -> str:
        """What was found, what is allowed, and the worst image."""
        allowed = TOLERANCES[self.decoder]
        return (
            f"{self.name}: {self.images} images, max {self.inside:.2f} (allowed "
            f"{allowed.inside:.2f}), at edges {self.edge:.2f} ({allowed.edge:.2f}), mean "
            f"{self.mean:.3f} ({allowed.mean:.3f}); worst {self.worst}"
        )


def run(options: ParityOptions) -> None:
    """Prints a line for each comparison; ValueError, so exit code 2, if one is above tolerance.

    Raises `BadImage`, a ValueError too, for an image that cannot be decoded.
    """
    views = _views(options)
    require(bool(views), f"--root {options.root} has neither a folder train nor val")
    decoders = decoders_for([stream.manifest for stream in views.values()])
    found = []
    for view, stream in views.items():
        for difference in compare(view, stream, decoders, options.images):
            found.append(difference)
            print(difference.line(), flush=True)
    if "gpu" not in decoders:
        print("DALI on a GPU: not run: DALI sees no GPU")
    judge(found)


def judge(found: Sequence[Difference]) -> None:
    """Raises ValueError if a comparison is above its tolerance."""
    wrong = [difference for difference in found if difference.too_large]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(found)} comparisons are above tolerance: "
            f"{'; '.join(difference.line() for difference in wrong)}; do not train with these "
            "versions of DALI and Pillow before it is known which of them is wrong"
        )


def _views(options: ParityOptions) -> dict[str, TrainStream | ValStream]:
    """What is compared, of the splits that are there."""
    views: dict[str, TrainStream | ValStream] = {}
    root, cache = options.root, options.cache_dir
    if (root / "train").is_dir():
        manifest = open_manifest(root, "train", cache)
        for config in (
            DataConfig(image_size=_SIZE, train_crop="random_resized_crop", color_std=0.1),
            DataConfig(image_size=_SIZE, train_crop="scale_jitter", color_std=0.1),
        ):
            planner = train_planner(config)
            views[f"train {config.train_crop}"] = TrainStream(manifest, planner, seed=0)
    if (root / "val").is_dir():
        manifest = open_manifest(root, "val", cache)
        views["val center_crop"] = ValStream(manifest, CenterCrop(_SIZE, _RESIZE))
    return views


def decoders_for(data: Sequence[ImageSet]) -> dict[Decoder, DecodeSettings]:
    """Those that this machine has, with a GPU's memory hints for the images of `data`."""
    share = Share(len(os.sched_getaffinity(0)), 0)
    found: dict[Decoder, DecodeSettings] = {}
    choices: list[Decoder] = (
        ["cpu", "gpu"] if torch.cuda.is_available() and gpu_count() else ["cpu"]
    )
    for choice in choices:
        device = torch.device("cuda", 0) if choice == "gpu" else torch.device("cpu")
        config = Config(data=DataConfig(decode=choice))
        found[choice] = choose_decoding(config, device, share, data)
    return found


def compare(
    view: str, stream: TrainStream | ValStream, decoders: dict[Decoder, DecodeSettings], images: int
) -> list[Difference]:
    """The differences of each decoder on about `images` images, rounded up to whole batches; fewer
    images than that are compared more than once in val, and in other crops in train."""
    batch = min(_BATCH, images)
    count = -(-images // batch) * batch
    positions = np.arange(count, dtype=np.int64)
    against = [_PILLOW]
    if isinstance(stream, ValStream):
        positions = positions * len(stream.manifest) // count  # spread over all of them
        against.append(_TORCHVISION)
    chunks = positions.reshape(-1, batch)
    found = {(d, name): Difference(view, d, name) for d in decoders for name in against}
    with contextlib.ExitStack() as stack:
        loaders = [
            stack.enter_context(
                contextlib.closing(Loader(stream, chunks, len(chunks), batch, settings))
            )
            for settings in decoders.values()
        ]
        for batches in zip(*loaders, strict=True):
            references = _Reference(stream, batches[0].positions, against)
            for decoder, drawn in zip(decoders, batches, strict=True):
                levels = (
                    drawn.images.permute(0, 2, 3, 1).float().cpu().numpy() * IMAGENET.std
                    + IMAGENET.mean
                )
                for name in against:
                    references.add(levels, name, found[decoder, name])
    return list(found.values())


class _Reference:
    """A batch as Pillow makes it."""

    def __init__(
        self, stream: TrainStream | ValStream, positions: np.ndarray, against: Sequence[str]
    ) -> None:
        manifest, selection = stream.manifest, stream.select(positions)
        files = [manifest.read(int(image)) for image in selection.images]
        self._pixels = {_PILLOW: execute(selection.plan, files)}
        if _TORCHVISION in against:
            cropped = [torchvision_center_crop(file, _RESIZE, _SIZE) for file in files]
            self._pixels[_TORCHVISION] = np.stack(cropped)
        heights, widths = manifest.heights[selection.images], manifest.widths[selection.images]
        self._inside = inside(selection.plan, heights, widths)
        self._paths = [manifest.path(int(image)) for image in selection.images]

    def add(self, levels: NDArray[np.float32], against: str, difference: Difference) -> None:
        """Enters DALI's pixels (B, H, W, 3), in levels, against this batch's."""
        error = np.abs(levels - self._pixels[against])
        for path, one, mask in zip(self._paths, error, self._inside, strict=True):
            difference.add(path, one, mask)


def execute(plan: Plan, files: Sequence[File]) -> NDArray[np.float32]:
    """Decode, crop, resize, mirror and colour image files.

    Returns (B, *plan.shape, 3) float32 RGB in 0..255 units, neither clipped after the colour offset
    nor normalised. The resize is Pillow's bilinear, which filters when it shrinks.
    """
    return np.stack([_execute_one(plan, index, file) for index, file in enumerate(files)])


def _execute_one(plan: Plan, index: int, file: File) -> NDArray[np.float32]:
    y, x, height, width = plan.boxes[index].astype(float)
    cut = _rgb(file).resize(
        plan.shape[::-1], Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)
    )
    pixels = np.asarray(cut, dtype=np.float32)
    if plan.flips[index]:
        pixels = pixels[:, ::-1]
    return np.asarray(pixels + plan.offsets[index], dtype=np.float32)


def torchvision_center_crop(file: File, resize: int, size: int) -> NDArray[np.float32]:
    """What torchvision's Resize(resize) and CenterCrop(size) make of an image on Pillow.

    Returns (size, size, 3) float32 RGB in 0..255 units. The whole image is resized, its longer side
    to int(resize * long / short), and cut at round((side - size) / 2), as in torchvision's
    transforms/functional.py. The sides are at least `resize`, so that no padding is needed.
    """
    image = _rgb(file)
    shorter = min(image.size)
    width, height = (int(resize * side / shorter) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32)


def inside(plan: Plan, heights: NDArray[np.int32], widths: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Output pixels whose filter stays inside the image, (B, *plan.shape); sizes (B,) in pixels.

    Beyond the image's edge DALI repeats the last pixel and Pillow leaves it out, which makes up to
    4 levels of difference there.
    """
    mask = np.ones((len(heights), *plan.shape), dtype=bool)
    for index, (y, x, high, wide) in enumerate(plan.boxes.astype(float)):
        reach_y, reach_x = max(1.0, high / plan.shape[0]), max(1.0, wide / plan.shape[1])
        left, right = (-1, 0) if plan.flips[index] else (0, -1)
        mask[index, 0] &= y >= reach_y
        mask[index, -1] &= y + high + reach_y <= heights[index]
        mask[index, :, left] &= x >= reach_x
        mask[index, :, right] &= x + wide + reach_x <= widths[index]
    return mask


def _rgb(file: File) -> Image.Image:
    with Image.open(io.BytesIO(bytes(file))) as image:
        return image.convert("RGB")
