"""The last part of a batch's way: from a graph's outputs to tensors on the rank's device.

The training thread never waits here for a GPU. Where a graph ends on the GPU, its outputs are
handed over on the stream that training queues its work on. Where it ends in host memory and
training is on a GPU, a thread is a batch ahead: it copies into pinned memory, and from there on a
stream of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

_Drawn = TypeVar("_Drawn")


class DrawnAhead(Generic[_Drawn]):
    """Calls `draw` in a thread of its own, one call ahead of those who take what it returns.

    What `draw` raises is raised in place of its result.
    """

    def __init__(self, draw: Callable[[], _Drawn]) -> None:
        self._draw = draw
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._coming: Future[_Drawn] | None = None
        self._began = False  # whether the thread has had a call

    def next(self, last: bool) -> _Drawn:
        """What the next call returned; `last`: no call follows it."""
        self._began = True
        future = self._coming or self._thread.submit(self._draw)
        self._coming = None
        drawn = future.result()
        if not last:
            self._coming = self._thread.submit(self._draw)
        return drawn

    def stop(self) -> None:
        """Waits for the call that runs, and forgets what it returns or raises."""
        if self._coming is not None:
            self._coming.cancel()
        self._coming = None
        if self._began:  # also for a call whose waiting an interrupt has broken off
            self._thread.submit(int).result()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._coming = None


@dataclass(frozen=True)
class Copied:
    """Tensors on a GPU, whole once `arrived`."""

    tensors: tuple[Tensor, ...]
    arrived: torch.cuda.Event

    def take(self) -> tuple[Tensor, ...]:
        """The tensors, for work that is queued on the current stream from now on; the host does not
        wait."""
        stream = torch.cuda.current_stream(self.tensors[0].device)
        stream.wait_event(self.arrived)
        for tensor in self.tensors:
            tensor.record_stream(stream)  # else the copying stream might write there too early
        return self.tensors


class Uploads:
    """Copies tensors from host memory to the GPU `device` on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, tensors: tuple[Tensor, ...]) -> Copied:
        """Begins to copy; the memory of `tensors` may be used again as soon as this returns.

        What lies in pinned memory stays valid until its copy is done: PyTorch gives such memory out
        again only then.
        """
        with torch.cuda.stream(self._stream):
            sent = tuple(self._send(tensor) for tensor in tensors)
            return Copied(sent, self._stream.record_event())

    def _send(self, tensor: Tensor) -> Tensor:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        # By NumPy: PyTorch would make this thread threads of its own, one for each core.
        np.copyto(pinned.numpy(), tensor.numpy())
        return pinned.to(self._device, non_blocking=True)


class UntilDone:
    """Keeps things that work on a GPU may still read, until it is done with them."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Callable[[], bool], object]] = deque()

    def keep(self, thing: object, done: Callable[[], bool]) -> None:
        """Keeps `thing` until `done()`, which is asked at later calls, in their order."""
        self._kept.append((done, thing))
        self.release()

    def release(self) -> None:
        """Gives up what is done; does not wait."""
        while self._kept and self._kept[0][0]():
            self._kept.popleft()

    def __len__(self) -> int:
        """How many things are kept."""
        return len(self._kept)
