"""The network's stages as CUDA graphs: one launch for each stage and pass, in place of hundreds.

A stage is a graph of its own so that gradients travel during the backward pass: when a stage's
gradients have been computed, autograd hands them on, and the hooks of its parameters fire before
the next stage is launched. A stage's input is the very memory that the stage before it wrote, and
likewise for gradients: nothing is copied between them but the images at the start and the loss's
gradient at the end. (`torch.cuda.make_graphed_callables` takes inputs of its own, and so copies
each stage's.)

Only training runs in them. Validation calls the network itself.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.model.norm import Fork
from pipeline.model.resnet import ResNet, Stage

_WARM_UP = 3
"""Passes before the capture: algorithms are chosen, kernels compiled and loaded."""

Tensors = tuple[Tensor | None, ...]


class Recorder(Protocol):
    """Records work on a device, to be repeated on the same memory."""

    def warm_up(self) -> AbstractContextManager[None]:
        """Where work runs that is not recorded."""

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Records `work`; returns what repeats it, and the tensors into which it then writes."""


class CudaRecorder:
    """Records by capturing in CUDA graphs, which share one pool of memory: they are to be repeated
    in the order in which they were recorded."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """On the stream of the captures."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Captures `work`, which is not run."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        gc.collect()
        gc.disable()  # what it frees meanwhile, another graph for one, may end the capture
        try:
            # Threads of the loader and of the ranks' communication use the GPU meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                found = work()
        finally:
            gc.enable()
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
        return graph.replay, found


@dataclass
class _Recorded:
    """One stage: the memory it reads and writes, and what repeats it."""

    stage: Stage
    inputs: tuple[Tensor, ...]
    live: tuple[Tensor, ...] = ()
    """Its latest outputs, with what autograd needs for their gradients."""
    outputs: Tensors = ()
    output_gradients: Tensors = ()
    input_gradients: Tensors = ()
    parameter_gradients: Tensors = ()
    forward: Callable[[], None] = field(default=lambda: None)
    backward: Callable[[], None] = field(default=lambda: None)

    def run(self, autocast: Callable[[], AbstractContextManager[Any]]) -> Tensors:
        """The forward pass."""
        given: Tensor | Fork = self.inputs[0] if len(self.inputs) == 1 else self.inputs  # type: ignore[assignment]
        with autocast():
            found = self.stage.run(given)
        self.live = found if isinstance(found, tuple) else (found,)
        return tuple(output.detach() for output in self.live)

    def differentiate(self) -> Tensors:
        """The gradients of inputs and parameters, from `output_gradients`; None where none is."""
        pairs = [
            (output, gradient)
            for output, gradient in zip(self.live, self.output_gradients, strict=True)
            if gradient is not None
        ]
        wanted = [x for x in (*self.inputs, *self.stage.parameters) if x.requires_grad]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs], wanted, [gradient for _, gradient in pairs],
                allow_unused=True,
            )
        )  # fmt: skip
        every = (*self.inputs, *self.stage.parameters)
        return tuple(next(found) if x.requires_grad else None for x in every)


