"""The verdict over the facts of several nodes: who differs, what is missing, what to do."""

import copy
from typing import Any

import pytest

from launch.doctor.check import Check
from launch.doctor.gpus import parse_gpus
from launch.doctor.judge import facts, judge
from pipeline.config import DataConfig

GIB = 1 << 30


@pytest.fixture(scope="module")
def this_node(small_data, tmp_path_factory) -> dict[str, Any]:
    """The facts of this machine, as a node without a GPU."""
    run_dir = tmp_path_factory.mktemp("run")
    cache = tmp_path_factory.mktemp("cache")
    data = DataConfig(root=str(small_data), cache_dir=str(cache))
    node = facts(run_dir, data, "cpu", "auto", "bf16")
    node |= {"driver": None, "gpus": [], "gpu_problem": None, "torch_gpus": 0, "device": "cpu"}
    node["wanted_interfaces"], node["infiniband"] = {}, []
    node["run_dir"]["free_bytes"] = node["shm"]["free_bytes"] = 100 * GIB
    return node


@pytest.fixture
def cluster(this_node):
    """Makes `count` nodes that are alike; `gpus` each."""

    def make(count: int, gpus: int = 0) -> list[dict[str, Any]]:
        nodes = [copy.deepcopy(this_node) for _ in range(count)]
        for number, node in enumerate(nodes, start=1):
            node |= {"node": f"node{number}", "host": f"node{number}"}
            node |= {"address": f"10.0.0.{number}", "interface": "eth0"}
            node["interfaces"] = {"lo": ["127.0.0.1"], "eth0": [f"10.0.0.{number}"]}
            node["run_dir"]["sees_token"] = True
            if gpus:
                _give_gpus(node, gpus)
        return nodes

    return make


def _give_gpus(node: dict[str, Any], count: int) -> None:
    lines = (f"{i}, NVIDIA H200, GPU-{node['node']}-{i}, 143771, 1, 570.1\n" for i in range(count))
    node["gpus"], node["driver"] = parse_gpus("".join(lines))
    node |= {"torch_gpus": count, "dali_gpus": count, "device": "cuda"}
    node["asked"] |= {"device": "auto"}
    node["versions"] |= {"torch CUDA": "13.0", "NCCL": "2.27.5"}
    node["horovod"]["nccl"] = True


def verdict(nodes: list[dict[str, Any]], name: str, ranks: dict[str, int] | None = None) -> Check:
    return next(check for check in judge(nodes, ranks) if check.name == name)


@pytest.mark.parametrize("gpus", [0, 8])
def test_alike_nodes_pass_every_check(cluster, gpus):
    nodes = cluster(8, gpus)
    ranks = {node["node"]: gpus or 1 for node in nodes}
    for node in nodes:
        node["usable_cores"] = 64
    bad = [check for check in judge(nodes, ranks) if check.status != "ok"]
    assert bad == []


def test_every_check_that_is_not_ok_says_what_to_do_in_one_sentence(cluster):
    nodes = cluster(2)
    nodes[1]["versions"]["torch"] = "2.12.0"
    nodes[1]["run_dir"] |= {"sees_token": False, "free_bytes": 0, "clock_offset_sec": 5}
    nodes[1]["shm"]["free_bytes"] = 0
    nodes[1]["data"]["train"]["classes"] = 9
    nodes[1]["limits"] |= {"open_files": 10}
    bad = [check for check in judge(nodes, {"node1": 9999}) if check.status != "ok"]
    assert len(bad) == 8
    assert all(check.cure.endswith(".") and check.cure.count(". ") == 0 for check in bad)


def test_no_node_at_all_fails():
    assert judge([]) == [
        Check(
            "nodes",
            "fail",
            "no answer from any node",
            "Look at what the check printed there, and leave broken nodes out with --exclude.",
        )
    ]


def test_a_node_that_did_not_answer_is_named(cluster):
    check = verdict(cluster(2), "nodes", {f"node{n}": 1 for n in range(1, 8)})
    assert check.status == "fail"
    assert check.found == "no answer from node3, node4, node5 and 2 more"


