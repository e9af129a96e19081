"""Averages gradients over ranks while backward still runs, whatever carries the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Compression = Literal["none", "fp16"]


class GradientAverager:
    """Averages gradients over ranks while backward runs; alone there is nothing to average.

    `enabled` is set for the last micro-batch of a step only: until then gradients accumulate
    locally.
    """

    enabled: bool = True

    def synchronize(self) -> None:
        """Waits until every gradient holds the average over ranks."""


class OverlappedAverager(GradientAverager):
    """Starts one in-place all-reduce per parameter as soon as its gradient is complete.

    Horovod's own DistributedOptimizer is not used: it refuses channels-last momentum, steps once
    in secret when its state is broadcast, and hides SGD's fused AMP path.
    """

    def __init__(
        self, model: nn.Module, compression: Compression, start: Callable[[Tensor, str], Any],
        finish: Callable[[Any], object],
    ) -> None:  # fmt: skip
        """`start` begins to replace a row-major tensor by its average over ranks, under a name that
        all ranks give it, and returns a handle; `finish` waits for it."""
        self._start, self._finish = start, finish
        self._half = compression == "fp16"
        self._pending: list[tuple[Any, Tensor, Tensor]] = []
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def start(parameter: Tensor) -> None:
            if not self.enabled:
                return
            assert parameter.grad is not None, name
            gradient = row_major_view(parameter.grad)
            sent = gradient.half() if self._half else gradient
            self._pending.append((self._start(sent, f"gradient.{name}"), gradient, sent))

        return start

    def synchronize(self) -> None:
        for handle, gradient, sent in self._pending:
            self._finish(handle)
            if self._half:
                gradient.copy_(sent)
        self._pending.clear()


def row_major_view(tensor: Tensor) -> Tensor:
    """A view of the same memory whose dimensions lie in memory order.

    Horovod refuses tensors that are not row-major, which channels-last weights are not; their
    (O, H, W, I) view is. Raises `ValueError` for any other layout, since a copy would go unseen.
    """
    if tensor.is_contiguous():
        return tensor
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)
    raise ValueError(
        f"a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is neither "
        "row-major nor channels-last"
    )
