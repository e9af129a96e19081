"""One part of `gpu_check`, in a process of its own, so that it can be ended and can fall alone.

Started as `python -m pipeline.benchmark.gpu_part NAME FILE SECONDS`; writes the part's result to
FILE, as far as it has come, and begins nothing new after SECONDS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.benchmark.options import LoaderOptions, NormOptions, StepOptions
from pipeline.benchmark.result import Result, write_json

MISSING = 3
"""Exit code where a package is not installed that the part needs."""

Save = Callable[[Result], None]


def norm(limit_sec: float, save: Save) -> Result:
    """Every shape, with few rounds."""
    from pipeline.benchmark.norm import run

    return run(NormOptions(device="cuda", rounds=5, limit_sec=limit_sec), save)


def step(limit_sec: float, save: Save) -> Result:
    """The loop, then the table with few steps."""
    from pipeline.benchmark.step import run

    options = StepOptions(
        device="cuda", parts="both", table_rounds=3, table_steps=5, rounds=5, limit_sec=limit_sec
    )
    return run(options, save)


def memory(limit_sec: float, save: Save) -> Result:
    """ResNet-50 in fp16; compiling it would take longer than all others."""
    from pipeline.benchmark.memory import run

    return run(StepOptions(depths="50", amps="fp16", sides="eager,triton,apex"), save)


def loader(limit_sec: float, save: Save) -> Result:
    """Files decoded on the GPU and on the CPU."""
    from pipeline.benchmark.device import pick_device
    from pipeline.benchmark.gpu_loader import run

    options = LoaderOptions(files=512, rounds=3, images=4096, batch=256)
    return run(options, pick_device("cuda"))


PARTS: dict[str, Callable[[float, Save], Result]] = {
    "norm": norm,
    "step": step,
    "memory": memory,
    "loader": loader,
}


def main(argv: list[str]) -> int:
    """Runs one part; `MISSING` after a line that names the package."""
    name, path, seconds = argv

    def save(so_far: Result) -> None:
        write_json(Path(path), so_far.to_json({}))

    try:
        result = PARTS[name](float(seconds), save)
    except ImportError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return MISSING
    save(result)
    print(result.text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
