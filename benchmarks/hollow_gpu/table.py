"""The host's part of training on GPUs, measured on a GPU that computes nothing: `make hollow-gpu`.

CPU time and launches of a step by network and norm layer, and how often `pipeline.train` waits for
the device in a step between two lines of metrics. Nothing here says how fast a GPU is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.benchmark.result import Result

Run = Callable[..., str]
"""Runs a script with arguments on the hollow GPU; returns its last line."""

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
NETWORKS = ((50, 256), (152, 128))
"""Depths, with the images of a step."""
_FIRST, _LAST = 10, 40  # steps between which a training is counted
_BATCH = 16  # images of its steps
_RUNS = [
    (ranks, accumulation, {"optim.amp": amp, "model.graphs": graphs})
    for ranks in (1, 2)
    for graphs in ("false", "true")
    for amp in ("bf16", "fp16")
    for accumulation in (1, 4)
]
_RUNS += [
    (ranks, accumulation, {"run.sums": "fixed"}) for ranks, accumulation in ((1, 4), (2, 1), (2, 4))
]
_RECIPE = {
    "schedule.rule": "cosine", "data.mixup": 0.2, "data.cutmix": 1, "data.erase": 0.5,
    "data.augment": "trivial", "optim.ema_decay": 0.99, "optim.clip_norm": 1,
    "optim.class_weights": "balanced",
}  # fmt: skip
"""Settings of the recipes of today, all at once."""
_FINE = {"model.freeze": "[stem,1]", "optim.head_lr": 1}
_RUNS += [
    (ranks, 2, {**_RECIPE, "optim.optimizer": optimizer, "model.graphs": graphs})
    for ranks, optimizer, graphs in (
        (1, "sgd", "false"), (1, "lars", "false"), (1, "lamb", "true"), (2, "sgd", "true"),
    )
]  # fmt: skip
_RUNS += [(2, 2, {**_RECIPE, **_FINE, "optim.loss": "bce"})]
"""Ranks, micro-batches of each, and settings."""


def missing() -> str | None:
    """Why nothing can be measured here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is not built for CUDA"
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        return "it needs gcc and nm"
    return None


def main(argv: Sequence[str]) -> int:
    """Builds, measures, prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each side of a step")
    parser.add_argument("--json", type=Path, help="where to write the result as well")
    options = parser.parse_args(argv)
    problem = missing()
    if problem is not None:
        print(f"hollow-gpu: skipped, {problem}")
        return 0
    from pipeline.benchmark.result import Result, of_this_machine, write_json

    result = Result("hollow_gpu", {"rounds": options.rounds})
    with tempfile.TemporaryDirectory() as folder:
        run = _runner(Path(folder))
        print(run("launches.py"), flush=True)
        measure_steps(run, options.rounds, result)
        measure_trainings(run, Path(folder), result)
    if options.json is not None:
        write_json(options.json, of_this_machine(result.to_json()))
    return 0


def _runner(folder: Path) -> Run:
    """Builds into `folder`; returns what runs a script there."""
    sys.path.insert(0, str(HERE))
    from build import build, environment

    env = environment(build(folder)) | {"PYTHONPATH": str(REPOSITORY)}

    def run(script: str, *arguments: object, ranks: int = 1) -> str:
        from pipeline.ranks.local import start_ranks

        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        there = {**env, "HOLLOW_GPUS": str(ranks)}
        with start_ranks(
            command, ranks, there, engine="torch", cwd=REPOSITORY, stdout=subprocess.PIPE
        ) as started:
            said = [process.communicate()[0] for process in started.processes]
            codes = [process.returncode for process in started.processes]
        if any(codes):
            raise SystemExit(f"hollow-gpu: {script} failed with codes {codes}")
        return str(said[0]).strip().splitlines()[-1]

    return run


def measure_steps(run: Run, rounds: int, result: Result) -> None:
    """Prints a row for each network and norm layer; ratios are round by round."""
    from pipeline.benchmark.result import Spread, ratio

    head = ("images", "CPU ms", "to reference", "launches", "graphs")
    print("CPU time of a step".ljust(22), *(f"{name:>13}" for name in head))
    for depth, batch in NETWORKS:
        sides = json.loads(run("host_step.py", depth, batch, rounds))
        times = {side: Spread(tuple(found["cpu_ms"])) for side, found in sides.items()}
        for side, found in sides.items():
            name, counts = f"{side}_resnet{depth}", found["counts"]
            result.spreads[f"{name}_cpu_ms"] = times[side]
            result.figures[f"{name}_counts"] = counts
            to_reference = ratio(times[side], times["reference"])
            if side != "reference":
                result.ratios[f"{side}_vs_reference_resnet{depth}"] = to_reference
            cells = (
                str(batch), f"{times[side].median:.2f}", f"{to_reference.median:.2f}",
                str(counts["launches"] + counts["triton"]), str(counts["graphs"]),
            )  # fmt: skip
            print(f"ResNet-{depth} {side}".ljust(22), *(f"{c:>13}" for c in cells), flush=True)


def measure_trainings(run: Run, folder: Path, result: Result) -> None:
    """Prints a row for each of `_RUNS`, and the lines of the program that waited."""
    head = ("waits", "copies", "pageable", "launches", "graphs")
    print("\n" + "pipeline.train, a step of a rank".ljust(46), *(f"{name:>9}" for name in head))
    for ranks, accumulation, chosen in _RUNS:
        recipe = _RECIPE.items() <= chosen.items()
        own = {key: value for key, value in chosen.items() if not recipe or key not in _RECIPE}
        given = " ".join(f"{key.partition('.')[2]}={value}" for key, value in own.items())
        given = f"recipe {given}" if recipe else given
        name = f"ranks={ranks} accumulation={accumulation} {given}"
        settings = {"data.local_batch_size": _BATCH // ranks // accumulation, **chosen}
        arguments = _training(folder, name, settings)
        found = json.loads(run("training.py", _FIRST, _LAST, *arguments, ranks=ranks))
        result.figures[name] = found
        print(_training_row(name, found), flush=True)
        for place, times in found["places"].items():
            print(f"    {times:.2f} {place}")


def _training(folder: Path, name: str, settings: dict[str, object]) -> list[str]:
    """Arguments of a training that has `_LAST` steps within one epoch; draws its images once."""
    data = folder / "data"
    if not data.exists():
        images = _BATCH * (_LAST + 1)
        command = ["-m", "pipeline.prepare", "demo", f"--out={data}", f"--train={images}"]
        subprocess.run(
            [sys.executable, *command, "--val=20"], cwd=REPOSITORY, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    fixed = {
        "data.root": data, "data.decode": "cpu", "data.global_batch_size": _BATCH,
        "schedule.epochs": 2, "schedule.warmup_epochs": 0, "schedule.drop_epochs": "[1]",
        "run.dir": folder / "runs", "run.name": name.replace(" ", "-"), "run.device": "cuda",
        "run.log_every_steps": 10 * _LAST, "model.norm": "triton",
    }  # fmt: skip
    both = fixed | settings
    return ["--config=configs/demo.yaml", *(f"--{key}={value}" for key, value in both.items())]


def _training_row(name: str, found: dict[str, Any]) -> str:
    copies, launches = found["to_device"] + found["to_host"], found["launches"] + found["triton"]
    cells = (
        f"{found['waits']:.2f}", f"{copies:.1f}", f"{found['pageable']:.1f}", f"{launches:.0f}",
        f"{found['graphs']:.0f}",
    )  # fmt: skip
    return " ".join([name.ljust(46), *(f"{cell:>9}" for cell in cells)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
