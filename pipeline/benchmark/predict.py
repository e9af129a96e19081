"""`benchmark predict`: efficiency on a cluster, by `scaling_model` and what was measured here.

Measured values come from the JSON of the other two benchmarks and are in the result's settings,
with those that were given; every efficiency it prints is a prediction, none is a measurement.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.benchmark.network import calls
from pipeline.benchmark.options import Dtype, numbers
from pipeline.benchmark.rank_options import PredictOptions
from pipeline.benchmark.result import Result, number
from pipeline.benchmark.scaling_model import (
    BACKWARD_SHARE,
    Cluster,
    Cost,
    Gradient,
    Prediction,
    Step,
    at_ranks,
    decision_sec,
    in_buckets,
    predict,
    ring_cost,
    two_level_cost,
    without_overlap,
)
from pipeline.config import ConfigError, ModelConfig, require
from pipeline.model.resnet import build_network
from pipeline.ranks.buckets import BUCKET_FLOATS
from pipeline.system.launched import Engine
from pipeline.system.words import shell_word

_CLASSES = 1000
_MEASURED_CLASSES = 10  # of the networks in `benchmark scale`
_WAITS = ("agreement", "exposed_communication")
BYTES: dict[Dtype, int] = {"fp32": 4, "fp16": 2}
"""Of a number that is sent."""
_RINGS: dict[Engine, int] = {"horovod": 2, "torch": 1}
"""Of a decision."""
_PRESENT = {"allreduce": "engine", "scale": "ways"}
"""A setting that only the present JSON of a benchmark has."""
_GIVEN = {
    "step_sec": ("step_ms", 1e-3, "--scale"),
    "jitter_sec": ("jitter_ms", 1e-3, "--scale"),
    "latency_sec": ("latency_ms", 1e-3, "--allreduce"),
    "tensor_sec": ("tensor_us", 1e-6, "--allreduce"),
    "gpu_bytes_per_sec": ("node_gbyte", 1e9, "--allreduce"),
}
"""For each of `Inputs` the option that gives it, its unit, and the benchmark that measures it."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a prediction: seconds, bytes per second."""

    step_sec: float
    jitter_sec: float
    latency_sec: float
    tensor_sec: float
    gpu_bytes_per_sec: float


def run(options: PredictOptions) -> Result:
    """Efficiencies by GPUs and link speed; with both JSONs, predicted over measured ones."""
    allreduce = _read("allreduce", options.allreduce)
    scale = _read("scale", options.scale)
    inputs = _inputs(options, allreduce, scale)
    model = _network(options.depth, _CLASSES)
    gradients = gradient_schedule(model, 224, BYTES[options.dtype])
    result = Result("predict", {**vars(options), "inputs": dataclasses.asdict(inputs)})
    rows = [
        row(count, speed, options, inputs, gradients)
        for count in numbers(options.gpus)
        for speed in (numbers(options.link_gbit) if count > options.gpus_per_node else [None])
    ]
    result.figures["gradient_bytes"] = sum(gradient.size for gradient in gradients)
    result.figures["predicted"] = rows
    result.table = _table(rows)
    if allreduce is not None and scale is not None:
        checks = check(allreduce, scale)
        result.figures["checks"] = checks
        for found in checks:
            name = f"predicted_vs_measured_{found['name']}"
            result.ratios[name] = found["predicted"] / found["measured"]
    return result


def row(
    gpus: int, link_gbit: int | None, options: PredictOptions, inputs: Inputs,
    gradients: list[Gradient],
) -> dict[str, Any]:  # fmt: skip
    """The prediction for `gpus` GPUs; `link_gbit` is None inside one node.

    It takes a ring or two levels, whichever makes the step faster; NCCL chooses for each all-reduce
    by a model of its own.
    """
    network = (link_gbit or 1) * 1e9 / 8 * options.link_efficiency
    cluster = Cluster(
        options.gpus_per_node, inputs.gpu_bytes_per_sec, network, options.node_us * 1e-6,
        options.link_us * 1e-6, inputs.latency_sec, inputs.tensor_sec,
    )  # fmt: skip
    costs = {"ring": ring_cost(gpus, cluster), "two levels": two_level_cost(gpus, cluster)}
    step = Step(inputs.step_sec, inputs.jitter_sec)
    hop_sec = options.decision_us * 1e-6
    decided = decision_sec(gpus, _RINGS[options.engine], hop_sec, inputs.latency_sec)
    steps = {name: predict(gpus, step, gradients, cost, decided) for name, cost in costs.items()}
    algorithm = max(steps, key=lambda name: steps[name].efficiency)
    found, cost = steps[algorithm], costs[algorithm]
    late = predict(gpus, step, without_overlap(gradients), cost, decided)
    return {
        "gpus": gpus,
        "link_gbit": link_gbit,
        "algorithm": algorithm,
        "allreduce_sec": cost.together(gradients),
        "decision_sec": decided,
        **dataclasses.asdict(found),
        "efficiency": found.efficiency,
        "efficiency_without_overlap": late.efficiency,
    }


