"""The typed configuration: what can be set, its units, and the checks of each part.

How it is read from YAML and the command line stands in `options.py`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml


class ConfigError(ValueError):
    """A setting the user can mend: holds the value seen, the rule and the setting's name."""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class DataConfig:
    """Which images, in which batches, cut how, decoded where."""

    root: str = "data/imagenet"
    """Folder that holds train/<class>/<image> and val/<class>/<image>."""
    dataset: Literal["imagenet-1k"] | None = None
    """imagenet-1k: refuse to start unless all its classes and images are there; null: any data."""
    cache_dir: str | None = None
    """Folder of the manifests; null: beside the data, or the user's cache if that is read-only."""
    global_batch_size: int = 256
    """Images per optimizer step over all ranks; fixed for the life of a run."""
    local_batch_size: int = 256
    """The most images a rank takes at once; more per step are accumulated."""
    image_size: int = 224
    """Side of the square crop in pixels, in training and validation."""
    train_crop: Literal["random_resized_crop", "scale_jitter"] = "random_resized_crop"
    """Training crop: Inception's random area, or the paper's random shorter side."""
    area: tuple[float, float] = (0.08, 1.0)
    """random_resized_crop: least and greatest share of the image's area."""
    short_side: tuple[int, int] = (256, 480)
    """scale_jitter: least and greatest shorter side in pixels before the crop."""
    flip: bool = True
    """Mirror half of the training images."""
    color_std: float | None = None
    """Standard deviation of AlexNet's colour offset along ImageNet's principal components (0.1 in
    the paper); null: none."""
    val_resize: int = 256
    """Shorter side in pixels before the centre crop of validation."""
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEGs are decoded; auto: on the GPU when the run has one."""
    threads: int | None = None
    """DALI's CPU threads per rank; null: this rank's share of the cores, at most 8 where the GPU
    decodes."""
    prefetch_batches: int | None = None
    """Decoded batches that wait ahead of the model; null: 2, or 3 where the GPU decodes."""
    output: Literal["float32", "float16", "uint8"] = "float32"
    """What the decoder hands to the model's device: float32; float16, half the bytes, which the
    model takes as it is and so needs optim.amp; uint8, a quarter, made float32 on the device."""
    hw_decoder_load: float = 0.65
    """GPU decoding: share (0..1) of the JPEGs for the GPU's JPEG engine, where it has one; H100 and
    H200 record runs used 0.99."""
    preallocate: tuple[int, int] | None = None
    """GPU decoding: width and height in pixels for which decoders set memory aside at the start;
    null: those of the largest images of the data."""
    device_padding_bytes: int | None = None
    """GPU decoding: device memory in bytes set aside for each thread; null: 6 for each pixel of the
    largest image, at least 16 MiB."""
    host_padding_bytes: int | None = None
    """GPU decoding: each of the two host buffers of a thread, in bytes; null: 4 for each pixel of
    the largest image, at least 8 MiB."""
    bad_images: Literal["fail", "exclude"] = "fail"
    """What a file that cannot be decoded does: end the run, or be left out from there on."""
    max_excluded: int = 100
    """More excluded images than this end the run."""
    exclude: str | None = None
    """Exclusion list of `prepare verify`; its images are left out from this start on."""

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "local_batch_size", "image_size"):
            value = getattr(self, name)
            require(value >= 1, f"data.{name}={value} must be at least 1")
        require(
            self.threads is None or self.threads >= 1,
            f"data.threads={self.threads} must be at least 1, or null for this rank's share",
        )
        self._check_decoding()
        require(self.max_excluded >= 0, f"data.max_excluded={self.max_excluded} must be at least 0")
        low, high = self.area
        require(
            0 < low <= high <= 1, f"data.area={[low, high]} must satisfy 0 < least <= most <= 1"
        )
        least, most = self.short_side
        require(
            self.train_crop != "scale_jitter" or self.image_size <= least <= most,
            f"data.short_side={[least, most]} must satisfy data.image_size="
            f"{self.image_size} <= least <= most",
        )
        require(
            self.val_resize >= self.image_size,
            f"data.val_resize={self.val_resize} must be at least data.image_size={self.image_size}",
        )
        require(
            self.color_std is None or self.color_std > 0,
            f"data.color_std={self.color_std} must be greater than 0, or null for none",
        )

    def _check_decoding(self) -> None:
        require(
            self.prefetch_batches is None or self.prefetch_batches >= 1,
            f"data.prefetch_batches={self.prefetch_batches} must be at least 1, or null for 2 or 3",
        )
        require(
            0 <= self.hw_decoder_load <= 1,
            f"data.hw_decoder_load={self.hw_decoder_load} must lie in [0, 1]",
        )
        sides = self.preallocate
        require(
            sides is None or all(1 <= side <= 65535 for side in sides),
            f"data.preallocate={list(sides or ())} must hold a width and a height of 1 to 65535 "
            "pixels, or be null for those of the data",
        )
        for name in ("device_padding_bytes", "host_padding_bytes"):
            value = getattr(self, name)
            require(
                value is None or value >= 0,
                f"data.{name}={value} must be at least 0, or null for what the images need",
            )


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    depth: int = 50
    """Layers: 18, 34, 50, 101 or 152."""
    variant: Literal["v1", "v1.5"] = "v1.5"
    """Where a bottleneck halves the resolution: v1 (the paper): first 1x1; v1.5: the 3x3."""
    zero_init_last_norm: bool = True
    """Start each block's last BN at scale 0, so that a block begins as the identity (Goyal et al.
    2017); the paper starts at 1."""
    norm: Literal["auto", "reference", "triton", "apex"] = "auto"
    """What computes BN + addition + ReLU: PyTorch's operators (reference), our Triton kernels, or
    NVIDIA's apex (fp16); auto: Triton on a GPU, else the reference."""
    compile: bool = False
    """Run the model through torch.compile."""

    def __post_init__(self) -> None:
        depths = (18, 34, 50, 101, 152)
        require(
            self.depth in depths,
            f"model.depth={self.depth} does not exist; there are {', '.join(map(str, depths))}",
        )


