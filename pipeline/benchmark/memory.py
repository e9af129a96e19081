"""The most GPU memory that a training step takes, with each kind of norm layer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.benchmark import device as devices
from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.result import Result
from pipeline.benchmark.step_table import settings
from pipeline.benchmark.trainee import Trainee, problem


def run(options: StepOptions, save: Callable[[Result], None] | None = None) -> Result:
    """Peak of what PyTorch's allocator gave out over three plain steps, in GB (10^9 bytes).

    The figures `<side>_resnet<depth>_<amp>_peak_gb`, and the ratios of each side to eager. What
    does not run, or not fit, is named in `not_run`. Raises `ValueError` without a GPU.
    """
    device = devices.pick_device("cuda")
    result = Result("memory", {**vars(options), "device": str(device)}, figures={"not_run": {}})
    for setting in settings(options):
        reason = problem(setting.side, setting.amp, device)
        if reason is None:
            devices.release(device)
            torch.cuda.reset_peak_memory_stats(device)
            try:
                trainee = Trainee(setting, options.batch, device)
            except Exception as error:  # the other sides are measured
                reason = devices.reason(error)
            else:
                peak = torch.cuda.max_memory_allocated(device) / 1e9
                result.figures[f"{setting.name}_peak_gb"] = peak
                base = result.figures.get(f"eager_resnet{setting.depth}_{setting.amp}_peak_gb")
                if base is not None and setting.side != "eager":
                    network_name = f"resnet{setting.depth}_{setting.amp}"
                    result.ratios[f"{setting.side}_vs_eager_memory_{network_name}"] = peak / base
                del trainee
        if setting.side == "compile":
            torch.compiler.reset()
        if reason is not None:
            result.figures["not_run"][setting.name] = reason
        if save is not None:
            save(result)
    return result
