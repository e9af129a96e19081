"""The GPUs that the driver lists, and what is said of those that PyTorch cannot use."""

import shutil
import subprocess

import pytest
import torch

from pipeline.system import gpus
from pipeline.system.gpus import (
    CONTAINER,
    Listed,
    container_gpus,
    driver_cuda,
    gpus_kept_out,
    listed_gpus,
    query_gpus,
    unusable_gpus,
    visible_gpus,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")

TWO_LINES = "echo '570.86.15, NVIDIA H200'; echo '570.86.15, NVIDIA H200'"
VERSION = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 06:34:41 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU "
    "driver by downloading and installing a new version."
)


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path, monkeypatch):
    """A kernel and a driver's library that know no GPU."""
    monkeypatch.setattr(gpus, "PROC", tmp_path / "proc")
    monkeypatch.setattr(gpus, "DEV", tmp_path / "dev")
    monkeypatch.setattr(gpus, "DRIVER_LIBRARY", str(tmp_path / "libcuda.so.1"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.fixture
def kernel(nothing_of_this_machine):
    """A kernel that lists one GPU, as it does in a container; returns the GPU's device file."""
    information = nothing_of_this_machine / "proc" / "gpus" / "0000:1b:00.0" / "information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 98\n")
    (nothing_of_this_machine / "proc" / "version").write_text(VERSION)
    (nothing_of_this_machine / "dev").mkdir()
    return nothing_of_this_machine / "dev" / "nvidia0"


@pytest.fixture
def driver_library(nothing_of_this_machine):
    """Makes the driver's library, for one version of CUDA."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")

    def make(number: int) -> None:
        path = nothing_of_this_machine / "libcuda.so.1"
        code = f"int cuDriverGetVersion(int *number) {{ *number = {number}; return 0; }}"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
        subprocess.run(command, input=code, text=True, check=True)

    return make


def test_a_machine_without_a_gpu_has_none_and_no_problem():
    assert listed_gpus() == Listed([], None)
    assert unusable_gpus() is None and driver_cuda() is None


def test_the_driver_lists_gpus_by_nvidia_smi(install):
    install("nvidia-smi", TWO_LINES)
    assert listed_gpus() == Listed(["NVIDIA H200"] * 2, "570.86.15")


def test_a_job_that_was_given_no_gpu_is_on_a_machine_without_one(install, kernel):
    install("nvidia-smi", "echo 'No devices were found'; exit 6")
    kernel.touch()  # of the node; another job has it
    assert query_gpus("name") == ([], None)
    assert listed_gpus().names == [] and unusable_gpus() is None


def test_a_driver_that_is_out_of_step_with_its_tools_is_read_from_the_kernel(install, kernel):
    install(
        "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
    )
    assert listed_gpus().names == [], "a container without devices sees its host's"
    kernel.touch()
    assert listed_gpus() == Listed(["NVIDIA H200"], "570.86.15")


def test_a_pytorch_for_cpus_beside_gpus_is_said(install, driver_library, monkeypatch):
    driver_library(12080)
    monkeypatch.setattr("torch.version.cuda", None)
    install("nvidia-smi", TWO_LINES)
    assert unusable_gpus() == (
        "the driver (570.86.15, for CUDA 12.8) lists 2 GPUs (NVIDIA H200), but PyTorch "
        f"{torch.__version__} is built for CPUs",
        "install a PyTorch built for CUDA, or set run.device=cpu to train on the CPU",
    )


@pytest.mark.parametrize(
    ("driver", "fix"),
    [
        (12080, "update the driver, or install a PyTorch built for CUDA 12.8 or older, or set run"),
        (13000, "see that the job may use them (CUDA_VISIBLE_DEVICES=7), or"),
    ],
)
def test_a_driver_that_pytorch_cannot_use_is_named_with_both_versions_of_cuda(
    install, driver_library, monkeypatch, driver, fix
):
    def refuse() -> None:
        raise RuntimeError(TOO_OLD)

    driver_library(driver)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.init", refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    install("nvidia-smi", TWO_LINES)
    found, cure = unusable_gpus()
    assert found == (
        f"the driver (570.86.15, for CUDA {driver // 1000}.{driver % 1000 // 10}) lists 2 GPUs "
        f"(NVIDIA H200), but PyTorch {torch.__version__} for CUDA 13.0 can use none of them: The "
        "NVIDIA driver on your system is too old (found version 12080)"
    )
    assert cure.startswith(fix)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_on_purpose_are_not_missed(install, monkeypatch, hidden):
    install("nvidia-smi", TWO_LINES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert unusable_gpus() is None


@pytest.mark.parametrize(
    ("env", "file", "cure"),
    [
        ({}, None, None),
        ({}, ".dockerenv", "docker run --gpus all"),
        ({}, "run/.containerenv", "podman run --device nvidia.com/gpu=all"),
        ({"APPTAINER_CONTAINER": "/x.sif"}, ".dockerenv", "--nv after apptainer exec"),
        ({"SINGULARITY_CONTAINER": "/x.sif"}, None, "--nv after apptainer exec"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None, "nvidia.com/gpu in the pod's resources"),
        ({CONTAINER: "pyxis"}, None, "NVIDIA_VISIBLE_DEVICES=all"),
        (
            {CONTAINER: "apptainer", "APPTAINER_CONTAINER": "/x.sif"}, None,
            "nvidia-smi lists them, as launch.slurm has tried",
        ),
    ],
)  # fmt: skip
def test_each_kind_of_container_is_told_what_gives_it_gpus(env, file, cure, tmp_path):
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    found = container_gpus(env, tmp_path)
    assert found is None if cure is None else cure in found


def test_gpus_of_slurm_are_missed_in_a_container_that_names_itself_only(install):
    given = {"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}
    inside = {**given, "APPTAINER_CONTAINER": "/x.sif"}
    assert gpus_kept_out(inside) == "--nv after apptainer exec"
    assert gpus_kept_out(given) is None, "Slurm itself may run in a container"
    assert gpus_kept_out({"APPTAINER_CONTAINER": "/x.sif"}) is None, "no GPU was given"
    assert gpus_kept_out({**inside, "CUDA_VISIBLE_DEVICES": ""}) is None, "hidden on purpose"
    install("nvidia-smi", TWO_LINES)
    assert gpus_kept_out(inside) is None


@pytest.mark.parametrize(("shown", "count"), [(None, 2), ("0,1", 2), ("1", 1), ("", 0), ("-1", 0)])
def test_the_gpus_that_a_new_process_may_use_are_counted_without_pytorch(
    shown, count, install, monkeypatch
):
    install("nvidia-smi", TWO_LINES)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert len(visible_gpus()) == count
