"""What `benchmark loader` is held against: the data set that a PyTorch training on ImageNet usually
reads with, and bare full decoding by simplejpeg, which binds libjpeg-turbo."""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.benchmark.options import Crop
from pipeline.data.index.manifest import Manifest

MISSING = "simplejpeg is not installed; pip install simplejpeg"
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
_TRIES = 10  # as in Inception's crop and every copy of it


class PhotoDataset(Dataset[tuple[Tensor, int]]):
    """`length` images, over and over those of a manifest in a scattered order, cut at random.

    The manifest is of class folders. `short_side` is what scale_jitter draws from, both included.
    """

    def __init__(
        self,
        manifest: Manifest,
        size: int,
        length: int,
        crop: Crop = "random_resized_crop",
        short_side: tuple[int, int] = (256, 480),
    ) -> None:
        order = np.random.default_rng(0).permutation(len(manifest))
        self._files = [(str(manifest.path(int(i))), int(manifest.labels[i])) for i in order]
        self._size = size
        self._length = length
        self._short_side = short_side
        cuts: dict[Crop, Callable[[Image.Image], Image.Image]] = {
            "random_resized_crop": self._random_resized_crop,
            "scale_jitter": self._scale_jitter,
        }
        self._cut = cuts[crop]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (3, size, size) float32, normalised; label."""
        path, label = self._files[index % len(self._files)]
        with open(path, "rb") as file:
            image = self._cut(Image.open(file).convert("RGB"))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255).sub_(_MEAN).div_(_STD), label

    def _random_resized_crop(self, image: Image.Image) -> Image.Image:
        box = _random_box(*image.size)
        # Cropping and resizing in one call; two calls are no faster.
        return image.resize((self._size, self._size), Image.Resampling.BILINEAR, box)

    def _scale_jitter(self, image: Image.Image) -> Image.Image:
        """The paper's crop as it is usually written: the whole image is resized, then cut."""
        width, height = image.size
        side, shorter = random.randint(*self._short_side), min(image.size)
        resized = image.resize(
            (side * width // shorter, side * height // shorter), Image.Resampling.BILINEAR
        )
        left = random.randint(0, resized.width - self._size)
        top = random.randint(0, resized.height - self._size)
        return resized.crop((left, top, left + self._size, top + self._size))


def use_one_thread(_worker: int) -> None:
    """Workers are processes side by side: more threads in each would only crowd the cores."""
    torch.set_num_threads(1)


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Inception's crop (left, top, right, bottom): 8 to 100% of the area, 3:4 to 4:3."""
    for _ in range(_TRIES):
        area = random.uniform(0.08, 1.0) * width * height
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def can_run() -> bool:
    """Whether simplejpeg is installed. Nothing else is measured in its place."""
    return importlib.util.find_spec("simplejpeg") is not None


class BareDecode:
    """Decodes whole images from memory to RGB, one after the other on each of some threads.

    What simplejpeg refuses, such as ImageNet's few CMYK files and its PNG, is left out.
    """

    def __init__(self, manifest: Manifest, threads: int, images: int) -> None:
        """Reads all images of `manifest`. Raises `ValueError` if it can decode none of them."""
        # By name: mypy must pass with and without the package.
        self._decode: Any = importlib.import_module("simplejpeg").decode_jpeg
        contents = (manifest.read(image).tobytes() for image in range(len(manifest)))
        self._contents = [content for content in contents if self._decodes(content)]
        if not self._contents:
            raise ValueError(f"simplejpeg decodes none of the images of {manifest.directory}")
        self._threads = threads
        self._each = -(-images // threads)

    def measure(self) -> float:
        """Images per second of all threads together; decoding is done without the GIL."""
        begins = range(0, self._threads * self._each, self._each)
        with ThreadPoolExecutor(self._threads) as pool:
            started = time.perf_counter()
            list(pool.map(self._decode_from, begins))
            seconds = time.perf_counter() - started
        return self._threads * self._each / seconds

    def _decode_from(self, begin: int) -> None:
        contents: Sequence[bytes] = self._contents
        for number in range(begin, begin + self._each):
            self._decode(contents[number % len(contents)], colorspace="RGB")

    def _decodes(self, content: bytes) -> bool:
        try:
            self._decode(content, colorspace="RGB")
        except ValueError:
            return False
        return True
