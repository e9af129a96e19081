"""DALI's graphs and their inputs, for encoded images and for images that are already pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from pipeline.data.dali import augmenting, erasing
from pipeline.data.dali.settings import DecodeSettings
from pipeline.data.images import ImageSet
from pipeline.data.stream import Selection

# How boxes are given to DALI's operators.
_IN_PIXELS: dict[str, Any] = {
    "axis_names": "HW",
    "normalized_anchor": False,
    "normalized_shape": False,
}
_LIST: Any = TensorListCPU  # its stub does not know `contiguous` (DALI 2.4)


def graph_inputs(
    selection: Selection, encoded: list[np.ndarray], manifest: ImageSet, settings: DecodeSettings
) -> tuple[Any, ...]:
    """The graph's inputs for one batch, in the order of `make_pipeline`'s source.

    The decoder gets the integer box around the planned one plus a margin of
    ceil(max(1, box / output)) pixels, so that the antialiasing filter sees its neighbours; the
    fractional box goes to the resize, relative to the decoded part, and is at least 1 px.
    With a mean image, the means hold the colour offset alone. What a graph in host memory would
    hand through unchanged is not among its inputs: labels, and the means of uint8.
    """
    plan, normalisation = selection.plan, settings.normalisation
    image = normalisation.image
    assert image is None or image.shape[:2] == plan.shape, (  # a wrong mean would go unnoticed
        f"a mean image of {image.shape} for views of {plan.shape}; see DecodeSettings.for_shape"
    )
    if settings.decoder == "none":
        return _pixel_inputs(selection, encoded)
    sizes = np.stack([manifest.heights[selection.images], manifest.widths[selection.images]], 1)
    start, extent = plan.boxes[:, :2].astype(np.float64), plan.boxes[:, 2:].astype(np.float64)
    extent = np.maximum(extent, 1.0)
    margin = np.ceil(np.maximum(1.0, extent / plan.shape))
    low = np.maximum(np.floor(start) - margin, 0).astype(np.int32)
    high = np.minimum(np.ceil(start + extent) + margin, sizes).astype(np.int32)
    begin = (start - low).astype(np.float32)
    inputs = [
        encoded,
        low,
        high - low,
        begin,
        begin + extent.astype(np.float32),
        np.tile(np.array(plan.shape, dtype=np.float32), (len(start), 1)),
        plan.flips.astype(np.int32),
    ]
    if _takes_means(settings):
        inputs.append(means_of(selection, settings))
    if settings.decoder == "gpu":
        inputs.append(np.ascontiguousarray(selection.labels))
    inputs += augmenting.operation_inputs(plan)
    return (*inputs, *erasing.box_inputs(plan, _erased_with(selection, settings)))


def _takes_means(settings: DecodeSettings) -> bool:
    return settings.decoder == "gpu" or settings.output != "uint8"


def _erased_with(selection: Selection, settings: DecodeSettings) -> np.ndarray | None:
    """What stands in erased pixels (B, 3), None for 0: of uint8, the level next to the mean."""
    if settings.output != "uint8":
        return None
    return np.asarray(np.clip(np.rint(means_of(selection, settings)), 0, 255))


def means_of(selection: Selection, settings: DecodeSettings) -> np.ndarray:
    """What is subtracted from each image, its colour offset included, (B, 3) float32."""
    normalisation = settings.normalisation
    mean = normalisation.mean if normalisation.image is None else np.float32(0)
    return (mean - selection.plan.offsets).astype(np.float32)


def as_lists(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """`graph_inputs` as DALI's own lists over the same memory, which must outlive them.

    To make them takes 1 ms for 256 files, to hand arrays over takes 1.3 and such lists 0.4; only
    the last is left to the training thread.
    """
    return tuple(
        _LIST([TensorCPU(one) for one in column], None, contiguous=False)
        if isinstance(column, list)
        else _LIST(column, "HWC" if column.ndim == 4 else None)
        for column in inputs
    )


def make_pipeline(source: Any, batch_size: int, settings: DecodeSettings) -> Pipeline:
    """The graph, not yet built; `source()` returns `as_lists` of the `graph_inputs` of each batch.

    It reads their memory, which must be kept until the batch is given out.

    Outputs images (B, H, W, 3) of `settings.output`. On the GPU, where those of a GPU decoder are,
    also labels (B,) int64, and for uint8, whose pixels are not normalised, each image's mean (B, 3)
    float32. With a CPU as `settings.device`, a graph of the GPU decoder can be serialised and
    checked, not run.
    """
    if settings.decoder == "none":
        return _pixel_pipeline(source, batch_size, settings)
    assert settings.normalisation.image is None or settings.output != "uint8", (
        "pixels that are not normalised yet are mirrored already, and a mean image comes before"
    )
    if settings.decoder == "gpu" and settings.effects.augmentation is not None:
        # Each image goes the way of its own operation alone.
        define = pipeline_def(_outputs, enable_conditionals=True)
        pipe: Pipeline = define(source, settings, **_execution(batch_size, settings))
        return pipe
    pipe = _new_pipeline(batch_size, settings)
    with pipe:
        pipe.set_outputs(*_outputs(source, settings))
    return pipe


def _outputs(source: Any, settings: DecodeSettings) -> tuple[Any, ...]:
    """The nodes that `make_pipeline` gives out, and all that they need."""
    on_gpu, effects = settings.decoder == "gpu", settings.effects
    own = 7 + _takes_means(settings) + on_gpu
    of_operations, of_boxes = augmenting.input_count(effects), erasing.input_count(settings)
    nodes = _inputs(source, own + of_operations + of_boxes)
    encoded, low, extent, begin, end, shape, flips = nodes[:7]
    means: Any = nodes[7] if _takes_means(settings) else None
    images = _decoded(encoded, low, extent, settings)
    operations = nodes[own : own + of_operations]
    images = _finished(images, (begin, end), shape, flips, means, operations, settings)
    outputs = [erasing.erased(images, nodes[own + of_operations :])]
    if on_gpu:
        outputs.append(nodes[8].gpu())
    if on_gpu and settings.output == "uint8":
        outputs.append(means.gpu())
    return tuple(outputs)


def make_decoding_pipeline(source: Any, batch_size: int, settings: DecodeSettings) -> Pipeline:
    """The graph of `make_pipeline` up to its first operator; not yet built.

    `source()` returns the first three inputs of `make_pipeline` for each batch. Outputs each
    image's box, (h, w, 3) uint8.
    """
    pipe = _new_pipeline(batch_size, settings)
    with pipe:
        encoded, low, extent = _inputs(source, 3)
        pipe.set_outputs(_decoded(encoded, low, extent, settings))
    return pipe


def _inputs(source: Any, count: int) -> list[Any]:
    """The first nodes of a graph, whose batches are read where they lie."""
    nodes = fn.external_source(source=source, num_outputs=count, batch=True, no_copy=True)
    assert isinstance(nodes, list)
    return nodes


def _new_pipeline(batch_size: int, settings: DecodeSettings) -> Pipeline:
    return Pipeline(**_execution(batch_size, settings))


def _execution(batch_size: int, settings: DecodeSettings) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "num_threads": settings.threads,
        "device_id": settings.device.index if settings.decoder == "gpu" else None,
        "prefetch_queue_depth": settings.prefetch,
        "exec_dynamic": True,  # batches are fresh memory and stay valid; also 17% faster
    }


def _finished(
    images: Any, box: tuple[Any, Any], shape: Any, flips: Any, means: Any, operations: list[Any],
    settings: DecodeSettings,
) -> Any:  # fmt: skip
    """The decoded pixels, resized, mirrored, changed by `operations` and, but for uint8,
    normalised; `box` is its begin and its end."""
    mean_image, on_gpu = settings.normalisation.image, settings.decoder == "gpu"
    if on_gpu:
        images = fn.resize(
            images,
            size=shape,
            roi_start=box[0],
            roi_end=box[1],
            roi_relative=False,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        if settings.effects.augmentation is not None:  # of mirrored pixels
            count = settings.effects.augmentation.count
            images = fn.flip(images, horizontal=flips, vertical=0)
            images, flips = augmenting.by_branches(images, operations, shape, count), 0
        if settings.output == "uint8":
            return fn.crop_mirror_normalize(
                images, mirror=flips, dtype=types.UINT8, output_layout="HWC"
            )
    else:  # in one operator where that does all that is needed
        from pipeline.data.dali import resampling  # brings numba, which takes half a second

        if operations:
            images = resampling.resized(images, box, shape, flips)
            images, flips = augmenting.by_kernel(images, operations), 0
            if settings.output == "uint8":
                return images
        elif settings.output == "uint8":
            return resampling.resized(images, box, shape, flips)
        elif settings.output == "float32" and mean_image is None:
            normaliser = means, settings.normalisation.std
            return resampling.resized(images, box, shape, flips, normaliser)
        else:
            images = resampling.resized(images, box, shape, types.Constant(0, dtype=types.INT32))
    if mean_image is not None:
        images = images - types.Constant(mean_image, device="gpu" if on_gpu else "cpu")
    # The colour offset is part of the mean: a separate addition takes longer.
    return fn.crop_mirror_normalize(images, mirror=flips, mean=means, **_output_arguments(settings))


def _output_arguments(settings: DecodeSettings) -> dict[str, Any]:
    """Arguments of `crop_mirror_normalize` for normalised pixels, except its means."""
    return {
        "std": settings.normalisation.std.tolist(),
        "dtype": types.FLOAT16 if settings.output == "float16" else types.FLOAT,
        "output_layout": "HWC",
    }


def _decoded(encoded: Any, low: Any, extent: Any, settings: DecodeSettings) -> Any:
    """The graph's first operator: the pixels of each image's integer box."""
    return fn.decoders.image_slice(
        encoded,
        low,
        extent,
        **_IN_PIXELS,
        output_type=types.RGB,
        adjust_orientation=False,  # as Pillow and torchvision; EXIF would swap the box's axes
        **_decoder_arguments(settings),
    )


def _decoder_arguments(settings: DecodeSettings) -> dict[str, Any]:
    """Arguments that differ between the decoders; the CPU decoder does not know the GPU's."""
    if settings.decoder == "cpu":
        return {"device": "cpu"}
    memory = settings.memory
    return {
        "device": "mixed",
        "hw_decoder_load": settings.hw_decoder_load,
        "preallocate_width_hint": memory.width,
        "preallocate_height_hint": memory.height,
        "device_memory_padding": memory.device_padding_bytes,
        "host_memory_padding": memory.host_padding_bytes,
    }