@dataclass(frozen=True)
class OptimConfig:
    """SGD, the loss and the arithmetic."""

    base_lr: float = 0.1
    """Learning rate per global batch of 256; the peak in force is base_lr * global batch / 256."""
    momentum: float = 0.9
    """Momentum, in PyTorch's convention."""
    weight_decay: float = 1e-4
    """L2 penalty."""
    decay_norm_and_bias: bool = False
    """Decay BN scales, BN shifts and biases too, as the paper does."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    amp: Literal["off", "bf16", "fp16"] = "bf16"
    """Arithmetic of the forward and backward pass; fp16 scales the loss."""
    gradient_compression: Literal["none", "fp16"] = "none"
    """What gradients travel as between ranks; none: fp32."""

    def __post_init__(self) -> None:
        require(0 < self.base_lr < math.inf, f"optim.base_lr={self.base_lr} must be greater than 0")
        require(0 <= self.momentum < 1, f"optim.momentum={self.momentum} must lie in [0, 1)")
        require(
            0 <= self.weight_decay < math.inf,
            f"optim.weight_decay={self.weight_decay} must be at least 0",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"optim.label_smoothing={self.label_smoothing} must lie in [0, 1)",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """How long to train, and when the learning rate falls."""

    epochs: float = 90.0
    """Length of the run in passes over the training images."""
    warmup_epochs: float = 5.0
    """Length of the linear rise to the peak learning rate; 0: none."""
    warmup_start_factor: float = 0.1
    """Share of the peak learning rate at the first step of the warm-up."""
    rule: Literal["steps", "plateau"] = "steps"
    """Drop by 10 at given epochs, or when the validation error stops falling (the paper)."""
    drop_epochs: tuple[float, ...] = (30.0, 60.0, 80.0)
    """steps: where the learning rate is divided by 10."""
    patience: int = 5
    """plateau: validations without improvement before a drop."""
    min_improvement: float = 0.001
    """plateau: least fall of the top-1 error (a fraction) that counts as improvement."""
    max_drops: int = 3
    """plateau: the most drops."""

    def __post_init__(self) -> None:
        require(
            self.epochs > 0 and math.isfinite(self.epochs),
            f"schedule.epochs={self.epochs} must be greater than 0",
        )
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"schedule.warmup_epochs={self.warmup_epochs} must be at least 0 and less than "
            f"schedule.epochs={self.epochs}",
        )
        require(
            0 < self.warmup_start_factor <= 1,
            f"schedule.warmup_start_factor={self.warmup_start_factor} must lie in (0, 1]",
        )
        ordered = all(a < b for a, b in zip(self.drop_epochs, self.drop_epochs[1:], strict=False))
        require(
            ordered and all(epoch > 0 for epoch in self.drop_epochs),
            f"schedule.drop_epochs={list(self.drop_epochs)} must be positive and rising",
        )
        require(self.patience >= 1, f"schedule.patience={self.patience} must be at least 1")
        require(
            self.min_improvement >= 0,
            f"schedule.min_improvement={self.min_improvement} must be at least 0",
        )
        require(self.max_drops >= 0, f"schedule.max_drops={self.max_drops} must be at least 0")


@dataclass(frozen=True)
class RunConfig:
    """Where a run lies, what it writes when, and what it runs on."""

    name: str = "resnet50"
    """Name of the run; it lies in <dir>/<name>/."""
    dir: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of the initial weights, the data order and every augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: a GPU per rank where there is one."""
    threads: int | None = None
    """PyTorch's CPU threads per rank; null: this rank's share of the cores."""
    log_every_steps: int = 50
    """Steps between two lines of training metrics."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints inside an epoch; null: none by steps."""
    checkpoint_every_sec: float | None = 900.0
    """Seconds between checkpoints inside an epoch; null: none by time."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay, besides the best."""
    step_timeout_sec: float | None = 600.0
    """Seconds without progress on a rank after which the job ends and names who holds it up; null:
    it waits for ever."""

    def __post_init__(self) -> None:
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"run.name={self.name!r} must be a plain folder name",
        )
        require(0 <= self.seed < 2**63, f"run.seed={self.seed} must lie in [0, 2**63)")
        for name in ("threads", "checkpoint_every_steps", "checkpoint_every_sec"):
            value = getattr(self, name)
            require(
                value is None or value > 0, f"run.{name}={value} must be greater than 0, or null"
            )
        for name in ("log_every_steps", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, f"run.{name}={value} must be at least 1")
        limit = self.step_timeout_sec
        require(
            limit is None or 1 <= limit <= 1e6,
            f"run.step_timeout_sec={limit} must lie in [1, 1000000], or be null for no limit",
        )

    @property
    def path(self) -> Path:
        """The run's own folder."""
        return Path(self.dir) / self.name


@dataclass(frozen=True)
class Config:
    """Everything a run is made of."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """auto: go on where the run of this name stands; none: refuse a folder that holds a run; or
    the path of a checkpoint."""

    def __post_init__(self) -> None:
        require(
            self.data.output != "float16" or self.optim.amp != "off",
            "data.output=float16 needs mixed precision and optim.amp is off; set optim.amp=bf16 or "
            "fp16, or data.output=float32",
        )

    def to_yaml(self) -> str:
        """The resolved configuration; `--config` reads it back to an equal object."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)

    def get(self, name: str) -> Any:
        """The value of the setting `part.name`."""
        part, _, rest = name.partition(".")
        return getattr(getattr(self, part), rest) if rest else getattr(self, part)


def _plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def setting_names() -> list[str]:
    """Every setting as `part.name`, in order."""
    names = []
    for part in dataclasses.fields(Config):
        inner = part.default_factory
        if inner is dataclasses.MISSING:
            names.append(part.name)
        else:
            names += [f"{part.name}.{f.name}" for f in dataclasses.fields(cast(Any, inner))]
    return names
