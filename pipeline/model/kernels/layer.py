"""Fused arithmetic for `BatchNormAct` that NVIDIA's apex has, and whether Triton interprets."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.norm import BatchNormAct, normalised


def interpreting() -> bool:
    """Whether Triton interprets its kernels on the CPU, as it does in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_training_size(x: Tensor) -> None:
    """Raises torch's own error, in torch's own words, for one value per channel."""
    F._verify_batch_size(list(x.shape))  # type: ignore[attr-defined]


class ApexNorm:
    """NVIDIA apex's `contrib.groupbn` as the arithmetic of one `BatchNormAct`.

    fp16 activations, channels in multiples of 4, statistics of one GPU (bn_group 1), and no
    addition without ReLU. It takes scratch memory on the GPU that is current at construction. At
    exactly 0 it lets ReLU's gradient pass, where torch does not. One backward pass must follow
    each forward pass in training before the next. Not yet run.
    """

    def __init__(self, norm: BatchNormAct) -> None:
        """Raises `ValueError` for channels it cannot take."""
        from apex.contrib.groupbn.batch_norm import BatchNorm2d_NHWC

        if norm.num_features % 4 != 0 or not norm.affine:
            raise ValueError(
                "model.norm=apex takes affine layers with channels in multiples of 4, not "
                f"{norm.num_features} with affine={norm.affine}; set model.norm=auto"
            )
        self._op: Any = BatchNorm2d_NHWC(norm.num_features, fuse_relu=norm.relu, bn_group=1)

    def __call__(
        self, norm: BatchNormAct, x: Tensor, residual: Tensor | None,
        residual_norm: BatchNormAct | None, fork: bool,
    ) -> Tensor:  # fmt: skip
        """`norm.Arithmetic`, without forks. Raises `ValueError` for activations it cannot take."""
        del fork
        residual = normalised(residual, residual_norm)
        op, scratch = self._op, self._op.minibatch_mean.device
        if x.dtype != torch.float16 or x.device != scratch:
            raise ValueError(
                f"model.norm=apex takes torch.float16 on {scratch}, where it was built, not "
                f"{x.dtype} on {x.device}; set optim.amp=fp16 and pick the GPU before the model"
            )
        if residual is not None and not norm.relu:
            raise ValueError("model.norm=apex adds only before a ReLU; set model.norm=auto")
        norm._check_input_dim(x)
        if norm.training:
            check_training_size(x)
            op.momentum = norm.count_batch()
        op.eps, op.training = norm.eps, norm.training
        op.weight, op.bias = norm.weight, norm.bias
        op.running_mean, op.running_var = norm.statistics()
        y = op(_rows(x), None if residual is None else _rows(residual.to(x.dtype)))
        return y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]  # apex is untyped


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) channels-last -> the contiguous (N, H, W, C) of the same memory."""
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
