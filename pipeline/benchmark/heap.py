"""What a training on CPUs gains by keeping the memory that it frees, and what it holds for it.

Two processes take turns: one keeps its memory, as a training does, and one leaves it to glibc's
malloc. Each is this module too, started as `python -m pipeline.benchmark.heap PART FOLDER`.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.processes import Processes, serve, start
from pipeline.benchmark.resident import Training, resident_config, resident_training
from pipeline.benchmark.result import Result, interleave, ratio
from pipeline.ranks.world import World
from pipeline.system.memory import keep_freed_memory


@dataclass(frozen=True)
class Part:
    """The task of one process: steps of ResNet-`depth` with `images` of `size` pixels."""

    depth: int
    size: int
    images: int
    threads: int
    keeps: bool
    """Whether what is freed is kept."""


def measure_heap(options: StepOptions, result: Result) -> None:
    """Adds to `result` the speed, page faults in a step and peak memory of a training's own steps
    with freed memory kept and returned, and the ratios of speed and of peak memory.

    Where malloc cannot be told to keep it, that is said, as both would be the same.
    """
    if not keep_freed_memory():
        result.figures["not_run"]["memory kept"] = (
            "MALLOC_* or GLIBC_TUNABLES sets malloc, or this C library is not glibc"
        )
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides: dict[str, Callable[[], dict[str, float]]] = {}
        for name, keeps in (("memory_returned", False), ("memory_kept", True)):
            part = Part(options.depth, options.size, options.images, options.threads, keeps)
            sides[name] = _side(name, part, options.steps, folder / name, stack)
        spreads = interleave(options.rounds, sides)
    result.spreads |= spreads
    for what in ("images_per_sec", "peak_bytes"):
        pair = spreads[f"memory_kept_{what}"], spreads[f"memory_returned_{what}"]
        result.ratios[f"{what.split('_')[0]}_memory_kept_vs_returned"] = ratio(*pair)


def _side(
    name: str, part: Part, steps: int, folder: Path, stack: ExitStack
) -> Callable[[], dict[str, float]]:
    """Starts a process; returns what measures a round of it. `stack` ends it."""
    folder.mkdir()
    job = start("pipeline.benchmark.heap", [json.dumps(asdict(part)), str(folder)], 1, "torch")
    processes = Processes([job])
    stack.callback(processes.end)
    processes.ask(steps=3)  # malloc's limits move with what is freed first

    def measured() -> dict[str, float]:
        answer = processes.ask(steps=steps)[0]
        return {f"{name}_{key}": value for key, value in answer.items()}

    return measured


def main(argv: list[str]) -> None:
    """One process, which takes steps each time it is asked to."""
    part = Part(**json.loads(argv[0]))
    torch.set_num_threads(part.threads)
    if part.keeps:
        keep_freed_memory()
    config = resident_config(
        part.depth, part.size, part.images, Path(argv[1]), threads=part.threads
    )
    training = resident_training(config, World(), torch.device("cpu"))
    serve(lambda steps: _train(training, part.images, steps))


def _train(training: Training, images: int, steps: int) -> dict[str, float]:
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    training.run(steps)
    sec, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images_per_sec": images * steps / sec,
        "page_faults_per_step": (after.ru_minflt - before.ru_minflt) / steps,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """The most memory that this process has held. Not `ru_maxrss`, which a process has from the one
    that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main(sys.argv[1:])
