"""The norm kernels compile for A100 and H100/H200 without a GPU, spill nothing, use no atomics."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.backends import interpreting

pytest.importorskip("triton")
if interpreting():
    pytest.skip("the interpreter is on, so nothing is compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.model.kernels import batch_norm as kernels

ACTIVATIONS = {"x_ptr", "y_ptr", "z_ptr", "dy_ptr", "dy2_ptr", "g_ptr", "dx_ptr", "dz_ptr"}
# What a kernel goes without in a layer without addition, and in one that adds what has no norm.
NO_NORM = dict.fromkeys(["z_stats_ptr", "z_weight_ptr", "z_bias_ptr", "z_dweight_ptr", "dz_ptr"])
NO_Z = NO_NORM | dict.fromkeys(["z_ptr", "bits_ptr"])
SUMS = {"BLOCK_M": 32, "BLOCK_C": 64, "num_warps": 4}
MAPS = {"BLOCK_M": 64, "BLOCK_C": 64, "num_warps": 8}
FINISH = {"BLOCK_M": 256, "BLOCK_C": 8, "num_warps": 4}
NO_ADD_SUMS = NO_Z | {"dy2_ptr": None, "g_ptr": None}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (kernels.statistics, SUMS),
    (kernels.finish_statistics, FINISH),
    (kernels.normalize, MAPS | NO_Z | {"RELU": True}),
    (kernels.normalize, MAPS | NO_Z | {"RELU": False}),
    (kernels.normalize, MAPS | NO_NORM | {"RELU": True}),
    (kernels.normalize, MAPS | {"RELU": True}),
    (kernels.gradient_sums, SUMS | NO_ADD_SUMS | {"RELU": True}),
    (kernels.gradient_sums, SUMS | NO_NORM | {"z_ptr": None, "RELU": True}),
    (kernels.gradient_sums, SUMS | {"RELU": True}),
    (kernels.finish_gradient_sums, FINISH | NO_NORM),
    (kernels.finish_gradient_sums, FINISH),
    (kernels.input_gradients, MAPS | NO_Z | {"FIND_MASK": True, "TRAIN": True}),
    (kernels.input_gradients, MAPS | NO_Z | {"FIND_MASK": False, "TRAIN": True}),
    (kernels.input_gradients, MAPS | {"FIND_MASK": False, "TRAIN": True}),
    (kernels.input_gradients, MAPS | {"FIND_MASK": False, "TRAIN": False}),
]

ELEMENTWISE = (kernels.normalize, kernels.gradient_sums, kernels.input_gradients)


def compiled(kernel: Any, given: dict[str, Any], dtype: str, capability: int, aligned: bool) -> Any:
    """`kernel` for one architecture; `given` holds constants, None for an argument left out."""
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in given or name == "z_dbias_ptr" and "z_stats_ptr" in given:
            signature[name], constants[name] = "constexpr", given.get(name)
            continue
        of = {"bits_ptr": "u8"}.get(name, dtype if name in ACTIVATIONS else "fp32")
        scalar = "fp32" if name in ("momentum", "eps") else "i32"
        signature[name] = f"*{of}" if name.endswith("_ptr") else scalar
        # What a launch finds out by itself: pointers, C and CHUNK_ROWS are multiples of 16.
        if name.endswith("_ptr") or aligned and name in ("C", "CHUNK_ROWS"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target, options={"num_warps": given["num_warps"]})


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers and bytes per thread, as the assembler reports them."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run(
        [tool, "-res-usage", path], capture_output=True, text=True, check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    assert found, done.stdout
    return dict(zip(("registers", "stack", "local"), map(int, found.groups()), strict=True))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("dtype", "capability", "aligned"),
    [
        ("bf16", 80, True), ("fp32", 80, True), ("fp16", 90, True), ("fp32", 90, True),
        ("fp16", 90, False),  # channels that nothing divides
    ],
)  # fmt: skip
def test_no_kernel_spills_or_uses_atomics_and_activations_move_16_bytes_at_a_time(
    dtype: str, capability: int, aligned: bool, tmp_path: Path
) -> None:
    for kernel, given in CASES:
        result = compiled(kernel, given, dtype, capability, aligned)
        used = resources(result.asm["cubin"], tmp_path)
        assert used["stack"] == 0 and used["local"] == 0, f"{result.name} {given}: {used}"
        # The largest is 152. 128 threads of that leave three programs to a multiprocessor.
        assert used["registers"] <= 160 or not aligned, f"{result.name} {given}: {used}"
        # No atomics: with them the order of a sum, and so its bits, would change from run to run.
        assert not re.search(r"\b(atom|red)\.", result.asm["ptx"]), result.name
        if aligned and (dtype, capability) == ("fp16", 90) and kernel in ELEMENTWISE:
            moves = re.findall(r"\b(?:ld|st)\.global[^;]*", result.asm["ptx"])
            # The mask goes by bytes; a sum kernel ends with its few sums.
            sums = "st.global.b32" if kernel is kernels.gradient_sums else "none"
            narrow = [m for m in moves if ".v4." not in m and ".b8" not in m and sums not in m]
            assert not narrow and len(moves) > 4, f"{kernel.fn.__name__} {given}: {narrow}"


@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 80), ("fp16", 90), ("fp32", 90)])
def test_statistics_load_ahead_of_what_they_sum(
    dtype: str, capability: int, tmp_path: Path
) -> None:
    result = compiled(kernels.statistics, SUMS, dtype, capability, aligned=True)
    assert "cp.async.cg.shared.global" in result.asm["ptx"]
    used = resources(result.asm["cubin"], tmp_path)
    # 65,536 registers hold 7 programs of 128 threads, of fp32 6.
    assert used["registers"] <= (80 if dtype == "fp32" else 72), used


def test_counts_of_one_which_triton_makes_constants_compile() -> None:
    ones = {"M": 1, "C": 1, "CHUNKS": 1}
    for kernel, given in CASES:
        narrow = {"BLOCK_C": 16} | {n: v for n, v in ones.items() if n in kernel.arg_names}
        if kernel is kernels.finish_statistics:
            narrow |= {"M": 2}  # one value per channel never gets here
        assert compiled(kernel, given | narrow, "fp16", 90, aligned=False).asm["cubin"]
