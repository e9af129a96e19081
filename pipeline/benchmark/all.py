"""`benchmark all`: each part of a configuration by itself, for one rank, and what limits it.

Loader, model and training loop take turns, so that a slow spell of the machine affects them all.
How much of the all-reduce stays exposed is computed (`scaling_model`) from its measured times, for
the order of sums that training would have, and the model's measured backward pass; on CPUs without
spare cores with what it takes from computing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pipeline.benchmark import allreduce, norm
from pipeline.benchmark import device as devices
from pipeline.benchmark.allreduce import Message
from pipeline.benchmark.model import (
    HEAD,
    PHASES,
    ModelStep,
    add_phases,
    describe,
    one_rank_training,
)
from pipeline.benchmark.options import (
    LINK_RANKS,
    PARTS,
    AllOptions,
    NormOptions,
    chosen,
)
from pipeline.benchmark.passes import LoaderParts, loader_shares
from pipeline.benchmark.photos import make_photos
from pipeline.benchmark.predict import BYTES, cost_of, gradient_schedule
from pipeline.benchmark.processes import Kind
from pipeline.benchmark.rank_options import AllreduceOptions
from pipeline.benchmark.result import Measure, Result, Show, interleave, number, ratio, status_line
from pipeline.benchmark.scaling_model import mean_exposed_sec, without_overlap
from pipeline.data.cifar import CifarImages, open_cifar
from pipeline.data.dali import gpu_count
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.images import ImageSet
from pipeline.data.index.manifest import open_manifest
from pipeline.model.resnet import build_network
from pipeline.ranks.places import own_share
from pipeline.ranks.world import World
from pipeline.system.console import counted
from pipeline.system.failure import TrainingError
from pipeline.train.verdict import Figures, judge

_SIZES = "4096,1048576,16777216"  # bytes: latency, a large layer, a network
_USUAL_SIZE = 224  # the crop for which ImageNet's files are as large as they are
_NORM_LIMIT_SEC = 120.0


def run(options: AllOptions) -> Result:
    """The speed of each part, ratios between them, shares of each, and the figure `verdict`.

    `loader_vs_model` and `step_vs_model` compare neighbours in time. What cannot run here is named
    in the figure `not_run`. Raises `ValueError` for a device, decoder or data set that does
    not exist.
    """
    with status_line() as show:
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench(options, Path(folder), show)
            bench.measure()
        if "allreduce" in bench.parts:
            show(f"measuring: all-reduce between {LINK_RANKS} ranks")
            bench.allreduce()
        if "norm" in bench.parts:
            show("")
            bench.norm()
    verdict = judge(bench.known)
    bench.result.figures |= {
        "known": dataclasses.asdict(bench.known),
        "limit": dataclasses.asdict(verdict),
        "verdict": f"verdict: {verdict}",
    }
    return bench.result


class _Bench:
    """One configuration on this machine; `result` and what is `known` grow part by part."""

    def __init__(self, options: AllOptions, folder: Path, show: Show) -> None:
        self.parts = chosen(options.parts, PARTS)
        self._options, self._folder, self._show = options, folder, show
        self._training = one_rank_training(options, folder)
        device = self._training.device
        settings = dataclasses.asdict(options) | {"device": str(device)}
        self.result = Result("all", settings, table=[HEAD])
        self.result.figures = describe(options, self._training) | {"not_run": {}}
        on_gpu = device.type == "cuda"
        self.known = Figures(
            cores=own_share(World()).cores,
            model_threads=0 if on_gpu else torch.get_num_threads(),
            gpu=on_gpu and gpu_count() > 0,
            compression=options.config.optim.gradient_compression,
        )

    def measure(self) -> None:
        """Measures loader, model and training loop, in turn, and the ratios between them."""
        result = self.result
        with ExitStack() as stack:
            result.spreads = interleave(self._options.rounds, self._sides(stack), self._show)
        speeds = {part: result.spreads.get(f"{part}_images_per_sec") for part in PARTS}
        loader, model, step = speeds["loader"], speeds["model"], speeds["step"]
        if loader is not None:
            result.table.append(("loader", *loader.cells(), ""))
            self._know(loader=loader.median)
            self._split_loader()
        if model is not None:
            add_phases(result)
            self._know(model=model.median)
            if loader is not None:
                result.ratios["loader_vs_model"] = ratio(loader, model)
            if step is not None:
                result.ratios["step_vs_model"] = ratio(step, model)
                result.table.append(("step", *step.cells(), ""))

    def allreduce(self) -> None:
        """Measures two ranks of this machine, on the model's device, and the wait that remains."""
        kind = cast(Kind, self._training.device.type)
        reason = _no_link(self._options.ranks, kind, self.known.cores or 1)
        if reason is None:
            options = AllreduceOptions(kind, LINK_RANKS, sizes=_SIZES, rounds=self._options.rounds)
            try:
                found = allreduce.run(options)
            except (ValueError, TrainingError) as error:
                reason = devices.reason(error)
        if reason is not None:
            self.result.figures["not_run"]["allreduce"] = reason
            return
        self._include(found)
        self._add_link(found.figures["fit"])

    def norm(self) -> None:
        """Measures the norm layers of the network, where there are kernels for them."""
        config, not_run = self._options.config, self.result.figures["not_run"]
        if self._training.device.type != "cuda":
            not_run["norm"] = "its kernels need an NVIDIA GPU"
        elif config.model.family != "imagenet" or config.model.depth < 50:
            not_run["norm"] = "it measures the shapes of ResNet-50, -101 and -152"
        elif config.optim.amp not in ("bf16", "fp16"):
            not_run["norm"] = f"it measures mixed precision, and optim.amp is {config.optim.amp}"
        else:
            options = NormOptions(
                "cuda", str(config.model.depth), config.optim.amp, self._options.images,
                config.data.image_size, self._options.rounds, _NORM_LIMIT_SEC,
            )  # fmt: skip
            try:
                found = norm.run(options)
            except (RuntimeError, ValueError) as error:  # what was measured before stays
                not_run["norm"] = str(error).splitlines()[0]
                return
            not_run |= found.figures.pop("not_run")
            self._include(found)

    def _include(self, found: Result) -> None:
        """Adds what another benchmark found, under its name."""
        self.result.figures[found.name] = found.figures
        self.result.spreads |= {f"{found.name}_{key}": one for key, one in found.spreads.items()}
        self.result.ratios |= {f"{found.name}_{key}": one for key, one in found.ratios.items()}

    def _sides(self, stack: ExitStack) -> dict[str, Measure]:
        """Functions that measure a round of each part; `stack` closes the files of the training
        loop."""
        options = self._options
        sides: dict[str, Measure] = {}
        if "loader" in self.parts:
            self._show("measuring: loader, its images and first batches")
            sides |= self._loader().sides()
        if {"model", "step"} & set(self.parts):
            self._show("measuring: model, its first steps")
            model = ModelStep(self._training, options.images, options.round_sec)
            sides["model"] = model.measure
            if "step" in self.parts:
                stack.enter_context(self._training.monitored())
                sides["step_images_per_sec"] = devices.rate(
                    self._training.device, options.images, model.steps, self._training.run
                )
        return sides

    def _loader(self) -> LoaderParts:
        options, config, device = self._options, self._options.config, self._training.device
        images = _images(options, self._folder)
        # A set's own mean would have to be computed first; it takes as long to subtract.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean="imagenet"))
        settings = choose_decoding(config.data, device, own_share(World()), (images,))
        width, height = float(images.widths.mean()), float(images.heights.mean())
        root, files = "made" if options.made else config.data.root, counted(len(images), "file")
        self.result.figures |= {
            "images": f"images: {root}, {width:.0f}x{height:.0f} px (mean of {files})",
            "files": len(images),
            "mean_width_px": width,
            "mean_height_px": height,
            "loader_threads": settings.threads,
        }
        self._know(decoder=settings.decoder, threads=settings.threads)
        return LoaderParts(images, config, settings, options.images, options.round_sec)

    def _split_loader(self) -> None:
        """The shares of the loader's parts; none where nothing is decoded."""
        shares = loader_shares(self.result.spreads)
        self.result.ratios |= shares
        for name, share in shares.items():
            part = name.removesuffix("_of_loader")
            self.result.table.append((f"  {part}", "", "", f"{share.median:.1%}"))
        if shares:
            self._know(
                decode_share=shares["decoding_of_loader"].median,
                read_share=shares["reading_of_loader"].median,
            )

    def _add_link(self, fit: dict[Message, dict[str, float]]) -> None:
        """The gradients of this network, all at once and overlapped with its backward pass."""
        options, result = self._options, self.result
        with torch.device("meta"):
            classes = len(self._training.trainer.train_set.classes)
            network = build_network(options.config.model, classes, "reference")
        sent: Message = "fp16" if self.known.compression == "fp16" else "fp32"
        if self._training.trainer.state.summing.sums == "fixed":
            sent = "fixed"
        costs, gradients, whole = {}, {}, {}
        for message, one in fit.items():
            size = BYTES["fp16" if message == "fp16" else "fp32"]
            layers = gradient_schedule(network, options.config.data.image_size, size)
            costs[message] = cost = cost_of(one)
            gradients[message] = without_overlap(layers) if message == "fixed" else layers
            whole[message] = cost.together(layers)
        if self._training.device.type == "cpu" and sent != "fixed":
            spare = max(0, (self.known.cores or 1) - LINK_RANKS) / LINK_RANKS
            share = max(0.0, fit[sent]["taken_share"] - spare)
            costs[sent] = dataclasses.replace(costs[sent], taken_share=share)
        self._know(fp16_time=whole["fp16"] / whole["fp32"])
        result.figures["allreduce_ms"] = whole[sent] * 1e3
        what = "fixed sums of" if sent == "fixed" else sent
        name = f"{what} gradients, {LINK_RANKS} ranks"
        result.table.append((name, f"{number(whole[sent] * 1e3)} ms", "", ""))
        if "backward_sec" not in result.spreads:
            return
        phases = {phase: result.spreads[f"{phase}_sec"].median for phase in PHASES}
        exposed = mean_exposed_sec(gradients[sent], phases["backward"], costs[sent])
        share = exposed / (sum(phases.values()) + exposed)
        result.ratios["exposed_communication_of_step"] = share
        cells = (f"{number(exposed * 1e3)} ms", "", f"{share:.1%}")
        result.table.append(("  exposed (computed)", *cells))
        self._know(exposed_communication_share=share, ranks=LINK_RANKS)

    def _know(self, **more: Any) -> None:
        self.known = dataclasses.replace(self.known, **more)


