"""The options of the benchmarks that start ranks, or say what more of them would reach.

Imports nothing heavy, as `options.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.benchmark.options import (
    DEPTHS,
    DTYPES,
    ENGINES,
    SUMS,
    Dtype,
    numbers,
    whole_numbers,
    within,
    within_if_given,
)
from pipeline.config.setting import PathText, at_least_one, require
from pipeline.config.yaml_file import CONFIGS
from pipeline.system.launched import Engine


@dataclass(frozen=True)
class AllreduceOptions:
    """Time and bandwidth of one all-reduce by size, as training has it: NCCL on GPUs, else Gloo;
    and of fixed sums."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the tensors lie; auto: on GPUs where there are enough and Horovod has NCCL."""
    ranks: int = 2
    """Ranks on this machine, at least 2."""
    engine: Engine | None = None
    """What they communicate over; null: horovod where it is installed."""
    sums: str = "fast,fixed"
    """Orders of sums as run.sums names them, comma-separated."""
    sizes: str | None = None
    """Bytes of the tensors in fp32, comma-separated, each a multiple of 4; null: from 4 KiB in
    steps of 4 times, on GPUs to 256 MiB, on CPUs to 64 MiB."""
    dtypes: str = "fp32,fp16"
    """What fast sums send: as many numbers in fp32, or in half the bytes as by
    optim.gradient_compression=fp16."""
    rounds: int = 9
    """Rounds of each size and dtype, in turn."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "rounds")
        within(self, "dtypes", DTYPES)
        within(self, "sums", SUMS)
        require(self.ranks >= 2, f"--ranks={self.ranks} must be at least 2: one rank sends nothing")
        if self.sizes is not None:
            whole_numbers(self, "sizes", 4)
            for size in self.sizes.split(","):
                require(
                    int(size) % 4 == 0,
                    f"--sizes={self.sizes}: {size} must be a multiple of 4 bytes",
                )


@dataclass(frozen=True)
class ScaleOptions:
    """Ranks, over each engine and with each order of sums, against as many processes at the same
    time that do not communicate; also how much of a step 10 ms more for every decision take."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: GPUs where there are enough and Horovod has NCCL."""
    ranks: str = "1,2"
    """Numbers of ranks, comma-separated; up to the machine's GPUs, or its cores."""
    engines: str | None = None
    """What ranks communicate over, horovod (horovodrun) or torch (torchrun), comma-separated; null:
    those that are installed."""
    sums: str | None = None
    """Orders of sums as run.sums names them, fixed or fast, comma-separated; null: both, and first
    the one of run.sums=auto."""
    rounds: int = 13
    """Rounds of each side, in turn."""
    steps: int = 6
    """Steps in a round."""
    images: int = 64
    """Images per rank and step; in strong scaling, of all ranks together."""
    size: int = 64
    """Side of the images in pixels."""
    depth: int = 18
    """Layers of the ResNet."""
    data: PathText | None = None
    """Folder with train/<class>/<image> that DALI reads; null: the images lie in memory, so that
    nothing waits for data."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "rounds", "steps", "images", "size")
        whole_numbers(self, "ranks", 1)
        within_if_given(self, "engines", ENGINES)
        within_if_given(self, "sums", SUMS)
        for count in numbers(self.ranks):
            require(
                self.images % count == 0,
                f"--images={self.images} must be a multiple of each of --ranks={self.ranks}: "
                "in strong scaling they share one step's images",
            )


@dataclass(frozen=True)
class DemoOptions:
    """Whole calls of pipeline.train on CPUs against a plain script of DataLoader and
    DistributedDataParallel: img/s, seconds, top-1. A call takes minutes."""

    config: PathText | None = None
    """YAML of the training; null: configs/demo.yaml."""
    data: PathText | None = None
    """Folder with train/<class>/<image> and val; null: the images of `prepare demo` are drawn."""
    engines: str | None = None
    """What this program's ranks communicate over, horovod or torch, comma-separated; null: those
    that are installed."""
    ranks: int = 2
    """Ranks of each call, at least 2; up to the machine's cores."""
    epochs: int | None = None
    """Epochs of a call, over which warm-up and drops are spread as in the configuration; null: the
    configuration's."""
    rounds: int = 3
    """Calls of each side, in turn, each with another seed; one of a single epoch comes before."""
    workers: int = 1
    """Processes of the script's DataLoader on each rank; 0: none, images are made between steps."""

    @property
    def training(self) -> Path:
        """The YAML of the training."""
        return CONFIGS / "demo.yaml" if self.config is None else Path(self.config)

    def __post_init__(self) -> None:
        at_least_one(self, "--", "rounds")
        within_if_given(self, "engines", ENGINES)
        require(
            self.ranks >= 2, f"--ranks={self.ranks} must be at least 2: the script is for ranks"
        )
        require(self.workers >= 0, f"--workers={self.workers} must not be below 0")
        require(
            self.epochs is None or self.epochs >= 1, f"--epochs={self.epochs} must be at least 1"
        )


