"""`benchmark norm`: BN (+ add) + ReLU of every shape in a ResNet, against a copy's bandwidth.

On a GPU each call is captured in a CUDA graph, so that times are those of the kernels and not of
launching them, and goes through several sets of tensors, more than fit into the L2 cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from pipeline.benchmark import device as devices
from pipeline.benchmark.network import Design, NormCase, kernel_bytes, network, norm_bytes
from pipeline.benchmark.norm_layer import Layer, kernel_seconds
from pipeline.benchmark.options import Amp, NormOptions
from pipeline.benchmark.result import Result, Save, Show, Spread, interleave, ratio, status_line
from pipeline.model.backends import Backend, problems

_HALF = 2  # bytes of an element
_DESIGNS: dict[Backend, Design] = {"reference": "eager", "triton": "folded", "apex": "fused"}
_NAMES: dict[Backend, str] = {"reference": "eager", "triton": "triton", "apex": "apex"}
_NOISE = "< noise"  # of a difference: more rounds, or a machine with nothing else to do, tell it
_HEAD = ("BN (+ add) + ReLU", "batch", "backend", "fwd us", "bwd us", "fwd of copy", "bwd of copy")


@dataclass
class Timing:
    """Seconds of one backend's passes over one shape, by rounds; the bytes its design moves."""

    forward: Spread
    both: Spread
    bytes: tuple[float, float]
    kernels: dict[str, float] | str | None = None
    """Of our kernels each by itself: seconds, or why they could not be told apart."""

    @property
    def backward(self) -> Spread:
        """The rest of both passes, round by round."""
        pairs = zip(self.both.rounds, self.forward.rounds, strict=True)
        return Spread(tuple(both - forward for both, forward in pairs))

    @property
    def backward_told(self) -> bool:
        """Whether the backward pass, a difference, is more than noise: in three rounds of four it
        takes a tenth of the forward pass or more, though it moves more bytes than that does."""
        return self.backward.quartiles[0] > self.forward.median / 10

    def shares(self, copy: Spread) -> tuple[float, float | None]:
        """Bytes over time of the forward and of the backward pass, over what the copy reached; of
        a backward pass that is not told from noise None."""
        forward, backward = self.bytes
        return (
            forward / self.forward.median / copy.median,
            backward / self.backward.median / copy.median if self.backward_told else None,
        )


@dataclass
class Measured:
    """One shape in one dtype."""

    case: NormCase
    images: int
    copy: Spread
    """Bytes per second, in rounds between those of the backends."""
    timings: dict[Backend, Timing] = field(default_factory=dict)


def run(options: NormOptions, save: Save | None = None) -> Result:
    """Forward and backward time of each backend that can run here; the others with their reason.

    Ratios: `triton_vs_eager_resnet50_fp16`, eager's time over triton's, summed over the network's
    layers; `triton_of_copy_...`, its bytes over its time over the copy's bandwidth, likewise;
    `worst_share_of_copy`, the least of a pass of our kernels over all shapes, and
    `worst_kernel_share_of_copy`, that of a kernel. `save` gets the result after each shape.
    """
    with status_line() as show:
        return _run(options, save, show)


def _run(options: NormOptions, save: Save | None, show: Show) -> Result:
    device = devices.pick_device(options.device)
    counts = {depth: network(depth, options.pixels).norms for depth in options.depth_numbers}
    cases = sorted(
        {case for norms in counts.values() for case in norms}, key=lambda c: (-c.side, str(c))
    )
    result = Result("norm", {**vars(options), "device": str(device)}, figures={"not_run": {}})
    result.table = [_HEAD]
    copy = devices.Copy(device)
    started = time.monotonic()
    for amp in options.amp_names:
        show("")
        backends = _able(device, amp, result)
        measured: list[Measured] = []
        for number, case in enumerate(cases, 1):
            show(f"measuring: norm {amp}, shape {number} of {len(cases)}: {case}")
            if options.limit_sec is not None and time.monotonic() - started > options.limit_sec:
                result.figures["not_run"][f"{case} {amp}"] = (
                    f"the time limit of {options.limit_sec:g} s was over before"
                )
                continue
            measured.append(measure(case, amp, backends, options, device, copy, result))
            devices.release(device)
            _add_rows(result, measured[-1], amp, {depth: n[case] for depth, n in counts.items()})
            if save is not None:
                save(result)
        if len(measured) == len(cases):
            for depth, norms in counts.items():
                result.ratios |= network_ratios(measured, norms, f"resnet{depth}_{amp}")
    return result


