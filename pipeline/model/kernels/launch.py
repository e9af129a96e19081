"""Launches of one kernel again and again, without Triton's look-up of what was compiled for it.

Triton finds the compiled kernel anew at each launch, from the types, values and alignments of its
arguments: 11 to 12 us of the host for these kernels, and a step of ResNet-50 has 300 of them. Here
everything but addresses is fixed when a `Launch` is made, so that the kernel found at its first
launch serves the later ones, at 2 us. (Triton 3.6 to 3.9 on a GPU that computes nothing, 2 cores
of a Xeon, 2026-11-29.)
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import triton
from torch import Tensor

_FIRST_DIRECT, _LAST_DIRECT = (3, 6), (3, 9)
"""Versions of Triton whose compiled kernels were launched here: others take the ordinary way."""
_ALIGNMENT = 16
"""Bytes; Triton compiles a kernel of its own for addresses that are not multiples."""

_EXTRAS = ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl")
"""Of a launcher: what no kernel here asks for."""

log = logging.getLogger("trainyard")

Direct = tuple[Callable[..., None], tuple[Any, ...], bool, Any]
"""What launches a compiled kernel, its arguments between stream and kernel arguments, whether these
come as one tuple, and the kernel itself, which must live as long as its function is used."""


class Launch:
    """A kernel with its grid, numbers and number of warps; called with the tensors.

    All calls have the same dtypes, the same device, and None in the same places; what else decides
    which kernel Triton compiles is looked at here.
    """

    __slots__ = ("_direct", "_grid", "_kernel", "_rest", "_warps")

    def __init__(self, kernel: Any, grid: tuple[int, int], rest: tuple[Any, ...], warps: int):
        """`rest` are the arguments that follow tensors and floats, constants included."""
        self._kernel, self._grid, self._rest, self._warps = kernel, grid, rest, warps
        self._direct: Direct | None = None

    def __call__(
        self, stream: int, tensors: Sequence[Tensor | None], floats: tuple[float, ...] = ()
    ) -> None:
        """Launches on `stream`, the current one (`current_stream`) of the current device, on which
        the tensors lie."""
        if self._direct is None:
            self._ordinary(tensors, floats)
            return
        addresses: list[int | None] = []
        bits = 0
        for tensor in tensors:
            if tensor is None:
                addresses.append(None)
            else:
                address = tensor.data_ptr()
                bits |= address
                addresses.append(address)
        if bits % _ALIGNMENT:
            self._ordinary(tensors, floats)
            return
        run, middle, packed, _ = self._direct
        across, down = self._grid
        if packed:
            run(across, down, 1, stream, *middle, (*addresses, *floats, *self._rest))
        else:
            run(across, down, 1, stream, *middle, *addresses, *floats, *self._rest)

    def _ordinary(self, tensors: Sequence[Tensor | None], floats: tuple[float, ...]) -> None:
        launched = self._kernel[self._grid](*tensors, *floats, *self._rest, num_warps=self._warps)
        aligned = all(t is None or t.data_ptr() % _ALIGNMENT == 0 for t in tensors)
        if aligned and launches_directly():
            self._direct = direct(launched)


def direct(compiled: Any) -> Direct | None:
    """What launches `compiled`, a kernel that was launched on the current device; None if that is
    not known of this object, such as in Triton's interpreter.

    Triton's own profiler (Proton) is told nothing of these launches.
    """
    try:
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    except AttributeError:
        return None
    untold = (None, None, None)  # the launch's metadata, hooks before and after it
    plain = not any(getattr(run, name, True) for name in _EXTRAS)
    plain = plain and not getattr(run, "gsan_enabled", False)  # a sanitizer's, from Triton 3.8 on
    if plain and hasattr(run, "kernel_signature"):  # from Triton 3.7 on: past a layer of Python
        middle = (function, False, False, metadata, *untold, None, None)
        return run.launch, (*middle, run.arg_annotations, run.kernel_signature), True, compiled
    return run, (function, metadata, *untold), False, compiled


@functools.cache
def launches_directly() -> bool:
    """Whether this version of Triton is known to take what `Launch` gives it; says so if not."""
    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    known = _FIRST_DIRECT <= version <= _LAST_DIRECT
    if not known:
        log.info(
            "norm layers: Triton %s launches each kernel the ordinary way, which takes more of the "
            "host's time than that of Triton 3.6 to 3.9", triton.__version__,
        )  # fmt: skip
    return known


def current_stream(gpu: int) -> int:
    """The current stream of a GPU, as the driver numbers it; 0 for -1, which is a CPU."""
    return 0 if gpu < 0 else _streams()(gpu)


@functools.cache
def _streams() -> Callable[[int], int]:
    found: Callable[[int], int] = triton.runtime.driver.active.get_current_stream
    return found
