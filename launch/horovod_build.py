"""Builds Horovod from its released source for the PyTorch of the running environment.

`python -m launch.horovod_build` prints the path of the wheel, building it first if need be; with
`--install` it also installs the wheel and tries it. The last release (June 2023) does not compile
against PyTorch >= 2.1, which needs C++17, or C++20 from 2.14 on; its sdist gets the edits that
Horovod's unreleased master branch has, too.

Whether it is built with NCCL follows from PyTorch (torch.version.cuda) and nvcc (in CUDA_HOME, on
the PATH or in /usr/local/cuda), not from Horovod's own variable HOROVOD_GPU_OPERATIONS.

A wheel is cached once per user, under `${XDG_CACHE_HOME:-~/.cache}/trainyard/wheels`, in a folder
named by everything it depends on. Standard library only (so is `pipeline.system.files`), but for
torch, which decides what is built.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.environment import SetupError, exit_code, succeeds
from pipeline.ranks.addresses import resolves
from pipeline.system.files import locked

HOROVOD = "0.28.1"
# The edits below are known to fit this sdist, and it is run unread: no other is taken.
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
# Raise one when its edits or build settings change: wheels of an older recipe are then ignored.
RECIPE, NCCL_RECIPE = 1, 2
# What its sdist does not name; in setup.py, with reasons, as part of the extra `horovod`.
TOOLS = ("setuptools", "wheel", "cmake", "packaging")
LOG_TAIL_LINES, LOG_TAIL_WIDTH = 30, 300  # a command line in the log is 4 kB wide


class BuildError(SetupError):
    """Horovod cannot be built or does not work here; the message is one sentence for the user."""


@dataclass(frozen=True)
class Edit:
    """One replacement in the unpacked sdist; `old` must occur in the file exactly once."""

    file: str
    old: str
    new: str


def standard_edits(torch: str) -> tuple[Edit, ...]:
    """Edits that raise every part to the C++ standard of the headers of PyTorch `torch` ("2.13.0").

    They refuse anything below C++17, and from 2.14 on use std::strong_ordering, which is C++20.
    """
    version = tuple(int(number) for number in re.findall(r"\d+", torch)[:2])
    old, new = (f"set(CMAKE_CXX_STANDARD {n})" for n in (14, 20 if version >= (2, 14) else 17))
    return (
        Edit("CMakeLists.txt", old, new),
        Edit("horovod/torch/CMakeLists.txt", old, new),
        # The bundled gloo goes into the same library.
        Edit("third_party/gloo/CMakeLists.txt", " -std=c++11 -fPIC", " -fPIC"),
    )


# libcuda.so comes with the toolkit; where only the driver is installed there is libcuda.so.1.
NCCL_EDITS = (
    Edit(
        "horovod/torch/cuda_util.cc",
        'dlopen("libcuda.so", RTLD_LAZY)',
        'dlopen("libcuda.so.1", RTLD_LAZY)',
    ),
)
# Given a CUDA build of PyTorch and a CUDA folder without a compiler, as in run-time containers,
# Horovod tries to build GPU code, and fails.
NO_CUDA_EDITS = (
    Edit(
        "cmake/Modules/FindPytorch.cmake",
        "(torch.version.cuda is not None) and (CUDA_HOME is not None)",
        "False",
    ),
)


@dataclass(frozen=True)
class Target:
    """What a built wheel depends on.

    `torch` is PyTorch's version without local label, `cuda` the CUDA version it was built for
    ("13.0") or None, `nvcc` the CUDA compiler or None, `python` a tag such as "cp311", `machine`
    the processor ("x86_64").
    """

    torch: str
    cuda: str | None
    nvcc: Path | None
    python: str
    machine: str

    @property
    def nccl(self) -> bool:
        """Whether gradients are reduced on the GPU: PyTorch has CUDA and there is a compiler."""
        return self.cuda is not None and self.nvcc is not None

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is changed in the released source."""
        return standard_edits(self.torch) + (NCCL_EDITS if self.nccl else NO_CUDA_EDITS)

    @property
    def warning(self) -> str | None:
        """What this build cannot do although the PyTorch could; None if that is nothing."""
        if self.cuda is None or self.nccl:
            return None
        return (
            f"PyTorch is built for CUDA {self.cuda} but there is no nvcc, so Horovod is built "
            "without NCCL: ranks on CPUs can use it, ranks on GPUs cannot (its background thread "
            "dies of the first CUDA tensor). For GPUs start them by torchrun, which needs no "
            "Horovod (nor does make train ENGINE=torch), or give this nvcc, from CUDA's toolkit "
            "or pip (cuda-toolkit[nvcc,cccl,cudart]), by the PATH or CUDA_HOME, and run "
            "`python -m launch.horovod_build --install` of this environment again."
        )

    @property
    def key(self) -> str:
        """The name of the wheel's folder in the cache."""
        device = "cpu" if self.cuda is None else f"cu{self.cuda.replace('.', '')}"
        if self.cuda is not None and not self.nccl:
            device += "-gloo"
        built_for = f"torch{self.torch}-{self.python}-{device}-{self.machine}"
        return f"horovod-{HOROVOD}-{built_for}-r{NCCL_RECIPE if self.nccl else RECIPE}"


