"""Settings of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.errors import require


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    family: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 stem, four stages (table 1 of the paper); cifar: 3x3 stem, three stages of
    16, 32 and 64 channels (section 4.2)."""
    residual: bool = True
    """Whether blocks have shortcuts; false: the paper's plain networks."""
    depth: int = 50
    """Layers: 18, 34, 50, 101 or 152 (plain: 18 or 34); cifar: 6n+2, such as 20, 32, 44, 56, 110
    or 1202."""
    shortcut: Literal["A", "B", "C"] | None = None
    """A: zero-padding, no parameters; B: projection where the shape changes; C: projection
    everywhere; null: B, for cifar A."""
    variant: Literal["v1", "v1.5"] = "v1.5"
    """Where a bottleneck halves the resolution: v1 (the paper): first 1x1; v1.5: the 3x3."""
    zero_init_last_norm: bool = True
    """Start each block's last BN at scale 0, so that a block begins as the identity (Goyal et al.
    2017); the paper starts at 1."""
    norm: Literal["auto", "reference", "triton", "apex"] = "auto"
    """What computes BN + addition + ReLU: PyTorch's operators (reference), our Triton kernels, or
    NVIDIA's apex (fp16); auto: Triton on a GPU, else the reference."""
    compile: bool = False
    """Run the model through torch.compile."""

    def __post_init__(self) -> None:
        self._check_depth()
        require(
            self.residual or self.shortcut is None,
            f"model.shortcut={self.shortcut} is for residual networks and model.residual is false; "
            "leave it null",
        )
        require(
            self.residual or not self.zero_init_last_norm,
            "model.zero_init_last_norm=true would make every block of a plain network give zeros; "
            "set it to false with model.residual=false",
        )

    def _check_depth(self) -> None:
        if self.family == "cifar":
            below = (self.depth - 2) // 6 * 6 + 2
            near = f"{below} and {below + 6}" if below >= 8 else "8"
            require(
                self.depth >= 8 and (self.depth - 2) % 6 == 0,
                f"model.depth={self.depth} does not exist for model.family=cifar, whose depths are "
                f"6n+2; the nearest: {near} (the paper has 20, 32, 44, 56, 110 and 1202)",
            )
            return
        kind = "residual" if self.residual else "plain"
        depths = (18, 34, 50, 101, 152) if self.residual else (18, 34)
        require(
            self.depth in depths,
            f"model.depth={self.depth} does not exist; of {kind} networks there are "
            f"{', '.join(map(str, depths))}",
        )
