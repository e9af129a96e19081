"""On the hollow GPU: every norm kernel gets the same from a direct launch as from Triton's own.

usage: launches.py; prints how many kinds of launches agree, and fails if one does not.
"""

from __future__ import annotations

import harness
import torch
from torch import Tensor

from pipeline.model.kernels.launch import Launch
from pipeline.model.kernels.ops import backward_pass, forward_pass

_SCRATCH = 2  # arguments that Triton adds: memory that none of these kernels asks for


def compare(launch: Launch, stream: int, tensors: tuple[Tensor | None, ...], floats: tuple) -> int:
    """Launches both ways; returns the number of arguments. Raises `AssertionError`."""
    kernel, grid, rest, warps = launch._kernel, launch._grid, launch._rest, launch._warps
    compiled = kernel[grid](*tensors, *floats, *rest, num_warps=warps)
    types = [kind for kind in compiled.src.signature.values() if kind != "constexpr"]
    count = len(types) + _SCRATCH
    own = harness.last_launch(
        count, lambda: kernel[grid](*tensors, *floats, *rest, num_warps=warps)
    )
    launch(stream, tensors, floats)
    assert launch._direct is not None, f"{kernel} is not launched directly"
    ours = harness.last_launch(count, lambda: launch(stream, tensors, floats))
    for place, kind in enumerate([*["*"] * 8, *types, *["*"] * _SCRATCH]):
        bits = (1 << 64) - 1 if kind.startswith("*") else (1 << 32) - 1
        a, b = own[place] & bits, ours[place] & bits
        assert a == b, f"{kernel}: number {place} is {a} by Triton and {b} by us"
    return count


def run() -> int:
    """Both passes of every kind of layer in each dtype; returns how many launches agreed."""
    agreed = 0
    call = Launch.__call__

    def compared(self: Launch, stream: int, tensors: tuple, floats: tuple = ()) -> None:
        nonlocal agreed
        Launch.__call__ = call  # type: ignore[method-assign]
        compare(self, stream, tensors, floats)
        Launch.__call__ = compared  # type: ignore[method-assign]
        agreed += 1

    Launch.__call__ = compared  # type: ignore[method-assign]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for norms, add, relu, fork in ((1, False, True, False), (1, False, False, True),
                                       (1, True, True, True), (2, True, True, True)):  # fmt: skip
            x, z, dy, dy2 = (
                torch.empty(8, 28, 28, 64, device="cuda", dtype=dtype).permute(0, 3, 1, 2)
                for _ in range(4)
            )
            vectors = [torch.empty(64, device="cuda") for _ in range(4 * norms)]
            parameters, running = vectors[: 2 * norms], vectors[2 * norms :]
            _, mask, stats = forward_pass(
                x, z if add else None, parameters, running, [0.1] * norms, [1e-5] * norms, relu,
                True, True,
            )  # fmt: skip
            backward_pass(
                dy, dy2 if fork else None, x, z if norms == 2 else None, parameters, stats, mask,
                add, relu, True,
            )  # fmt: skip
    return agreed


if __name__ == "__main__":
    print(f"{run()} launches of the norm kernels get the same directly as from Triton")
    harness.leave()
