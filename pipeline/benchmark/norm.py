"""`benchmark norm`: BN (+ add) + ReLU of every shape in a ResNet, against a copy's bandwidth.

On a GPU each call is captured in a CUDA graph, so that times are those of the kernels and not of
launching them, and cycles through more sets of tensors than fit into the L2 cache.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.benchmark import device as devices
from pipeline.benchmark.network import Design, NormCase, kernel_bytes, network, norm_bytes
from pipeline.benchmark.options import AMPS, DEPTHS, Amp, NormOptions, chosen
from pipeline.benchmark.result import (
    Result,
    Save,
    Spread,
    by_round,
    interleave,
    ratio,
    status_line,
)
from pipeline.model.backends import Backend, make_norm, problems
from pipeline.model.norm import ends
from pipeline.system.console import say

_HALF = 2  # bytes of an element
_DESIGNS: dict[Backend, Design] = {"reference": "eager", "triton": "folded", "apex": "fused"}
_NAMES: dict[Backend, str] = {"reference": "eager", "triton": "triton", "apex": "apex"}
_NOISE = "< noise"  # of a difference: more rounds, or an idle machine, resolve it
_HEAD = ("BN (+ add) + ReLU", "batch", "backend", "fwd us", "bwd us", "fwd of copy", "bwd of copy")
_MOST_SETS = 32
_L2_TIMES = 4  # as much memory is touched between two uses of a tensor
_ENOUGH_SEC = 2e-3  # a round lasts at least this long: events resolve half a microsecond
_KERNELS = (
    *("statistics", "finish_statistics", "normalize"),
    *("gradient_sums", "finish_gradient_sums", "input_gradients"),
)


@dataclass
class Timing:
    """Seconds of one backend's passes over one shape, by rounds; the bytes its design moves."""

    forward: Spread
    both: Spread
    bytes: tuple[float, float]
    kernels: dict[str, float] | str | None = None
    """Seconds of each of our kernels by itself, or why the profiler could not separate them."""

    @property
    def backward(self) -> Spread:
        """The backward pass, round by round: both passes minus the forward pass."""
        return by_round(operator.sub, self.both, self.forward)

    def shares(self, copy: Spread) -> tuple[float, float | None]:
        """Bytes over time of the forward and of the backward pass, over what the copy reached.

        None for a backward pass, a difference, that is lost in noise: it counts only if in three
        rounds of four it takes a tenth of the forward pass or more, though it moves more bytes than
        that does.
        """
        forward, backward = self.bytes
        resolved = self.backward.quartiles[0] > self.forward.median / 10
        return (
            forward / self.forward.median / copy.median,
            backward / self.backward.median / copy.median if resolved else None,
        )


@dataclass
class Measured:
    """One shape in one dtype."""

    case: NormCase
    images: int
    copy: Spread
    """Bytes per second, in rounds between those of the backends."""
    timings: dict[Backend, Timing] = field(default_factory=dict)


def run(options: NormOptions, save: Save = lambda result: None) -> Result:
    """Forward and backward time of each backend that can run here; for the others, why not.

    Ratios: `triton_vs_eager_resnet50_fp16`, eager's time over triton's, summed over the network's
    layers; `triton_of_copy_...`, its bytes over its time over the copy's bandwidth, likewise;
    `worst_share_of_copy`, the lowest for a pass of our kernels over all shapes, and
    `worst_kernel_share_of_copy`, the lowest for a kernel. `save` gets the result after each shape.
    """
    device = devices.pick_device(options.device)
    depths = chosen(options.depths, DEPTHS)
    counts = {depth: network(depth, options.pixels).norms for depth in depths}
    cases = sorted(
        {case for norms in counts.values() for case in norms}, key=lambda c: (-c.side, str(c))
    )
    result = Result("norm", {**vars(options), "device": str(device)}, figures={"not_run": {}})
    result.table = [_HEAD]
    copy = devices.Copy(device)
    over = devices.time_limit(options.limit_sec)
    with status_line() as show:
        for amp in chosen(options.amps, AMPS):
            show("")
            backends = _able(device, amp, result)
            measured: list[Measured] = []
            for number, case in enumerate(cases, 1):
                show(f"measuring: norm {amp}, shape {number} of {len(cases)}: {case}")
                if reason := over():
                    result.figures["not_run"][f"{case} {amp}"] = reason
                    continue
                measured.append(measure(case, amp, backends, options, copy, result))
                devices.release(device)
                layers = {depth: norms[case] for depth, norms in counts.items()}
                _add_rows(result, measured[-1], amp, layers)
                save(result)
            if len(measured) == len(cases):
                for depth, norms in counts.items():
                    result.ratios |= network_ratios(measured, norms, f"resnet{depth}_{amp}")
    return result


