"""Who holds the memory of a rank's GPU: PyTorch, DALI, or others."""

from __future__ import annotations

import torch


class GpuMemory:
    """Made once the model lies on the GPU and before DALI builds a graph. On a CPU it asks nothing.

    PyTorch counts its own memory. DALI (2.4) does not tell what its pools and decoders hold: its
    `executor_statistics` are of operators' outputs only, and empty with the dynamic executor, which
    hands batches over without a copy. So its part is measured: what the GPU has lost to others than
    PyTorch until `dali_is_ready`. Up to there nothing else allocates: DALI decodes a batch of the
    largest images of both sets (`preflight`) and builds the training's graph. What it takes later,
    when pools grow or a validation's graph comes, cannot be told from NCCL's buffers and the
    kernels that CUDA loads when they are first used: it counts with the others.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._before = self._of_others()
        self._dali: float | None = None

    def dali_is_ready(self) -> None:
        """The first step comes next. Only the first call counts."""
        if self._dali is None:
            self._dali = max(0.0, self._of_others() - self._before)

    def held_bytes(self, dali_decodes: bool) -> list[float]:
        """The most that PyTorch has held so far, what DALI holds, and what all others hold now.

        Others are the CUDA context, NCCL, and other programs on that GPU. `dali_decodes`: whether
        DALI works on it at all. Zeros on a CPU.
        """
        if self._device is None:
            return [0.0, 0.0, 0.0]
        dali = (self._dali or 0.0) if dali_decodes else 0.0
        most = float(torch.cuda.max_memory_reserved(self._device))
        return [most, dali, max(0.0, self._of_others() - dali)]

    def _of_others(self) -> float:
        """What is in use on the GPU now but for PyTorch's own."""
        if self._device is None:
            return 0.0
        free, total = torch.cuda.mem_get_info(self._device)
        return float(total - free - torch.cuda.memory_reserved(self._device))
