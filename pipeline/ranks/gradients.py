"""Gradients of a step: where they lie, and how they become the average over its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.ranks.summation import Node, Step, steps_of, total

Compression = Literal["none", "fp16", "bf16"]
Sums = Literal["fast", "fixed"]
_ALIGNED = 16  # floats between the starts of two gradients: a cache line
_BLOCK = 2**16  # floats that are summed at a time, so that they stay in a core's cache


@dataclass(frozen=True)
class Summing:
    """How a job's gradients are summed."""

    accumulation: int = 1
    """Micro-batches of each rank in a step."""
    sums: Sums = "fast"
    """fast: whatever order is quickest; fixed: in the order of `pipeline.ranks.summation`."""
    compression: Compression = "none"
    """What gradients travel as with fast sums."""
    statistics: int = 0
    """With fixed sums, numbers that each micro-batch gives to all ranks beside its gradients: the
    means and variances of BN."""


class GradientAverager:
    """Makes the gradients of `model` those of a whole step. By itself for one rank alone.

    for number in range(accumulation):
        with averager.micro_batch(number):
            (loss / averager.divisor).backward()
    averager.synchronize()
    optimizer.step()
    averager.clear()
    """

    def __init__(self, model: nn.Module, accumulation: int = 1, statistics: int = 0) -> None:
        self._parameters = [one for one in model.parameters() if one.requires_grad]
        self._accumulation = accumulation
        self.divisor = accumulation
        """What the mean loss of a micro-batch is divided by before its backward pass."""
        self.enabled = True
        """Whether gradients are sent to other ranks as they complete: in the last micro-batch."""
        device = self._parameters[0].device
        self.statistics = torch.zeros(accumulation, statistics, device=device)
        """(accumulation, n): with fixed sums, what each of this rank's micro-batches gives to all
        ranks beside its gradients."""
        self.all_statistics = self.statistics
        """(count, n): the `statistics` of all ranks after `synchronize`, in the images' order."""

    @contextmanager
    def micro_batch(self, number: int) -> Iterator[None]:
        """The backward pass of this rank's micro-batch `number` of the step."""
        self.enabled = number == self._accumulation - 1
        yield

    def synchronize(self) -> None:
        """Returns when every gradient is the average over all micro-batches of all ranks, or, on a
        GPU, when the current stream has been told to wait for that."""

    def clear(self) -> None:
        """Forgets the gradients of the step; the next can begin."""
        for parameter in self._parameters:
            parameter.grad = None


class FlatGradients:
    """One fp32 tensor that holds all gradients of `parameters`, as views with their strides.

    They lie in the order in which a backward pass completes them, the reverse of `parameters`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(reversed(parameters))
        self.offsets: list[int] = []
        self.numel = 0
        """Length of the tensor, in floats."""
        for parameter in self._parameters:
            assert parameter.dtype == torch.float32, "parameters are fp32 at any precision"
            self.offsets.append(self.numel)
            self.numel += -(-parameter.numel() // _ALIGNED) * _ALIGNED

    def views(self, flat: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter and the view of `flat` (numel,) that holds its gradient."""
        return [
            (one, flat[offset : offset + one.numel()].as_strided(one.shape, one.stride()))
            for one, offset in self
        ]

    def place(self, flat: Tensor) -> None:
        """Lets the gradients lie in `flat` (numel,) from now on."""
        for parameter, view in self.views(flat):
            parameter.grad = view

    def __iter__(self) -> Iterator[tuple[nn.Parameter, int]]:
        """Each parameter and where its gradient begins."""
        return zip(self._parameters, self.offsets, strict=True)


@dataclass(frozen=True)
class Layout:
    """The memory of one rank's part in fixed sums, the same on every rank: `slots` x `numel` fp32
    for partial sums, and `accumulation` x `statistics` for what goes to all ranks as it is.

    Gradients are computed in slot 0, which holds the last of the rank's sums in the end; the sums
    before it lie in slots 1, 2, ...
    """

    rank: int
    size: int
    accumulation: int
    numel: int
    statistics: int

    @property
    def count(self) -> int:
        """Micro-batches of the job in a step."""
        return self.size * self.accumulation

    def _steps_of(self, rank: int) -> tuple[list[Step], list[Node]]:
        return steps_of(rank * self.accumulation, self.accumulation)

    @cached_property
    def steps(self) -> list[Step]:
        """What this rank does after each of its micro-batches."""
        return self._steps_of(self.rank)[0]

    @cached_property
    def nodes(self) -> list[dict[Node, int]]:
        """The sums that each rank brings, each with its slot."""
        found = []
        for rank in range(self.size):
            _, nodes = self._steps_of(rank)
            found.append({node: (i + 1) % len(nodes) for i, node in enumerate(nodes)})
        return found

    @cached_property
    def slots(self) -> int:
        """The most partial sums that any rank holds at a time."""
        most = 0
        for rank in range(self.size):
            kept = 0
            for step in self._steps_of(rank)[0]:
                kept += step.keeps - step.adds
                most = max(most, kept)
        return most + 1

    @property
    def floats(self) -> int:
        """Length of the whole memory."""
        return self.slots * self.numel + self.accumulation * self.statistics

    def sums(self, memory: Tensor) -> Tensor:
        """The slots (slots, numel) in a rank's `memory` (floats,)."""
        return memory[: self.slots * self.numel].view(self.slots, self.numel)

    def statistics_in(self, memory: Tensor) -> Tensor:
        """The statistics (accumulation, statistics) in a rank's `memory`."""
        return memory[self.slots * self.numel :].view(self.accumulation, self.statistics)

    def add_up(self, pieces: dict[Node, Tensor]) -> Tensor:
        """The average over the step, from the same part of every sum; writes into `pieces`."""
        found = total(pieces, self.count, lambda left, right: left.add_(right))
        return found.div_(self.count) if self.count > 1 else found


