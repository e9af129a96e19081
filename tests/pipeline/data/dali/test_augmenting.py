"""Operations are Pillow's: on the CPU to the bit, by DALI's own operators to one level."""

import re
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from PIL import Image
from torchvision_views import SIGNED, WITHOUT_STRENGTH, apply

from pipeline.data.augmentations import BINS, Augmentation, Operation, parameters_of
from pipeline.data.crops import CenterCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader, augmenting, make_pipeline
from pipeline.data.effects import Effects
from pipeline.data.erasing import RandomErasing
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET
from pipeline.data.stream import TrainStream, ValStream

CPU = torch.device("cpu")
SIDE = 48


def photo(seed: int, high: int = SIDE, wide: int = SIDE) -> np.ndarray:
    """(high, wide, 3) uint8: smooth, with noise, and not of all levels."""
    rng = np.random.default_rng([seed, high, wide])
    cells = rng.integers(20, 230, (5, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(cells).resize((wide, high), Image.Resampling.BICUBIC)
    noise = rng.integers(-15, 16, (high, wide, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def flat(seed: int) -> np.ndarray:
    """Of one, two and three levels, a colour each: what has no range or few steps."""
    rng = np.random.default_rng(seed)
    levels = [rng.choice(choice, (SIDE, SIDE)) for choice in ([90], [10, 250], [0, 3, 255])]
    return np.stack(levels, 2).astype(np.uint8)


def strength_of(
    kind: Literal["trivial", "rand"], operation: int, magnitude: int, sign: int,
    shape: tuple[int, int],
) -> float:  # fmt: skip
    found = Augmentation(kind).strengths(
        np.array([operation], np.int32), np.array([magnitude * 1.0]), np.array([sign * 1.0]), shape
    )
    return float(found[0])


@dataclass(frozen=True)
class Cases:
    """Every operation at every magnitude of both kinds with both signs: images (B, H, W, 3), what
    is done to each, (B,), and what Pillow makes of it."""

    images: np.ndarray
    operations: np.ndarray
    strengths: np.ndarray
    wanted: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        return inputs_of(self.images, self.operations[:, None], self.strengths[:, None])


@pytest.fixture(scope="module")
def cases() -> Cases:
    chosen = [
        (operation, strength_of(kind, operation, magnitude, sign, (SIDE, SIDE)), magnitude)
        for operation in Operation
        for kind in ("trivial", "rand")
        for magnitude in range(1 if operation in WITHOUT_STRENGTH else BINS)
        for sign in ((1, -1) if operation in SIGNED else (1,))
    ]
    rows = [
        (image, operation, strength, np.asarray(apply(Image.fromarray(image), operation, strength)))
        for operation, strength, magnitude in chosen
        for image in (photo(magnitude), flat(magnitude))
    ]
    images, operations, strengths, wanted = zip(*rows, strict=True)
    return Cases(
        np.stack(images), np.array(operations, np.int32), np.array(strengths), np.stack(wanted)
    )


def inputs_of(
    images: np.ndarray, operations: np.ndarray, strengths: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Images, operations, parameters and shapes, as a graph takes them."""
    shape = images.shape[1:3]
    parameters = parameters_of(operations, strengths, shape)
    shapes = np.tile(np.array(shape, np.float32), (len(images), 1))
    return images, operations, parameters, shapes


def nodes_of(inputs: tuple[np.ndarray, ...]):
    return fn.external_source(
        source=lambda: inputs, num_outputs=4, batch=True, layout=["HWC", "", "", ""]
    )


def by_kernel(inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    pipe = Pipeline(batch_size=len(inputs[0]), num_threads=1, device_id=None)
    with pipe:
        images, *nodes, _ = nodes_of(inputs)
        pipe.set_outputs(augmenting.by_kernel(images, nodes))
    pipe.build()
    return pipe.run()[0].as_array()


@pipeline_def(enable_conditionals=True)
def branches(inputs, count):
    images, operations, parameters, shape = nodes_of(inputs)
    images = augmenting.by_branches(images, [operations, parameters], shape, count)
    return fn.copy(images)


def by_branches(inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """The GPU's graph, with the images on the CPU, where the same operators are."""
    pipe = branches(
        inputs, inputs[1].shape[1], batch_size=len(inputs[0]), num_threads=1, device_id=None,
        exec_dynamic=True,
    )  # fmt: skip
    pipe.build()
    return pipe.run()[0].as_array()


def undecided(operations: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """(B, H, W), True where a pixel's place lies on the edge of the image but for rounding: DALI
    computes places in float32, Pillow in double."""
    by = parameters_of(operations, strengths, (SIDE, SIDE))[:, None, None, :]
    y, x = (place + 0.5 for place in np.mgrid[:SIDE, :SIDE])
    places = (
        by[..., 0] * x + by[..., 1] * y + by[..., 2],
        by[..., 3] * x + by[..., 4] * y + by[..., 5],
    )
    on_edge = [np.minimum(np.abs(place), np.abs(place - SIDE)) < 1e-4 for place in places]
    return np.logical_or(*on_edge) & (operations <= Operation.ROTATE)[:, None, None]


def test_on_the_cpu_pixels_are_pillows_to_the_bit(cases):
    found = by_kernel(cases.inputs)
    wrong = (found != cases.wanted).any((1, 2, 3))
    pairs = zip(cases.operations[wrong].tolist(), cases.strengths[wrong].tolist(), strict=True)
    assert [(Operation(one).name, strength) for one, strength in pairs] == []


def test_dalis_operators_are_within_a_level_of_pillow(cases):
    error = np.abs(by_branches(cases.inputs).astype(int) - cases.wanted)
    error[undecided(cases.operations, cases.strengths)] = 0
    photos = np.arange(len(error)) % 2 == 0
    for operation in Operation:
        of_it = cases.operations == operation
        if operation == Operation.EQUALIZE:  # OpenCV's definition
            assert error[of_it & photos].max() <= 8
            assert error[of_it & photos].mean() < 3
            continue
        assert error[of_it].max() <= 1, operation.name
        assert (error[of_it] > 0).mean() < 0.01, operation.name


def test_operations_follow_one_another_and_each_image_has_its_own():
    rng = np.random.default_rng(0)
    images = np.stack([photo(seed, 40, 56) for seed in range(60)])
    operations = rng.integers(0, 14, (60, 3)).astype(np.int32)
    magnitudes, signs = rng.integers(0, BINS, (60, 3)), rng.choice([-1, 1], (60, 3))
    strengths, wanted = np.empty((60, 3)), []
    for row, image in enumerate(images):
        shown = Image.fromarray(image)
        for column, operation in enumerate(operations[row].tolist()):
            chosen = magnitudes[row, column], signs[row, column]
            strengths[row, column] = strength_of("rand", operation, *chosen, (40, 56))
            shown = apply(shown, operation, strengths[row, column])
        wanted.append(np.asarray(shown))
    inputs = inputs_of(images, operations, strengths)
    np.testing.assert_array_equal(by_kernel(inputs), np.stack(wanted))
    # Errors of a level grow by what follows; what is another operation's is far off.
    error = np.abs(by_branches(inputs).astype(int) - np.stack(wanted)).mean((1, 2, 3))
    assert (error[(operations != Operation.EQUALIZE).all(1)] < 1).mean() > 0.9


# In a loader

BATCH = np.arange(24)
EFFECTS = Effects(Augmentation("rand", 2, 20))


def draw(stream, chunks=(BATCH,), threads: int = 1, output: str = "float32") -> np.ndarray:
    """Batches, (B, H, W, 3)."""
    settings = DecodeSettings("cpu", CPU, threads, output=output)
    with closing(Loader(stream, chunks, len(chunks), len(chunks[0]), settings)) as loader:
        found = [batch.images.permute(0, 2, 3, 1).float().numpy() for batch in loader]
    return np.concatenate(found)


def levels(images: np.ndarray) -> np.ndarray:
    return np.rint(images * IMAGENET.std + IMAGENET.mean).astype(np.uint8)


@pytest.mark.parametrize("output, tolerance", [
    ("float32", 1e-5), ("float16", 2e-3), ("uint8", 1e-5)
])  # fmt: skip
def test_a_loader_gives_what_pillow_makes_of_its_mirrored_views(small_data, output, tolerance):
    manifest, crop = open_manifest(small_data, "train"), RandomResizedCrop(64)
    stream = TrainStream(manifest, crop, 3, effects=EFFECTS)
    plan = stream.select(BATCH).plan
    plain = levels(draw(TrainStream(manifest, crop, 3)))  # mirrored, not yet changed
    wanted = []
    for image, operations, strengths in zip(plain, plan.operations, plan.strengths, strict=True):
        shown = Image.fromarray(image)
        for operation, strength in zip(operations.tolist(), strengths.tolist(), strict=True):
            shown = apply(shown, operation, strength)
        wanted.append((np.asarray(shown) - IMAGENET.mean) / IMAGENET.std)
    assert plan.flips.any()
    np.testing.assert_allclose(draw(stream, output=output), np.stack(wanted), atol=tolerance)


def test_threads_and_the_size_of_batches_do_not_change_a_bit(small_data):
    effects = Effects(Augmentation("trivial"), RandomErasing(0.5))
    stream = TrainStream(
        open_manifest(small_data, "train"), RandomResizedCrop(32), 3, effects=effects
    )
    one = draw(stream, threads=1)
    other = draw(stream, list(BATCH.reshape(4, 6)), threads=3)
    np.testing.assert_array_equal(one, other)


def test_a_validation_by_the_same_settings_changes_nothing(small_data):
    manifest = open_manifest(small_data, "train")
    settings = DecodeSettings("cpu", CPU, 1).for_effects(EFFECTS)
    stream = ValStream(manifest, CenterCrop(32, 36))
    with closing(Loader(stream, [BATCH], 1, len(BATCH), settings)) as loader:
        found = next(loader).images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found, draw(stream))


# On a GPU


@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_the_gpu_graph_is_whole_and_its_operators_are_where_the_pixels_are(output):
    settings = DecodeSettings("gpu", CPU, threads=1, output=output).for_effects(
        Effects(Augmentation("rand", 2), RandomErasing(0.5))
    )
    serialised = make_pipeline(lambda: None, 4, settings).serialize()
    nodes = re.findall(rb"__([a-zA-Z]+)_\d+\x12\x03(cpu|gpu)\x18", serialised)
    of_images = (b"WarpAffine", b"Equalize", b"Filter", b"Sum", b"Erase", b"Flip", b"Resize")
    devices = {
        operator: {device for name, device in nodes if name == operator} for operator in of_images
    }
    assert devices == dict.fromkeys(of_images, {b"gpu"})


@pytest.mark.gpu
def test_on_a_gpu_pixels_are_pillows_to_a_level():
    rng = np.random.default_rng(0)
    images = np.stack([photo(seed) for seed in range(14 * 8)])
    operations = np.arange(14 * 8, dtype=np.int32)[:, None] % 14
    operations = operations[operations[:, 0] != Operation.EQUALIZE]
    magnitudes = rng.integers(0, BINS, len(operations)) * 1.0
    signs = rng.choice([-1.0, 1.0], len(operations))
    strengths = Augmentation("trivial").strengths(operations[:, 0], magnitudes, signs, (SIDE, SIDE))
    inputs = inputs_of(images[: len(operations)], operations, strengths[:, None])

    @pipeline_def(enable_conditionals=True)
    def on_gpu():
        shown, kinds, parameters, shape = nodes_of(inputs)
        return augmenting.by_branches(shown.gpu(), [kinds, parameters], shape, 1)

    pipe = on_gpu(batch_size=len(operations), num_threads=2, device_id=0)
    pipe.build()
    found = pipe.run()[0].as_cpu().as_array()
    error = np.abs(found.astype(int) - by_kernel(inputs))
    assert error.max() <= 1
    assert (error > 0).mean() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("output", ["float32", "float16", "uint8"])
def test_a_gpu_loader_augments_and_erases_as_the_cpus(small_data, output):
    effects = Effects(Augmentation("trivial"), RandomErasing(0.5))
    stream = TrainStream(
        open_manifest(small_data, "train"), RandomResizedCrop(64), 3, effects=effects
    )
    found = []
    for decoder in ("cpu", "gpu"):
        settings = DecodeSettings(decoder, torch.device("cuda", 0), 2, output=output)
        with closing(Loader(stream, [BATCH], 1, len(BATCH), settings)) as loader:
            images = next(loader).images
            found.append(images.permute(0, 2, 3, 1).float().cpu().numpy() * IMAGENET.std)
    error = np.abs(found[0] - found[1])
    # Decoders differ; operations that count levels make more of it.
    assert np.median(error.mean((1, 2, 3))) < 6
