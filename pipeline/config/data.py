"""Settings of the data: which images, batches, crops and decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config.setting import PathText, check_limits, require, setting, shown

VIEW_SIDES = ("data.image_size", "data.val_size")
"""The settings of which one has the side of a view: the second, unless it is null."""


@dataclass(frozen=True)
class DataConfig:
    """The images, their batches, their crops and their decoder."""

    root: PathText = setting(
        "data/imagenet",
        "place",
        ("evaluate", "predict", "export", "benchmark all", "doctor"),
        in_table=True,
    )
    """Folder that holds train/<class>/<image> and val/<class>/<image>, or as data.dataset says."""
    dataset: Literal["imagenet-1k", "cifar-10"] | None = setting(None, "recipe")
    """imagenet-1k: refuse to start unless all its classes and images are there; cifar-10: root
    holds its binary or Python archive, or what is in it; null: any tree of images."""
    held_out: int | None = setting(None, "identity", limits="[1, inf)")
    """cifar-10: this many training images, the last of each class, are the validation set (5000 in
    the paper); null: the test images are."""
    cache_dir: PathText | None = setting(None, "place", ("evaluate", "export"))
    """Folder of the image indexes; null: next to the data, or the user's cache if that is
    read-only."""
    global_batch_size: int = setting(256, "identity", asked=5, limits="[1, inf)")
    """Images per optimizer step over all ranks; fixed for the life of a run."""
    local_batch_size: int = setting(
        256, "execution", ("evaluate", "predict", "benchmark"), limits="[1, inf)"
    )
    """The most images a rank takes at once; more per step are accumulated."""
    image_size: int = setting(
        224, "identity", ("evaluate", "predict", "benchmark"), of_view=True, limits="[1, inf)"
    )
    """Side of the square crop in pixels, in training and validation unless data.image_sizes or
    data.val_size says otherwise."""
    image_sizes: Mapping[int, int] | None = setting(None, "identity", later=True)
    """Side of the training crop in pixels by the epoch, from 0, with which it begins, such as
    {0: 128, 6: 160}; each is larger than the one before. It begins with the first step whose images
    all lie in that epoch or later. null: image_size always."""
    train_crop: Literal["random_resized_crop", "scale_jitter", "padded"] = setting(
        "random_resized_crop", "identity", ("benchmark all",)
    )
    """Training crop: Inception's random area, the paper's random shorter side, or, for cifar-10, a
    crop of the image's own size out of the image padded with zeros."""
    area: tuple[float, float] = setting((0.08, 1.0), "identity", ("benchmark all",))
    """random_resized_crop: least and greatest share of the image's area."""
    short_side: tuple[int, int] = setting((256, 480), "identity", ("benchmark all",))
    """scale_jitter: least and greatest shorter side in pixels before the crop."""
    padding: int = setting(4, "identity", limits="[0, inf)")
    """padded: pixels added on each side of the image, after the mean is subtracted."""
    flip: bool = setting(True, "identity")
    """Mirror half of the training images."""
    color_std: float | None = setting(None, "identity", ("benchmark all",), limits="(0, inf)")
    """Standard deviation of AlexNet's colour offset along the principal components of the training
    pixels (0.1 in the paper); null: none."""
    augment: Literal["none", "trivial", "rand"] = setting(
        "none", "identity", ("benchmark all",), later=True
    )
    """Operations on the pixels of training images after crop and mirror: trivial: one, chosen with
    its strength at random (TrivialAugmentWide); rand: data.augment_ops of them at
    data.augment_magnitude (RandAugment)."""
    augment_ops: int = setting(2, "identity", ("benchmark all",), limits="[1, inf)", later=True)
    """rand: operations on each image, one after the other."""
    augment_magnitude: int = setting(
        9, "identity", ("benchmark all",), limits="[0, 30]", later=True
    )
    """rand: strength of each operation, 0 to 30 as in torchvision; timm's m7 of 10 is 21."""
    augment_std: float = setting(0.0, "identity", ("benchmark all",), limits="[0, inf)", later=True)
    """rand: standard deviation of the magnitude, drawn for each operation, in its units; timm's
    mstd0.5 is 1.5."""
    erase: float = setting(0.0, "identity", ("benchmark all",), limits="[0, 1]", later=True)
    """Probability with which a rectangle of a training image is erased: its normalised pixels are
    0."""
    erase_area: tuple[float, float] = setting(
        (0.02, 0.33), "identity", ("benchmark all",), later=True
    )
    """data.erase: least and greatest share of the image that is erased."""
    erase_aspect: tuple[float, float] = setting(
        (0.3, 3.3), "identity", ("benchmark all",), later=True
    )
    """data.erase: least and greatest height / width of what is erased."""
    repeats: int = setting(1, "identity", limits="[1, inf)", later=True)
    """Repeated augmentation: each image stands so many times in a row, cut anew each time; an epoch
    stays as long and has fewer images."""
    sampling: Literal["each", "balanced"] = setting("each", "identity", later=True)
    """each: every training image once an epoch; balanced: every class in turn, so that each is seen
    equally often; an epoch stays as long."""
    mixup: float = setting(0.0, "identity", limits="[0, inf)", later=True)
    """Alpha of mixup: each training image is averaged with another of its micro-batch, by a share
    from Beta(alpha, alpha), and so are their labels; 0: none. With data.cutmix too, each
    micro-batch takes one of the two."""
    cutmix: float = setting(0.0, "identity", limits="[0, inf)", later=True)
    """Alpha of cutmix: a box of each training image shows another of its micro-batch, with a share
    of the area from Beta(alpha, alpha), by which labels are mixed; 0: none."""
    mean: Literal["imagenet", "channel", "pixel"] = setting("imagenet", "identity")
    """What is subtracted from pixels: ImageNet's published means (with its deviations and principal
    components), this training set's means, or its mean image (as in the paper); the last two come
    with this set's deviations, by which pixels are divided, and principal components, and are
    computed by `prepare mean`, for cifar-10 at the start."""
    val_resize: int = setting(256, "identity", ("evaluate", "predict"), of_view=True)
    """Shorter side in pixels before the centre crop of validation."""
    val_size: int | None = setting(
        None, "identity", ("evaluate", "predict"), of_view=True, limits="[1, inf)", later=True
    )
    """Side of validation's centre crop in pixels, which may be larger than that of training
    (Touvron et al. 2019); null: image_size."""
    decode: Literal["auto", "cpu", "gpu"] = setting(
        "auto", "execution", ("evaluate", "predict", "benchmark all")
    )
    """Where JPEGs are decoded; auto: on the GPU when the run has one. Nothing is to be decoded in
    cifar-10, whose batches are made on the CPU."""
    threads: int | None = setting(
        None, "execution", ("evaluate", "predict", "benchmark all"), limits="[1, inf)"
    )
    """DALI's CPU threads per rank; null: this rank's share of the cores, at most 8 where the GPU
    decodes."""
    prefetch_batches: int | None = setting(
        None, "execution", ("evaluate", "benchmark all"), limits="[1, inf)"
    )
    """Decoded batches that wait for the model; null: 2, or 3 where the GPU decodes."""
    output: Literal["float32", "float16", "uint8"] = setting(
        "float32", "kept", ("evaluate", "predict", "benchmark all")
    )
    """What the decoder hands to the model's device: float32; float16, half the bytes, which the
    model takes as it is and so needs optim.amp; uint8, a quarter, made float32 on the device."""
    hw_decoder_load: float = setting(
        0.65, "execution", ("evaluate", "benchmark all"), limits="[0, 1]"
    )
    """GPU decoding: share (0..1) of the JPEGs for the GPU's JPEG engine, where it has one; H100 and
    H200 record runs used 0.99."""
    preallocate: tuple[int, int] | None = setting(None, "execution", ("evaluate",))
    """GPU decoding: width and height in pixels for which decoders set memory aside at the start;
    null: those of the largest images of the data."""
    device_padding_bytes: int | None = setting(None, "execution", ("evaluate",), limits="[0, inf)")
    """GPU decoding: device memory in bytes set aside for each thread; null: 6 for each pixel of the
    largest image, at least 16 MiB."""
    host_padding_bytes: int | None = setting(None, "execution", ("evaluate",), limits="[0, inf)")
    """GPU decoding: each of the two host buffers of a thread, in bytes; null: 4 for each pixel of
    the largest image, at least 8 MiB."""
    bad_images: Literal["fail", "exclude"] = setting("fail", "execution", ("evaluate",))
    """A file that cannot be decoded ends the run, or is left out from there on."""
    max_excluded: int = setting(100, "execution", limits="[0, inf)")
    """More excluded images than this end the run."""
    exclude: PathText | None = setting(None, "execution")
    """Exclusion list of `prepare verify`; its images are left out from this start on."""

    def __post_init__(self) -> None:
        check_limits(self, "data.")
        sides = self.preallocate
        require(
            sides is None or all(1 <= side <= 65535 for side in sides),
            f"data.preallocate={shown(sides)} must hold a width and a height of 1 to 65535 "
            "pixels, or be null for those of the data",
        )
        self._check_data_set()
        low, high = self.area
        require(
            0 < low <= high <= 1,
            f"data.area={shown(self.area)} must satisfy 0 < least <= most <= 1",
        )
        self._check_effects()
        self._check_image_sizes()
        self._check_views()

    @property
    def train_size(self) -> int:
        """The side of the training crop in pixels; of growing sizes the last, the largest."""
        return self.image_size if self.image_sizes is None else max(self.image_sizes.values())

    @property
    def view_size(self) -> int:
        """The side of validation's crop in pixels."""
        return self.image_size if self.val_size is None else self.val_size

    @property
    def shown_view_size(self) -> str:
        """The setting that has `view_size`, with its value, for messages."""
        return f"{VIEW_SIDES[self.val_size is not None]}={self.view_size}"

    def _check_image_sizes(self) -> None:
        if self.image_sizes is None:
            return
        named = f"data.image_sizes={shown(self.image_sizes)}"
        epochs = sorted(self.image_sizes)
        sides = [self.image_sizes[epoch] for epoch in epochs]
        require(
            epochs[:1] == [0],
            f"{named} must begin with epoch 0, with which training begins; give it a size",
        )
        require(
            sides[0] >= 1 and all(a < b for a, b in zip(sides, sides[1:], strict=False)),
            f"{named} must hold sides in pixels that rise from epoch to epoch; leave out an epoch "
            "whose size does not",
        )
        require(
            self.dataset != "cifar-10",
            f"{named} is not for data.dataset=cifar-10, whose images are not resized; leave it "
            "null",
        )
        require(
            self.mean != "pixel" or len(sides) == 1,
            f"{named} does not go with data.mean=pixel, whose mean image has one size; set "
            "data.mean=channel",
        )

    def _check_views(self) -> None:
        least, most = self.short_side
        rule, ends = f"data.image_size={self.image_size} <= least <= most", ""
        if self.image_sizes is not None:
            rule = f"{self.train_size} <= least <= most"
            ends = f", as the largest of data.image_sizes={shown(self.image_sizes)} needs"
        require(
            self.train_crop != "scale_jitter" or self.train_size <= least <= most,
            f"data.short_side={shown(self.short_side)} must satisfy {rule}{ends}",
        )
        require(
            self.val_size is None or self.dataset != "cifar-10",
            f"data.val_size={self.val_size} is not for data.dataset=cifar-10, whose images are not "
            "resized; leave it null",
        )
        require(
            self.val_resize >= self.view_size,
            f"data.val_resize={self.val_resize} must be at least {self.shown_view_size}; raise it",
        )

    def _check_effects(self) -> None:
        low, high = self.erase_area
        require(
            0 < low <= high < 1,
            f"data.erase_area={shown(self.erase_area)} must satisfy 0 < least <= most < 1; it is a "
            "share of the image",
        )
        low, high = self.erase_aspect
        require(
            0 < low <= high < math.inf,
            f"data.erase_aspect={shown(self.erase_aspect)} must satisfy 0 < least <= most; it is "
            "height / width",
        )
        require(
            self.augment == "none" or self.dataset != "cifar-10",
            f"data.augment={self.augment} is not for data.dataset=cifar-10, whose pixels are "
            "normalised before they are cut; set data.augment=none",
        )
        require(
            self.augment == "none" or self.mean != "pixel",
            f"data.augment={self.augment} moves pixels away from the places that "
            "data.mean=pixel has a mean for; set data.mean=channel, or data.augment=none",
        )

    def _check_data_set(self) -> None:
        cifar = self.dataset == "cifar-10"
        require(
            cifar == (self.train_crop == "padded"),
            f"data.train_crop={self.train_crop} does not go with data.dataset="
            f"{shown(self.dataset)}; cifar-10 needs padded, and only cifar-10 has it",
        )
        require(
            self.held_out is None or cifar,
            f"data.held_out={self.held_out} is for data.dataset=cifar-10 alone; leave it null",
        )
        require(
            self.color_std is None or not cifar,
            f"data.color_std={self.color_std} is not for data.dataset=cifar-10; leave it null",
        )
        require(
            self.image_size == 32 or not cifar,
            f"data.image_size={self.image_size} must be 32 for data.dataset=cifar-10, whose images "
            "are not resized",
        )
        require(
            self.decode != "gpu" or not cifar,
            "data.decode=gpu is for JPEGs, and cifar-10 has none; set data.decode=auto",
        )
        require(
            self.output != "uint8" or not (cifar or self.mean == "pixel"),
            "data.output=uint8 subtracts the mean on the model's device, data.dataset=cifar-10 and "
            "data.mean=pixel before that; set data.output=float32 or float16",
        )
