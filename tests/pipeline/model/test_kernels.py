"""The norm kernels in Triton's interpreter against float64 autograd, and tests of these tests."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from norm_checks import (
    Case,
    error,
    in_float64,
    planned_anew,
    require_close,
    tensors,
    with_kernels,
)

from pipeline.model.kernels import batch_norm, plan
from pipeline.model.kernels.tiling import Tiling, choose_tiling

# Rows that no tile divides; few where there are many channels, since an element costs time.
SIZES = {3: (5, 7, 7), 64: (3, 7, 7), 100: (3, 5, 7), 2048: (2, 3, 3)}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["plain", "add", "projection"]


def tiling_for(channels: int) -> Tiling:
    """Few wide programs, which is what the interpreter's time goes by, but several chunks."""
    wide = 1 << (channels - 1).bit_length()
    return Tiling(max(8, wide), 32, 64, 64, 64, finish_channels=max(8, wide))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [*((dtype, channels) for dtype in DTYPES for channels in (3, 100)),
     (torch.float16, 64), (torch.float16, 2048)],
    ids=str,
)  # fmt: skip
def test_training_equals_float64(dtype: torch.dtype, channels: int, kind: str) -> None:
    # The end of a block gets two gradients; a layer without addition gets one.
    case = Case(channels, SIZES[channels], dtype, kind, fork=kind != "plain")
    require_close(case, tiling_for(channels))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_evaluation_equals_float64(dtype: torch.dtype, kind: str) -> None:
    require_close(Case(100, SIZES[100], dtype, kind, train=False), tiling_for(100))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fork", [False, True])
def test_without_relu(kind: str, fork: bool) -> None:
    require_close(Case(12, (3, 5, 3), kind=kind, relu=False, fork=fork))


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_as_on_a_gpu(kind: str) -> None:
    # Two blocks of channels, several tiles to a chunk, several chunks, the last of each not full.
    tiling = Tiling(64, 16, 32, 16, 48, finish_channels=32)
    require_close(Case(100, (3, 5, 7), torch.float16, kind, fork=True), tiling)


@pytest.mark.parametrize("size", [(3, 1, 1), (1, 1, 17), (16, 1, 1)])
def test_few_rows(size: tuple[int, int, int]) -> None:
    require_close(Case(8, size, kind="projection"))


def test_two_rows() -> None:
    # Both become +-1 whatever they are, so that dx is nearly 0 and holds no digits.
    case = Case(8, (2, 1, 1))
    found, wanted = with_kernels(case, tensors(case)), in_float64(case, tensors(case))
    for name in ("y", "running0", "running1", "dparameter0", "dparameter1"):
        assert error(found[name], wanted[name]) < 5e-5, name


def test_variance_is_exact_far_from_zero() -> None:
    case = Case(8, (4, 8, 8), mean=300.0)
    given = tensors(case)
    found, wanted = with_kernels(case, given, tiling_for(8)), in_float64(case, given)
    assert (
        error(*[result["running1"] - 0.9 * given.running[1] for result in (found, wanted)]) < 5e-6
    )


def test_a_nan_goes_where_torch_takes_it() -> None:
    case = Case(16, (2, 3, 3), kind="add")
    given = tensors(case)
    given.x[0, 3, 1, 1] = float("nan")
    given.z[1, 5, 0, 2] = float("nan")
    given.z[1, 6, 0, 2] = float("-inf")
    found, wanted = with_kernels(case, given), in_float64(case, given)
    assert found["y"][:, 3].isnan().all() and found["y"].isnan().sum() == 2 * 9 + 1
    for name in wanted:
        assert torch.equal(found[name].isnan(), wanted[name].isnan()), name
    # ReLU's gradient passes a NaN.
    assert torch.equal(found["dz"][:, 3], given.dy[:, 3])
    assert torch.equal(wanted["dz"][:, 3].float(), given.dy[:, 3])


@pytest.mark.parametrize("kind", ["plain", "add"])
def test_at_exactly_zero_no_gradient_passes(kind: str) -> None:
    case = Case(16, (2, 3, 3), kind=kind)
    given = tensors(case)
    for tensor in (given.z, *given.parameters):
        tensor.zero_()
    found = with_kernels(case, given)
    assert not any(found[name].any() for name in ("y", "dx", "dparameter0", "dparameter1"))
    assert kind == "plain" or not found["dz"].any()


