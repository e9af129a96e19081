"""What is subtracted from pixels and what they are divided by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Principal components of ImageNet's RGB pixels in 0..1 as published with fb.resnet.torch (columns
# of the matrix are the components); scaled to 0..255 the values are the 55.46, 4.794, 1.148 of
# MXNet and others.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


@dataclass(frozen=True, eq=False)
class Normalisation:
    """(pixel - mean) / std, all in 0..255 units and RGB; float32 unless said otherwise.

    mean, std: (3,).
    image: (H, W, 3), subtracted in place of `mean` from crops of that size, before they are
    mirrored; None: there is no mean image.
    color_axes: (3, 3) float64; row k is what coefficient k of the colour offset adds to (R, G, B).
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    image: NDArray[np.float32] | None
    color_axes: NDArray[np.float64]


# ImageNet's channel statistics as every reference implementation uses them.
IMAGENET = Normalisation(
    mean=np.array([0.485, 0.456, 0.406], dtype=np.float32) * 255,
    std=np.array([0.229, 0.224, 0.225], dtype=np.float32) * 255,
    image=None,
    color_axes=255.0 * (_EIGENVECTORS * _EIGENVALUES).T,
)