class GraphedNetwork(nn.Module):
    """A network whose training passes run as recorded stages; any other pass is its own.

    The first training pass records, and changes neither buffers nor gradients, as does the first
    with images of another shape: it takes the place of what was recorded before, whose memory is
    given up first, as sizes grow and never come back. Each pass needs its backward pass before the
    next.
    """

    def __init__(
        self, network: ResNet, autocast: Callable[[], AbstractContextManager[Any]],
        accumulates: bool, recorder: Callable[[torch.device], Recorder] = CudaRecorder,
    ) -> None:  # fmt: skip
        """Records nothing yet.

        Args:
            network: its parameters and buffers must keep their memory.
            autocast: the precision of training, without a cache of cast weights: a graph casts
                them anew.
            accumulates: whether gradients of several passes are added up, so that a gradient
                must not stay where the next pass writes.
            recorder: what records on the network's device.
        """
        super().__init__()
        self.network = network
        self._autocast, self._accumulates, self._recorder = autocast, accumulates, recorder
        self._stages: list[_Recorded] = []

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> logits (N, classes), which the next training pass
        overwrites."""
        if not (self.network.training and torch.is_grad_enabled()):
            return self.network(images)  # type: ignore[no-any-return]
        if not self._has_recorded(images):
            self._record(images)
        values: tuple[Tensor, ...] = (images,)
        for stage in self._stages:
            values = _Pass.apply(stage, self._accumulates, *values, *stage.stage.parameters)  # type: ignore[no-untyped-call]
        return values[0]

    def _has_recorded(self, images: Tensor) -> bool:
        if not self._stages:
            return False
        first = self._stages[0].inputs[0]
        return (images.shape, images.dtype) == (first.shape, first.dtype)

    def _record(self, images: Tensor) -> None:
        if self._stages and images.is_cuda:
            torch.cuda.synchronize(images.device)  # host sync: what is given up may still run
        self._stages = []
        recorder = self._recorder(images.device)
        buffers = list(self.network.buffers())
        kept = [buffer.clone() for buffer in buffers]
        with recorder.warm_up():
            static = torch.empty_like(images).copy_(images)
            for _ in range(_WARM_UP):
                self._pass(static, lambda work: (lambda: None, work()))
        self._stages = self._pass(static, recorder.record)
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)

    def _pass(
        self, images: Tensor,
        record: Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]],
    ) -> list[_Recorded]:  # fmt: skip
        """Both passes, each stage's by `record`, in the order of training."""
        stages: list[_Recorded] = []
        inputs: tuple[Tensor, ...] = (images,)
        for stage in self.network.stages():
            one = _Recorded(stage, inputs)
            stages.append(one)
            one.forward, one.outputs = record(lambda one=one: one.run(self._autocast))  # type: ignore[misc]
            trains = any(x.requires_grad for x in one.live)
            inputs = tuple(x.detach().requires_grad_(trains) for x in one.outputs if x is not None)
        gradients: Sequence[Tensor | None] = [torch.empty_like(x) for x in inputs]
        for one in reversed(stages):
            if not any(x.requires_grad for x in one.live):  # frozen, as all before it
                one.live = ()
                continue
            one.output_gradients = tuple(gradients)
            one.backward, found = record(one.differentiate)
            one.input_gradients = found[: len(one.inputs)]
            one.parameter_gradients = found[len(one.inputs) :]
            one.live = ()  # the recorded memory stays, in the pool
            gradients = one.input_gradients
        return stages


class _Pass(torch.autograd.Function):
    """One stage's recorded passes, as autograd sees them."""

    @staticmethod
    def forward(
        ctx: Any, stage: _Recorded, accumulates: bool, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        for static, given in zip(stage.inputs, tensors, strict=False):
            _bring(given, static)
        stage.forward()
        ctx.set_materialize_grads(False)
        ctx.stage, ctx.accumulates = stage, accumulates
        return tuple(output.detach() for output in stage.outputs if output is not None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        stage: _Recorded = ctx.stage
        for static, gradient in zip(stage.output_gradients, gradients, strict=True):
            if static is not None:
                assert gradient is not None, "an output that had a gradient has none now"
                _bring(gradient, static)
        stage.backward()
        inputs = [x if x is None else x.detach() for x in stage.input_gradients]
        pairs = zip(stage.stage.parameters, stage.parameter_gradients, strict=True)
        return None, None, *inputs, *(_handed_on(p, x, ctx.accumulates) for p, x in pairs)


def _handed_on(parameter: Tensor, found: Tensor | None, accumulates: bool) -> Tensor | None:
    """The gradient that autograd adds to the parameter's, or takes as it is where there is none:
    then in memory of its own if the next pass adds to it."""
    if found is None:
        return None
    if parameter.grad is None:
        return found.clone() if accumulates else found.detach()
    kept = parameter.grad.data_ptr() == found.data_ptr()
    assert not kept, "the gradient of the last step was left where the graph writes"
    return found.detach()


@torch.no_grad()
def _bring(given: Tensor, static: Tensor) -> None:
    if given.data_ptr() != static.data_ptr():
        static.copy_(given)


def require_graphs(config: Config, device: torch.device) -> None:
    """Raises `ValueError` where `model.graphs` is set and cannot run on `device`."""
    if config.model.graphs and device.type != "cuda":
        raise ValueError(
            f"model.graphs=true needs an NVIDIA GPU and the device is {device.type}; set "
            "model.graphs=false or run.device=cuda"
        )
