"""Batch normalisation (+ addition) (+ ReLU) as one layer, and its running statistics.

Every normalisation of every network is a `BatchNormAct`. Its arithmetic is passed to it
(`pipeline.model.backends` picks one); parameters, buffers and results are those of `nn.BatchNorm2d`
with any arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NO_STATISTICS = "a norm layer without running statistics"

Fork = tuple[Tensor, Tensor]
"""Two views of one activation, for the two branches of the block that follows."""


class Arithmetic(Protocol):
    """Arithmetic of `BatchNormAct.forward` for the layer `norm`; the other arguments are its
    own."""

    def __call__(
        self, norm: BatchNormAct, x: Tensor, residual: Tensor | None,
        residual_norm: BatchNormAct | None, fork: bool,
    ) -> Tensor | Fork: ...  # fmt: skip


_Norm = TypeVar("_Norm", bound="BatchNormAct")


class BatchNormAct(nn.BatchNorm2d):
    """`relu(batch_norm(x) + residual)`; parameters, buffers and numerics of `nn.BatchNorm2d`.

    Its state_dict is interchangeable with that of `nn.BatchNorm2d(channels)`, whatever computes it.
    """

    compute: Arithmetic
    """PyTorch's operators unless another arithmetic takes their place; not in the state_dict."""
    recorded: tuple[Tensor, Tensor] | None
    """Where a training batch leaves its mean and unbiased variance, (C,) fp32 each, in place of
    moving the running ones (`pipeline.model.recording`); None: it moves them."""
    frozen: bool
    """Whether it never trains: in training too it reads its running statistics, as in eval mode."""

    def __init__(
        self, channels: int, relu: bool = True, *,
        eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
    ) -> None:  # fmt: skip
        """Makes the layer with scale 1 and shift 0.

        Args:
            channels: C.
            relu: whether ReLU follows.
            eps: added to the variance.
            momentum: weight of a batch in the running statistics; None: their plain mean.
            affine: whether there are a learnt scale and shift.
        """
        super().__init__(channels, eps, momentum, affine)
        self.relu = relu
        self.compute = reference
        self.recorded = None
        self.frozen = False

    def train(self: _Norm, mode: bool = True) -> _Norm:
        """As nn.Module has it; a frozen layer stays in eval mode."""
        nn.BatchNorm2d.train(self, mode and not self.frozen)
        return self

    def forward(  # type: ignore[override]  # more arguments than nn.BatchNorm2d
        self,
        x: Tensor,
        residual: Tensor | None = None,
        residual_norm: BatchNormAct | None = None,
        fork: bool = False,
    ) -> Tensor | Fork:
        """Normalises `x`, adds `residual` if there is one, and applies ReLU if the layer has it.

        Args:
            x: (N, C, H, W), any floating dtype, channels-last; the parameters stay fp32.
            residual: shape, dtype and layout of `x`; added before the ReLU. It is not changed.
            residual_norm: a layer for `residual` to go through first. Where both are computed at
                once, this layer's forward is not called, and its hooks are not.
            fork: allow the result to be a `Fork`, whose two gradients the backward pass adds
                without a pass of its own. `ends` unpacks either.

        Returns:
            A new tensor of the shape, dtype and layout of `x`, or two views of one.

        Raises:
            ValueError: `x` has not 4 dimensions, or one value per channel in training mode; these
                activations cannot be computed here.
        """
        return self.compute(self, x, residual, residual_norm, fork)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The mean and variance, (C,) fp32 each, that a forward pass reads in eval mode, and that
        it moves on by `count_batch` in training."""
        if self.training and self.recorded is not None:
            return self.recorded
        assert self.running_mean is not None and self.running_var is not None, _NO_STATISTICS
        return self.running_mean, self.running_var

    def count_batch(self) -> float:
        """Counts a training batch as torch does; returns its weight in `statistics`."""
        if self.recorded is not None:
            return 1.0
        count = self._buffers["num_batches_tracked"]  # nn.Module's own look-up takes longer
        assert count is not None, _NO_STATISTICS
        count.add_(1)
        if self.momentum is None:
            return 1.0 / float(count)  # host sync, as in torch
        return self.momentum


def reference(
    norm: BatchNormAct, x: Tensor, residual: Tensor | None, residual_norm: BatchNormAct | None,
    fork: bool,
) -> Tensor:  # fmt: skip
    """The arithmetic in PyTorch's own operators; what every other one must equal. No forks."""
    del fork
    residual = normalised(residual, residual_norm)
    norm._check_input_dim(x)
    momentum = norm.count_batch() if norm.training else 0.0
    y = F.batch_norm(
        x, *norm.statistics(), norm.weight, norm.bias, norm.training, momentum, norm.eps
    )
    # In place: no backward pass reads the output of batch_norm, and this saves two activations.
    if residual is not None:
        y = y.add_(residual)
    return F.relu(y, inplace=True) if norm.relu else y


def normalised(residual: Tensor | None, norm: BatchNormAct | None) -> Tensor | None:
    """`residual` after the layer that it goes through first, if there are both."""
    return residual if residual is None or norm is None else norm(residual)


def ends(x: Tensor | Fork) -> Fork:
    """The two views of a `Fork`; one tensor serves as both."""
    return x if isinstance(x, tuple) else (x, x)


def norm_layers(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Yields every batch normalisation of `model`, in the order of `model.modules()`."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def running_statistics(model: nn.Module | Iterable[nn.BatchNorm2d]) -> list[Tensor]:
    """Returns running_mean, running_var of each layer of a model, or of those given, in turn: the
    live buffers, not copies.

    Each is (C,) fp32. `num_batches_tracked` is left out: it counts, there is nothing to average.
    """
    statistics: list[Tensor] = []
    for layer in norm_layers(model) if isinstance(model, nn.Module) else model:
        assert layer.running_mean is not None and layer.running_var is not None, _NO_STATISTICS
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
