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
from jsonargparse import ArgumentParser

from pipeline.config import ConfigError, require, setting_names
from pipeline.failure import run_command
from pipeline.options import add_overrides, can_hold, checkpoint_exists, overrides, parse

DESCRIPTION = (
    "Validates a checkpoint on one process or under horovodrun. Settings come from the checkpoint; "
    "those listed here can be changed."
)
SETTINGS = (
    "data.root", "data.cache_dir", "data.local_batch_size", "data.image_size", "data.val_resize",
    "data.decode", "data.threads", "data.prefetch_batches", "data.output",
    "data.hw_decoder_load", "data.preallocate", "data.device_padding_bytes",
    "data.host_padding_bytes", "data.bad_images", "model.norm", "optim.amp", "run.device",
    "run.threads",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Parses and checks, then loads what is heavy and runs."""
    parser = ArgumentParser(
        prog="python -m pipeline.evaluate", description=DESCRIPTION, exit_on_error=False
    )
    parser.add_argument("--checkpoint", type=str, help="file of a training run (.pt)")
    parser.add_argument("--json", type=str, help="also write the result to this file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_overrides(parser, SETTINGS)
    for argument in argv:
        name = argument.partition("=")[0].lstrip("-")
        if name in ("config", *setting_names()) and name not in SETTINGS:
            raise ConfigError(f"--{name} comes from the checkpoint; --help lists what can change")
    options = parse(parser, {}, argv)
    require(
        options.checkpoint is not None,
        "--checkpoint is missing; give the path of a .pt file of a run",
    )
    checkpoint_exists("--checkpoint", options.checkpoint)
    if options.json is not None:
        can_hold("--json", options.json)
    result = evaluate(Path(options.checkpoint), options)
    if result is not None and options.json is not None:
        Path(options.json).write_text(json.dumps(result) + "\n", encoding="utf-8")


def evaluate(checkpoint: Path, options: Any) -> dict[str, Any] | None:
    """Collective. Counts the validation images that the checkpoint's network gets right.

    `options` is the parsed command line. Returns the result on rank 0, None elsewhere.
    """
    from pipeline import engine
    from pipeline.checkpoint import read_verified
    from pipeline.distributed import connect
    from pipeline.job import make_model, open_val_loader
    from pipeline.machine import choose_decoding, choose_device, own_share, set_threads
    from pipeline.monitor import log, start_logging
    from pipeline.precision import Precision
    from pipeline.run import open_val_data

    world = connect()
    start_logging(world.rank)
    content = world.on_rank0(lambda: read_verified(checkpoint))
    stored = yaml.safe_load(content["config"])
    config = world.together(lambda: overrides(options, SETTINGS, stored))
    share = own_share(world)
    set_threads(config, share)
    val_set = open_val_data(config, world, content["classes"])
    device = world.together(lambda: choose_device(config.run.device, share.gpu))
    decode = world.together(lambda: choose_decoding(config, device, share, (val_set,)))
    model = world.together(lambda: make_model(config, len(content["classes"]), device))
    world.together(lambda: model.load_state_dict(content["model"]))
    model.eval()
    precision = Precision(config.optim.amp, device)
    excluded: frozenset[int] = frozenset()
    if content["fingerprint"].get("data hash of val") == val_set.digest:  # else other images
        excluded = frozenset(content.get("excluded", {}).get("val", ()))
    with contextlib.closing(open_val_loader(config, val_set, world, decode, excluded)) as loader:
        counted = engine.validate(model, loader, precision, world, len(val_set))
        passed_over = world.gather_objects(loader.found)
    for found in (found for theirs in passed_over for found in theirs):
        log.warning("warning: %s; it counts as wrong", found.error)
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