def gradient_schedule(model: nn.Module, pixels: int, bytes_each: int) -> list[Gradient]:
    """The times at which `model`, on the meta device, has its gradients, bucket by bucket.

    Time is counted in multiplications of each convolution and linear layer on images of `pixels` a
    side; layers without any are ready with the one before them in the backward pass. The time of
    norm layers is left out: it is spread evenly among the others.
    """
    layers: list[tuple[list[nn.Parameter], float]] = []
    for layer, _, _, y in calls(model, pixels):
        own = list(layer.parameters(recurse=False))
        if own:
            products = own[0].numel() if own[0].dim() > 1 else 0
            places = y.shape[2] * y.shape[3] if y.dim() == 4 else 1
            layers.append((own, float(products * places)))
    total, done, schedule = sum(work for _, work in layers), 0.0, []
    for own, work in reversed(layers):
        done += work
        size = sum(parameter.numel() for parameter in own) * bytes_each
        schedule.append(Gradient(min(1.0, done / total), size))
    return in_buckets(schedule, BUCKET_FLOATS * bytes_each)


def check(allreduce: dict[str, Any], scale: dict[str, Any]) -> list[dict[str, Any]]:
    """The model against every `weak_scaling_N` of `scale`, also over other engines or with other
    sums, whose averages `allreduce` has measured; without fitting to those.

    A step without communication is that of as many separate processes. Raises `ConfigError` if the
    two were measured on different devices.
    """
    devices = [found["settings"]["device"] for found in (allreduce, scale)]
    require(
        devices[0] == devices[1],
        f"--allreduce was measured on {devices[0]} and --scale on {devices[1]}; measure both on "
        "one device",
    )
    raw, checks = scale["raw"], []
    for side, way in scale["settings"]["ways"].items():
        count, _, _ = side.removeprefix("weak_").partition("_")
        measured = scale["ratios"].get(f"weak_scaling_{side.removeprefix('weak_')}")
        if measured is None or not _is_measured(allreduce, way):
            continue
        found = _of_apart(allreduce, scale, int(count), way)
        waits = (raw[f"{side}_{w}_share"]["median"] for w in _WAITS)
        checks.append({
            "ranks": int(count), **way, "predicted": found.efficiency, "measured": measured,
            # A rank that waits for averages may wait for a slower rank: no clock can separate the
            # two.
            "predicted_wait_sec": found.waits_sec,
            "measured_wait_sec": sum(waits) * raw[f"{side}_step_sec"]["median"],
            "name": f"weak_scaling_{side.removeprefix('weak_')}",
        })  # fmt: skip
    return checks


def cost_of(fit: dict[str, Any]) -> Cost:
    """The cost of what `benchmark allreduce` fitted; its cores are taken to be others than the
    ranks' own."""
    return Cost(fit["latency_sec"], fit["sec_per_byte"], fit["tensor_sec"])


def _is_measured(allreduce: dict[str, Any], way: dict[str, str]) -> bool:
    """Whether `allreduce` has what ranks of that way do."""
    wanted = "fixed" if way["sums"] == "fixed" else "fp32"  # gradients are sent as they are
    return way["engine"] == allreduce["settings"]["engine"] and wanted in allreduce["raw"]["fit"]


