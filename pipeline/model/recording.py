"""Running statistics of batch normalisation that depend on the images alone, not on who saw them.

PyTorch moves a layer's running statistics in each forward pass, so every rank has its own, and
their mean depends on the number of ranks. Here a forward pass only records its batch's mean and
variance. After the step all ranks take those of all its micro-batches, in the order of the images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.norm import BatchNormAct, norm_layers, running_statistics


class BatchStatistics:
    """The statistics of a model's norm layers, recorded instead of applied.

    `batch` (n,) fp32 on the model's device holds those of the last forward pass in training, as
    `running_statistics` orders them, without those of frozen layers; `apply` moves the running
    ones. Buffers of the model become views of one tensor, so build it once the model is where it
    stays, and what is to be frozen is.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in norm_layers(model) if not getattr(layer, "frozen", False)]
        live = running_statistics(layers)
        self._running = torch.cat([next(model.parameters()).new_empty(0), *live])
        self.batch = torch.zeros_like(self._running)
        sizes = [one.numel() for one in live]
        batch, running = torch.split(self.batch, sizes), torch.split(self._running, sizes)
        self._counts: list[Tensor] = []
        momenta: list[Tensor] = []
        for number, layer in enumerate(layers):
            mean, var = 2 * number, 2 * number + 1
            assert isinstance(layer, BatchNormAct) and layer.momentum is not None, (
                f"layer {number} does not move its statistics by a fixed momentum"
            )
            layer.running_mean, layer.running_var = running[mean], running[var]
            layer.recorded = batch[mean], batch[var]
            assert layer.num_batches_tracked is not None
            self._counts.append(layer.num_batches_tracked)
            momenta.append(torch.full((sizes[mean] + sizes[var],), layer.momentum))
        # float64 as in torch's own update, and the same on every device.
        self._momenta = torch.cat([torch.empty(0), *momenta]).double().to(self.batch.device)

    @torch.no_grad()
    def apply(self, micro_batches: Tensor) -> None:
        """Moves the running statistics by those of `micro_batches` (count, n) fp32, in that
        order."""
        running = self._running.double()
        for found in micro_batches.to(running.device):
            running = (1.0 - self._momenta) * running + self._momenta * found.double()
            running = running.float().double()  # what a layer would have kept
        self._running.copy_(running)
        if self._counts:
            torch._foreach_add_(self._counts, len(micro_batches))
