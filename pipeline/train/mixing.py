"""Mixup and cutmix: each image of a micro-batch mixed with the one half of it before, those of the
first half with those of the second.

How a micro-batch is mixed is a function of (seed, its first position): which of the two, the share
of an image itself, and cutmix's box. They are numbers of the host, so that nothing waits for a GPU.
With whom an image is mixed depends on the micro-batch, as what batch normalisation sees does.

Mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. Cutmix: Yun et al., "CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019. Boxes are
those of torchvision's reference training, whose partner is the image just before: with
`data.repeats` that is most often the same image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.data.batches import Partition
from pipeline.data.dali import Batch
from pipeline.data.order import Stream, random_words
from pipeline.system.console import counted

_WORDS = 8
"""Random words of a micro-batch, of which the first five are used: the kind, two for the share, two
for the box."""
_GRAIN = 2.0**-24
"""Shares are multiples of this: exact in float32, and the same where another C library's `pow` or
`cos` differs in its last bit."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels; x2 and y2 lie outside."""


@dataclass(frozen=True)
class Mix:
    """How a micro-batch is mixed. `share`, of [0, 1], is what an image and its own label keep; the
    partner has the rest: inside `box`, or without one in every pixel."""

    share: float
    box: Box | None = None


@dataclass(frozen=True)
class Targets:
    """The labels (B,) int64 of a micro-batch, each with the `share` of [0, 1], and of its
    partners' the rest; None: images are not mixed."""

    labels: Tensor
    partners: Tensor | None = None
    share: float = 1.0

    @property
    def larger(self) -> Tensor:
        """The label (B,) of the larger share, an image's own if both are equal. Hits of training
        are counted on it."""
        return self.labels if self.partners is None or self.share >= 0.5 else self.partners


class Mixing:
    """Mixes the micro-batches of a run as `data.mixup` and `data.cutmix` say.

    Raises `ValueError` if there is something to mix and the micro-batches of `partition` are of one
    image.
    """

    def __init__(self, data: DataConfig, seed: int, partition: Partition) -> None:
        self._mixup, self._cutmix, self._seed = data.mixup, data.cutmix, seed
        if self.is_on and partition.micro_batch_size == 1:
            asked = [f"data.{n}={a:g}" for n in ("mixup", "cutmix") if (a := getattr(data, n)) > 0]
            raise ValueError(
                f"{' and '.join(asked)}: each image is mixed with another of its micro-batch, and "
                f"data.global_batch_size={data.global_batch_size} on "
                f"{counted(partition.world_size, 'rank')} with data.local_batch_size="
                f"{data.local_batch_size} makes micro-batches of one; raise data.local_batch_size "
                "or take fewer ranks, or set data.mixup=0 and data.cutmix=0"
            )

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self._mixup > 0 or self._cutmix > 0

    def __call__(self, batch: Batch) -> tuple[Tensor, Targets]:
        """The images that the network sees and their targets; those of `batch` if nothing is
        mixed. Does not wait for the device."""
        if not self.is_on:
            return batch.images, Targets(batch.labels)
        mix = self.draw(int(batch.positions[0]), *batch.images.shape[-2:])
        if mix.share == 1.0:
            return batch.images, Targets(batch.labels)
        targets = Targets(batch.labels, batch.labels.roll(apart(batch.labels)), mix.share)
        return mixed(batch.images, mix), targets

    def shown(self, batch: Batch) -> Batch:
        """The batch with its images as the network sees them."""
        return dataclasses.replace(batch, images=self(batch)[0]) if self.is_on else batch

    def draw(self, position: int, height: int, width: int) -> Mix:
        """How the micro-batch is mixed that begins at `position`, of images of `height` x `width`
        pixels. Of two kinds each has the probability 1/2."""
        words = random_words(self._seed, Stream.MIX, position, 1, _WORDS)[0].tolist()
        both = self._mixup > 0 and self._cutmix > 0
        cuts = words[0] >> 63 == 1 if both else self._cutmix > 0
        if not cuts:
            return Mix(symmetric_beta(self._mixup, words[1:3]))
        share = symmetric_beta(self._cutmix, words[1:3])
        return cut(share, (_below(width, words[3]), _below(height, words[4])), height, width)


def symmetric_beta(alpha: float, words: Sequence[int]) -> float:
    """A number of [0, 1] from Beta(alpha, alpha), made of two raw words; a multiple of 2**-24.

    T = sqrt(n (U**(-2/n) - 1)) cos(2 pi V) has Student's distribution of n degrees of freedom for
    any n > 0 (Bailey, "Polar generation of random variates with the t-distribution", 1994), and
    (1 + T / sqrt(n + T**2)) / 2 that of Beta(n/2, n/2). Nothing is rejected, so that the number of
    words is fixed.
    """
    u = ((words[0] >> 11) + 1) * 2.0**-53  # (0, 1]
    cosine = math.cos(2 * math.pi * (words[1] >> 11) * 2.0**-53)
    power = u ** (1 / alpha)
    far = (1 - power) * cosine**2  # T**2 / n times `power`, which may be 0
    found = (1 + math.copysign(math.sqrt(far / (power + far)), cosine)) / 2
    return round(found / _GRAIN) * _GRAIN


def cut(share: float, centre: tuple[int, int], height: int, width: int) -> Mix:
    """Cutmix with a box around `centre` (x, y), of 1 - `share` of the area of `height` x `width`
    pixels, less what of it lies outside; the `Mix` has the share that remains."""
    half = math.sqrt(1 - share) / 2
    across, up = int(half * width), int(half * height)
    x1, x2 = max(centre[0] - across, 0), min(centre[0] + across, width)
    y1, y2 = max(centre[1] - up, 0), min(centre[1] + up, height)
    return Mix(1 - (x2 - x1) * (y2 - y1) / (width * height), (x1, y1, x2, y2))


def _below(limit: int, word: int) -> int:
    """A whole number of [0, limit) from a raw word of 64 bits."""
    return word * limit >> 64


def apart(images: Tensor) -> int:
    """How many places before an image of a micro-batch (B, ...) its partner stands."""
    return len(images) // 2


def mixed(images: Tensor, mix: Mix) -> Tensor:
    """Images (B, 3, H, W) mixed each with the one `apart` places before it, and so the first with
    the last; dtype and layout stay, and `images` do too."""
    # No `roll`: on a GPU it makes a copy that is not channels-last.
    by = apart(images)
    if mix.box is None:
        found = torch.empty_like(images)
        torch.lerp(images[:-by], images[by:], mix.share, out=found[by:])
        torch.lerp(images[-by:], images[:by], mix.share, out=found[:by])
        return found
    x1, y1, x2, y2 = mix.box
    found = images.clone()
    found[by:, :, y1:y2, x1:x2] = images[:-by, :, y1:y2, x1:x2]
    found[:by, :, y1:y2, x1:x2] = images[-by:, :, y1:y2, x1:x2]
    return found
