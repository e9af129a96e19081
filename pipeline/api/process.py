"""What a call does to its process, and undoes: one call at a time, its errors, and what a command
leaves as it ends its process with it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.ranks import disconnect
from pipeline.system.console import files_log, log
from pipeline.system.failure import ExitCode, FellWithPeer, Reported, TrainingError, raise_with_cure
from pipeline.system.memory import give_back_freed_memory

_turn = threading.Lock()
_running: list[str] = []  # what holds the turn


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """Runs the body as the one call of this process, in the state in which commands run, and puts
    back what was there. Errors are those that the public functions raise.

    Raises `TrainingError` while another call is not done.
    """
    if not _turn.acquire(blocking=False):
        raise TrainingError(
            f"{what} cannot run beside {' and '.join(_running)}, which has not ended in this "
            "process: ranks, threads, signals and log are the process's; wait for it, or start "
            "another process"
        )
    try:
        _running[:] = [what]
        with _put_back():
            try:
                with _as_errors():
                    yield
            finally:
                disconnect()
    finally:
        _running.clear()
        _turn.release()


@contextlib.contextmanager
def _as_errors() -> Iterator[None]:
    """Turns the ways in which the ranks of a command end together into the errors behind them."""
    try:
        yield
    except Reported as reported:
        cause = reported.__cause__
        if isinstance(cause, Exception):
            raise cause from cause.__cause__  # its own, not the ranks'
        # Another rank's: it has the error itself.
        kind = ValueError if reported.code is ExitCode.WRONG_INPUT else TrainingError
        raise kind(reported.message) from None
    except FellWithPeer as fell:
        raise TrainingError(str(fell)) from fell
    except ModuleNotFoundError as error:
        raise_with_cure(error)


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """Puts back what a command sets for its whole process and never needs again."""
    with _memory_given_back(), _log_kept(), _torch_kept(), _alarm_kept(), _garbage_kept():
        yield


@contextlib.contextmanager
def _log_kept() -> Iterator[None]:
    loggers: tuple[logging.Logger, ...] = (log, files_log)
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    raised = logging.raiseExceptions
    try:
        yield
    finally:
        logging.raiseExceptions = raised
        for one, handlers, level, propagate in before:
            for ours in set(one.handlers) - set(handlers):
                ours.close()
            one.handlers[:] = handlers
            one.setLevel(level)
            one.propagate = propagate


@contextlib.contextmanager
def _torch_kept() -> Iterator[None]:
    """Threads, the state of random numbers, and what the arithmetic of a GPU may be."""
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    drawn = torch.get_rng_state()
    on_gpu = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    drawn_on_gpus: list[Any] = torch.cuda.get_rng_state_all() if on_gpu else []
    gpu = torch.cuda.current_device() if on_gpu else None
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if variable is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        torch.set_rng_state(drawn)
        if on_gpu:
            torch.cuda.set_rng_state_all(drawn_on_gpus)
        if gpu is not None:
            torch.cuda.set_device(gpu)
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = flags
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()  # what PyTorch keeps of it is for others too


@contextlib.contextmanager
def _alarm_kept() -> Iterator[None]:
    """The action of SIGALRM, which the watchdog of several ranks sets without Python's knowing."""
    before = signal.getsignal(signal.SIGALRM)
    try:
        yield
    finally:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and before is not None:  # None: not set from Python
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """The garbage of the body, which a training freezes for its speed, is collected again."""
    was_frozen = gc.get_freeze_count() > 0
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()
        if was_frozen:
            gc.freeze()


@contextlib.contextmanager
def _memory_given_back() -> Iterator[None]:
    """The memory that a body on CPUs keeps for its next step is free for others afterwards."""
    try:
        yield
    finally:
        give_back_freed_memory()
