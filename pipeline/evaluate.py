"""Validates a checkpoint: `python -m pipeline.evaluate --checkpoint runs/demo/checkpoints/best.pt`.

Every image counts once, on any number of ranks; the result is that of the training's validation.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ConfigError
from pipeline.failure import run_command
from pipeline.options import new_parser, parse, to_config

DESCRIPTION = "Validates a checkpoint on one process or under horovodrun."


def main(argv: list[str]) -> None:
    """Parses and checks, then loads what is heavy and runs."""
    parser = new_parser("python -m pipeline.evaluate", DESCRIPTION)
    parser.add_argument("--checkpoint", type=str, default=None, help="file of a training run (.pt)")
    parser.add_argument("--json", type=str, default=None, help="also write the result to this file")
    # Options override the settings of the training, which come from the checkpoint itself.
    options = parse(parser, {}, argv)
    if options.checkpoint is None:
        raise ConfigError("--checkpoint is missing; give the path of a .pt file of a run")
    result = evaluate(Path(options.checkpoint), parser, argv)
    if result is not None and options.json is not None:
        Path(options.json).write_text(json.dumps(result) + "\n", encoding="utf-8")


def evaluate(checkpoint: Path, parser: Any, argv: list[str]) -> dict[str, Any] | None:
    """Collective. Counts the validation images that the checkpoint's network gets right.

    Returns the result on rank 0, None elsewhere.
    """
    from pipeline import engine
    from pipeline.checkpoint import read_verified
    from pipeline.distributed import connect
    from pipeline.job import (
        choose_decoding,
        choose_device,
        cpu_share,
        make_model,
        open_val_loader,
        set_threads,
    )
    from pipeline.monitor import log, start_logging
    from pipeline.precision import Precision
    from pipeline.run import open_val_data

    world = connect()
    start_logging(world.rank)
    content = world.on_rank0(lambda: read_verified(checkpoint))
    config = world.together(
        lambda: to_config(parse(parser, yaml.safe_load(content["config"]), argv))
    )
    set_threads(config, world)
    val_set = open_val_data(config, world, content["classes"])
    device = world.together(lambda: choose_device(config.run.device, world.local_rank))
    threads = config.data.threads or cpu_share(world)
    decode = world.together(lambda: choose_decoding(config, device, threads))
    model = make_model(config, len(content["classes"]), device)
    model.load_state_dict(content["model"])
    model.eval()
    precision = Precision(config.optim.amp, device)
    with contextlib.closing(open_val_loader(config, val_set, world, decode)) as loader:
        counted = engine.validate(model, loader, precision, world, len(val_set))
    log.info(
        "%s at step %d: top-1 %.4f (%d of %d), top-5 %.4f (%d), loss %.4f",
        checkpoint, content["step"], counted.top1, counted.top1_correct, counted.images,
        counted.top5, counted.top5_correct, counted.loss,
    )  # fmt: skip
    world.barrier()
    if world.rank != 0:
        return None
    return {"checkpoint": str(checkpoint), "step": content["step"], "top1": counted.top1,
            "top5": counted.top5, "loss": counted.loss, "images": counted.images,
            "top1_correct": counted.top1_correct, "top5_correct": counted.top5_correct}  # fmt: skip


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
