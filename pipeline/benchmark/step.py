"""`benchmark step`: the training loop's own cost, and whole steps with each kind of norm layer."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.benchmark import step_table
from pipeline.benchmark.device import pick_device, reason
from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.result import Result

Save = Callable[[Result], None]


def run(options: StepOptions, save: Save | None = None) -> Result:
    """The loop (`loop.measure`), then the table (`step_table.measure`), as `options.parts` says.

    `save` gets the result so far whenever something was added to it. The loop needs what a training
    does, DALI for one; beside a table it is named where it cannot run.
    """
    device = pick_device(options.device)
    wants_table = options.parts in ("table", "both") or (
        options.parts == "auto" and device.type == "cuda"
    )
    result = Result("step", {**vars(options), "device": str(device)}, figures={"not_run": {}})
    if options.parts != "table":
        try:
            from pipeline.benchmark import loop

            loop.measure(options, device, result)
        except Exception as error:
            if not wants_table:
                raise
            result.figures["not_run"]["loop"] = reason(error)
    if wants_table:
        step_table.measure(options, device, result, save or (lambda _: None))
    return result
