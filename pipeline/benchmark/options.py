"""The options of each benchmark. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.benchmark.checks import chosen, numbers, whole_numbers, within
from pipeline.benchmark.rank_options import AllreduceOptions, PredictOptions, ScaleOptions
from pipeline.config.setting import at_least_one, require

Amp = Literal["fp16", "bf16"]
Side = Literal["eager", "triton", "apex", "compile"]
AMPS: tuple[Amp, ...] = get_args(Amp)
SIDES: tuple[Side, ...] = get_args(Side)
Container = Literal["folders", "tar", "tfrecord", "recordio"]
Crop = Literal["random_resized_crop", "scale_jitter"]
CONTAINERS: tuple[Container, ...] = get_args(Container)
CROPS: tuple[Crop, ...] = get_args(Crop)


@dataclass(frozen=True)
class LoaderOptions:
    """JPEG files to training batches: this project's loader against others, as a table."""

    data: str | None = None
    """Data set in any container; `files` of its training images, spread over all of it, are
    measured. null: JPEGs of ImageNet's usual size are made."""
    files: int = 512
    """Images, which lie in a temporary folder in each container."""
    containers: str = "folders,tar,tfrecord,recordio"
    """Containers of the same images, with commas between."""
    crops: str = "random_resized_crop,scale_jitter"
    """Training crops, with commas between."""
    threads: str = "2"
    """DALI's threads, the workers of the DataLoader and the threads of bare decoding: one or more
    counts, with commas between."""
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

    @property
    def container_names(self) -> list[Container]:
        """The containers, in order."""
        return chosen(self.containers, CONTAINERS)

    @property
    def crop_names(self) -> list[Crop]:
        """The crops, in order."""
        return chosen(self.crops, CROPS)

    @property
    def thread_counts(self) -> list[int]:
        """The counts of threads, rising."""
        return numbers(self.threads)


@dataclass(frozen=True)
class TrainOptions:
    """The whole of pipeline.train on one device, from JPEG files: img/s and data-wait share."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: a GPU where there is one. JPEGs are decoded there too."""
    data: str | None = None
    """Folder of a data set with train and val; null: JPEGs of ImageNet's usual size are made."""
    files: int = 2048
    """JPEGs to make when `data` is null; each is read as often as the run needs images."""
    classes: int = 100
    """Classes of the JPEGs that are made."""
    depths: str = "50,152"
    """Layers of the ResNets, one run each, with commas between."""
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
        within(self, "depths", ("18", "34", "50", "101", "152"))
        require(
            self.classes <= self.files,
            f"--classes={self.classes} must not be more than --files={self.files}",
        )

    @property
    def depth_numbers(self) -> list[int]:
        """The depths, in order."""
        return [int(depth) for depth in self.depths.split(",")]


@dataclass(frozen=True)
class NormOptions:
    """BN (+ add) + ReLU of every shape in a ResNet against the bandwidth of a copy."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the layers run on; auto: a GPU where there is one."""
    depths: str = "50,152"
    """Layers of the ResNets whose norm layers are measured, with commas between."""
    amps: str = "fp16,bf16"
    """Dtypes of the activations, with commas between."""
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
        within(self, "depths", ("50", "101", "152"))
        within(self, "amps", AMPS)

    @property
    def depth_numbers(self) -> list[int]:
        """The depths, in order."""
        return [int(depth) for depth in self.depths.split(",")]

    @property
    def amp_names(self) -> list[Amp]:
        """The dtypes, in order."""
        return chosen(self.amps, AMPS)


@dataclass(frozen=True)
class StepOptions:
    """A step's speed: train_epoch against a bare loop; on a GPU also each way to compute norms."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: a GPU where there is one."""
    parts: Literal["auto", "loop", "table", "both"] = "auto"
    """loop: train_epoch against a bare loop. table: a whole step with each kind of norm layer, with
    and without CUDA graphs. auto: the loop, and on a GPU the table too."""
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
    """Table: layers of the ResNets, with commas between."""
    amps: str = "fp16,bf16"
    """Table: mixed precision, with commas between."""
    sides: str = "eager,triton,apex,compile"
    """Table: what computes the norm layers (compile: the eager model under torch.compile), with
    commas between; every other side is compared with eager."""
    batch: int = 256
    """Table: images per step; halved for a side that does not fit into the device's memory."""
    pixels: int = 224
    """Table: side of the images in pixels."""
    table_rounds: int = 7
    """Table: rounds of each side, in turn."""
    table_steps: int = 10
    """Table: steps in a round."""
    limit_sec: float | None = None
    """Table: no row is begun after this many seconds; null: all are measured."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "rounds", "steps", "images", "size", "threads")
        at_least_one(self, "--", "batch", "pixels", "table_rounds", "table_steps")
        within(self, "depths", ("18", "34", "50", "101", "152"))
        within(self, "amps", AMPS)
        within(self, "sides", SIDES)

    @property
    def depth_numbers(self) -> list[int]:
        """The table's depths, in order."""
        return [int(depth) for depth in self.depths.split(",")]

    @property
    def amp_names(self) -> list[Amp]:
        """The table's precisions, in order."""
        return chosen(self.amps, AMPS)

    @property
    def side_names(self) -> list[Side]:
        """The table's sides, in the order of `SIDES`: compiling takes minutes and comes last."""
        return [side for side in SIDES if side in self.sides.split(",")]


@dataclass(frozen=True)
class ManifestOptions:
    """A manifest of ImageNet's size: opening it, its memory, and planning a batch."""

    images: int = 1_281_167
    """Rows of the manifest; as many as ImageNet's training set."""
    batch: int = 256
    """Images of the batch that is planned."""
    rounds: int = 9
    """Times the manifest is opened, each in a process of its own, and rounds of each of `rows`."""
    rows: str = "1000,100000,10000000"
    """Rows of synthetic manifests whose cost per image is compared, with commas between."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "images", "batch", "rounds")
        whole_numbers(self, "rows", self.batch)

    @property
    def row_counts(self) -> list[int]:
        """The rows, rising."""
        return numbers(self.rows)


OPTIONS = {
    "loader": LoaderOptions,
    "train": TrainOptions,
    "norm": NormOptions,
    "step": StepOptions,
    "scale": ScaleOptions,
    "manifest": ManifestOptions,
    "allreduce": AllreduceOptions,
    "predict": PredictOptions,
}
