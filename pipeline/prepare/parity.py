"""`prepare parity`: compares DALI's pixels, on the CPU and any GPU, with Pillow's.

All execute the same plans on images of the data set itself: both training crops, the centre crop of
validation, and this last also by torchvision's own steps. Differences are in levels of 0..255.

"inside" are the output pixels whose filter stays inside the image; at its edge DALI repeats the
last pixel and Pillow leaves it out.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Config, DataConfig
from pipeline.data.crops import CenterCrop, Plan
from pipeline.data.dali import DecodeSettings, Loader, gpu_count
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.images import ImageSet
from pipeline.data.index.manifest import Manifest
from pipeline.data.index.survey import Split
from pipeline.data.normalisation import IMAGENET
from pipeline.data.stream import Selection, TrainStream, ValStream, train_planner
from pipeline.prepare.index import manifests_of
from pipeline.prepare.options import ParityOptions, TrainCrop
from pipeline.ranks.places import Share
from pipeline.system.console import say

_SIZE, _RESIZE = 224, 256
_BATCH = 16

Decoder = Literal["cpu", "gpu"]
File = bytes | NDArray[np.uint8]
"""The whole bytes of an image file."""


@dataclass(frozen=True)
class Tolerance:
    """The tolerance between two executors, in levels of 0..255."""

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


@dataclass
class Difference:
    """The result of a comparison so far. `view` is the crop, `decoder` where DALI decodes."""

    view: str
    decoder: Decoder
    against: str
    images: int = 0
    inside: float = 0.0
    edge: float = 0.0
    mean: float = 0.0
    worst: Path | None = None
    worst_by: tuple[float, float] = (-1.0, 0.0)
    """What the worst image differs by, inside and in the mean."""

    def add(
        self, paths: Sequence[Path], errors: NDArray[np.float32], masks: NDArray[np.bool_]
    ) -> None:
        """Adds a batch: `errors` (B, H, W, 3), absolute; `masks` (B, H, W), True inside."""
        for path, error, mask in zip(paths, errors, masks, strict=True):
            inside, mean = float(error[mask].max(initial=0.0)), float(error.mean())
            self.inside = max(self.inside, inside)
            self.edge = max(self.edge, float(error[~mask].max(initial=0.0)))
            self.mean = (self.mean * self.images + mean) / (self.images + 1)
            self.images += 1
            if (inside, mean) > self.worst_by:
                self.worst, self.worst_by = path, (inside, mean)

    @property
    def too_large(self) -> bool:
        """Whether it is above the tolerance."""
        allowed = TOLERANCES[self.decoder]
        return self.inside > allowed.inside or self.edge > allowed.edge or self.mean > allowed.mean

    def __str__(self) -> str:
        """The comparison, its differences, the tolerances, and the worst image, in a line."""
        allowed = TOLERANCES[self.decoder]
        return (
            f"{self.view}: DALI {self.decoder} - {self.against}: {self.images} images, "
            f"max {self.inside:.2f} (allowed {allowed.inside:.2f}), "
            f"at edges {self.edge:.2f} ({allowed.edge:.2f}), "
            f"mean {self.mean:.3f} ({allowed.mean:.3f}); worst {self.worst}"
        )


def run(options: ParityOptions) -> None:
    """Prints a line for each comparison; ValueError, so exit code 2, if one is above tolerance.

    Raises `BadImage`, a ValueError too, for an image that cannot be decoded.
    """
    views = _views(manifests_of(options.root, options.cache_dir))
    decoders = decoders_for([stream.image_set for stream in views.values()])
    found = []
    for view, stream in views.items():
        for difference in compare(view, stream, decoders, options.images):
            found.append(difference)
            say(str(difference))
    if "gpu" not in decoders:
        say("DALI on a GPU: not run: DALI sees no GPU")
    judge(found)


def judge(found: Sequence[Difference]) -> None:
    """Raises ValueError if a comparison is above its tolerance."""
    wrong = [str(difference) for difference in found if difference.too_large]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(found)} comparisons are above tolerance: {'; '.join(wrong)}; do "
            "not train with these versions of DALI and Pillow before it is known which of them is "
            "wrong"
        )


def _views(manifests: Mapping[Split, Manifest]) -> dict[str, TrainStream | ValStream]:
    """The comparisons, for the splits that exist."""
    views: dict[str, TrainStream | ValStream] = {}
    for crop in get_args(TrainCrop) if "train" in manifests else ():
        planner = train_planner(DataConfig(image_size=_SIZE, train_crop=crop, color_std=0.1))
        views[f"train {crop}"] = TrainStream(manifests["train"], planner, seed=0)
    if "val" in manifests:
        views["val center_crop"] = ValStream(manifests["val"], CenterCrop(_SIZE, _RESIZE))
    return views


def decoders_for(data: Sequence[ImageSet]) -> dict[Decoder, DecodeSettings]:
    """Those that this machine has, with a GPU's memory hints for the images of `data`."""
    share = Share(len(os.sched_getaffinity(0)), 0)
    found: dict[Decoder, DecodeSettings] = {}
    seen = torch.cuda.is_available() and gpu_count()
    choices: tuple[Decoder, ...] = ("cpu", "gpu") if seen else ("cpu",)
    for choice in choices:
        device = torch.device("cuda", 0) if choice == "gpu" else torch.device("cpu")
        config = Config(data=DataConfig(decode=choice))
        found[choice] = choose_decoding(config.data, device, share, data)
    return found


