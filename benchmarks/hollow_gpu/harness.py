"""In a process on the hollow GPU: its counters, where the host waits, and convolutions that are
empty results (cuDNN is not replaced)."""

from __future__ import annotations

import collections
import ctypes
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

REPOSITORY = Path(__file__).parent.parent.parent
_NAMES = (
    "launches", "waits", "to_device", "to_host", "pageable", "allocations", "events", "graphs",
)  # fmt: skip
_KEPT = 8 + 32  # numbers of a launch that the driver keeps

_folder = os.environ["HOLLOW"]
_runtime = ctypes.CDLL(f"{_folder}/libhollow_runtime.so", mode=ctypes.RTLD_GLOBAL)
_driver = ctypes.CDLL(f"{_folder}/libcuda.so.1")
_driver.hollow_driver_launches.restype = ctypes.c_long


def counts() -> dict[str, int]:
    """Everything so far: torch's launches, Triton's, graphs, waits of the host, copies, ..."""
    numbers = (ctypes.c_long * len(_NAMES))()
    _runtime.hollow_counts(numbers)
    found = dict(zip(_NAMES, numbers, strict=True))
    return found | {"triton": _driver.hollow_driver_launches()}


class Waits:
    """Where the host waited for the device while it was `on`: each place with its number."""

    def __init__(self) -> None:
        self.on = False
        self.places: collections.Counter[str] = collections.Counter()
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._add)  # kept alive
        _runtime.hollow_on_wait(self._callback)

    def _add(self, name: bytes) -> None:
        if not self.on:
            return
        ours = [
            f"{os.path.relpath(frame.filename, REPOSITORY)}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if "/pipeline/" in frame.filename
        ]
        place = " < ".join(reversed(ours[-3:])) or f"thread {threading.current_thread().name}"
        self.places[f"{name.decode()}: {place}"] += 1


def last_launch(arguments: int, launch: Callable[[], object]) -> list[int]:
    """Grid, threads, memory, stream, function and `arguments` of the last launch in `launch`."""
    _driver.hollow_keep(arguments)
    launch()
    numbers = (ctypes.c_long * _KEPT)()
    _driver.hollow_kept(numbers)
    _driver.hollow_keep(0)
    return list(numbers)[: 8 + arguments]


def empty_convolutions() -> torch.library.Library:
    """Replaces convolutions as long as the result lives."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("convolution", _convolution, "CUDA")
    library.impl("convolution_backward", _gradients, "CUDA")
    return library


def _convolution(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    height, width = (
        (x.shape[d] + 2 * padding[d - 2] - dilation[d - 2] * (w.shape[d] - 1) - 1) // stride[d - 2]
        + 1
        for d in (2, 3)
    )
    shape = (x.shape[0], w.shape[0], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _gradients(
    dy: Tensor, x: Tensor, w: Tensor, bias_sizes: list[int] | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int, mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, None]:  # fmt: skip
    empty = [
        torch.empty_like(t, memory_format=torch.channels_last) if wanted else None
        for t, wanted in zip((x, w), mask, strict=False)
    ]
    return empty[0], empty[1], None


def leave() -> None:
    """Ends the process at once: libraries that were told of a GPU do not end well without one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