def this_target() -> Target:
    """The target of the running interpreter and its PyTorch."""
    import torch

    return Target(
        torch=torch.__version__.split("+")[0],
        cuda=torch.version.cuda,
        nvcc=find_nvcc(os.environ),
        python=f"cp{sys.version_info.major}{sys.version_info.minor}",
        machine=platform.machine(),
    )


def find_nvcc(environ: Mapping[str, str]) -> Path | None:
    """The CUDA compiler: in CUDA_HOME if that is set, on the PATH, or in /usr/local/cuda."""
    folders = [environ.get("PATH", ""), "/usr/local/cuda/bin"]
    if environ.get("CUDA_HOME"):
        folders.insert(0, f"{environ['CUDA_HOME']}/bin")
    found = shutil.which("nvcc", path=os.pathsep.join(folders))
    return None if found is None else Path(found)


def cuda_home(nvcc: Path) -> Path:
    """The toolkit's top folder as the compiler names it: `nvcc` may be a script that calls it."""
    command = [str(nvcc), "--dryrun", "x.cu"]  # prints its settings before it looks for x.cu
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return Path(top[1]).resolve() if top else nvcc.resolve().parent.parent


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where built wheels are kept for this user."""
    base = environ.get("XDG_CACHE_HOME") or Path(environ["HOME"]) / ".cache"
    return Path(base) / "trainyard" / "wheels"


def wheel(target: Target) -> Path:
    """The wheel for `target`, from the cache or built now (about 3 minutes on 2 cores).

    Raises BuildError when its tools or the source cannot be had, when that does not fit the edits,
    or does not compile.
    """
    folder = cache_dir(os.environ) / target.key
    folder.mkdir(parents=True, exist_ok=True)
    # Two set-ups of a user at the same time build once: the second waits and finds the wheel.
    with locked(folder / "lock"):
        built = sorted(folder.glob("horovod-*.whl"))
        if built:
            return built[0]
        for stale in folder.glob("build-*"):  # left by a build that was killed
            shutil.rmtree(stale)
        _install_tools()
        # Built inside the cache, so that the finished wheel gets to its place by a rename.
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
            source = _unpacked_sdist(Path(scratch))
            apply_edits(source, target.edits)
            made = _compiled(source, target, folder / "build.log")
            return made.replace(folder / made.name)


def _install_tools() -> None:
    """Installs what the build needs, where it is not there."""
    if not succeeds([sys.executable, "-m", "pip", "install", "-q", *TOOLS]):
        raise BuildError(
            f"pip could not install {' '.join(TOOLS)}, which Horovod's build needs: its message is "
            "above."
        )


def _unpacked_sdist(scratch: Path) -> Path:
    """Downloads, checks and unpacks the release; returns its top folder."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", "horovod", "--no-deps"]
    command += ["--no-build-isolation", "--dest", str(scratch), f"horovod=={HOROVOD}"]
    if not succeeds(command):
        raise BuildError(
            f"pip could not download the source of Horovod {HOROVOD}: its message is above."
        )
    (archive,) = scratch.glob("horovod-*.tar.gz")
    content = archive.read_bytes()  # read once: what is checked is what is unpacked
    digest = hashlib.sha256(content).hexdigest()
    if digest != SDIST_SHA256:
        raise BuildError(
            f"the source of Horovod {HOROVOD} that pip downloaded has sha256 {digest}, but the "
            f"release has {SDIST_SHA256}."
        )
    with tarfile.open(fileobj=io.BytesIO(content)) as unpacked:
        # Python gave it a filter in 3.10.12 and 3.11.4, and Debian 12 has 3.11.2; what is unpacked
        # is the release, by its sum.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        unpacked.extractall(scratch, **safely)
    return scratch / f"horovod-{HOROVOD}"


def apply_edits(source: Path, edits: tuple[Edit, ...]) -> None:
    """Edits the unpacked sdist in place; BuildError when a text does not occur exactly once."""
    for edit in edits:
        path = source / edit.file
        text = path.read_text() if path.is_file() else ""
        count = text.count(edit.old)
        if count != 1:
            raise BuildError(
                f"{edit.file} of the Horovod sdist holds the text {edit.old!r} {count} times, but "
                f"launch/horovod_build.py edits Horovod {HOROVOD}, which holds it once."
            )
        path.write_text(text.replace(edit.old, edit.new))