def normalise(images: torch.Tensor, means: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Pixels (B, H, W, 3) uint8 normalised as DALI does: float32, NHWC.

    `means` is (B, 3), `scale` (3,) one divided by the deviations, both float32 and on the device of
    `images`. Within 2.4e-7 of DALI's own.
    """
    return images.sub(means[:, None, None, :]).mul_(scale)


# Images that are already pixels, such as those of CIFAR-10


def _pixel_inputs(selection: Selection, images: list[np.ndarray]) -> tuple[Any, ...]:
    """The `graph_inputs` of `images` that are pixels, (H, W, 3) uint8 each.

    Boxes are whole pixels and may lie outside the image.
    """
    plan = selection.plan
    assert not plan.offsets.any(), "this graph adds no colour offset"
    assert (plan.boxes[:, 2:] == plan.shape).all(), "this graph does not resize"
    return (
        np.stack(images),
        plan.boxes[:, :2].astype(np.int32),
        plan.boxes[:, 2:].astype(np.int32),
        plan.flips.astype(np.int32),
        *erasing.box_inputs(plan, None),
    )


def _pixel_pipeline(source: Any, batch_size: int, settings: DecodeSettings) -> Pipeline:
    """The graph for images that are pixels. Outputs images (B, H, W, 3) float32 or float16.

    pixels -> subtract the mean -> cut, zeros beyond the image -> mirror -> divide by the deviation,
    on the CPU. The mean comes before the zeros, so that pixels beyond the image count as average
    (section 4.2 of the paper).
    """
    assert settings.output != "uint8", "the zeros of the padding are zeros after the mean"
    assert settings.effects.augmentation is None, "operations are for pixels that have no mean yet"
    pipe = _new_pipeline(batch_size, settings)
    with pipe:
        images, start, extent, flips, *box = _inputs(source, 4 + erasing.input_count(settings))
        images = images - types.Constant(settings.normalisation.subtracted, device="cpu")
        images = fn.slice(
            images, start, extent, **_IN_PIXELS, out_of_bounds_policy="pad", fill_values=0.0
        )
        images = fn.crop_mirror_normalize(images, mirror=flips, **_output_arguments(settings))
        pipe.set_outputs(erasing.erased(images, box))
    return pipe
