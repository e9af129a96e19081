"""Settings of the optimizer, the loss and the arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.config.errors import require


@dataclass(frozen=True)
class OptimConfig:
    """SGD, the loss and the arithmetic."""

    base_lr: float = 0.1
    """Learning rate per global batch of 256; the peak in force is base_lr * global batch / 256."""
    momentum: float = 0.9
    """Momentum, in PyTorch's convention."""
    weight_decay: float = 1e-4
    """L2 penalty."""
    decay_norm_and_bias: bool = False
    """Decay BN scales, BN shifts and biases too, as the paper does."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes."""
    amp: Literal["off", "bf16", "fp16"] = "bf16"
    """Arithmetic of the forward and backward pass; fp16 scales the loss."""
    gradient_compression: Literal["none", "fp16"] = "none"
    """What gradients travel as between ranks; none: fp32."""

    def __post_init__(self) -> None:
        require(0 < self.base_lr < math.inf, f"optim.base_lr={self.base_lr} must be greater than 0")
        require(0 <= self.momentum < 1, f"optim.momentum={self.momentum} must lie in [0, 1)")
        require(
            0 <= self.weight_decay < math.inf,
            f"optim.weight_decay={self.weight_decay} must be at least 0",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"optim.label_smoothing={self.label_smoothing} must lie in [0, 1)",
        )
