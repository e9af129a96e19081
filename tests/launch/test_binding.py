"""Which cores a rank takes, from the kernel's wiring of PCI devices to cores."""

import os
import subprocess
import sys

import pytest
from jobs import REPOSITORY, environment

from launch.slurm.binding import (
    cores_near,
    parse_cores,
    part,
    physical_cores,
    visible_gpus,
)

FIRST, SECOND = set(range(8)), set(range(8, 16))
# Four GPUs, two on each socket.
NEAR = [FIRST, FIRST, SECOND, SECOND]
ALL = FIRST | SECOND


@pytest.mark.parametrize(
    "text, cores",
    [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0-1,4-5", {0, 1, 4, 5})],
)
def test_the_kernels_lists_of_cores_are_read(text, cores):
    assert parse_cores(text) == cores


def test_a_bus_id_is_found_in_the_kernels_spelling(tmp_path):
    device = tmp_path / "0000:1b:00.0"
    device.mkdir()
    (device / "local_cpulist").write_text("0-7\n")
    assert cores_near("00000000:1B:00.0", tmp_path) == FIRST
    assert cores_near("00000000:1C:00.0", tmp_path) == set()


def test_visible_gpus_follow_indices_and_uuids():
    known = {"0": "bus0", "GPU-a": "bus0", "1": "bus1", "GPU-b": "bus1"}
    assert visible_gpus(None, known) == ["bus0", "bus1"]
    assert visible_gpus("1,0", known) == ["bus1", "bus0"]
    assert visible_gpus("GPU-b", known) == ["bus1"]


@pytest.mark.parametrize(
    ("near", "ranks", "allowed", "shares"),
    [
        # Ranks divide the cores of their socket; one with fewer ranks gives each more.
        (NEAR, 4, ALL, [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}]),
        (NEAR, 3, ALL, [{0, 1, 2, 3}, {4, 5, 6, 7}, SECOND]),
        # Cores on one socket only are divided evenly over all.
        (NEAR, 4, FIRST, [{0, 1}, {2, 3}, {4, 5}, {6, 7}]),
        # A rank that sees its own GPU only takes all cores near it.
        ([SECOND], 4, ALL, [SECOND] * 4),
        # Nothing is bound where the wiring is unknown.
        ([set()] * 4, 4, ALL, [set()] * 4),
        ([], 2, ALL, [set()] * 2),
    ],
)
def test_what_each_rank_gets_of_the_cores(near, ranks, allowed, shares):
    assert [part(near, rank, ranks, allowed, {}) for rank in range(ranks)] == shares


def test_hardware_threads_of_one_core_stay_together():
    siblings = {core: core % 4 for core in FIRST}  # 0 and 4 are one core, 1 and 5, ...
    shares = [part([FIRST, FIRST], rank, 2, FIRST, siblings) for rank in range(2)]
    assert shares == [{0, 4, 1, 5}, {2, 6, 3, 7}]


def test_physical_cores_are_read_from_the_kernel(tmp_path):
    for core in (0, 2):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0,2\n")
    assert physical_cores({0, 2, 5}, tmp_path) == {0: 0, 2: 0, 5: 5}


@pytest.mark.parametrize(
    "who",
    [
        {"HOROVOD_RANK": "1", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}
        | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    ],
    ids=["horovod", "torch"],
)
def test_a_rank_is_bound_near_the_gpu_it_sees(who, tmp_path, install):
    """In a process of its own, with this machine's cores as if two GPUs were wired to them."""
    devices = tmp_path / "devices"
    cores = sorted(os.sched_getaffinity(0))
    half = cores[: (len(cores) + 1) // 2]
    for bus, near in (("0000:1b:00.0", half), ("0000:3d:00.0", cores)):
        (devices / bus).mkdir(parents=True)
        (devices / bus / "local_cpulist").write_text(",".join(map(str, near)))
    install("nvidia-smi", "echo '0, GPU-a, 0000:1B:00.0'\necho '1, GPU-b, 0000:3D:00.0'")
    code = (
        "import launch.slurm.binding as b, os, pathlib, sys\n"
        "b.PCI_DEVICES = pathlib.Path(sys.argv[1])\n"
        "print(sorted(b.bind_near_gpu(os.environ)) == sorted(os.sched_getaffinity(0)))\n"
        "print(*sorted(os.sched_getaffinity(0)))\n"
    )
    env = environment(**who, CUDA_VISIBLE_DEVICES="1,0")
    done = subprocess.run(
        [sys.executable, "-c", code, devices],
        cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", *map(str, half)]
