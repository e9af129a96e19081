"""`benchmark train`: the whole of pipeline.train on one device, from JPEG files to checkpoints."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.benchmark.device import pick_device
from pipeline.benchmark.options import DEPTHS, TrainOptions, chosen
from pipeline.benchmark.photos import make_photos
from pipeline.benchmark.result import Result, Spread, by_round
from pipeline.data.index.manifest import open_manifest
from pipeline.ranks.horovod import nccl_built
from pipeline.system.console import say
from pipeline.system.failure import TrainingError
from pipeline.train.folder import RunFolder, find_runs

_ROOT = Path(__file__).resolve().parents[2]
_WARM_UP_LINES = 2  # kernels are tuned and compiled, the page cache and the queues fill
_VAL_FILES = 64
_USUAL_RESIZE, _USUAL_SIZE = 256, 224
_LR = 1e-3  # the pixels are noise: a rate that keeps every loss finite
_AIMS = {50: 8000.0, 152: 3400.0}  # images per second on one H200 at 224 pixels
_LAST_LINES = 15


def run(options: TrainOptions) -> Result:
    """Images per second and data-wait share of each line of metrics, for each depth.

    One process started as a user starts it: by horovodrun where Horovod is installed, alone
    otherwise. Ratios, on a GPU at 224 pixels: `resnet50_of_8000` and `resnet152_of_3400`, images
    per second over their aims on one H200. Raises `TrainingError` if a run fails.
    """
    device = pick_device(options.device).type
    result = Result("train", {**vars(options), "device": device})
    result.table = [("", "img/s", "quartiles", "data wait")]
    with tempfile.TemporaryDirectory() as folder:
        data = _data(options, Path(folder))
        cache = Path(folder) / "cache"  # nothing is written to somebody's data
        images = len(open_manifest(data, "train", cache))
        launch, result.figures["launched_as"] = launcher(device)
        for depth in chosen(options.depths, DEPTHS):
            runs = Path(folder) / f"resnet{depth}"
            given = settings(options, depth, device, images)
            given |= {"data.root": data, "data.cache_dir": cache, "run.dir": runs}
            started = time.perf_counter()
            lines = _train(launch, given, runs)
            result.figures[f"resnet{depth}_run_sec"] = time.perf_counter() - started
            _enter(options, depth, device, lines, result)
    return result


def launcher(device: str) -> tuple[list[str], str]:
    """The command that starts a run, and its description."""
    if importlib.util.find_spec("horovod") is None:
        return [], "one process without Horovod, which is not installed"
    nccl = nccl_built()
    if device == "cuda" and not nccl:
        return [], "one process without Horovod, which is built without NCCL"
    return ["horovodrun", "-np", "1"], f"one Horovod rank, NCCL {'built' if nccl else 'not built'}"


def _data(options: TrainOptions, folder: Path) -> Path:
    """The folder of the data set, with enough training images that the run is a single epoch:
    validations in between would leave batches waiting."""
    if options.data is not None:
        return Path(options.data).resolve()
    root = folder / "data"
    make_photos(root, options.files, classes=options.classes)
    val_files = max(options.classes, min(_VAL_FILES, options.files))
    make_photos(root, val_files, seed=1, classes=options.classes, split="val")
    files = sorted((root / "train").rglob("*.JPEG"))
    for number in range(len(files), _steps(options) * options.batch):
        turn, place = divmod(number, len(files))
        os.link(files[place], files[place].with_name(f"{files[place].stem}_{turn:04d}.JPEG"))
    return root


def _steps(options: TrainOptions) -> int:
    return (_WARM_UP_LINES + options.rounds) * options.steps


def settings(options: TrainOptions, depth: int, device: str, images: int) -> dict[str, Any]:
    """The settings that differ from pipeline.train's defaults, for `images` training images: where
    it runs, the size, the length and the rate."""
    # Half a step less: the number of steps is rounded up, and the division may not be exact.
    epochs = (_steps(options) - 0.5) * options.batch / images
    return {
        "data.dataset": "null",
        "data.decode": "gpu" if device == "cuda" else "cpu",
        "data.global_batch_size": options.batch,
        "data.local_batch_size": options.batch,
        "data.image_size": options.size,
        "data.val_resize": _USUAL_RESIZE * options.size // _USUAL_SIZE,
        "model.depth": depth,
        "optim.amp": options.amp,
        "optim.base_lr": _LR,
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": 0,
        "run.device": device,
        "run.log_every_steps": options.steps,
        "run.checkpoint_every_sec": "null",
    }


def _train(launch: list[str], given: dict[str, Any], runs: Path) -> list[dict[str, Any]]:
    """The lines of metrics of one run after those that warm up."""
    options = [f"--{name}={value}" for name, value in given.items()]
    done = subprocess.run(
        [*launch, sys.executable, "-m", "pipeline.train", *options],
        cwd=_ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        say(*done.stdout.splitlines()[-_LAST_LINES:], stream=sys.stderr)
        # horovodrun's own lines follow the one that names the cause.
        cause = re.search(r"error: (.*)", done.stdout)
        reason = cause[1] if cause else "its last lines are above"
        raise TrainingError(f"the run of ResNet-{given['model.depth']} failed: {reason}")
    (run,) = find_runs(runs)
    lines = [line for line in RunFolder(run).lines() if line["event"] == "train"]
    return lines[_WARM_UP_LINES:]


def _enter(
    options: TrainOptions, depth: int, device: str, lines: list[dict[str, Any]], result: Result
) -> None:
    name = f"resnet{depth}"
    speed = Spread(tuple(line["images_per_sec"] for line in lines))
    wait = Spread(tuple(line["data_wait_share"] for line in lines))
    result.spreads |= {f"{name}_images_per_sec": speed, f"{name}_data_wait_share": wait}
    if device == "cuda" and depth in _AIMS and options.size == _USUAL_SIZE:
        aim = _AIMS[depth]
        result.ratios[f"{name}_of_{aim:.0f}"] = by_round(lambda one: one / aim, speed)
    result.table.append((name, *speed.cells(), f"{wait.median:.1%}"))
