"""Batch normalisation (+ addition) (+ ReLU) as one layer, and its running statistics.

Every normalisation of every network is a `BatchNormAct`, so that a fused kernel has one place to
drop in: `BatchNormAct.forward` chooses the arithmetic, everything else stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNormAct(nn.BatchNorm2d):
    """`relu(batch_norm(x) + residual)`; parameters, buffers and numerics of `nn.BatchNorm2d`.

    Its state_dict is interchangeable with that of `nn.BatchNorm2d(channels)`.
    """

    def __init__(self, channels: int, relu: bool = True) -> None:
        super().__init__(channels)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalises `x`, adds `residual` if there is one, and applies ReLU if the layer has it.

        Args:
            x: (N, C, H, W), any floating dtype, channels-last; the parameters stay fp32.
            residual: shape, dtype and layout of `x`; added before the ReLU. It is not changed.

        Returns:
            A new tensor of the shape, dtype and layout of `x`.

        Raises:
            ValueError: `x` has not 4 dimensions, or one value per channel in training mode.
        """
        return reference(self, x, residual)


def reference(norm: BatchNormAct, x: Tensor, residual: Tensor | None) -> Tensor:
    """The layer's arithmetic in PyTorch's own operators; what every other backend must equal."""
    y = nn.BatchNorm2d.forward(norm, x)
    # In place: no backward pass reads the output of batch_norm, and this saves two activations.
    if residual is not None:
        y = y.add_(residual)
    return F.relu(y, inplace=True) if norm.relu else y


def norm_layers(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Yields every batch normalisation of `model`, in the order of `model.modules()`."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Returns running_mean, running_var of each layer in turn: the live buffers, not copies.

    Each is (C,) fp32. `num_batches_tracked` is left out: it counts, there is nothing to average.
    """
    statistics: list[Tensor] = []
    for layer in norm_layers(model):
        assert layer.running_mean is not None and layer.running_var is not None, (
            "a norm layer without running statistics"
        )
        statistics += [layer.running_mean, layer.running_var]
    return statistics


@contextmanager
def swapped_statistics(model: nn.Module, values: Sequence[Tensor]) -> Iterator[None]:
    """Runs the body with `values` as running statistics, then puts back the very same bits.

    Used to validate with the mean over ranks while each rank keeps its own (saving and validating
    change nothing). The buffers keep their addresses, so compiled graphs stay valid; whatever the
    body writes into them is lost.

    Args:
        model: whose layers' statistics are replaced.
        values: as `running_statistics` orders and shapes them, on any device.
    """
    buffers = running_statistics(model)
    shapes = [buffer.shape for buffer in buffers]
    assert shapes == [value.shape for value in values], "values are another model's statistics"
    kept = [buffer.clone() for buffer in buffers]
    _copy(values, buffers)
    try:
        yield
    finally:
        _copy(kept, buffers)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
