"""Fused arithmetic for `BatchNormAct`: our Triton kernels, and apex."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.norm import BatchNormAct, Fork, normalised, reference

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def interpreting() -> bool:
    """Whether Triton interprets its kernels on the CPU, as it does in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def with_triton(
    norm: BatchNormAct, x: Tensor, residual: Tensor | None, residual_norm: BatchNormAct | None,
    fork: bool,
) -> Tensor | Fork:  # fmt: skip
    """`norm.Arithmetic` in our kernels: fp16, bf16 or fp32 activations on a GPU.

    `pipeline.model.kernels.ops` has the operators. A residual's norm is computed in the same passes
    where it can be: it has no ReLU, the same arithmetic and the same mode.
    """
    from pipeline.model.kernels.ops import BatchNormActFunction

    if x.numel() == 0:
        return reference(norm, x, residual, residual_norm, fork)
    _check(norm, x)
    norms = [norm]
    if residual is not None:
        if residual_norm is not None and _computed_with(residual_norm, norm):
            _check(residual_norm, residual)
            norms.append(residual_norm)
        else:
            residual = normalised(residual, residual_norm)
        assert residual is not None
        if residual.shape != x.shape:
            raise ValueError(f"a residual of {tuple(residual.shape)} is added to {tuple(x.shape)}")
        residual = residual.to(x.dtype)
    parameters = [parameter for layer in norms for parameter in _scale_and_shift(layer)]
    momenta = [layer.count_batch() if norm.training else 0.0 for layer in norms]
    y = BatchNormActFunction.apply(  # type: ignore[no-untyped-call]
        x,
        residual,
        *[*parameters, None, None][:4],
        [buffer for layer in norms for buffer in layer.statistics()],
        momenta,
        [layer.eps for layer in norms],
        norm.relu,
        norm.training,
        fork and torch.is_grad_enabled(),
        torch.is_grad_enabled(),
    )
    return y  # type: ignore[no-any-return]


def _computed_with(residual_norm: BatchNormAct, norm: BatchNormAct) -> bool:
    same = (residual_norm.compute, residual_norm.training) == (norm.compute, norm.training)
    return same and not residual_norm.relu


def _check_training_size(x: Tensor) -> None:
    # torch's own check, with torch's own words.
    F._verify_batch_size(list(x.shape))  # type: ignore[attr-defined]


def _check(norm: BatchNormAct, x: Tensor) -> None:
    norm._check_input_dim(x)
    if norm.training:
        _check_training_size(x)
    if x.shape[1] != norm.num_features:
        raise ValueError(f"{x.shape[1]} channels came to a norm layer of {norm.num_features}")
    dtypes = {buffer.dtype for buffer in (norm.running_mean, norm.weight) if buffer is not None}
    if x.dtype not in _DTYPES or dtypes != {torch.float32}:
        raise ValueError(
            "model.norm=triton takes fp16, bf16 or fp32 activations and fp32 parameters, not "
            f"{x.dtype} and {', '.join(map(str, dtypes))}; set model.norm=reference"
        )
    if not x.is_cuda and not interpreting():
        raise ValueError(
            f"model.norm=triton needs activations on a GPU, not on {x.device}; set run.device=cuda "
            "or model.norm=reference"
        )


def _scale_and_shift(norm: BatchNormAct) -> tuple[Tensor, Tensor]:
    if norm.affine:
        return norm.weight, norm.bias
    assert norm.running_mean is not None
    return torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean)


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
            _check_training_size(x)
            op.momentum = norm.count_batch()
        op.eps, op.training = norm.eps, norm.training
        op.weight, op.bias = norm.weight, norm.bias
        op.running_mean, op.running_var = norm.statistics()
        y = op(_rows(x), None if residual is None else _rows(residual.to(x.dtype)))
        return y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]  # apex is untyped


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) channels-last -> the contiguous (N, H, W, C) of the same memory."""
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
