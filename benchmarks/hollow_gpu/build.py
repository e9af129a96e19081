"""Builds the hollow GPU for the CUDA build of PyTorch that runs this, into a folder.

Needs gcc, and CUDA's headers: Triton's, which come with PyTorch from PyPI, or CUDA_HOME's.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).parent
_ASKING = ("c10_cuda", "torch_cuda", "torch_cuda_linalg", "torch_python", "torch_nvshmem")
"""Libraries of PyTorch whose missing symbols are CUDA's."""
_HEAD = 'extern int note(const char *);\n#define EXPORT __attribute__((visibility("default")))\n'
_EMPTY = 'EXPORT int {0}() {{ return note("{0}"); }}\n'


def headers() -> Path:
    """The folder of cuda.h and cuda_runtime_api.h. Raises `FileNotFoundError`."""
    triton = Path(torch.__file__).parent.parent / "triton/backends/nvidia/include"
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    needed = ("cuda.h", "cuda_runtime_api.h", "crt/host_defines.h")
    for folder in (triton, home):
        if all((folder / name).exists() for name in needed):
            return folder
    raise FileNotFoundError(f"CUDA's headers are neither in {triton} nor in {home}")


def build(out: Path) -> Path:
    """Builds the libraries into `out`, which must exist; returns it."""
    include = headers()
    _library(out / "libhollow_runtime.so", HERE / "runtime.c", _runtime_symbols(), include)
    _library(out / "libcuda.so.1", HERE / "driver.c", _driver_symbols(include), include)
    _library(out / "libhollow_nccl.so", HERE / "nccl.c", set(), include)
    link = out / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to("libcuda.so.1")
    return out


def environment(out: Path) -> dict[str, str]:
    """The environment of a process whose GPU is the one in `out`."""
    preloaded = f"{out}/libhollow_runtime.so {out}/libhollow_nccl.so"
    return os.environ | {
        "HOLLOW": str(out), "LD_PRELOAD": preloaded, "LD_LIBRARY_PATH": str(out),
        "TRITON_LIBCUDA_PATH": str(out), "TRITON_CACHE_DIR": str(out / "triton"),
    }  # fmt: skip


def _library(target: Path, source: Path, wanted: set[str], include: Path) -> None:
    text = source.read_text()
    there = set(re.findall(r"^EXPORT[^(]*?\b((?:__)?cu\w+)\(", text, re.MULTILINE))
    rest = target.parent / f"rest_of_{source.name}"  # a unit of its own: headers know the names
    rest.write_text(_HEAD + "".join(_EMPTY.format(name) for name in sorted(wanted - there)))
    flags = ["-shared", "-fPIC", "-O1", "-w", f"-I{include}"]
    subprocess.run(["gcc", *flags, "-o", target, source, rest, "-ldl", "-lpthread"], check=True)


def _runtime_symbols() -> set[str]:
    """CUDA's runtime and cuBLAS, as far as PyTorch asks for them."""
    folder, names = Path(torch.__file__).parent / "lib", set()
    for library in (folder / f"lib{name}.so" for name in _ASKING):
        if not library.exists():
            continue
        command = ["nm", "-D", "--undefined-only", library]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        symbols = (line.split()[-1].partition("@")[0] for line in listed.splitlines())
        names |= {name for name in symbols if re.match(r"(__)?cuda[A-Z]|cublas", name)}
    return names


def _driver_symbols(include: Path) -> set[str]:
    text = (include / "cuda.h").read_text()
    names = set(re.findall(r"CUresult\s+CUDAAPI\s+(cu\w+)\s*\(", text))
    names |= set(re.findall(r"#define\s+\w+\s+(cu\w+_v\d+)\b", text))
    names |= set(re.findall(r"__CUDA_API_PTSZ\((\w+)\)", text))
    return {name for name in names if re.match(r"cu[A-Z]", name)}
