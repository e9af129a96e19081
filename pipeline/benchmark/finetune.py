"""`benchmark finetune`: whether a trained network learns new classes from few images.

The demo's network has seen ten drawn shapes. Five others, of which there are few images, are learnt
twice with equal images, epochs and crops: by its last stage and head alone, the rest frozen, and by
the whole network from nothing, as configs/demo.yaml trains it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.benchmark.demo import shortened
from pipeline.benchmark.processes import environment
from pipeline.benchmark.rank_options import FinetuneOptions
from pipeline.benchmark.result import Result, Spread, by_round, status_line
from pipeline.config.reading import config_of, read_yaml
from pipeline.config.yaml_file import CONFIGS
from pipeline.data.index.survey import Split
from pipeline.prepare import demo
from pipeline.prepare import options as prepare
from pipeline.prepare.drawn import UNSEEN
from pipeline.ranks.local import start_ranks
from pipeline.system.console import say
from pipeline.system.failure import TrainingError
from pipeline.train.folder import Checkpoints, RunFolder

_CONFIG = CONFIGS / "demo.yaml"
_BATCH = 20
_FROZEN = "--model.freeze=[stem,1,2,3]"
_LAST_LINES = 15


def run(options: FinetuneOptions) -> Result:
    """Top-1 at the end of each training; the figure `gain_points` is the mean difference over seeds
    in percentage points. Raises `TrainingError` if a training fails."""
    sides: dict[str, list[float]] = {"finetuned": [], "from_nothing": []}
    with tempfile.TemporaryDirectory() as made, status_line() as show:
        folder = Path(made)
        show("training the demo")
        init = Path(options.init) if options.init else _demo(folder)
        for seed in range(options.seeds):
            data = _drawn(folder / f"data-{seed}", seed, options)
            for side, found in sides.items():
                show(f"training: {side.replace('_', ' ')}, seed {seed}")
                more = [f"--init={init}", _FROZEN] if side == "finetuned" else []
                found.append(_trained(folder, f"{side}-{seed}", data, seed, options, more))
    spreads = {f"{side}_top1": Spread(tuple(found)) for side, found in sides.items()}
    gains = by_round(lambda a, b: 100 * (a - b), *spreads.values())
    result = Result("finetune", {**vars(options), "device": "cpu"}, spreads=spreads)
    result.figures["gain_points"] = sum(gains.rounds) / len(gains.rounds)
    result.figures["least_gain_points"] = min(gains.rounds)
    result.table = [("top-1", *(f"seed {seed}" for seed in range(options.seeds)))]
    result.table += [(side, *(f"{one:.1%}" for one in found)) for side, found in sides.items()]
    return result


def _demo(folder: Path) -> Path:
    """The checkpoint of a new training of the demo."""
    root = folder / "demo"
    demo.draw_demo(prepare.DemoOptions(out=root))
    _train(folder, "demo", [f"--data.root={root}"])
    return Checkpoints(RunFolder(folder / "runs" / "demo").checkpoints).best


def _drawn(root: Path, seed: int, options: FinetuneOptions) -> Path:
    """A data set of the five classes, other images for every seed."""
    counts: tuple[tuple[Split, int], ...] = (("train", options.images), ("val", options.val))
    for split, count in counts:
        for index in range(count * len(UNSEEN)):
            name = UNSEEN[index % len(UNSEEN)]
            place = root / split / name / f"{index:05d}.JPEG"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(demo.demo_file(1 + seed, split, index, UNSEEN))
    return root


def _trained(
    folder: Path, name: str, data: Path, seed: int, options: FinetuneOptions, more: Sequence[str]
) -> float:
    """Top-1 at the end of a training of the five classes."""
    schedule = shortened(config_of(read_yaml(_CONFIG)), options.epochs).schedule
    settings = [
        f"--data.root={data}", f"--run.seed={seed}", f"--schedule.epochs={schedule.epochs}",
        f"--schedule.warmup_epochs={schedule.warmup_epochs}",
        f"--schedule.drop_epochs={list(schedule.drop_epochs or ())}",
        f"--data.global_batch_size={_BATCH}", f"--data.local_batch_size={_BATCH}", *more,
    ]  # fmt: skip
    _train(folder, name, settings)
    top1: float = RunFolder(folder / "runs" / name).last("done")["top1"]
    return top1


def _train(folder: Path, name: str, settings: Sequence[str]) -> None:
    command = [
        sys.executable, "-m", "pipeline.train", "--config", str(_CONFIG), "--run.device=cpu",
        f"--run.dir={folder / 'runs'}", f"--run.name={name}", "--run.expect_top1=null",
        "--run.checkpoint_every_sec=null", *settings,
    ]  # fmt: skip
    said = folder / f"{name}.txt"
    with open(said, "w", encoding="utf-8") as output:
        ranks = start_ranks(command, 1, environment(), stdout=output, stderr=subprocess.STDOUT)
        with ranks:
            codes = [process.wait() for process in ranks.processes]
    if any(codes):
        say(*said.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:], stream=sys.stderr)
        raise TrainingError(f"the training {name} failed; its last lines are above")