def _able(device: torch.device, amp: Amp, result: Result) -> list[Backend]:
    """The backends that can run; prints for each whether it can or why not."""
    found = {name: devices.as_options(problem) for name, problem in problems(device, amp).items()}
    for backend, problem in found.items():
        say(f"{amp} {backend}: {problem or 'can run here'}")
        if problem:
            result.figures["not_run"][f"{_NAMES[backend]} {amp}"] = problem
    return [backend for backend, problem in found.items() if problem is None]


def measure(
    case: NormCase, amp: Amp, backends: list[Backend], options: NormOptions, copy: devices.Copy,
    result: Result,
) -> Measured:  # fmt: skip
    """Measures all backends on one shape, in turn, at `options.batch` images, halved until they
    fit."""

    def at(images: int) -> Measured:
        layers: dict[Backend, Layer] = {}
        for backend in backends:
            try:
                layers[backend] = Layer(case, images, devices.DTYPES[amp], backend, copy.device)
            except Exception as error:  # the other backends are measured
                if devices.out_of_memory(error):
                    raise
                problem = devices.reason(error)
                result.figures["not_run"][f"{_NAMES[backend]} {case} {amp}"] = problem
        return _interleaved(case, images, layers, options.rounds, copy)

    return devices.fitting(options.batch, copy.device, at)


def _interleaved(
    case: NormCase, images: int, layers: Mapping[Backend, Layer], rounds: int, copy: devices.Copy
) -> Measured:
    sides: dict[str, Callable[[], float]] = {"copy": copy.bytes_per_sec}
    for backend, layer in layers.items():
        sides |= {f"{backend} forward": layer.forward, f"{backend} both": layer.both}
    found = interleave(rounds, sides)
    measured = Measured(case, images, found["copy"])
    for backend, layer in layers.items():
        design = norm_bytes(_DESIGNS[backend], case, images, _HALF)
        timing = Timing(found[f"{backend} forward"], found[f"{backend} both"], design)
        if backend == "triton":
            timing.kernels = kernel_seconds(layer)
        measured.timings[backend] = timing
    return measured


def _add_rows(result: Result, measured: Measured, amp: Amp, counts: Mapping[int, int]) -> None:
    """Adds the shape's rows to the table, and all of it to the figure `shapes`."""
    case, backends = measured.case, {}
    for backend, timing in measured.timings.items():
        forward, backward = timing.shares(measured.copy)
        result.table.append((
            f"{case} {amp}",
            str(measured.images),
            _NAMES[backend],
            f"{timing.forward.median * 1e6:.1f}",
            _NOISE if backward is None else f"{timing.backward.median * 1e6:.1f}",
            f"{forward:.1%}",
            "" if backward is None else f"{backward:.1%}",
        ))  # fmt: skip
        backends[_NAMES[backend]] = {
            "forward_sec": timing.forward.to_json(),
            "backward_sec": timing.backward.to_json(),
            "forward_bytes": timing.bytes[0],
            "backward_bytes": timing.bytes[1],
            "forward_share_of_copy": forward,
            "backward_share_of_copy": backward,
        }
        if backend == "triton":
            _lower(result, "worst_share_of_copy", min(forward, backward or forward))
            backends["triton"]["kernels"] = kernels = _kernels(measured, timing)
            if isinstance(kernels, dict):
                least = min(kernel["share_of_copy"] for kernel in kernels.values())
                _lower(result, "worst_kernel_share_of_copy", least)
    shape = {
        **vars(case),
        "amp": amp,
        "images": measured.images,
        "layers": {f"resnet{depth}": count for depth, count in counts.items()},
        "copy_bytes_per_sec": measured.copy.to_json(),
        "backends": backends,
    }
    result.figures.setdefault("shapes", []).append(shape)


def _kernels(measured: Measured, timing: Timing) -> dict[str, dict[str, float]] | str | None:
    """Seconds, bytes and share of the copy's bandwidth of each kernel that reads activations."""
    if not isinstance(timing.kernels, dict):
        return timing.kernels
    moved = kernel_bytes(measured.case, measured.images, _HALF)
    return {
        name: {
            "sec": timing.kernels[name],
            "bytes": moved[name],
            "share_of_copy": moved[name] / timing.kernels[name] / measured.copy.median,
        }
        for name in moved
    }


def _lower(result: Result, name: str, value: float) -> None:
    result.ratios[name] = min(value, result.ratio_value(name) if name in result.ratios else value)


