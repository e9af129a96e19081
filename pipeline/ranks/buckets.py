"""Fast sums: gradients travel in a few large buckets while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.ranks.gradients import Compression, FlatGradients, GradientAverager, Summing

_BUCKET_FLOATS = 25 * 2**18  # 25 MiB, as DistributedDataParallel's

_WIRE: dict[Compression, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}

StartAverage = Callable[[Tensor, str], Callable[[], object]]
"""Starts replacing a row-major tensor by its average over ranks, under a name common to all ranks;
returns what waits for it: the host, or on a GPU the current stream."""


class BucketedGradients(GradientAverager):
    """Averages over ranks bucket by bucket, each as soon as its last gradient is complete.

    Buckets are parts of one tensor of which gradients are views, so nothing is copied on the way.
    They start in one order on all ranks.
    """

    def __init__(self, model: nn.Module, summing: Summing, start_average: StartAverage) -> None:
        super().__init__(model, summing.accumulation)
        self._start_average, self._wire = start_average, _WIRE.get(summing.compression)
        flat = FlatGradients(self._parameters)
        self._memory = torch.zeros(flat.numel, device=self._parameters[0].device)
        flat.place(self._memory)
        self._buckets: list[Tensor] = []
        self._sizes: list[int] = []
        begin = 0
        for parameter, offset in flat:
            if not self._sizes or offset - begin >= _BUCKET_FLOATS:
                begin = offset
                self._sizes.append(0)
                self._buckets.append(self._memory[begin:])
            self._sizes[-1] += 1
            self._buckets[-1] = self._memory[begin : offset + parameter.numel()]
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                self._hook(len(self._buckets) - 1)
            )
        self._missing = list(self._sizes)
        self._pending: list[tuple[Callable[[], object], Tensor, Tensor]] = []

    def _hook(self, bucket: int) -> Callable[[Tensor], None]:
        def complete(_: Tensor) -> None:
            if self.enabled:
                self._missing[bucket] -= 1
                self._start()

        return complete

    def _start(self, all_of_them: bool = False) -> None:
        """Starts the buckets whose turn it is."""
        while (number := len(self._pending)) < len(self._buckets):
            if self._missing[number] > 0 and not all_of_them:
                return
            bucket = self._buckets[number]
            sent = bucket if self._wire is None else bucket.to(self._wire)
            wait = self._start_average(sent, f"gradients.{number}")
            self._pending.append((wait, bucket, sent))

    def synchronize(self) -> None:
        self._start(all_of_them=True)  # a parameter that the loss does not reach has no hook
        for wait, bucket, sent in self._pending:
            wait()
            if sent is not bucket:
                bucket.copy_(sent)
        self._pending.clear()
        self._missing = list(self._sizes)

    def clear(self) -> None:
        self._memory.zero_()