@dataclass(frozen=True)
class FinetuneOptions:
    """Top-1 on five drawn classes that a network has not seen, of few images: its last stage and
    head trained, against the whole network from nothing. Takes minutes."""

    init: PathText | None = None
    """Checkpoint of the demo (`make train` leaves runs/demo/checkpoints/best.pt); null: the demo is
    trained first."""
    seeds: int = 5
    """Trainings of each side, in turn, each with other images, order and initial weights."""
    images: int = 20
    """Training images of a class."""
    val: int = 40
    """Validation images of a class."""
    epochs: int = 40
    """Length of each training, over which warm-up and drops are spread as in configs/demo.yaml."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "seeds", "images", "val", "epochs")
        require(
            self.init is None or Path(self.init).is_file(),
            f"--init={self.init} is not a file; give a checkpoint of configs/demo.yaml",
        )


@dataclass(frozen=True)
class PredictOptions:
    """Efficiency on a cluster, by a model of what `allreduce` and `scale` measured."""

    allreduce: PathText | None = None
    """JSON of the benchmark allreduce; gives every null below but step_ms and jitter_ms."""
    scale: PathText | None = None
    """JSON of the benchmark scale; gives step_ms and jitter_ms where they are null. With both JSONs
    the model is also checked against the rank counts measured there."""
    depth: int = 50
    """Layers of the ResNet on the cluster, whose gradients are sent."""
    dtype: Dtype = "fp32"
    """What is sent: fp32, or fp16 as by optim.gradient_compression."""
    gpus: str = "8,64,512"
    """Numbers of GPUs, comma-separated; above one node whole nodes."""
    gpus_per_node: int = 8
    """GPUs in a node."""
    link_gbit: str = "100,400,3200"
    """Rated speeds of all network links of one node together, in Gbit/s, comma-separated."""
    link_efficiency: float = 0.8
    """Share of the rated speed that arrives, above 0 up to 1: an assumption to put your own
    measurement in for."""
    engine: Engine = "horovod"
    """What the ranks' decision before each batch travels over; torch needs half of the hops."""
    decision_us: float = 27.0
    """Latency of one hop of that decision, between CPUs, in microseconds (27: Gloo over TCP on one
    machine; put that of your network in)."""
    link_us: float = 14.0
    """Latency of one hop between nodes in microseconds (14: NCCL's own tuning table)."""
    node_us: float = 3.4
    """Latency of one hop between GPUs of a node in microseconds (3.4: NCCL's table, NVLink)."""
    step_ms: float | None = None
    """A step without communication on one GPU, in milliseconds; null: as measured."""
    jitter_ms: float | None = None
    """Standard deviation of that step's time, in milliseconds; null: as measured."""
    node_gbyte: float | None = None
    """Bus bandwidth between GPUs of a node in GB/s; null: as measured."""
    latency_ms: float | None = None
    """Fixed time of a communication, Horovod's cycle with it, in ms; null: as measured."""
    tensor_us: float | None = None
    """Time of each further tensor in one communication, in microseconds; null: as measured."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "gpus_per_node")
        known = ", ".join(map(str, DEPTHS))
        require(self.depth in DEPTHS, f"--depth={self.depth} must be one of {known}")
        whole_numbers(self, "gpus", 1)
        whole_numbers(self, "link_gbit", 1)
        require(
            0 < self.link_efficiency <= 1,
            f"--link_efficiency={self.link_efficiency:g} must be above 0 and at most 1",
        )
        for name in ("step_ms", "node_gbyte"):
            value = getattr(self, name)
            if value is not None:
                require(value > 0, f"--{name}={value:g} must be above 0")
        for name in ("decision_us", "link_us", "node_us", "jitter_ms", "latency_ms", "tensor_us"):
            value = getattr(self, name)
            if value is not None:
                require(value >= 0, f"--{name}={value:g} must not be below 0")
        for count in numbers(self.gpus):
            require(
                count <= self.gpus_per_node or count % self.gpus_per_node == 0,
                f"--gpus={self.gpus}: {count} must be whole nodes of "
                f"--gpus_per_node={self.gpus_per_node}",
            )