def network_ratios(
    measured: list[Measured], counts: Mapping[NormCase, int], network_name: str
) -> dict[str, Spread | float]:
    """Each backend against eager and against the copy, summed over a network's layers.

    Times are per image, as shapes may have been measured at different batches. Backends without a
    time for every shape are left out.
    """
    layers = [(one, counts[one.case] / one.images) for one in measured if counts.get(one.case)]
    ratios: dict[str, Spread | float] = {}
    totals: dict[Backend, Spread] = {}

    def summed(*seconds: float) -> float:
        return sum(n * sec for (_, n), sec in zip(layers, seconds, strict=True))

    for backend, name in _NAMES.items():
        if not all(backend in one.timings for one, _ in layers):
            continue
        totals[backend] = by_round(summed, *(one.timings[backend].both for one, _ in layers))
        # Each shape's bytes take this long at the copy's bandwidth of its own rounds.
        at_best = sum(n * sum(one.timings[backend].bytes) / one.copy.median for one, n in layers)
        ratios[f"{name}_of_copy_{network_name}"] = at_best / totals[backend].median
        if backend != "reference" and "reference" in totals:
            against = ratio(totals["reference"], totals[backend])
            ratios[f"{name}_vs_eager_{network_name}"] = against
    return ratios


class Layer:
    """One BN (+ add) + ReLU and its sets of activations, channels-last, of one shape and dtype."""

    def __init__(
        self, case: NormCase, images: int, dtype: torch.dtype, backend: Backend,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Draws all tensors, and on a GPU captures both passes. RuntimeError if it cannot."""
        self._device, self._forked = device, case.forked
        with device:
            self._norm = make_norm(backend, case.channels)
            self._skip = (
                make_norm(backend, case.channels, relu=False) if case.kind == "projection" else None
            )
            shape = (images, case.channels, case.side, case.side)
            added = case.kind != "plain"
            count = _sets(device, case.elements * images * dtype.itemsize)
            self._sets = [_Tensors(shape, dtype, added, case.forked) for _ in range(count)]
        self._forward: devices.Work = self._go_forward
        self._both: devices.Work = self._go_both
        if device.type == "cuda":
            self._forward = devices.capture(self._go_forward)
            self._both = devices.capture(self._go_both)
        self._times = {work: self._enough(work) for work in (self._forward, self._both)}

    def forward(self) -> float:
        """Seconds of a forward pass in training."""
        return self._seconds(self._forward)

    def both(self) -> float:
        """Seconds of a forward and a backward pass."""
        return self._seconds(self._both)

    def launch(self) -> int:
        """Runs both passes over all sets, kernel by kernel; returns the number of layer calls."""
        self._go_both()
        return len(self._sets)

    def _enough(self, work: devices.Work) -> int:
        once = min(devices.seconds(self._device, work) for _ in range(2))
        return min(1000, int(_ENOUGH_SEC / max(once, 1e-6)) + 1)

    def _seconds(self, work: devices.Work) -> float:
        times, loop = self._times[work], devices.again(work)
        return devices.seconds(self._device, lambda: loop(times)) / times / len(self._sets)

    def _call(self, on: _Tensors) -> tuple[Tensor, ...]:
        y = self._norm(on.x, on.z, self._skip, self._forked)
        return ends(y) if self._forked else (y,)

    # Results are kept to the end of the pass: if they reused each other's memory, they would be
    # written to the cache only.
    def _go_forward(self) -> object:
        return [self._call(on) for on in self._sets]

    def _go_both(self) -> object:
        layers = nn.ModuleList([self._norm] if self._skip is None else [self._norm, self._skip])
        parameters = list(layers.parameters())
        kept = []
        for on in self._sets:
            inputs = [on.x, *([] if on.z is None else [on.z]), *parameters]
            kept.append(torch.autograd.grad(self._call(on), inputs, on.gradients))
        return kept


class _Tensors:
    """The inputs: x, what is added to it, and the gradients that come back."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, add: bool, forked: bool) -> None:
        def activation() -> Tensor:
            return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

        self.x = activation().requires_grad_()
        self.z = activation().requires_grad_() if add else None
        self.gradients = [activation() for _ in range(1 + forked)]


def _sets(device: torch.device, tensor_bytes: int) -> int:
    """The number of sets with which a tensor has left the L2 cache when its turn comes again."""
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
    except Exception as error:  # a driver may forbid it; all else is measured without
        return devices.reason(error)
    return in_seconds({event.key: event.device_time_total for event in events}, calls)


def in_seconds(microseconds: Mapping[str, float], calls: int) -> dict[str, float] | str:
    """The time of our kernels per call, found by name among the times of all kernels."""
    found = {}
    for name in _KERNELS:
        if microseconds.get(name, 0.0) <= 0:
            return f"the profiler saw no kernel called {name}"
        found[name] = microseconds[name] / 1e6 / calls
    return found
