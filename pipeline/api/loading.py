"""`pipeline.load`: the network of a checkpoint, its classes and how it sees an image."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.api.device import Device, device_of
from pipeline.api.settings import AnyPath, checkpoint_in
from pipeline.config import require
from pipeline.data.images import BadImage, GivenImages
from pipeline.predict import for_files
from pipeline.ranks.places import Share
from pipeline.train import checkpoint as checkpoints

if TYPE_CHECKING:
    from pipeline.api.evaluating import Kind
    from pipeline.data.crops import Planner
    from pipeline.data.normalisation import Normalisation


class Transform:
    """What validation shows the network of an image.

    Called with a file's path or an image of Pillow's, returns (3, H, W) float32 on the CPU,
    normalised. The pixels are those of the loader where JPEGs are decoded on the CPU: resized by
    the same integers, decoded by Pillow instead of DALI (tests compare them). Safe in several
    threads and processes.
    """

    def __init__(self, planner: Planner, normalisation: Normalisation) -> None:
        self.planner, self.normalisation = planner, normalisation

    def __call__(self, image: AnyPath | Image.Image) -> Tensor:
        """Raises `BadImage` for a file that is none."""
        if not isinstance(image, Image.Image):
            image = open_image(Path(image))
        pixels = self.view(np.asarray(image.convert("RGB"))).astype(np.float32)
        normal = self.normalisation.for_shape(pixels.shape[:2])
        scale = np.float32(1) / normal.std
        normalised = (pixels - normal.subtracted.astype(np.float32)) * scale
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))

    def view(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of `pixels` (h, w, 3) that validation shows, resized: (H, W, 3)."""
        high_px, wide_px = (np.array([side], dtype=np.int32) for side in pixels.shape[:2])
        plan = self.planner.plan(high_px, wide_px)
        top, left, high, wide = plan.boxes[0].tolist()
        height, width = plan.shape
        down = _weights(top, high, pixels.shape[0], height)
        across = _weights(left, wide, pixels.shape[1], width)
        across_all = _sums(pixels.reshape(len(pixels), -1).astype(np.int32), down, 7)
        columns = across_all.reshape(height, -1, 3).transpose(1, 0, 2).reshape(pixels.shape[1], -1)
        found = _sums(np.ascontiguousarray(columns), across, 21)
        return found.reshape(width, height, 3).transpose(1, 0, 2).astype(np.uint8)


_Taps = tuple[NDArray[np.int64], NDArray[np.int32]]
"""What each of `count` output pixels is made of: its first source pixel (count,), and the weights
(count, most) of that and the next, 0 beyond its last."""


def _sums(source: NDArray[np.int32], taps: _Taps, shift: int) -> NDArray[np.int32]:
    """Weighted sums (count, m) of the rows of `source` (n, m), rounded by `shift` bits, in the
    integers of `resampling_kernel`."""
    firsts, weights = taps
    total = np.full((len(firsts), source.shape[1]), 1 << (shift - 1), dtype=np.int32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(firsts + tap, len(source) - 1)
        total += weights[:, tap, None] * source[rows]
    return total >> shift


@functools.lru_cache(maxsize=512)
def _weights(start: float, extent: float, side: int, count: int) -> _Taps:
    """The loader's weights for `count` output pixels of the box from `start` on, of `extent`: it
    sees a part of the `side` source pixels, with a margin."""
    from pipeline.data.resampling_kernel import weights  # brings numba

    margin = np.ceil(max(1.0, extent / count))
    low = int(max(np.floor(start) - margin, 0))
    high = int(min(np.ceil(start + extent) + margin, side))
    begin = np.float32(start - low)
    firsts, _, each = weights.py_func(begin, begin + np.float32(extent), high - low, count, False)
    return firsts + low, each.astype(np.int32)


def open_image(path: Path) -> Image.Image:
    """The image in a file, decoded. Raises `BadImage`, as the loader does."""
    return decoded(GivenImages([path]).read(0).tobytes(), path)


def decoded(encoded: bytes, path: Path) -> Image.Image:
    """The image in the bytes of a file, RGB. Raises `BadImage`."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = f"it cannot be decoded ({error}); replace it or remove it"
        raise BadImage(path, reason) from error


class Loaded(NamedTuple):
    """A checkpoint's network, ready to be asked: `model(transform(image)[None])` are the scores
    (1, classes) of an image."""

    model: nn.Module
    """In eval mode; maps (B, 3, H, W) float32 to logits (B, classes) float32."""
    classes: list[str]
    """Names by label."""
    transform: Transform


def load(checkpoint: AnyPath, *, weights: Kind = "auto", device: Device = "auto") -> Loaded:
    """The network in a checkpoint, which also unpacks: `model, classes, transform = load(...)`.

    Args:
        checkpoint: a .pt file, or a run's folder, which stands for its best.pt.
        weights: raw, as trained; ema, their moving average; auto: the average where there is one.
        device: where the model is to be; auto: the first GPU that can be used, or else the CPU; or
            a device of PyTorch's, of which one without a number is the current GPU, or its name.

    Nothing in the file is run. Raises `ConfigError` for a wrong argument, `ValueError` for what is
    no whole checkpoint of this program, `UnreadableCheckpoint` if it cannot be read now.
    """
    kinds = ("auto", "raw", "ema")
    require(weights in kinds, f"weights={weights} must be one of {', '.join(kinds)}")
    current = torch.cuda.current_device() if _cuda_is_in_use() else None
    own = current if isinstance(device, torch.device) and current is not None else 0
    place = device_of(device, Share(cores=1, gpu=own))
    if current is not None:
        torch.cuda.set_device(current)  # which the caller has chosen
    trained = checkpoints.read(checkpoint_in(checkpoint), None if weights == "auto" else weights)
    config = for_files(trained.config)
    from pipeline.data.stream import val_planner

    return Loaded(
        trained.build(place), trained.classes,
        Transform(val_planner(config.data), trained.normalisation),
    )  # fmt: skip


def _cuda_is_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def file_or_pixels(content: NDArray[np.uint8], place: Path) -> Image.Image:
    """The image that an image set gives, encoded (bytes,) or as pixels (H, W, 3)."""
    if content.ndim == 3:
        return Image.fromarray(content)
    return decoded(content.tobytes(), Path(os.fspath(place)))
