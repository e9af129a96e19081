"""Runs `pipeline.train` and `pipeline.evaluate` inside the test's own process, for what needs no
ranks of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jobs import small_settings

from pipeline.config import Config
from pipeline.config.reading import load_config
from pipeline.evaluate.__main__ import main as evaluate
from pipeline.train.run import run


def config_of(data: Path, runs: Path, *options: str) -> Config:
    """A small run, of one epoch: 7 steps of 8 images without accumulation."""
    argv = [
        *small_settings(data, runs), "--schedule.epochs=1", "--schedule.drop_epochs=[]",
        "--data.local_batch_size=8", *options,
    ]  # fmt: skip
    return load_config(argv)


def train_here(data: Path, runs: Path, *options: str) -> Path:
    """Trains and returns the run's folder. Raises `Reported`, as every rank does."""
    config = config_of(data, runs, *options)
    with _process_state_kept():
        run(config)
    return config.run.path


def evaluate_here(*argv: str) -> None:
    """Evaluates. Raises `Reported`, as every rank does, or `ConfigError`."""
    with _process_state_kept():
        evaluate(list(argv))


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """Logging and threads as they were: a command sets them for its process."""
    log = logging.getLogger("trainyard")
    before = list(log.handlers), log.level, log.propagate, logging.raiseExceptions
    threads, environment = torch.get_num_threads(), dict(os.environ)
    try:
        yield
    finally:
        for handler in log.handlers:
            handler.close()
        log.handlers, log.level, log.propagate, logging.raiseExceptions = before
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)