def _images(options: AllOptions, folder: Path) -> ImageSet:
    """The training images, those of data.root or generated ones."""
    data = options.config.data
    if not options.made:
        if data.dataset == "cifar-10":
            return open_cifar(Path(data.root), data.held_out)[0]
        return open_manifest(Path(data.root), "train", folder / "cache")
    if data.dataset == "cifar-10":
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (options.files, 32, 32, 3), dtype=np.uint8)
        places = np.full(options.files, "made", dtype=object)
        labels = np.zeros(options.files, dtype=np.int32)
        return CifarImages("train", ["made"], pixels, labels, places)
    make_photos(folder / "made", options.files, scale=data.image_size / _USUAL_SIZE)
    return open_manifest(folder / "made", "train", folder / "cache")


def _no_link(ranks: int, kind: Kind, cores: int) -> str | None:
    """Why the link between two ranks is not measured here, or None."""
    if ranks == 1:
        return (
            "the verdict is for one process, which waits for no gradients; python -m "
            "pipeline.benchmark allreduce measures the link by itself"
        )
    if importlib.util.find_spec("horovod") is None:
        return "Horovod is not installed"
    if kind == "cuda" and torch.cuda.device_count() < LINK_RANKS:
        return f"{LINK_RANKS} ranks need as many GPUs, and there are {torch.cuda.device_count()}"
    if kind == "cpu" and cores < LINK_RANKS:
        return f"{LINK_RANKS} ranks on {cores} core would measure how they share it"
    return None
