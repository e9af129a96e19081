"""Our Triton kernels as the arithmetic of `BatchNormAct`.

What it does for each layer in each step is time of the host, which decides how fast a deep network
of small batches trains: attributes are looked up where nn.Module keeps them, which its own look-up
takes ten times as long for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.kernels.layer import check_training_size, interpreting
from pipeline.model.kernels.ops import BatchNormActFunction
from pipeline.model.norm import BatchNormAct, Fork, normalised, reference

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_FP32 = torch.float32


def with_triton(
    norm: BatchNormAct, x: Tensor, residual: Tensor | None, residual_norm: BatchNormAct | None,
    fork: bool,
) -> Tensor | Fork:  # fmt: skip
    """`norm.Arithmetic` in our kernels: fp16, bf16 or fp32 activations on a GPU.

    `pipeline.model.kernels.ops` has the operators. A residual's norm is computed in the same passes
    where it can be: it has no ReLU, the same arithmetic and the same mode.
    """
    if x.numel() == 0:
        return reference(norm, x, residual, residual_norm, fork)
    _check(norm, x)
    training = norm.training
    weight, bias = _scale_and_shift(norm)
    z_weight = z_bias = None
    running = _running(norm)
    momenta, eps = [norm.count_batch() if training else 0.0], [norm.eps]
    if residual is not None:
        if residual_norm is not None and _computed_with(residual_norm, norm):
            _check(residual_norm, residual)
            z_weight, z_bias = _scale_and_shift(residual_norm)
            running += _running(residual_norm)
            momenta.append(residual_norm.count_batch() if training else 0.0)
            eps.append(residual_norm.eps)
        elif residual_norm is not None:
            residual = normalised(residual, residual_norm)
        assert residual is not None
        if residual.shape != x.shape:
            raise ValueError(f"a residual of {tuple(residual.shape)} is added to {tuple(x.shape)}")
        if residual.dtype != x.dtype:
            residual = residual.to(x.dtype)
    with_gradients = torch.is_grad_enabled()
    y = BatchNormActFunction.apply(  # type: ignore[no-untyped-call]
        x, residual, weight, bias, z_weight, z_bias, running, momenta, eps, norm.relu, training,
        fork and with_gradients, with_gradients,
    )  # fmt: skip
    return y  # type: ignore[no-any-return]


def _computed_with(residual_norm: BatchNormAct, norm: BatchNormAct) -> bool:
    same = (residual_norm.compute, residual_norm.training) == (norm.compute, norm.training)
    return same and not residual_norm.relu


def _check(norm: BatchNormAct, x: Tensor) -> None:
    """Raises `ValueError` for what the kernels cannot take."""
    weight, mean = norm._parameters["weight"], norm._buffers["running_mean"]
    taken = (
        x.dim() == 4
        and x.size(1) == norm.num_features
        and x.dtype in _DTYPES
        and (weight is None or weight.dtype == _FP32)
        and mean is not None
        and mean.dtype == _FP32
        and (x.is_cuda or interpreting())
        and (x.numel() > x.size(1) or not norm.training)
    )
    if not taken:
        _refuse(norm, x)


def _refuse(norm: BatchNormAct, x: Tensor) -> None:
    norm._check_input_dim(x)
    if norm.training:
        check_training_size(x)
    if x.shape[1] != norm.num_features:
        raise ValueError(f"{x.shape[1]} channels came to a norm layer of {norm.num_features}")
    dtypes = {buffer.dtype for buffer in (norm.running_mean, norm.weight) if buffer is not None}
    if x.dtype not in _DTYPES or dtypes != {_FP32}:
        raise ValueError(
            "model.norm=triton takes fp16, bf16 or fp32 activations and fp32 parameters, not "
            f"{x.dtype} and {', '.join(map(str, dtypes))}; set model.norm=reference"
        )
    raise ValueError(
        f"model.norm=triton needs activations on a GPU, not on {x.device}; set run.device=cuda "
        "or model.norm=reference"
    )


def _running(norm: BatchNormAct) -> list[Tensor | None]:
    """`norm.statistics()`."""
    if norm.recorded is not None and norm.training:
        return [*norm.recorded]
    return [norm._buffers["running_mean"], norm._buffers["running_var"]]


def _scale_and_shift(norm: BatchNormAct) -> tuple[Tensor, Tensor]:
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    if weight is not None and bias is not None:
        return weight, bias
    mean = norm._buffers["running_mean"]
    assert mean is not None
    return torch.ones_like(mean), torch.zeros_like(mean)
