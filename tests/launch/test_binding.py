"""Which cores a rank takes, from the kernel's wiring of PCI devices to cores."""

import pytest

from launch.binding import cores_near, parse_cores, part, visible_gpus

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


def test_ranks_divide_the_cores_of_their_socket():
    parts = [part(NEAR, rank, 4, ALL) for rank in range(4)]
    assert parts == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}]


def test_a_socket_with_fewer_ranks_gives_each_more():
    assert part(NEAR, 2, 3, ALL) == SECOND


def test_only_cores_that_the_job_has_are_taken():
    assert part(NEAR, 0, 4, {0, 1, 8, 9}) == {0}


def test_a_rank_that_sees_its_own_gpu_only_takes_all_cores_near_it():
    assert part([SECOND], 3, 4, ALL) == SECOND


def test_nothing_is_bound_where_the_wiring_is_unknown():
    assert part([set()] * 4, 1, 4, ALL) == set()
    assert part([], 0, 2, ALL) == set()
