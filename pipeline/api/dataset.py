"""`pipeline.images`: the images of a data set, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from pipeline.api.loading import file_or_pixels
from pipeline.api.settings import AnyPath
from pipeline.config import require
from pipeline.data.cifar import open_cifar
from pipeline.data.classes import class_words
from pipeline.data.images import ImageSet
from pipeline.data.index.manifest import open_manifest

Split = Literal["train", "val"]


class _Paths(Sequence[Path]):
    """Where each image lies, made when it is asked for."""

    def __init__(self, image_set: ImageSet) -> None:
        self._set = image_set

    def __len__(self) -> int:
        return len(self._set)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        places = range(len(self._set))[index]
        return (
            self._set.path(places)
            if isinstance(places, int)
            else [self._set.path(one) for one in places]
        )


class Images(Dataset[tuple[Any, int]]):
    """N images and their labels, in an order that is the same every time.

    `images[i]` is (image, label): an RGB image of Pillow's, or what `transform` makes of it, as a
    data set of PyTorch's. Reading one raises `BadImage` if it cannot be used.
    """

    def __init__(
        self,
        image_set: ImageSet,
        words: dict[str, str],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self._set, self.transform = image_set, transform
        self.split: Split = image_set.split
        self.classes: list[str] = list(image_set.classes)
        """Names by label, as the folders or the container have them."""
        self.names: list[str] = [words.get(name, name) for name in self.classes]
        """Names by label for people: the words of synset_words.txt where there are some."""
        self.digest: str = image_set.digest
        """The data hash, by which runs know their data."""
        self.paths: Sequence[Path] = _Paths(image_set)
        """The place of each image; in a container also which record."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) int32; negative for none."""
        return np.asarray(self._set.labels)

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        place = range(len(self))[int(index)]  # of a tensor too; IndexError beyond the end
        image = file_or_pixels(self._set.read(place), self._set.path(place))
        shown = image if self.transform is None else self.transform(image)
        return shown, int(self._set.labels[place])

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"Images({self.split}: {len(self):,} images of {len(self.classes):,} classes, hash "
            f"{self.digest[:16]})"
        )


def images(
    root: AnyPath,
    split: Split = "val",
    *,
    transform: Callable[[Image.Image], Any] | None = None,
    classes: Sequence[str] | None = None,
    dataset: Literal["cifar-10"] | None = None,
    held_out: int | None = None,
    cache_dir: AnyPath | None = None,
) -> Images:
    """The images of `<root>/<split>`: class folders, tar files, TFRecord or RecordIO, indexed once.

    Args:
        transform: what to make of each image, as that of `pipeline.load`; None: nothing.
        classes: names by label, as those of `pipeline.load`; None: those that are there, in order.
        dataset: cifar-10 for its archive, where `held_out` training images are val if it is given.
        cache_dir: where the index is kept; None: beside the data, or in the user's cache.

    Raises `ConfigError` for a wrong argument, `ValueError` for data that cannot be used.
    """
    require(split in ("train", "val"), f"split={split} must be train or val")
    require(
        dataset in (None, "cifar-10"),
        f"dataset={dataset} must be cifar-10, or None for folders and containers",
    )
    require(
        held_out is None or dataset == "cifar-10",
        f"held_out={held_out} is for dataset=cifar-10; leave it out",
    )
    place = Path(root).expanduser()
    found: ImageSet
    if dataset == "cifar-10":
        found = open_cifar(place, held_out, classes)[split == "val"]
    else:
        cache = None if cache_dir is None else Path(cache_dir).expanduser()
        known = None if classes is None else list(classes)
        found = open_manifest(place, split, cache, known)
    words = {} if dataset == "cifar-10" else class_words(place)
    return Images(found, words, transform)
