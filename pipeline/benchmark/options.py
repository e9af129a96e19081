"""The options of the benchmarks of one process, and comma-separated lists.

Imports nothing heavy: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from pipeline.config import Config
from pipeline.config.setting import PathText, at_least_one, require
from pipeline.system.launched import Engine

Amp = Literal["fp16", "bf16"]
Dtype = Literal["fp32", "fp16"]
Side = Literal["eager", "triton", "apex", "compile"]
Container = Literal["folders", "tar", "tfrecord", "recordio"]
Crop = Literal["random_resized_crop", "scale_jitter"]
Sums = Literal["fixed", "fast"]

AMPS: tuple[Amp, ...] = get_args(Amp)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
SIDES: tuple[Side, ...] = get_args(Side)
CONTAINERS: tuple[Container, ...] = get_args(Container)
CROPS: tuple[Crop, ...] = get_args(Crop)
SUMS: tuple[Sums, ...] = get_args(Sums)
ENGINES: tuple[Engine, ...] = get_args(Engine)
DEPTHS = (18, 34, 50, 101, 152)
PARTS = ("loader", "model", "step", "allreduce", "norm")
LINK_RANKS = 2
"""Number of local ranks between which `all` measures the link."""

T = TypeVar("T")


def chosen(value: str, known: Sequence[T]) -> list[T]:
    """Those of `known` that a comma-separated list names, in its order."""
    return [one for name in value.split(",") for one in known if str(one) == name]


def within(options: object, name: str, known: Sequence[object]) -> None:
    """Raises `ConfigError` unless the option lists only what is `known`."""
    value, names = getattr(options, name), [str(one) for one in known]
    require(
        set(value.split(",")) <= set(names),
        f"--{name}={value} must be some of {', '.join(names)} separated by commas",
    )


def within_if_given(options: object, name: str, known: Sequence[object]) -> None:
    """As `within`, for an option that may be null."""
    if getattr(options, name) is not None:
        within(options, name, known)


def numbers(value: str) -> list[int]:
    """The numbers of a comma-separated list, ascending, each once."""
    return sorted({int(part) for part in value.split(",")})


def whole_numbers(options: object, name: str, least: int) -> None:
    """Raises `ConfigError` unless the option lists whole numbers of at least `least`."""
    value = getattr(options, name)
    require(
        all(part.isdecimal() and int(part) >= least for part in value.split(",")),
        f"--{name}={value} must be whole numbers of at least {least} separated by commas",
    )


@dataclass(frozen=True)
class LoaderOptions:
    """From JPEG files to training batches: this project's loader against others, as a table."""

    data: PathText | None = None
    """Data set in any container; `files` of its training images, spread over all of it, are
    measured. null: JPEGs of ImageNet's usual size are made."""
    files: int = 512
    """Images, which lie in a temporary folder in each container."""
    containers: str = "folders,tar,tfrecord,recordio"
    """Containers of the same images, comma-separated."""
    crops: str = "random_resized_crop,scale_jitter"
    """Training crops, comma-separated."""
    threads: str = "2"
    """DALI's threads, the workers of the DataLoader and the threads of bare decoding: one or more
    counts, comma-separated."""
    table: Literal["short", "full"] = "short"
    """short: every crop from the first container, and the other containers at the first crop only;
    full: every container at every crop. Both at every count of threads."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where this project's loader decodes."""
    rounds: int = 9
    """Rounds of each side, in turn."""
    images: int = 1024
    """Images timed in a round, rounded up to whole batches for every worker."""
    batch: int = 64
    """Images per batch."""
    size: int = 224
    """Side of the crop in pixels."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "files", "rounds", "images", "batch", "size")
        whole_numbers(self, "threads", 1)
        within(self, "containers", CONTAINERS)
        within(self, "crops", CROPS)


@dataclass(frozen=True)
class TrainOptions:
    """The whole of pipeline.train on one device, from JPEG files: img/s and data-wait share."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: a GPU where there is one. JPEGs are decoded there too."""
    data: PathText | None = None
    """Folder of a data set with train and val; null: JPEGs of ImageNet's usual size are made."""
    files: int = 2048
    """JPEGs to make when `data` is null; each is read as often as the run needs images."""
    classes: int = 100
    """Classes of the JPEGs that are made."""
    depths: str = "50,152"
    """Layers of the ResNets, one run each, comma-separated."""
    amp: Amp = "bf16"
    """Mixed precision."""
    batch: int = 256
    """Images per step; lower it where memory is short."""
    size: int = 224
    """Side of the crop in pixels."""
    rounds: int = 9
    """Lines of metrics that count; two before them warm up."""
    steps: int = 20
    """Steps from one line of metrics to the next."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "files", "classes", "batch", "size", "rounds", "steps")
        within(self, "depths", DEPTHS)
        require(
            self.classes <= self.files,
            f"--classes={self.classes} must not be more than --files={self.files}",
        )


@dataclass(frozen=True)
class NormOptions:
    """BN (+ add) + ReLU of every shape in a ResNet against the bandwidth of a copy."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the layers run on; auto: a GPU where there is one."""
    depths: str = "50,152"
    """Layers of the ResNets whose norm layers are measured, comma-separated."""
    amps: str = "fp16,bf16"
    """Dtypes of the activations, comma-separated."""
    batch: int = 256
    """Images; halved for a shape that does not fit into the device's memory."""
    pixels: int = 224
    """Side of the images that the networks see."""
    rounds: int = 9
    """Rounds of each side, in turn."""
    limit_sec: float | None = None
    """No shape is begun after this many seconds; null: all are measured."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "batch", "pixels", "rounds")
        within(self, "depths", DEPTHS[2:])
        within(self, "amps", AMPS)


@dataclass(frozen=True)
class StepOptions:
    """A step's speed: train_epoch against a bare loop; on a GPU also each way to compute norms."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: a GPU where there is one."""
    parts: Literal["auto", "loop", "table", "both"] = "auto"
    """loop: train_epoch against a bare loop, and what a save costs it. table: a whole step with
    each kind of norm layer, with and without model.graphs. auto: the loop, and on a GPU the table
    too."""
    rounds: int = 13
    """Rounds of each side of the loop, in turn."""
    steps: int = 20
    """Steps in a round: as many as lie between two lines of metrics in configs/demo.yaml."""
    images: int = 32
    """Images per step."""
    size: int = 64
    """Side of the images in pixels."""
    depth: int = 18
    """Layers of the ResNet."""
    threads: int = 2
    """PyTorch's CPU threads."""
    depths: str = "50,152"
    """Table: layers of the ResNets, comma-separated."""
    amps: str = "fp16,bf16"
    """Table: mixed precision, comma-separated."""
    sides: str = "eager,triton,apex,compile"
    """Table: what computes the norm layers (compile: the eager model under torch.compile),
    comma-separated; every other side is compared with eager."""
    batch: int = 256
    """Table: images per step; halved for a side that does not fit into the device's memory."""
    pixels: int = 224
    """Table: side of the images in pixels."""
    table_rounds: int = 7
    """Table: rounds of each side, in turn."""
    table_steps: int = 10
    """Table: steps in a round."""
    autotune: bool = True
    """Table: cuDNN keeps the fastest algorithm of each shape, as run.autotune has it."""
    limit_sec: float | None = None
    """Table: no row is begun after this many seconds; null: all are measured."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "rounds", "steps", "images", "size", "threads")
        at_least_one(self, "--", "batch", "pixels", "table_rounds", "table_steps")
        within(self, "depths", DEPTHS)
        within(self, "amps", AMPS)
        within(self, "sides", SIDES)


@dataclass(frozen=True)
class ManifestOptions:
    """An image index of ImageNet's size: opening it, its memory, and planning a batch."""

    images: int = 1_281_167
    """Rows of the index; as many as ImageNet's training set."""
    batch: int = 256
    """Images of the batch that is planned."""
    rounds: int = 9
    """Times the index is opened, each in a process of its own, and rounds of each of `rows`."""
    rows: str = "1000,100000,10000000"
    """Rows of synthetic indexes whose cost per image is compared, comma-separated."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "images", "batch", "rounds")
        whole_numbers(self, "rows", self.batch)


@dataclass(frozen=True)
class ModelOptions:
    """The model alone, its images in memory: img/s of a rank, and what its step is made of."""

    rounds: int = 9
    """Rounds of each side, in turn."""
    round_sec: float = 1.0
    """A round takes about this long, in whole steps and at least one."""
    config: Config = field(default_factory=Config)
    """The configuration measured, for one rank."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "rounds")
        require(self.round_sec > 0, f"--round_sec={self.round_sec:g} must be above 0")

    @property
    def images(self) -> int:
        """Images that one rank takes at once."""
        return min(self.config.data.local_batch_size, self.config.data.global_batch_size)


@dataclass(frozen=True)
class AllOptions(ModelOptions):
    """Loader, model, step, all-reduce and norm layers of a configuration, and what limits it."""

    parts: str = ",".join(PARTS)
    """What is measured, comma-separated."""
    files: int = 512
    """JPEGs to make where --data.root is not given, nor --config of a run whose data are there: as
    large for data.image_size as ImageNet's are for 224."""
    made: bool = True
    """Whether the images are generated."""
    ranks: int = LINK_RANKS
    """Number of ranks that the verdict is for: those of the stored run, else as many as the batch
    is for, at most two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "--", "files")
        within(self, "parts", PARTS)


CONFIGURED: dict[str, type[ModelOptions]] = {"model": ModelOptions, "all": AllOptions}
"""The benchmarks that measure a training's configuration."""
