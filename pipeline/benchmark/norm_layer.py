"""One BN (+ add) + ReLU on resident activations, for `benchmark norm`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.benchmark import device as devices
from pipeline.benchmark.network import NormCase
from pipeline.model.backends import Backend, make_norm
from pipeline.model.norm import ends

_MOST_SETS = 32
_L2_TIMES = 4  # as much memory is gone through between two uses of a tensor
_ENOUGH_SEC = 2e-3  # a round is repeated to last so long: events tell half a microsecond
_KERNELS = (
    *("statistics", "finish_statistics", "normalize"),
    *("gradient_sums", "finish_gradient_sums", "input_gradients"),
)


class Layer:
    """A layer and its sets of tensors, channels-last, of one shape and dtype."""

    def __init__(
        self, case: NormCase, images: int, dtype: torch.dtype, backend: Backend,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Draws everything, and on a GPU captures both passes. RuntimeError: it cannot."""
        self._device, self._forked = device, case.forked
        with device:
            self._norm = make_norm(backend, case.channels)
            self._beside = (
                make_norm(backend, case.channels, relu=False) if case.kind == "projection" else None
            )
            shape = (images, case.channels, case.side, case.side)
            added = case.kind != "plain"
            count = _sets(device, case.elements * images * dtype.itemsize)
            self._sets = [_Tensors(shape, dtype, added, case.forked) for _ in range(count)]
        self._passes = {"forward": self._go_forward, "both": self._go_both}
        self._run: dict[str, Callable[[], object]] = dict(self._passes)
        if device.type == "cuda":
            self._run = {name: devices.capture(work) for name, work in self._passes.items()}
        self._times = {name: self._enough(work) for name, work in self._run.items()}

    def forward(self) -> float:
        """Seconds of a forward pass in training."""
        return self._seconds("forward")

    def both(self) -> float:
        """Seconds of a forward and a backward pass."""
        return self._seconds("both")

    def launch(self) -> int:
        """Both passes over all sets, kernel by kernel; how many calls of the layer that was."""
        self._go_both()
        return len(self._sets)

    def _enough(self, work: Callable[[], object]) -> int:
        once = min(devices.seconds(self._device, work) for _ in range(2))
        return min(1000, int(_ENOUGH_SEC / max(once, 1e-6)) + 1)

    def _seconds(self, name: str) -> float:
        work, times = self._run[name], self._times[name]

        def again() -> None:
            for _ in range(times):
                work()

        return devices.seconds(self._device, again) / times / len(self._sets)

    def _call(self, on: _Tensors) -> tuple[Tensor, ...]:
        y = self._norm(on.x, on.z, self._beside, self._forked)
        return ends(y) if self._forked else (y,)

    # What they return is kept to the end of the pass: results in the memory of those before would
    # be written to the cache only.
    def _go_forward(self) -> object:
        return [self._call(on) for on in self._sets]

    def _go_both(self) -> object:
        layers = nn.ModuleList([self._norm] if self._beside is None else [self._norm, self._beside])
        parameters = list(layers.parameters())
        kept = []
        for on in self._sets:
            inputs = [on.x, *([] if on.z is None else [on.z]), *parameters]
            kept.append(torch.autograd.grad(self._call(on), inputs, on.gradients))
        return kept


class _Tensors:
    """What goes in: x, what is added to it, and the gradients that come back."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, add: bool, forked: bool) -> None:
        def activation() -> Tensor:
            return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

        self.x = activation().requires_grad_()
        self.z = activation().requires_grad_() if add else None
        self.gradients = [activation() for _ in range(1 + forked)]


def _sets(device: torch.device, tensor_bytes: int) -> int:
    """So many that a tensor has left the L2 cache when its turn comes again."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_SETS, -(-_L2_TIMES * cache // tensor_bytes))


def kernel_seconds(layer: Layer) -> dict[str, float] | str:
    """Seconds of each of our kernels in one call of the layer, or why the profiler has none.

    "statistics" is both launches where a projection is normalised too.
    """
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            calls = layer.launch()
            torch.cuda.synchronize()
        events = profiler.key_averages()
    except Exception as error:  # a driver may not let it; all else is measured without
        return devices.reason(error)
    return in_seconds({event.key: event.device_time_total for event in events}, calls)


def in_seconds(microseconds: dict[str, float], calls: int) -> dict[str, float] | str:
    """The time of our kernels per call from those of all kernels, which are called by their names
    (older Tritons add their arguments after an underscore and a digit)."""
    found = {}
    for name in _KERNELS:
        longer = tuple(f"{name}_{digit}" for digit in range(10))
        total = sum(
            time for key, time in microseconds.items() if key == name or key.startswith(longer)
        )
        if total <= 0:
            return f"the profiler saw no kernel called {name}"
        found[name] = total / 1e6 / calls
    return found
