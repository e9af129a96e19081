"""Resizes boxes on the CPU, for graphs that decode there.

DALI's own resize works in float on a CPU and takes as long as decoding. This one runs on DALI's
threads, image by image and without Python, in the operator that DALI has for functions compiled by
numba. Its definition is the same: linear with antialiasing, as Pillow's bilinear with a box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.plugin.numba import NumbaFunction

from pipeline.data.resampling_kernel import run_function, set_up_function


class CompiledFunction(NumbaFunction):
    """The operator with already compiled functions: around Python functions it compiles wrappers of
    its own, which takes 6 s in every process (DALI 2.4)."""

    def _get_run_fn_cpu(self, run_fn: Any, *_described: Any) -> int:
        return int(run_fn.address)

    def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
        return int(setup_fn.address)


def resized(
    images: Any,
    box: tuple[Any, Any],
    shape: Any,
    flips: Any,
    normaliser: tuple[Any, np.ndarray] | None = None,
) -> Any:
    """Adds a node to a graph: the boxes of images, resized and mirrored, (H, W, 3) uint8.

    `images` (h, w, 3) uint8; `box` two of (2,) float32, where it begins and ends (y, x) in their
    pixels, at least 1 px a side; `shape` (2,) float32, H and W; `flips` int32, 1 to mirror
    left-right. With a `normaliser`, means (3,) float32 and deviations (3,) float32 in host memory,
    minus the former and divided by the latter: (H, W, 3) float32.
    """
    # (H, W, 0): the operator must give its outputs' shapes before it may see what its inputs
    # hold.
    canvas = fn.zeros(shape=fn.pad(fn.cast(shape, dtype=types.INT32), axes=[0], shape=[3]))
    inputs = [images, *box, canvas, flips]
    if normaliser is not None:
        means, std = normaliser
        inputs.append(fn.cat(means, types.Constant(1 / std, device="cpu")))
    in_types = [types.UINT8, types.FLOAT, types.FLOAT, types.INT32, types.INT32, types.FLOAT]
    ins_ndim = [3, 1, 1, 3, 0, 1]
    operator = CompiledFunction(
        run_function(normalised=normaliser is not None),
        out_types=[types.UINT8 if normaliser is None else types.FLOAT],
        in_types=in_types[: len(inputs)],
        outs_ndim=[3],
        ins_ndim=ins_ndim[: len(inputs)],
        setup_fn=set_up_function(),
    )
    return fn.reinterpret(operator(*inputs), layout="HWC")