@pytest.mark.parametrize(
    ("name", "path", "value", "status", "found", "cure"),
    [
        ("versions", "versions.DALI", None, "fail", "DALI", "make train"),
        *(
            ("versions", f"versions.{package}", "0.1", "fail", "0.1 (the others have ", "checkout")
            for package in ("python", "torch", "DALI", "Horovod", "trainyard")
        ),
        ("driver", "driver", "550.2", "warn", "550.2 (the others have 570.1)", "one driver"),
        ("GPUs", "torch_gpus", 1, "warn", "1 (the others have 2)", "alike"),
        ("free space", "run_dir.free_bytes", GIB - 1, "fail", "1024 MiB", "larger disk"),
        ("free space", "run_dir.free_bytes", 10 * GIB - 1, "warn", "10.0 GiB", "larger disk"),
        ("/dev/shm", "shm.free_bytes", 64 << 20, "warn", "64 MiB of ", "--shm-size"),
        ("data", "data.val.problem", "/d has no val", "fail", "/d has no val", "Mount or copy"),
        ("run directory", "run_dir.sees_token", False, "fail", "", "shared file system"),
        ("network", "interface", None, "fail", "10.0.0.2", "--launch.interface"),
    ],
)
def test_the_node_that_is_not_like_the_others_is_named(
    cluster, name, path, value, status, found, cure
):
    nodes = cluster(3, gpus=2)
    *parents, key = path.split(".")
    place = nodes[1]
    for parent in parents:
        place = place[parent]
    place[key] = value
    check = verdict(nodes, name)
    assert check.status == status and cure in check.cure
    assert "node2: " in check.found and found in check.found.partition("node2: ")[2]


def test_ten_gib_are_room_enough(cluster):
    nodes = cluster(2)
    nodes[1]["run_dir"]["free_bytes"] = 10 * GIB
    assert verdict(nodes, "free space").status == "ok"


def test_gpus_of_several_ranks_need_nccl(cluster):
    nodes = cluster(2, gpus=2)
    nodes[1]["horovod"]["nccl"] = False
    check = verdict(nodes, "Horovod")
    assert check.status == "fail" and "node2: built without NCCL" in check.found
    assert "HOROVOD_GPU_OPERATIONS=NCCL python -m launch.horovod_build --install" in check.cure
    assert verdict(nodes[1:], "Horovod").status == "warn"
    assert verdict(nodes[1:], "Horovod", {"node2": 2}).status == "fail"


def test_horovod_is_needed_by_several_ranks_only(cluster):
    nodes = cluster(1)
    nodes[0]["horovod"] |= {"problem": "ImportError: no such file", "gloo": False}
    assert verdict(nodes, "Horovod").status == "warn"
    assert verdict(nodes, "Horovod", {"node1": 2}).status == "fail"


def test_more_ranks_than_gpus_fail(cluster):
    check = verdict(cluster(2, gpus=4), "GPUs", {"node1": 4, "node2": 8})
    assert (check.status, check.found) == ("fail", "node2: 8 ranks but 4 GPUs")


def test_a_node_may_have_more_gpus_than_ranks(cluster):
    nodes = cluster(2, gpus=4)
    _give_gpus(nodes[1], 8)
    assert verdict(nodes, "GPUs", {"node1": 4, "node2": 4}).status == "ok"
    assert verdict(nodes, "GPUs").found == "node2: 8 (the others have 4)"


def test_a_node_without_a_gpu_among_others_fails(cluster):
    nodes = cluster(3, gpus=2)
    nodes[1] |= {"gpus": [], "torch_gpus": 0, "device": "cpu"}
    check = verdict(nodes, "GPUs")
    assert check.status == "fail" and "node2: no NVIDIA GPU" in check.found


def test_a_cpu_build_of_pytorch_on_a_gpu_machine_is_told(cluster):
    nodes = cluster(1, gpus=8)
    nodes[0] |= {"torch_gpus": 0, "device": "cpu"}
    nodes[0]["versions"] |= {"torch CUDA": None, "torch": "2.13.0+cpu"}
    check = verdict(nodes, "GPUs")
    assert check.status == "warn" and "8 GPUs, but PyTorch 2.13.0+cpu is built for" in check.found
    nodes[0]["asked"]["device"] = "cuda"
    assert verdict(nodes, "GPUs").status == "fail"


def test_what_all_nodes_share_is_said_once(cluster):
    nodes = cluster(64)
    for node in nodes:
        node["asked"]["device"] = "auto"
    assert verdict(nodes, "GPUs").found == "all nodes: no NVIDIA GPU, training runs on the CPU"


def test_cuda_without_a_gpu_fails(cluster):
    nodes = cluster(1)
    nodes[0]["asked"]["device"] = "cuda"
    check = verdict(nodes, "GPUs")
    assert check.status == "fail" and "set run.device=cpu" in check.cure