def blocks(start: int, end: int) -> list[slice]:
    """[start, end) in parts small enough for a core's cache."""
    return [slice(at, min(at + _BLOCK, end)) for at in range(start, end, _BLOCK)]


class Exchange(Protocol):
    """Where a rank's memory lies, and how all ranks' partial sums become one."""

    def memory(self, layout: Layout) -> Tensor:
        """Collective. The rank's memory (layout.floats,) fp32, zeros."""

    def run(self, layout: Layout, memory: Tensor) -> Tensor:
        """Collective. Leaves the average in slot 0 of every rank; returns the statistics of all
        ranks, (count, statistics), by micro-batch."""


class Alone:
    """The `Exchange` of one rank."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def memory(self, layout: Layout) -> Tensor:
        return torch.zeros(layout.floats, device=self._device)

    def run(self, layout: Layout, memory: Tensor) -> Tensor:
        sums = layout.sums(memory)
        whole = [slice(0, layout.numel)]  # blocks are for a core's cache
        parts = blocks(0, layout.numel) if self._device.type == "cpu" else whole
        for part in parts if layout.count > 1 else ():
            pieces = {node: sums[slot, part] for node, slot in layout.nodes[0].items()}
            average = layout.add_up(pieces)
            if average.data_ptr() != sums[0, part].data_ptr():
                sums[0, part] = average
        return layout.statistics_in(memory).clone()


class OrderedGradients(GradientAverager):
    """Averages gradients in the order of `pipeline.ranks.summation`, so that they have the same
    bits on any number of ranks.

    Every micro-batch's loss has its full weight until all are summed; then comes the division.
    """

    def __init__(
        self, model: nn.Module, summing: Summing, rank: int, size: int, exchange: Exchange
    ) -> None:
        super().__init__(model, summing.accumulation, summing.statistics)
        self.divisor = 1
        self._flat = FlatGradients(self._parameters)
        numel = -(-self._flat.numel // (_ALIGNED * size)) * _ALIGNED * size  # equal shards
        self._layout = Layout(rank, size, summing.accumulation, numel, summing.statistics)
        self._exchange = exchange
        self._memory = exchange.memory(self._layout)
        self._sums = self._layout.sums(self._memory)
        self._kept = 0
        self._views = self._flat.views(self._sums[0])
        self._on_cpu = self._sums.device.type == "cpu"
        for parameter, view in self._views if self._on_cpu else ():
            parameter.register_post_accumulate_grad_hook(_into(view))  # type: ignore[no-untyped-call]
        self._from_zero()
        self.statistics = self._layout.statistics_in(self._memory)

    @contextmanager
    def micro_batch(self, number: int) -> Iterator[None]:
        """The backward pass of this rank's micro-batch `number` of the step."""
        yield
        for parameter, view in self._views:
            if parameter.grad is None:  # the loss does not reach it
                parameter.grad = view.zero_()
        step = self._layout.steps[number]
        for _ in range(step.adds):
            self._sums[0].add_(self._sums[self._kept])
            self._kept -= 1
        if step.keeps:
            self._kept += 1
            self._sums[self._kept].copy_(self._sums[0])
            self._from_zero()

    def synchronize(self) -> None:
        self.all_statistics = self._exchange.run(self._layout, self._memory)
        self._kept = 0

    def clear(self) -> None:
        self._from_zero()

    def _from_zero(self) -> None:
        """Lets the next micro-batch's gradients be the first ones.

        On a CPU, autograd makes a new tensor of the first, which is copied to its place while it is
        in the core's cache: less traffic than zeros that are added to. A GPU keeps its addresses.
        """
        for parameter, view in self._views:
            parameter.grad = None if self._on_cpu else view
        if not self._on_cpu:
            self._sums[0].zero_()


def _into(view: Tensor) -> Callable[[Tensor], None]:
    """A hook that brings a gradient to its place, unless it is there already."""

    def bring(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if parameter.grad.data_ptr() != view.data_ptr():
            view.copy_(parameter.grad)
            parameter.grad = view

    return bring