def _able(device: torch.device, amp: Amp, result: Result) -> list[Backend]:
    """The backends that can run; says of all of them which can and why not."""
    found = {name: devices.as_options(problem) for name, problem in problems(device, amp).items()}
    for backend, problem in found.items():
        print(f"{amp} {backend}: {problem or 'can run here'}", flush=True)
        if problem:
            result.figures["not_run"][f"{_NAMES[backend]} {amp}"] = problem
    return [backend for backend, problem in found.items() if problem is None]


def measure(
    case: NormCase, amp: Amp, backends: list[Backend], options: NormOptions,
    device: torch.device, copy: devices.Copy, result: Result,
) -> Measured:  # fmt: skip
    """All backends on one shape, in turn, at `options.batch` images or the next half that fits."""
    images = options.batch
    while True:
        able, problems_here = list(backends), result.figures["not_run"]
        try:
            layers = {}
            for backend in backends:
                try:
                    layers[backend] = Layer(case, images, devices.DTYPES[amp], backend, device)
                except Exception as error:  # the other backends are measured
                    if devices.out_of_memory(error):
                        raise
                    problems_here[f"{_NAMES[backend]} {case} {amp}"] = devices.reason(error)
                    able.remove(backend)
            return _interleaved(case, images, {b: layers[b] for b in able}, options.rounds, copy)
        except Exception as error:
            if not devices.out_of_memory(error) or images == 1:
                raise
        del layers
        images //= 2
        devices.release(device)


def _interleaved(
    case: NormCase, images: int, layers: Mapping[Backend, Layer], rounds: int, copy: devices.Copy
) -> Measured:
    sides: dict[str, Callable[[], float]] = {"copy": copy.bytes_per_sec}
    for backend, layer in layers.items():
        sides |= {f"{backend} forward": layer.forward, f"{backend} both": layer.both}
    for measure_once in sides.values():
        measure_once()
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
    """The shape's rows in the table, and all of it in the figure `shapes`."""
    case, backends = measured.case, {}
    for backend, timing in measured.timings.items():
        forward, backward = timing.shares(measured.copy)
        result.table.append(
            (
                f"{case} {amp}",
                str(measured.images),
                _NAMES[backend],
                f"{timing.forward.median * 1e6:.1f}",
                _NOISE if backward is None else f"{timing.backward.median * 1e6:.1f}",
                f"{forward:.1%}",
                "" if backward is None else f"{backward:.1%}",
            )
        )
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
        "side": case.side,
        "channels": case.channels,
        "kind": case.kind,
        "forked": case.forked,
        "amp": amp,
        "images": measured.images,
        "layers": {f"resnet{depth}": count for depth, count in counts.items()},
        "copy_bytes_per_sec": measured.copy.to_json(),
        "backends": backends,
    }
    result.figures.setdefault("shapes", []).append(shape)


def _kernels(measured: Measured, timing: Timing) -> dict[str, dict[str, float]] | str | None:
    """Seconds, bytes and share of copy of each of our kernels that reads activations."""
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
    layers = [(one, counts[one.case]) for one in measured if counts.get(one.case)]
    ratios: dict[str, Spread | float] = {}
    totals: dict[Backend, Spread] = {}
    for backend, name in _NAMES.items():
        if not all(backend in one.timings for one, _ in layers):
            continue
        shares = [
            [n * sec / one.images for sec in one.timings[backend].both.rounds] for one, n in layers
        ]
        totals[backend] = Spread(tuple(map(sum, zip(*shares, strict=True))))
        # Each shape's bytes take this long at the copy's bandwidth of its own rounds.
        at_best = sum(
            n * sum(one.timings[backend].bytes) / one.copy.median / one.images for one, n in layers
        )
        ratios[f"{name}_of_copy_{network_name}"] = at_best / totals[backend].median
        if backend != "reference" and "reference" in totals:
            against = ratio(totals["reference"], totals[backend])
            ratios[f"{name}_vs_eager_{network_name}"] = against
    return ratios
