"""The Horovod build: its edits, the name of a cached wheel, and what a failing compile shows."""

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from launch.horovod_build import (
    LOG_TAIL_LINES,
    BuildError,
    Target,
    apply_edits,
    build_env,
    cache_dir,
    find_nvcc,
    log_tail,
    standard_edits,
    this_target,
    verify,
)

CPU = Target(torch="2.13.0", cuda=None, nvcc=None, python="cp311", machine="x86_64")
CUDA = replace(CPU, cuda="13.0", nvcc=Path("/usr/local/cuda/bin/nvcc"))
EDITS = standard_edits(CPU.torch)


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    """A source tree with the lines of Horovod 0.28.1 that the edits are about."""
    for edit in EDITS:
        path = tmp_path / edit.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"before\n{edit.old}\nafter\n")
    return tmp_path


@pytest.mark.parametrize(
    ("torch", "standard"), [("2.9.1", 17), ("2.13.0", 17), ("2.14.1", 20), ("3.0.0a0", 20)]
)
def test_the_edits_raise_every_part_to_the_standard_of_pytorch(
    sdist: Path, torch: str, standard: int
) -> None:
    edits = replace(CPU, torch=torch).edits[: len(EDITS)]
    apply_edits(sdist, edits)
    texts = [(sdist / edit.file).read_text() for edit in edits]
    raised = f"before\nset(CMAKE_CXX_STANDARD {standard})\nafter\n"
    assert texts == [raised, raised, "before\n -fPIC\nafter\n"]


def test_only_a_build_with_nccl_opens_the_driver_by_the_name_that_every_machine_has() -> None:
    (driver,) = set(CUDA.edits) - set(standard_edits(CUDA.torch))
    assert (driver.file, driver.new) == (
        "horovod/torch/cuda_util.cc", 'dlopen("libcuda.so.1", RTLD_LAZY)'
    )  # fmt: skip
    for target in (CPU, replace(CUDA, nvcc=None)):
        assert driver not in target.edits
        assert any(edit.file.endswith("FindPytorch.cmake") for edit in target.edits)


def test_a_build_that_gpus_cannot_use_says_so_with_both_ways_out() -> None:
    told = replace(CUDA, nvcc=None).warning
    assert told is not None and "PyTorch is built for CUDA 13.0 but there is no nvcc" in told
    for way_out in ("make train ENGINE=torch", "python -m launch.horovod_build --install"):
        assert way_out in told
    assert CPU.warning is None and CUDA.warning is None


def test_what_horovod_is_built_with_is_decided_by_pytorch_and_nvcc_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "NCCL")
    monkeypatch.setenv("HOROVOD_GPU_BROADCAST", "MPI")
    assert not any(name.startswith("HOROVOD_GPU") for name in build_env(CPU, tmp_path))
    with_nccl = build_env(CUDA, tmp_path)
    assert with_nccl["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert "HOROVOD_GPU_BROADCAST" not in with_nccl


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.file)
@pytest.mark.parametrize("times", [None, 0, 2])  # None: no such file
def test_an_edit_that_does_not_fit_names_file_and_text(sdist: Path, edit, times) -> None:
    if times is None:
        (sdist / edit.file).unlink()
    else:
        (sdist / edit.file).write_text(edit.old * times)
    message = re.escape(
        f"{edit.file} of the Horovod sdist holds the text {edit.old!r} {times or 0} times"
    )
    with pytest.raises(BuildError, match=message):
        apply_edits(sdist, EDITS)


def test_the_cache_key_holds_everything_a_wheel_depends_on() -> None:
    targets = [
        CPU,
        replace(CPU, torch="2.11.0"),
        replace(CPU, python="cp312"),
        replace(CPU, machine="aarch64"),
        CUDA,
        replace(CUDA, cuda="12.8"),
        replace(CUDA, nvcc=None),  # Gloo only: not the wheel of a later set-up with nvcc
    ]
    assert len({target.key for target in targets}) == len(targets)
    assert replace(CPU, nvcc=CUDA.nvcc).key == CPU.key, "a CPU PyTorch has no use for it"
    assert CPU.key.startswith("horovod-0.28.1-torch2.13.0-cp311-cpu-")
    assert CUDA.key.startswith("horovod-0.28.1-torch2.13.0-cp311-cu130-")


def test_wheels_are_kept_per_user() -> None:
    assert cache_dir({"HOME": "/home/ada"}) == Path("/home/ada/.cache/trainyard/wheels")
    moved = cache_dir({"HOME": "/home/ada", "XDG_CACHE_HOME": "/scratch/ada"})
    assert moved == Path("/scratch/ada/trainyard/wheels")


def test_nvcc_of_cuda_home_comes_before_the_one_on_the_path(tmp_path: Path) -> None:
    for folder in ("toolkit/bin", "path"):
        nvcc = tmp_path / folder / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.touch(mode=0o755)
    on_path = {"PATH": str(tmp_path / "path")}
    assert find_nvcc(on_path) == tmp_path / "path/nvcc"
    both = on_path | {"CUDA_HOME": str(tmp_path / "toolkit")}
    assert find_nvcc(both) == tmp_path / "toolkit/bin/nvcc"


def test_a_failed_compile_shows_the_lines_before_make_gave_up() -> None:
    compiler = [f"message {i}" for i in range(50)]
    log = [*compiler, "x" * 4000, "gmake: *** [Makefile:136: all] Error 2", *["Traceback"] * 40]

    tail = log_tail("\n".join(log))

    assert len(tail) == LOG_TAIL_LINES
    assert tail[0] == f"message {50 - (LOG_TAIL_LINES - 2)}"
    assert tail[-1].startswith("gmake: ***")
    assert max(map(len, tail)) == 300
    assert log_tail("one\ntwo") == ["one", "two"]


def test_the_installed_horovod_starts_a_job_of_one_rank() -> None:
    verify(this_target())


def test_where_the_hosts_name_has_no_address_horovod_is_loaded_alone(monkeypatch, capsys) -> None:
    """As in a container in which an image is built: to start a rank would crash."""
    name = "no-such-host.invalid"
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    verify(this_target())
    assert capsys.readouterr().err == (
        f"set-up: the host name {name} has no address here: Horovod is loaded, and starts no rank\n"
    )
    with pytest.raises(BuildError, match=r"should answer 'gloo True nccl .*' but gave"):
        verify(CPU if this_target().nccl else CUDA)


def test_a_horovod_that_is_not_what_was_asked_for_is_refused() -> None:
    other = CPU if this_target().nccl else CUDA
    with pytest.raises(BuildError, match=r"should answer 'ranks 1 gloo True nccl .*' but gave"):
        verify(other)
