"""Trains a network: `horovodrun -np 8 python -m pipeline.train [--config FILE] [options]`, or
`torchrun --nproc-per-node=8 -m pipeline.train ...`."""

from __future__ import annotations

import gc
import sys

from pipeline.config.commented import commented
from pipeline.config.help import PRINT_CONFIG
from pipeline.config.reading import load_config
from pipeline.system.console import say
from pipeline.system.failure import StopSignal, run_command
from pipeline.system.launched import launched_rank, launched_size
from pipeline.train.checkpoint_path import checkpoint_exists

DESCRIPTION = "Trains a ResNet on JPEG files, on one process or under horovodrun or torchrun."


def main(argv: list[str]) -> None:
    """Parses and checks, then loads what is heavy and runs."""
    with StopSignal(whole_command=True) as stop:  # a signal may come while torch is loaded
        _train(argv, stop)


def _train(argv: list[str], stop: StopSignal) -> None:
    config = load_config(argv, description=DESCRIPTION)
    if PRINT_CONFIG in argv:
        if launched_rank() == 0:
            say(*commented(config).splitlines())
        return
    from pipeline.data.batches import split_global_batch

    split_global_batch(config.data.global_batch_size, config.data.local_batch_size, launched_size())
    if config.resume not in ("auto", "none"):
        checkpoint_exists("--resume is neither auto nor none, and the checkpoint", config.resume)
    from pipeline.train.monitor.loggers import require_installed

    require_installed(config.run.loggers)
    # What is imported stays. To search it for garbage again and again takes half a second of the
    # three that the CPU works until the first batch, and would stop the training later.
    gc.disable()
    from pipeline.train.run import run  # torch, DALI and Horovod: after the check

    gc.freeze()
    gc.enable()
    run(config, stop)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
