"""Executes the operations of a plan on uint8 views, each image its own.

On the CPU a compiled function goes through the operations of an image and gives Pillow's pixels to
the bit. On a GPU DALI's operators do: images are parted by operation (DALI's conditional
execution), so that each takes the way of its own alone. Pixels are Pillow's there to one level, as
DALI computes in float32, but for equalize: DALI follows OpenCV, whose table counts a level's own
pixels and Pillow's those below it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from pipeline.data.augmentations import GEOMETRIC, Operation, parameters_of
from pipeline.data.crops import Plan
from pipeline.data.effects import Effects

# Plain numbers: DALI compares nodes with nothing else.
_LAST_MOVE = int(max(GEOMETRIC))
_BRIGHTNESS, _COLOR, _CONTRAST = (
    int(one) for one in (Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST)
)
_SHARPNESS, _POSTERIZE, _SOLARIZE, _AUTOCONTRAST = (
    int(one)
    for one in (
        Operation.SHARPNESS, Operation.POSTERIZE, Operation.SOLARIZE, Operation.AUTOCONTRAST,
    )
)  # fmt: skip
_GREY = np.array([19595, 38470, 7471], np.float32) / 65536  # Pillow's: exact in float32
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_SMALL = 1 / 1024  # above float32's errors: what should be a whole number is not cut to one less


def operation_inputs(plan: Plan) -> tuple[np.ndarray, ...]:
    """A graph's inputs for the operations of `plan`, none if it has none: operations (B, K) int32,
    their parameters (B, K, 6) float64."""
    if plan.operations is None or plan.strengths is None:
        return ()
    parameters = parameters_of(plan.operations, plan.strengths, plan.shape)
    return np.ascontiguousarray(plan.operations), parameters


def input_count(effects: Effects) -> int:
    """How many `operation_inputs` a graph has."""
    return 0 if effects.augmentation is None else 2


def by_kernel(images: Any, nodes: list[Any]) -> Any:
    """Adds a node for the CPU: `images` (H, W, 3) uint8 after the operations that the nodes of
    `operation_inputs` give."""
    # These bring numba, which takes half a second.
    from pipeline.data.dali.augmenting_kernel import run_function, set_up_function
    from pipeline.data.dali.resampling import CompiledFunction

    operations, parameters = nodes
    operator = CompiledFunction(
        run_function(),
        out_types=[types.UINT8],
        in_types=[types.UINT8, types.INT32, types.FLOAT64],
        outs_ndim=[3],
        ins_ndim=[3, 1, 2],
        setup_fn=set_up_function(),
    )
    return fn.reinterpret(operator(images, operations, parameters), layout="HWC")


def by_branches(images: Any, nodes: list[Any], shape: Any, count: int) -> Any:
    """Adds nodes: the same by DALI's own operators, on the CPU or a GPU, wherever the images are.

    `count` operations on each, (H, W) of all in `shape` (2,) float32 in host memory. For a graph
    with conditional execution.
    """
    operations, parameters = nodes
    for number in range(count):
        by = fn.cast(parameters[number], dtype=types.FLOAT)
        images = _changed(images, operations[number], by, shape)
    return images


def _changed(images: Any, operation: Any, by: Any, shape: Any) -> Any:
    """`images` after one operation each, with its parameters `by` (6,) float32 in host memory."""
    if operation <= _LAST_MOVE:
        images = _moved(images, by)
    elif operation == _BRIGHTNESS:
        images = _blended(images, 0.0, by)
    elif operation == _COLOR:
        images = _blended(images, _grey(images), by)
    elif operation == _CONTRAST:
        mean = fn.reductions.mean(_grey(images), axes=[0, 1, 2], keep_dims=True)
        images = _blended(images, math.floor(mean + 0.5), by)
    elif operation == _SHARPNESS:
        images = _blended(images, _smoothed(images, shape), by)
    elif operation == _POSTERIZE:
        images = images & fn.cast(_as_there(by[0], images), dtype=types.UINT8)
    elif operation == _SOLARIZE:
        dark = images < _as_there(by[0], images)
        inverted = types.Constant(255, dtype=types.UINT8) - images
        images = dark * images + (dark ^ True) * inverted
    elif operation == _AUTOCONTRAST:
        images = _stretched(images)
    else:
        images = fn.equalize(images)
    return images


def _as_there(node: Any, images: Any) -> Any:
    """A node of host memory where the images are."""
    return node.gpu() if images.device == "gpu" else node


def _levels(images: Any) -> Any:
    """Levels in float32, 0 or more, as uint8: cut, as Pillow does."""
    return fn.cast(math.floor(images + _SMALL), dtype=types.UINT8)


def _moved(images: Any, by: Any) -> Any:
    """Warped by a matrix, bilinear; black beyond the image.

    A place counts as inside by its own pixel, and the neighbours of one at the edge are repeated:
    DALI would mix black into it.
    """
    matrix = fn.reshape(by, shape=[2, 3])
    warped = fn.warp_affine(
        images, matrix=matrix, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT
    )
    inside = fn.warp_affine(
        fn.ones_like(images), matrix=matrix, interp_type=types.INTERP_NN, fill_value=0
    )
    return _levels(warped) * inside


def _blended(images: Any, other: Any, by: Any) -> Any:
    """Mixed with `other`, by[0] of the image; a share above 1 moves it away from `other`."""
    share = _as_there(by[0], images)
    return _levels(math.clamp(share * images + (1.0 - share) * other, 0.0, 255.0))


def _grey(images: Any) -> Any:
    """Grey levels (H, W, 1) float32, rounded as Pillow's."""
    weighted = images * types.Constant(_GREY, device=images.device)
    return math.floor(fn.reductions.sum(weighted, axes=[2], keep_dims=True) + 0.5)


def _smoothed(images: Any, shape: Any) -> Any:
    """Smoothed but for the outermost pixels, as Pillow's filter leaves them: float32."""
    kernel = types.Constant(_SMOOTH, device=images.device)
    smooth = fn.filter(images, kernel, mode="valid", dtype=types.FLOAT)
    change = math.floor(smooth + 0.5) - images[1:-1, 1:-1]
    change = fn.slice(
        change,
        start=[-1, -1],
        shape=fn.cast(shape, dtype=types.INT32),
        axis_names="HW",
        out_of_bounds_policy="pad",
        fill_values=0.0,
    )
    return images + change


def _stretched(images: Any) -> Any:
    """Each colour's range stretched to 0..255; one without a range stays."""
    low = fn.reductions.min(images, axes=[0, 1], keep_dims=True)
    span = fn.cast(fn.reductions.max(images, axes=[0, 1], keep_dims=True) - low, dtype=types.FLOAT)
    flat = span < 1.0
    scale = 255.0 / (span + 255.0 * flat)
    return _levels((images - low * (flat ^ True)) * scale)