def _compiled(source: Path, target: Target, log: Path) -> Path:
    """Compiles the edited source; returns the wheel. What the tools print goes to `log`."""
    _say(f"compiling Horovod {HOROVOD}, about 3 minutes on 2 cores (log: {log})")
    out = source.parent / "out"
    # --use-pep517: an older pip would call setup.py, which then fetches run-time packages itself.
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--use-pep517", "--no-build-isolation"]
    command += ["--no-deps", "--wheel-dir", str(out), str(source)]
    env = build_env(target, source.parent)
    with open(log, "w") as sink:
        done = subprocess.run(command, env=env, stdout=sink, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        print(*log_tail(log.read_text(errors="replace")), sep="\n", file=sys.stderr)
        raise BuildError(
            f"Horovod {HOROVOD} did not compile: the end of the log is above, all of it in {log}."
        )
    (made,) = out.glob("horovod-*.whl")
    return made


def build_env(target: Target, scratch: Path) -> dict[str, str]:
    """The settings under which Horovod's setup.py and CMake files build the wheel."""
    # gcc >= 13 no longer includes these by way of other headers, which the release relies on.
    headers = " ".join(f"-include {name}" for name in ("cstdint", "stdexcept", "algorithm"))
    # HOROVOD_GPU_OPERATIONS and its like would ask for NCCL where it cannot be built.
    env = {k: v for k, v in os.environ.items() if not k.startswith("HOROVOD_GPU_")} | {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_CMAKE": str(Path(sys.executable).parent / "cmake"),
        # CMake >= 4 refuses the bundled gloo's cmake_minimum_required(2.8.12) without it.
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        "CMAKE_GENERATOR": "Unix Makefiles",
        # Also keeps out what a surrounding make (ours) passes down.
        "MAKEFLAGS": f"-j{len(os.sched_getaffinity(0))}",
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} {headers}".strip(),
    }
    return env | _nccl_env(target.nvcc, scratch) if target.nccl and target.nvcc else env


def _nccl_env(nvcc: Path, scratch: Path) -> dict[str, str]:
    """Settings for GPU collectives, with the NCCL that PyTorch's wheel brings if there is one."""
    toolkit = str(cuda_home(nvcc))
    env = {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_CUDA_HOME": toolkit,
        "CUDA_HOME": toolkit,  # for torch.utils.cpp_extension, which Horovod asks for libraries
        "HOROVOD_NCCL_LINK": "SHARED",
    }
    found = importlib.util.find_spec("nvidia.nccl")
    for home in map(Path, (found and found.submodule_search_locations) or ()):
        link = scratch / "nccl" / "libnccl.so"  # the name a linker asks for; not in the wheel
        link.parent.mkdir()
        link.symlink_to(home / "lib" / "libnccl.so.2")
        env |= {
            "HOROVOD_NCCL_INCLUDE": str(home / "include"),
            "HOROVOD_NCCL_LIB": str(link.parent),
        }
    return env


def log_tail(log: str) -> list[str]:
    """The last lines before CMake or make gave up: pip adds pages of its own."""
    lines = log.splitlines()
    words = ("Configuring incomplete", "Generate step failed", "make: *** ")
    gave_up = [i for i, line in enumerate(lines) if any(word in line for word in words)]
    end = gave_up[-1] + 1 if gave_up else len(lines)
    return [line[:LOG_TAIL_WIDTH] for line in lines[max(0, end - LOG_TAIL_LINES) : end]]


def install(built: Path) -> None:
    """Installs the wheel and what it needs into the running environment."""
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    # The same version may be there, built for another PyTorch: pip alone would keep it.
    for options in (["--force-reinstall", "--no-deps"], []):
        if not succeeds([*pip, *options, str(built)]):
            raise BuildError(f"pip could not install {built}: its message is above.")


def verify(target: Target) -> None:
    """Loads Horovod in a fresh process and starts a job of one rank there; BuildError when it is
    not as built.

    Where this host's name has no address, as where an image is built, Horovod can start no rank
    (`pipeline.ranks.addresses`), and is loaded alone.
    """
    host = socket.gethostname()
    starts = resolves(host)
    code = "import horovod.torch as hvd; "
    if starts:
        code += "hvd.init(); print('ranks', hvd.size(), end=' '); "
    else:
        _say(f"the host name {host} has no address here: Horovod is loaded, and starts no rank")
    code += "print('gloo', bool(hvd.gloo_built()), 'nccl', bool(hvd.nccl_built()))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    wanted = f"{'ranks 1 ' * starts}gloo True nccl {target.nccl}"
    if done.returncode != 0 or wanted not in done.stdout:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["nothing"]
        raise BuildError(
            f"the installed Horovod should answer {wanted!r} but gave {last[0]!r}: delete "
            f"{cache_dir(os.environ) / target.key} and run the set-up again."
        )


def _say(line: str) -> None:
    """Prints progress to stderr: stdout holds the wheel's path."""
    print(f"set-up: {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Builds the wheel, installs it if asked to, and prints its path; raises BuildError."""
    parser = argparse.ArgumentParser(
        prog="trainyard setup-horovod"
        if Path(sys.argv[0]).name == "trainyard"
        else "python -m launch.horovod_build",
        description=f"Build Horovod {HOROVOD} for this environment's PyTorch; print the wheel.",
    )
    parser.add_argument("--install", action="store_true", help="also install the wheel and try it")
    options = parser.parse_args()
    target = this_target()
    if target.warning is not None:
        _say(f"warning: {target.warning}")
    built = wheel(target)
    if options.install:
        install(built)
        verify(target)
    print(built)


if __name__ == "__main__":
    sys.exit(exit_code(main))