def test_gpus_shown_twice_and_gpus_in_use_are_warnings(cluster):
    nodes = cluster(2, gpus=2)
    nodes[1]["gpus"] = copy.deepcopy(nodes[0]["gpus"])
    nodes[1]["gpus"][1]["used_bytes"] = 60 * GIB
    assert verdict(nodes, "GPUs").found == "nodes show the same GPUs (UUID)"
    assert verdict(nodes, "GPU memory").found == "node2: GPU 1 holds 60.0 GiB"


def test_the_unrelated_apex_fails_only_if_apex_is_asked_for(cluster):
    nodes = cluster(2)
    nodes[1]["apex"] = "the unrelated one"
    assert verdict(nodes, "apex").status == "ok"
    for node in nodes:
        node["asked"]["norm"] = "apex"
    nodes[0]["apex"] = "NVIDIA's with bnp"
    check = verdict(nodes, "apex")
    assert (check.status, check.found) == ("fail", "node2: the unrelated one")
    assert "APEX_BNP=1" in check.cure


def test_a_norm_layer_that_was_asked_for_and_cannot_run_fails(cluster):
    nodes = cluster(2)
    for node in nodes:
        node["asked"]["norm"] = "triton"
        node["norm_problems"]["triton"] = None
    nodes[0]["norm_problems"]["triton"] = "no C compiler"
    check = verdict(nodes, "norm layer")
    assert (check.status, check.found) == (
        "fail",
        "model.norm=triton cannot run: node1: no C compiler",
    )


def test_another_data_hash_fails_and_an_unknown_one_is_not_compared(cluster):
    nodes = cluster(3)
    for node, digest in zip(nodes, ("a" * 64, None, "a" * 64), strict=True):
        node["data"]["train"] |= {"digest": digest, "images": 50}
    assert verdict(nodes, "data").status == "ok"
    nodes[1]["data"]["train"]["digest"] = "b" * 64
    check = verdict(nodes, "data")
    assert check.status == "fail"
    assert check.found.startswith("train: node2: data hash bbbbbbbbbbbb (the others have")


@pytest.mark.parametrize(("seconds", "status"), [(0.4, "ok"), (1.5, "warn"), (61, "fail")])
def test_clocks_that_disagree(cluster, seconds, status):
    nodes = cluster(3)
    for node in nodes:
        node["run_dir"]["clock_offset_sec"] = 5.0  # of the file server, which no job needs
    nodes[1]["run_dir"]["clock_offset_sec"] -= seconds
    check = verdict(nodes, "clock")
    assert check.status == status
    if status != "ok":
        assert check.found == f"node2: {seconds:.1f} s ahead"


def test_clocks_that_the_file_system_hides_still_show(cluster):
    nodes = cluster(2)
    nodes[1]["clock_sec"] += 3600
    check = verdict(nodes, "clock")
    assert check.status == "warn" and "3600 s apart" in check.found


def test_without_a_token_a_local_file_system_is_a_warning(cluster):
    nodes = cluster(2)
    for node in nodes:
        node["run_dir"] |= {"sees_token": None, "file_system": "xfs /dev/sda1"}
    check = verdict(nodes, "run directory")
    assert check.status == "warn" and "looks local" in check.found
    for node in nodes:
        node["run_dir"]["file_system"] = "nfs4 server:/home"
    assert verdict(nodes, "run directory").status == "ok"


def test_the_loopback_address_is_for_nodes_of_one_machine_only(cluster):
    nodes = cluster(2)
    for node in nodes:
        node |= {"address": "127.0.0.1", "interface": "lo"}
    assert "which no other node reaches" in verdict(nodes, "network").found
    nodes[0]["host"] = nodes[1]["host"]
    assert verdict(nodes, "network").status == "ok"


def test_limits_are_measured_against_the_job(cluster):
    nodes = cluster(2)
    for node in nodes:
        node["limits"] = {"open_files": 1024, "locked_bytes": 64 << 10}
    assert verdict(nodes, "limits", {"node1": 8, "node2": 8}).status == "ok"
    assert "ulimit -n 2048" in verdict(nodes, "limits", {"node1": 256, "node2": 256}).cure
    nodes[0]["infiniband"] = ["mlx5_0"]
    check = verdict(nodes, "limits")
    assert (check.status, check.found) == (
        "warn",
        "node1: 64 KiB of locked memory with InfiniBand",
    )


def test_ranks_that_must_share_a_core_are_a_warning(cluster):
    nodes = cluster(2)
    nodes[1] |= {"usable_cores": 1, "cores": 64}
    check = verdict(nodes, "cores", {"node1": 1, "node2": 8})
    assert (check.status, check.found) == ("warn", "node2: 8 ranks may use 1 of 64 cores")