def compare(
    view: str, stream: TrainStream | ValStream, decoders: dict[Decoder, DecodeSettings], images: int
) -> list[Difference]:
    """The differences of each decoder on about `images` images, rounded up to whole batches; fewer
    images than that are compared more than once in val, and in other crops in train."""
    manifest, batch = stream.image_set, min(_BATCH, images)
    count = -(-images // batch) * batch
    positions = np.arange(count, dtype=np.int64)
    if isinstance(stream, ValStream):
        positions = positions * len(manifest) // count  # spread over all of them
    chunks = positions.reshape(-1, batch)
    found: dict[tuple[Decoder, str], Difference] = {}
    with contextlib.ExitStack() as stack:
        loaders = [
            stack.enter_context(
                contextlib.closing(Loader(stream, chunks, len(chunks), batch, settings))
            )
            for settings in decoders.values()
        ]
        for batches in zip(*loaders, strict=True):
            selection = stream.select(batches[0].positions)
            at = selection.images
            paths = [manifest.path(image) for image in at.tolist()]
            masks = inside(selection.plan, manifest.heights[at], manifest.widths[at])
            references = _references(stream, selection)
            for decoder, drawn in zip(decoders, batches, strict=True):
                pixels = drawn.images.permute(0, 2, 3, 1).float().cpu().numpy()
                levels = pixels * IMAGENET.std + IMAGENET.mean
                for against, wanted in references.items():
                    key = decoder, against
                    difference = found.setdefault(key, Difference(view, *key))
                    difference.add(paths, np.abs(levels - wanted), masks)
    return list(found.values())


def _references(
    stream: TrainStream | ValStream, selection: Selection
) -> dict[str, NDArray[np.float32]]:
    """The batch as each reference makes it, (B, H, W, 3) in levels."""
    files = [stream.image_set.read(image) for image in selection.images.tolist()]
    found = {"Pillow": execute(selection.plan, files)}
    if isinstance(stream, ValStream):
        cropped = [torchvision_center_crop(file, _RESIZE, _SIZE) for file in files]
        found["torchvision"] = np.stack(cropped)
    return found


def execute(plan: Plan, files: Sequence[File]) -> NDArray[np.float32]:
    """Decodes, crops, resizes, mirrors and colours image files.

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
    """Applies torchvision's Resize(resize) and CenterCrop(size) to an image with Pillow.

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
