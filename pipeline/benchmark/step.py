"""`benchmark step`: the training loop's own cost (`resident`), that of a save (`saves`) and, on a
CPU, what keeping freed memory is worth (`heap`); and whole steps with each kind of norm layer,
plain and with `model.graphs`, as one table; with them a step's memory.

Ratios to eager are of neighbours in time at the same batch. Shares are of the roofline for fused
norm layers (`network.roofline`), made of what a copy and a matrix product reach in the same run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.benchmark import device as devices
from pipeline.benchmark.network import Design, Network, network, roofline
from pipeline.benchmark.options import AMPS, DEPTHS, SIDES, StepOptions, chosen
from pipeline.benchmark.plain import BACKENDS, Setting, train_setting
from pipeline.benchmark.result import Result, Save, Spread, interleave, ratio
from pipeline.model.backends import problem_of
from pipeline.ranks.world import World

_DESIGNS: tuple[Design, ...] = ("eager", "fused", "folded")
_SHARE_OF: Design = "fused"
_HEAD = ("step", "batch", "img/s", "quartiles", "to eager", "of roofline")

Found = TypeVar("Found")


def run(options: StepOptions, save: Save = lambda result: None) -> Result:
    """The loop (`resident.measure_loop`, `saves`, `heap`), then the table, as `options.parts` says.

    `save` gets the result so far whenever something was added to it. The loop needs what training
    does, such as DALI; with a table too, it is named where it cannot run.
    """
    device = devices.pick_device(options.device)
    wants_table = options.parts in ("table", "both") or (
        options.parts == "auto" and device.type == "cuda"
    )
    result = Result("step", {**vars(options), "device": str(device)}, figures={"not_run": {}})
    if options.parts != "table":
        try:
            _measure_loop(options, device, result)
        except Exception as error:
            if not wants_table:
                raise
            result.figures["not_run"]["loop"] = devices.reason(error)
    if wants_table:
        measure_table(options, device, result, save)
    return result


def _measure_loop(options: StepOptions, device: torch.device, result: Result) -> None:
    """Adds the loop, saves in it, and its memory to `result`."""
    from pipeline.benchmark.heap import measure_heap
    from pipeline.benchmark.resident import measure_loop, resident_config, resident_training
    from pipeline.benchmark.saves import measure_saves

    measure_loop(options, device, result)
    with tempfile.TemporaryDirectory() as folder:
        images = options.images
        config = resident_config(
            options.depth, options.size, images, Path(folder), threads=options.threads
        )
        measure_saves(resident_training(config, World(), device), images, options.rounds, result)
    if device.type == "cpu":
        measure_heap(options, result)


@dataclass(frozen=True)
class Limits:
    """Measured limits of this device."""

    bytes_per_sec: float
    flop_per_sec: dict[str, float]


@dataclass
class Comparison:
    """Speeds that `compare` measured of one side at one batch, by "eager", "plain" and "graph"."""

    images: int
    images_per_sec: dict[str, Spread]
    loss: float | None
    not_run: dict[str, str] = field(default_factory=dict)


def measure_table(options: StepOptions, device: torch.device, result: Result, save: Save) -> None:
    """Adds the table to `result`, row by row, and calls `save` with each.

    What cannot run is named with its reason in the table and in the figure `not_run`.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=options.autotune):
        over = devices.time_limit(options.limit_sec)
        limits = measure_limits(device, options)
        result.figures |= {"copy_gb_per_sec": limits.bytes_per_sec / 1e9, "networks": {}}
        for amp, flops in limits.flop_per_sec.items():
            result.figures[f"matrix_product_tflop_per_sec_{amp}"] = flops / 1e12
        result.table = [_HEAD]
        depths = chosen(options.depths, DEPTHS)
        networks = {depth: network(depth, options.pixels) for depth in depths}
        for setting in settings(options):
            found = _attempt(setting, device, lambda one: compare(one, options, device), over())
            if isinstance(found, str):
                found = Comparison(options.batch, {}, None, {"plain": found, "graph": found})
            add_rows(result, setting, found, networks[setting.depth], limits)
            save(result)


def _attempt(
    setting: Setting, device: torch.device, work: Callable[[Setting], Found],
    reason: str | None = None,
) -> Found | str:  # fmt: skip
    """The result of `work`, or why `setting` does not run here, including a `reason` of the
    caller's; leaves the device's memory empty."""
    problem = problem_of(BACKENDS[setting.side], device, setting.amp)
    found: Found | str | None = reason or devices.as_options(problem)
    if found is None:
        try:
            found = work(setting)
        except Exception as error:  # whatever it is, the other settings are measured
            found = devices.reason(error)
    if setting.side == "compile":
        torch.compiler.reset()  # the model would stay in memory
    devices.release(device)
    return found


def settings(options: StepOptions) -> list[Setting]:
    """The settings to measure, in order: eager before what is compared with it, and compiling,
    which takes minutes, after every other side."""
    sides = chosen(options.sides, SIDES)
    found = [
        Setting(depth, amp, side, options.pixels)
        for depth in chosen(options.depths, DEPTHS)
        for amp in chosen(options.amps, AMPS)
        for side in sorted(sides, key=SIDES.index)
    ]
    return sorted(found, key=lambda setting: setting.side == "compile")