def _of_apart(
    allreduce: dict[str, Any], scale: dict[str, Any], count: int, way: dict[str, str]
) -> Prediction:
    settings, raw, fits = scale["settings"], scale["raw"], allreduce["raw"]["fit"]
    model = _network(settings["depth"], _MEASURED_CLASSES)
    gradients = gradient_schedule(model, settings["size"], BYTES["fp32"])
    fit = fits["fp32" if way["sums"] == "fast" else "fixed"]
    cost = at_ranks(cost_of(fit), allreduce["settings"]["ranks"], count)
    on_cpu = settings["device"] == "cpu"
    if way["sums"] == "fixed":
        gradients = [Gradient(1.0, sum(one.size for one in gradients))]  # one sum of all
    # Each rank computes on one core.
    spare = max(0, settings["cores"] - count) / count
    if on_cpu and way["sums"] == "fast":
        cost = dataclasses.replace(cost, taken_share=max(0.0, fit["taken_share"] - spare))
    step_sec, computed, jitter = (
        raw[f"apart_{count}_{key}"]["median"]
        for key in ("step_sec", "forward_backward_sec", "jitter_sec")
    )
    step = Step(step_sec, jitter, BACKWARD_SHARE * computed / step_sec)
    if on_cpu:
        engine_share = max(0.0, allreduce["raw"]["engine_share"] - spare)
        hiding_share = 1 - computed / step_sec
        step = dataclasses.replace(step, hiding_share=hiding_share, engine_share=engine_share)
    # A decision is a small fast message of the engine; what one of few ranks takes, any takes.
    decided = fits["fp32"]["latency_sec"] if "fp32" in fits else 0.0
    return predict(count, step, gradients, cost, decided)


def _network(depth: int, classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_network(ModelConfig(depth=depth), classes)


def _read(name: str, path: str | None) -> dict[str, Any] | None:
    """The JSON that `benchmark NAME` wrote, or None where none is given. Raises `ConfigError`."""
    if path is None:
        return None
    again = f"write it by python -m pipeline.benchmark {name} --json {shell_word(path)}"
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--{name} {path} cannot be read as JSON; {again}") from error
    found = content.get("benchmark") if isinstance(content, dict) else None
    require(
        found == name and _PRESENT[name] in content.get("settings", {}),
        f"--{name} {path} is not the present JSON of that benchmark; {again}",
    )
    return content


def _fit(allreduce: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    fits: dict[str, dict[str, Any]] = allreduce["raw"]["fit"]
    require(
        dtype in fits,
        f"--allreduce holds {', '.join(fits)}, not {dtype}; measure it with --dtypes=fp32,fp16",
    )
    return fits[dtype]


def _inputs(
    options: PredictOptions, allreduce: dict[str, Any] | None, scale: dict[str, Any] | None
) -> Inputs:
    """The given inputs, else the measured ones. Raises `ConfigError` for one that is neither."""
    values: dict[str, Any] = {}
    if allreduce is not None:
        fit = _fit(allreduce, options.dtype)
        values |= {name: fit[name] for name in ("latency_sec", "tensor_sec")}
        values["gpu_bytes_per_sec"] = fit["bus_bytes_per_sec"]
    if scale is not None:
        depth = scale["settings"]["depth"]
        require(
            options.step_ms is not None or depth == options.depth,
            f"--scale measured depth {depth} and --depth={options.depth}; give --step_ms or "
            "measure that depth",
        )
        alone = ("step_sec", "jitter_sec")
        values |= {name: scale["raw"][f"alone_{name}"]["median"] for name in alone}
    for name, (option, unit, source) in _GIVEN.items():
        given = getattr(options, option)
        if given is not None:
            values[name] = given * unit
        require(
            values.get(name) is not None,
            f"--{option} is neither given nor measured; give it or {source} FILE",
        )
    return Inputs(**values)


def _table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = [(
        "predicted: GPUs", "Gbit/s per node", "all-reduce ms", "by", "exposed ms", "decision ms",
        "not hidden ms", "jitter ms", "efficiency", "without overlap",
    )]  # fmt: skip
    for found in rows:
        table.append((
            str(found["gpus"]), str(found["link_gbit"] or "-"),
            number(found["allreduce_sec"] * 1e3), found["algorithm"],
            number(found["exposed_sec"] * 1e3), number(found["decision_sec"] * 1e3),
            number(found["agreement_sec"] * 1e3), number(found["jitter_sec"] * 1e3),
            f"{found['efficiency']:.3f}", f"{found['efficiency_without_overlap']:.3f}",
        ))  # fmt: skip
    return table
