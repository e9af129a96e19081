"""`benchmark all`: each part of a configuration by itself, for one rank, and what limits it.

Loader, model and training loop take turns, so that a slow spell of the machine meets them all. How
much of the all-reduce stays exposed is computed (`scaling_model`) from its measured times and the
model's measured backward pass; that it also slows the computing on CPUs is left out.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from pipeline.benchmark import allreduce, norm
from pipeline.benchmark import device as devices
from pipeline.benchmark.configured import LINK_RANKS, AllOptions
from pipeline.benchmark.model import (
    PHASES,
    ModelStep,
    describe,
    one_rank_training,
    rows,
    shares,
    speed_row,
)
from pipeline.benchmark.options import NormOptions
from pipeline.benchmark.passes import LoaderParts, loader_shares
from pipeline.benchmark.photos import make_photos
from pipeline.benchmark.predict import gradient_schedule
from pipeline.benchmark.rank_options import AllreduceOptions, Dtype
from pipeline.benchmark.result import Result, Show, interleave, ratio, status_line
from pipeline.benchmark.scaling_model import Cost, mean_exposed_sec
from pipeline.data.cifar import CifarImages, Places, open_cifar
from pipeline.data.dali import DecodeSettings, gpu_count
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
_BYTES: dict[Dtype, int] = {"fp32": 4, "fp16": 2}
_PARTS = ("decoding", "resizing", "reading")  # of the loader


def run(options: AllOptions) -> Result:
    """What each part reaches, ratios between them, shares of each, and the figure `verdict`.

    `loader_vs_model` and `step_vs_model` are of neighbours in time. What cannot run here is named
    in the figure `not_run`. Raises `ValueError` for a device, decoder or data set that is not
    there.
    """
    with status_line() as show:
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench(options, Path(folder), show)
            bench.measure()
        if "allreduce" in options.part_names:
            show(f"measuring: all-reduce between {LINK_RANKS} ranks")
            bench.allreduce()
        if "norm" in options.part_names:
            show("")
            bench.norm()
    verdict = judge(bench.known)
    bench.result.figures["known"] = dataclasses.asdict(bench.known)
    bench.result.figures["limit"] = dataclasses.asdict(verdict)
    bench.result.figures["verdict"] = f"verdict: {verdict}"
    return bench.result


class _Bench:
    """One configuration on this machine; `result` and what is `known` grow part by part."""

    def __init__(self, options: AllOptions, folder: Path, show: Show) -> None:
        self._options, self._folder, self._show = options, folder, show
        self._training = one_rank_training(options, folder)
        device = self._training.device
        self.result = Result("all", options.settings() | {"device": str(device)})
        self.result.figures = describe(options, self._training) | {"not_run": {}}
        self.result.table = [("", "img/s or ms", "quartiles", "share")]
        on_gpu = device.type == "cuda"
        self.known = Figures(
            cores=own_share(World()).cores,
            model_threads=0 if on_gpu else torch.get_num_threads(),
            gpu=on_gpu and gpu_count() > 0,
            compression=options.config.optim.gradient_compression,
        )

    def measure(self) -> None:
        """Loader, model and training loop, in turn."""
        options, result = self._options, self.result
        with ExitStack() as stack:
            sides: dict[str, Callable[[], float]] = {}
            if "loader" in options.part_names:
                self._show("measuring: loader, its images and first batches")
                sides |= self._loader().sides()
            step = None
            if {"model", "step"} & set(options.part_names):
                self._show("measuring: model, its first steps")
                step = ModelStep(self._training, options.images, options.round_sec)
                sides["model_images_per_sec"] = step.images_per_sec
            if step is not None and "step" in options.part_names:
                stack.enter_context(self._training.monitored())
                whole = devices.rate(
                    self._training.device, options.images, step.steps, self._training.run
                )
                whole()  # the first line of metrics
                sides["step_images_per_sec"] = whole
            result.spreads = interleave(options.rounds, sides, self._show)
        if "loader" in options.part_names:
            self._conclude_loader()
        if step is not None:
            result.spreads |= step.spreads()
            result.ratios |= shares(step)
            result.table += rows(result)
            self._know(model=result.spreads["model_images_per_sec"].median)
        self._add_ratios()

    def allreduce(self) -> None:
        """Two ranks of this machine, on the device of the model; the wait that it leaves."""
        kind = cast(Literal["cpu", "cuda"], self._training.device.type)
        reason = _no_link(self._options) or _no_ranks(kind, self.known.cores or 1)
        if reason is None:
            options = AllreduceOptions(kind, LINK_RANKS, _SIZES, rounds=self._options.rounds)
            try:
                found = allreduce.run(options)
            except (ValueError, TrainingError) as error:
                reason = devices.reason(error)
        if reason is not None:
            self.result.figures["not_run"]["allreduce"] = reason
            return
        self.result.figures["allreduce"] = found.figures
        self.result.spreads |= {f"allreduce_{k}": spread for k, spread in found.spreads.items()}
        self.result.ratios |= {f"allreduce_{k}": share for k, share in found.ratios.items()}
        self._conclude_allreduce(found.figures["fit"])

    def norm(self) -> None:
        """The norm layers of the network, where there are kernels for them."""
        config, not_run = self._options.config, self.result.figures["not_run"]
        if self._training.device.type != "cuda":
            not_run["norm"] = "its kernels need an NVIDIA GPU"
        elif config.model.family != "imagenet" or config.model.depth < 50:
            not_run["norm"] = "it measures the shapes of ResNet-50, -101 and -152"
        elif config.optim.amp == "off":
            not_run["norm"] = "it measures mixed precision, and optim.amp is off"
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
            self.result.figures["norm"] = found.figures
            self.result.ratios |= {f"norm_{name}": share for name, share in found.ratios.items()}

    def _loader(self) -> LoaderParts:
        options, config, device = self._options, self._options.config, self._training.device
        images = _images(options, self._folder)
        # A set's own mean would have to be computed first; it takes as long to subtract.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean="imagenet"))
        settings = choose_decoding(config, device, own_share(World()), (images,))
        self.result.figures |= _described(images, settings, options)
        self._know(decoder=settings.decoder, threads=settings.threads)
        return LoaderParts(images, config, settings, options.images, options.round_sec)

    def _conclude_loader(self) -> None:
        result = self.result
        found = loader_shares(result.spreads)
        result.ratios |= found
        speed = result.spreads["loader_images_per_sec"]
        result.table.append(speed_row("loader", speed))
        for part in _PARTS if found else ():
            share = result.ratio_value(f"{part}_of_loader")
            result.table.append((f"  {part}", "", "", f"{share:.1%}"))
        self._know(
            loader=speed.median,
            decode_share=found["decoding_of_loader"].median if found else None,
            read_share=found["reading_of_loader"].median if found else None,
        )

    def _add_ratios(self) -> None:
        spreads, model = self.result.spreads, self.result.spreads.get("model_images_per_sec")
        for part in ("loader", "step"):
            measured = spreads.get(f"{part}_images_per_sec")
            if measured is not None and model is not None:
                self.result.ratios[f"{part}_vs_model"] = ratio(measured, model)
        if "step_images_per_sec" in spreads:
            self.result.table.append(speed_row("step", spreads["step_images_per_sec"]))

    def _conclude_allreduce(self, fit: dict[Dtype, dict[str, float]]) -> None:
        """The gradients of this network, all at once and beside its backward pass."""
        costs = {
            dtype: Cost(one["latency_sec"], one["sec_per_byte"], one["tensor_sec"])
            for dtype, one in fit.items()
        }
        with torch.device("meta"):
            classes = len(self._training.trainer.train_set.classes)
            network = build_network(self._options.config.model, classes, "reference")
        pixels = self._options.config.data.image_size
        gradients = {d: gradient_schedule(network, pixels, size) for d, size in _BYTES.items()}
        whole = {
            dtype: costs[dtype].seconds(sum(g.size for g in sent), sum(g.tensors for g in sent))
            for dtype, sent in gradients.items()
        }
        sent: Dtype = "fp16" if self.known.compression == "fp16" else "fp32"
        self._know(fp16_time=whole["fp16"] / whole["fp32"])
        self.result.figures["allreduce_ms"] = whole[sent] * 1e3
        name = f"{sent} gradients, {LINK_RANKS} ranks"
        self.result.table.append((name, f"{whole[sent] * 1e3:.4g} ms", "", ""))
        if "backward_sec" not in self.result.spreads:
            return
        phases = {phase: self.result.spreads[f"{phase}_sec"].median for phase in PHASES}
        exposed = mean_exposed_sec(gradients[sent], phases["backward"], costs[sent])
        share = exposed / (sum(phases.values()) + exposed)
        self.result.ratios["exposed_communication_of_step"] = share
        self.result.table.append(
            ("  exposed (computed)", f"{exposed * 1e3:.4g} ms", "", f"{share:.1%}")
        )
        self._know(exposed_communication_share=share, ranks=LINK_RANKS)

    def _know(self, **more: Any) -> None:
        self.known = dataclasses.replace(self.known, **more)


def _images(options: AllOptions, folder: Path) -> ImageSet:
    """The training images, those of data.root or made ones."""
    data = options.config.data
    if not options.made:
        if data.dataset == "cifar-10":
            return open_cifar(Path(data.root), data.held_out)[0]
        return open_manifest(Path(data.root), "train", folder / "cache")
    if data.dataset == "cifar-10":
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (options.files, 32, 32, 3), dtype=np.uint8)
        places = Places([Path("made")], np.zeros((options.files, 2), dtype=np.int32))
        labels = np.zeros(options.files, dtype=np.int32)
        return CifarImages("train", ["made"], pixels, labels, places)
    make_photos(folder / "made", options.files, scale=data.image_size / _USUAL_SIZE)
    return open_manifest(folder / "made", "train", folder / "cache")


def _described(
    images: ImageSet, settings: DecodeSettings, options: AllOptions
) -> dict[str, str | float]:
    width, height = float(images.widths.mean()), float(images.heights.mean())
    root = options.config.data.root
    return {
        "images": f"images: {'made' if options.made else root}, {width:.0f}x{height:.0f} px (mean "
        f"of {counted(len(images), 'file')})",
        "files": len(images),
        "mean_width_px": width,
        "mean_height_px": height,
        "loader_threads": settings.threads,
    }


def _no_link(options: AllOptions) -> str | None:
    """Why there is no link to measure, or None."""
    if options.ranks > 1:
        return None
    return (
        "the verdict is for one process, which waits for no gradients; python -m "
        "pipeline.benchmark allreduce measures the link by itself"
    )


def _no_ranks(kind: Literal["cpu", "cuda"], cores: int) -> str | None:
    """Why two ranks cannot be measured here, or None."""
    if importlib.util.find_spec("horovod") is None:
        return "Horovod is not installed"
    if kind == "cuda" and torch.cuda.device_count() < LINK_RANKS:
        return f"{LINK_RANKS} ranks need as many GPUs, and there are {torch.cuda.device_count()}"
    if kind == "cpu" and cores < LINK_RANKS:
        return f"{LINK_RANKS} ranks on {cores} core would measure how they share it"
    return None