def test_equal_inputs_give_equal_bits() -> None:
    case = Case(100, (3, 5, 7), torch.float16, "projection", fork=True)
    first, second = (with_kernels(case, tensors(case)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rows", [2, 49, 12_544, 3_211_264, 2**31])
@pytest.mark.parametrize("channels", [3, 64, 100, 2048])
def test_tiling_covers_every_row_and_fits_the_grid(
    rows: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class H200:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H200)
    tiling = choose_tiling(rows, channels, torch.device("cuda", 0))
    for chunk, tile in ((tiling.sum_chunk, tiling.sum_rows), (tiling.map_chunk, tiling.map_rows)):
        chunks = -(-rows // chunk)
        assert chunk % tile == 0 and (chunks - 1) * chunk < rows <= chunks * chunk
        assert chunks < 65_536


# What is wrong, how, and by which case or test it is noticed.
CASE = Case(24, (3, 5, 3), fork=True)
PROJECTION = replace(CASE, kind="projection")
MUTATIONS = {
    "mask from bits turned round": (
        "bit.reshape(BLOCK_M, BLOCK_C) == 0", "bit.reshape(BLOCK_M, BLOCK_C) == 1", PROJECTION),
    "bits in another order": (
        "(byte.to(tl.int32)[:, :, None] >> tl.arange(0, 8)",
        "(byte.to(tl.int32)[:, :, None] >> (7 - tl.arange(0, 8))", replace(CASE, kind="add")),
    "no mask in the sums": (
        "                g = tl.where(v <= 0, 0.0, g)", "                g = g",
        replace(CASE, fork=False)),
    "no mask in dx": (
        "g = tl.where(through(affine(x, mean, scale, shift), dtype) <= 0, 0.0, g)", "g = g",
        replace(CASE, fork=False)),
    "biased running variance": ("m2 / (M - 1)", "m2 / M", CASE),
    "unbiased variance of the batch": ("m2 / M + eps", "m2 / (M - 1) + eps", CASE),
    "no eps": ("m2 / M + eps", "m2 / M", CASE),
    "chunks merged without their distance": (
        "own + away * away * count", "own", replace(CASE, size=(3, 5, 7))),
    "last chunk counted as a full one": (
        "count = tl.minimum(CHUNK_ROWS, M - chunks * CHUNK_ROWS).to(tl.float32)[:, None]",
        "count = CHUNK_ROWS", replace(CASE, size=(3, 5, 7))),
    "dx without the mean's term": ("dx += b * (x - mean) + c", "dx += b * (x - mean)", CASE),
    "dx without the variance's term": ("dx += b * (x - mean) + c", "dx += c", CASE),
    "dz without the variance's term": (
        "dz += z_b * (z - z_mean) + z_c", "dz += z_c", PROJECTION),
    "scale's gradient not normalised": ("tl.sum(product, 0) * invstd", "tl.sum(product, 0)", CASE),
    "second gradient dropped": (
        "g += tl.load(dy2_ptr", "g += 0 * tl.load(dy2_ptr", PROJECTION),
    "bf16 cut off": (
        "0x7FFF + ((bits >> 16) & 1)", "0", replace(CASE, dtype=torch.bfloat16, fork=False)),
    "plain sums of squares": (
        "x - shift[None, :], 0.0)\n        total", "x, 0.0)\n        total",
        test_variance_is_exact_far_from_zero),
    "a NaN stopped by the ReLU": (
        "v = tl.where(v < 0, 0.0, v)", "v = tl.where(v > 0, v, 0.0)",
        test_a_nan_goes_where_torch_takes_it),
    "a NaN stopped by the mask": (
        "passed = tl.where(v <= 0, 0, 1)", "passed = tl.where(v > 0, 1, 0)",
        test_a_nan_goes_where_torch_takes_it),
    "zero passed by the mask": (
        "passed = tl.where(v <= 0, 0, 1)", "passed = tl.where(v < 0, 0, 1)",
        partial(test_at_exactly_zero_no_gradient_passes, "add")),
    "zero passed in the sums": (
        "g = tl.where(v <= 0, 0.0, g)", "g = tl.where(v < 0, 0.0, g)",
        partial(test_at_exactly_zero_no_gradient_passes, "plain")),
}  # fmt: skip


def mutate(folder: Path, old: str, new: str) -> ModuleType:
    """The kernels with `old` in their source replaced by `new`."""
    source = inspect.getsource(batch_norm)
    assert old in source, f"the kernels no longer hold {old!r}"
    path = folder / "mutant.py"  # a file: triton.jit reads the source again
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_kernel_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, check = MUTATIONS[name]
    monkeypatch.setattr(plan, "kernels", mutate(tmp_path, old, new))
    with planned_anew(), pytest.raises(AssertionError):
        if isinstance(check, Case):
            require_close(check, tiling_for(check.channels))
        else:
            check()