def measure_limits(device: torch.device, options: StepOptions) -> Limits:
    """Measures the device: the median of copies and the best matrix products in each precision."""
    copies = interleave(options.table_rounds, {"copy": devices.Copy(device).bytes_per_sec})
    amps = chosen(options.amps, AMPS)
    return Limits(
        copies["copy"].median,
        {amp: devices.flop_per_sec(device, devices.DTYPES[amp]) for amp in amps},
    )


def compare(setting: Setting, options: StepOptions, device: torch.device) -> Comparison:
    """Measures one side against eager, at `options.batch` images, halved until they fit: rounds of
    eager, the side, and the side in graphs, in turn."""
    return devices.fitting(
        options.batch, device, lambda images: _compare(setting, images, options, device)
    )


def _compare(
    setting: Setting, images: int, options: StepOptions, device: torch.device
) -> Comparison:
    side = train_setting(setting, images, device)
    sides: dict[str, Callable[[], None]] = {"plain": side.step}
    if setting.side != "eager":
        eager = Setting(setting.depth, setting.amp, "eager", setting.pixels)
        sides = {"eager": train_setting(eager, images, device).step, **sides}
    not_run = {}
    if device.type != "cuda":
        not_run["graph"] = "CUDA graphs need an NVIDIA GPU"
    elif setting.side in ("compile", "apex"):
        not_run["graph"] = f"model.graphs=true does not hold {setting.side}"
    else:
        try:
            graphed = side.in_graphs()
            graphed.step()
            sides["graph"] = graphed.step
        except Exception as error:
            if devices.out_of_memory(error):
                raise
            not_run["graph"] = devices.reason(error)
    rounds = {
        name: devices.rate(device, images, options.table_steps, devices.again(step))
        for name, step in sides.items()
    }
    speeds = interleave(options.table_rounds, rounds)
    loss = float(side.loss)
    return Comparison(images, speeds, loss if math.isfinite(loss) else None, not_run)


def add_rows(
    result: Result, setting: Setting, found: Comparison, net: Network, limits: Limits
) -> None:
    """Adds a row of plain steps and one of steps in graphs, their numbers, and what did not run."""
    speeds, flops = found.images_per_sec, limits.flop_per_sec[setting.amp]
    bounds = {
        design: roofline(net, design, found.images, limits.bytes_per_sec, flops)
        for design in _DESIGNS
    }
    for kind in ("plain", "graph"):
        label = setting.side if kind == "plain" else f"{setting.side}_graph"
        name = f"{label}_{setting.network}"
        if kind not in speeds:
            result.figures["not_run"][name] = found.not_run[kind]
            result.table.append((name, "", "not run", "", "", ""))
            continue
        speed = speeds[kind]
        share = speed.median / bounds[_SHARE_OF]
        result.spreads[f"{name}_images_per_sec"] = speed
        result.ratios[f"{name}_of_roofline"] = share
        base = speeds["eager"] if setting.side != "eager" else speeds["plain"]
        to_eager = ratio(speed, base)
        if speed is not base:
            result.ratios[f"{label}_vs_eager_{setting.network}"] = to_eager
        if kind == "graph":
            # The time lost to launching kernels one by one.
            result.ratios[f"{label}_vs_plain_{setting.network}"] = ratio(speed, speeds["plain"])
        result.figures["networks"][name] = {
            "batch": found.images,
            "batch_asked": result.settings["batch"],
            "loss": found.loss,
            "roofline_images_per_sec": bounds,
        }
        result.table.append(
            (name, str(found.images), *speed.cells(), f"{to_eager.median:.3f}", f"{share:.1%}")
        )


def measure_memory(options: StepOptions, save: Save = lambda result: None) -> Result:
    """Peak of what PyTorch's allocator gave out over three plain steps, in GB (10^9 bytes).

    The figures `<side>_resnet<depth>_<amp>_peak_gb`, and the ratios of each side to eager. What
    does not run, or not fit, is named in `not_run`. Raises `ValueError` without a GPU.
    """
    device = devices.pick_device("cuda")
    result = Result("memory", {**vars(options), "device": str(device)}, figures={"not_run": {}})

    def peak_gb(setting: Setting) -> float:
        devices.release(device)
        torch.cuda.reset_peak_memory_stats(device)
        train_setting(setting, options.batch, device)
        return torch.cuda.max_memory_allocated(device) / 1e9

    for setting in settings(options):
        peak = _attempt(setting, device, peak_gb)
        if isinstance(peak, str):
            result.figures["not_run"][setting.name] = peak
        else:
            result.figures[f"{setting.name}_peak_gb"] = peak
            eager = result.figures.get(f"eager_{setting.network}_peak_gb")
            if eager is not None and setting.side != "eager":
                name = f"{setting.side}_vs_eager_memory_{setting.network}"
                result.ratios[name] = peak / eager
        save(result)
    return result
