"""The device a benchmark runs on: choosing it, its clock, its limits, and graphs captured on it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from pipeline.system.gpus import unusable_gpus

Work = Callable[[], object]
Loop = Callable[[int], object]
"""Takes the given number of steps."""

Found = TypeVar("Found")

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_COPY_BYTES = {"cuda": 2**30, "cpu": 2**24}
_COPIES = 4
_PRODUCT_SIDE = {"cuda": 8192, "cpu": 128}


def pick_device(choice: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device for a benchmark; a GPU becomes the current one. ValueError if there is none.

    Separate from `pipeline.ranks.places.choose_device` so that DALI need not be installed.
    """
    trouble = None if choice == "cpu" else unusable_gpus()
    if trouble is not None:
        raise ValueError(f"--device={choice}: {trouble.found}; {trouble.cure}")
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "--device=cuda needs an NVIDIA GPU and PyTorch sees none; use --device=cpu"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    return device


def seconds(device: torch.device, work: Work) -> float:
    """Seconds that `work` takes, by CUDA events on a GPU."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def again(step: Work) -> Loop:
    """A loop of nothing but `step`."""

    def loop(steps: int) -> None:
        for _ in range(steps):
            step()

    return loop


def rate(device: torch.device, images: int, steps: int, loop: Loop) -> Callable[[], float]:
    """A function that measures a round of `loop`: images/s over `steps` steps of `images` each."""
    return lambda: images * steps / seconds(device, lambda: loop(steps))


def capture(work: Work, warm_up: int = 3) -> Callable[[], None]:
    """Captures the kernels of `work` in a CUDA graph; returns a function that launches it.

    `work` reads and writes the same memory each time; it first runs `warm_up` times on a stream of
    its own, as PyTorch's notes on CUDA graphs say. RuntimeError if it cannot be captured.
    """
    before, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(before)
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            work()
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # what it frees meanwhile, another graph for one, may end the capture
    try:
        with torch.cuda.graph(graph):
            work()
    finally:
        gc.enable()
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
    return graph.replay


def release(device: torch.device) -> None:
    """Returns unreferenced memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the device ran out of memory, possibly several errors back in the chain."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def fitting(images: int, device: torch.device, work: Callable[[int], Found]) -> Found:
    """`work` of `images`, halved until it fits into the device's memory."""
    while True:
        try:
            return work(images)
        except Exception as error:
            if not out_of_memory(error) or images == 1:
                raise
        images //= 2
        release(device)


def time_limit(limit_sec: float | None) -> Callable[[], str | None]:
    """A function that returns None until `limit_sec` from now, then why nothing more is started."""
    started = time.monotonic()

    def reason() -> str | None:
        if limit_sec is None or time.monotonic() - started <= limit_sec:
            return None
        return f"the time limit of {limit_sec:g} s was over before"

    return reason


def reason(error: BaseException) -> str:
    """The error in one line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:300] if said else 'no message'}"


def as_options(problem: str | None) -> str | None:
    """Why a backend cannot run, as `pipeline.model.backends` says it, but naming the options of a
    benchmark instead of settings."""
    settings = (("run.device=", "--device="), ("optim.amp=", "--amps="), ("optim.amp", "the dtype"))
    for setting, option in settings:
        problem = problem and problem.replace(setting, option)
    return problem


class Copy:
    """Memory bandwidth: one large tensor copied to another, of 1 GiB on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._from = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
        self._to = torch.zeros_like(self._from)

    def bytes_per_sec(self) -> float:
        """One measurement; each byte counts twice, as it is read and written."""

        copies = again(lambda: self._to.copy_(self._from))
        sec = seconds(self.device, lambda: copies(_COPIES))
        return 2 * _COPIES * self._from.numel() / sec


def flop_per_sec(device: torch.device, dtype: torch.dtype) -> float:
    """Arithmetic peak: the best of a few square matrix products, of side 8192 on a GPU."""
    side = _PRODUCT_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = [seconds(device, lambda: a @ b) for _ in range(10)]
    return 2 * side**3 / min(times)
