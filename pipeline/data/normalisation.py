"""Normalisation of pixels: means, deviations and the axes of the colour offset.

Either ImageNet's published figures, or those that `prepare mean` computed from a training set.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Normalisation:
    """(pixels - mean) / std, all in 0..255 units and RGB; float32 unless said otherwise.

    mean, std: (3,).
    image: (H, W, 3), subtracted in place of `mean` from views of that very shape, before they are
    mirrored; None: there is no mean image.
    color_axes: (3, 3) float64; row k is what coefficient k of the colour offset adds to (R, G, B).
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    image: NDArray[np.float32] | None
    color_axes: NDArray[np.float64]

    @property
    def digest(self) -> str:
        """16 hex digits over all values, the same on every machine."""
        summary = hashlib.sha256()
        for name, array in self.arrays.items():
            summary.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            summary.update(np.ascontiguousarray(array).tobytes())
        return summary.hexdigest()[:16]

    def for_shape(self, shape: tuple[int, int] | None) -> Normalisation:
        """The normalisation for views of height and width `shape` (None: they vary): without a mean
        image of another shape, so that the channel means take its place."""
        if self.image is None or self.image.shape[:2] == shape:
            return self
        return dataclasses.replace(self, image=None)

    @property
    def subtracted(self) -> NDArray[np.float32]:
        """The mean image (H, W, 3), or without one the channel means (1, 1, 3)."""
        return self.mean[None, None, :] if self.image is None else self.image

    def state(self) -> dict[str, Tensor | None]:
        """The values as tensors on the CPU, for a checkpoint; `image` may be None."""
        import torch

        tensors: dict[str, Tensor | None] = {"image": None}
        return tensors | {n: torch.from_numpy(a.copy()) for n, a in self.arrays.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Normalisation:
        """The inverse of `state`."""
        image = state["image"]
        return cls(
            state["mean"].numpy(),
            state["std"].numpy(),
            None if image is None else image.numpy(),
            state["color_axes"].numpy(),
        )

    @property
    def arrays(self) -> dict[str, Any]:
        """The values by name, in the order of the digest; without `image` where there is none."""
        names = ("mean", "std", "color_axes", *(["image"] if self.image is not None else []))
        return {name: getattr(self, name) for name in names}


def color_axes(
    eigenvalues: NDArray[np.float64], eigenvectors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Axes (3, 3) of the colour offset, by rows, in 0..255 units.

    `eigenvalues` (3,) and `eigenvectors` (3, 3), by columns, are of pixels in 0..1, as the formula
    of Krizhevsky 2012, section 4.1 and what was published with it have them.
    """
    return np.asarray(255.0 * (eigenvectors * eigenvalues).T, dtype=np.float64)


# ImageNet's channel statistics, as every reference implementation uses them; its principal
# components as published with fb.resnet.torch (scaled to 0..255 the values are the 55.46, 4.794 and
# 1.148 of MXNet and others).
IMAGENET = Normalisation(
    mean=np.array([0.485, 0.456, 0.406], dtype=np.float32) * 255,
    std=np.array([0.229, 0.224, 0.225], dtype=np.float32) * 255,
    image=None,
    color_axes=color_axes(
        np.array([0.2175, 0.0188, 0.0045]),
        np.array(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        ),
    ),
)
