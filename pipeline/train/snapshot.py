"""A copy in host memory of what a checkpoint holds, to be written while training changes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


class Snapshot:
    """Copies contents of checkpoints, one at a time, into host memory that is kept for the next:
    as much as a checkpoint is large.

    On a CPU a copy is complete when `take` returns. From a GPU it goes to page-locked memory, on a
    stream of its own that begins after all the work so far: the host waits for it in `wait` alone,
    and an update of what is being copied waits on the device (`before_update`).
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None
        self._update_waits = False
        self._kept: dict[str, Tensor] = {}

    def take(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """`content` with copies of its tensors, of the same types and strides on the CPU, which
        the next call overwrites; whoever reads them calls `wait` first.

        What tensors of a GPU hold must not change but by an update that `before_update` precedes.
        """
        if self._stream is None:
            return cast(dict[str, Any], self._copy("", content))
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copied = self._copy("", content)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._update_waits = True
        return cast(dict[str, Any], copied)

    def wait(self) -> None:
        """Returns when what `take` gave is complete; from any thread."""
        if self._copied is not None:
            self._copied.synchronize()  # host sync

    def release(self) -> None:
        """Gives the memory back; what `take` gave has its own as long as somebody holds it."""
        self._kept.clear()

    def before_update(self) -> None:
        """Lets the work that follows on the device's present stream wait for the copies, once."""
        if self._copied is not None and self._update_waits:
            torch.cuda.current_stream().wait_event(self._copied)
            self._update_waits = False

    def _copy(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            kept = self._kept_for(name, value)
            if value.is_cuda or value.dtype == torch.bfloat16:  # which numpy does not have
                return kept.copy_(value.detach(), non_blocking=value.is_cuda)
            # By this thread alone: torch's threads wait for each other at every tensor, which on a
            # busy machine took 2 to 15 times as long (ResNet-18, 2 cores, 2026-11-29).
            np.copyto(kept.numpy(), value.detach().numpy())
            return kept
        if isinstance(value, Mapping):
            return {key: self._copy(f"{name}/{key}", inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._copy(f"{name}/{number}", inner) for number, inner in enumerate(value)]
        return value

    def _kept_for(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if (
            kept is None
            or (kept.dtype, kept.shape) != (tensor.dtype, tensor.shape)
            or kept.stride() != tensor.stride()
        ):
            kept = self._kept[name] = torch.empty_like(
                tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False
            )
        return kept
