"""CIFAR-10 from its official archives: reading them (archive, binary, python), and their images as
a split of a data set (images)."""

from __future__ import annotations

from pipeline.data.cifar.images import CifarImages, open_cifar

__all__ = ["CifarImages", "open_cifar"]
