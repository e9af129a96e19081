"""The verdict over the facts of several nodes: who differs, what is missing, what to do."""

import copy
from typing import Any

import pytest

from launch.doctor.check import Check
from launch.doctor.judge import facts, judge
from pipeline.config import DataConfig
from pipeline.system.launched import Engine

GIB = 1 << 30
SECOND, ALL = (1,), (0, 1)


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
    node["limits"] = {"open_files": 1024, "locked_bytes": 64 << 10}
    return node


@pytest.fixture
def cluster(this_node):
    """Makes `count` nodes that are alike; `gpus` each."""

    def make(count: int, gpus: int = 0) -> list[dict[str, Any]]:
        nodes = [copy.deepcopy(this_node) for _ in range(count)]
        for number, node in enumerate(nodes, start=1):
            node |= {"node": f"node{number}", "host": f"node{number}", "usable_cores": 64}
            node |= {"address": f"10.0.0.{number}", "interface": "eth0"}
            node["interfaces"] = {"lo": ["127.0.0.1"], "eth0": [f"10.0.0.{number}"]}
            node["run_dir"] |= {"sees_token": True, "clock_offset_sec": 5.0}  # the server's clock
            if gpus:
                give_gpus(node, gpus)
        return nodes

    return make


def give_gpus(node: dict[str, Any], count: int) -> None:
    node["gpus"] = [
        {"index": i, "name": "NVIDIA H200", "uuid": f"GPU-{node['node']}-{i}", "used_bytes": 1}
        for i in range(count)
    ]
    node |= {"driver": "570.1", "torch_gpus": count, "dali_gpus": count, "device": "cuda"}
    node["asked"] |= {"device": "auto"}
    node["versions"] |= {"torch CUDA": "13.0", "NCCL": "2.27.5"}
    node["horovod"]["nccl"] = node["torch_distributed"]["nccl"] = True
    node["triton_cache"] = {"path": "/tmp/trainyard-1/triton", "file_system": "ext4 /dev/sda1"}


def put(nodes: list[dict[str, Any]], which: tuple[int, ...], **facts: Any) -> None:
    """Changes facts of some nodes: `run_dir__free_bytes` is free_bytes of run_dir."""
    for number in which:
        for path, value in facts.items():
            *parents, key = path.split("__")
            place = nodes[number]
            for parent in parents:
                place = place[parent]
            place[key] = value


def verdict(
    nodes: list[dict[str, Any]], name: str, ranks: dict[str, int] | None = None,
    engine: Engine | None = None,
) -> Check:  # fmt: skip
    return next(check for check in judge(nodes, ranks, engine) if check.name == name)


@pytest.mark.parametrize("gpus", [0, 8])
def test_alike_nodes_pass_every_check(cluster, gpus):
    nodes = cluster(8, gpus)
    put(nodes, tuple(range(len(nodes))), data__train__digest="a" * 64, data__train__images=50)
    ranks = {node["node"]: gpus or 1 for node in nodes}
    assert [check for check in judge(nodes, ranks) if check.status != "ok"] == []


def test_every_check_that_is_not_ok_says_what_to_do_in_one_sentence(cluster):
    nodes = cluster(2)
    put(
        nodes, SECOND, versions__torch="2.12.0", run_dir__sees_token=False,
        run_dir__free_bytes=0, run_dir__clock_offset_sec=0, shm__free_bytes=0,
        data__train__classes=9, limits__open_files=10,
    )  # fmt: skip
    bad = [check for check in judge(nodes, {"node1": 9999}) if check.status != "ok"]
    assert len(bad) == 8
    assert all(check.cure.endswith(".") and check.cure.count(". ") == 0 for check in bad)


def test_no_node_at_all_fails():
    (check,) = judge([])
    assert (check.name, check.status, check.found) == ("nodes", "fail", "no answer from any node")


def test_a_node_that_did_not_answer_is_named(cluster):
    check = verdict(cluster(2), "nodes", {f"node{n}": 1 for n in range(1, 8)})
    assert check.status == "fail"
    assert check.found == "no answer from node3, node4, node5 and 2 more"


@pytest.mark.parametrize(
    ("name", "changed", "status", "found", "fix"),
    [
        ("versions", {"versions__DALI": None}, "fail", "not installed: DALI", "make train"),
        *(
            ("versions", {f"versions__{package}": "0.1"}, "fail", "0.1 (the others have ", "check")
            for package in ("python", "torch", "DALI", "Horovod", "trainyard")
        ),
        ("PyTorch", {"torch_problem": "ImportError: x"}, "fail", "ImportError: x", "make train"),
        ("Horovod", {"horovod__nccl": False}, "fail", "built without NCCL", "Put nvcc on the PATH"),
        ("Horovod", {"horovod__gloo": False}, "fail", "built without Gloo", "horovod_build"),
        ("driver", {"driver": "550.2"}, "warn", "550.2 (the others have 570.1)", "one driver"),
        ("driver", {"gpu_problem": "no answer"}, "fail", "no answer", "administrator"),
        ("GPUs", {"torch_gpus": 1}, "warn", "1 (the others have 2)", "identical"),
        ("GPUs", {"dali_gpus": 0}, "warn", "DALI sees none of 2 GPUs", "newer driver"),
        (
            "GPUs", {"gpus_kept_out": "--nv after apptainer exec", "gpus": [], "device": "cpu"},
            "fail", "Slurm's GPUs are not in the container", "Start it with --nv after",
        ),
        ("GPUs", {"gpus": [], "device": "cpu"}, "fail", "no NVIDIA GPU", "Leave these nodes out"),
        ("free space", {"run_dir__free_bytes": GIB - 1}, "fail", "1024 MiB", "larger disk"),
        ("free space", {"run_dir__free_bytes": 10 * GIB - 1}, "warn", "10.0 GiB", "larger disk"),
        (
            "free space", {"data__cache__free_bytes": 5 << 20, "data__train__digest": None}, "warn",
            "5 MiB", "data.cache_dir",
        ),
        ("/dev/shm", {"shm__free_bytes": 64 << 20}, "warn", "64 MiB of ", "--shm-size"),
        ("/dev/shm", {"shm__free_bytes": None}, "warn", "not there", "tmpfs"),
        ("data", {"data__val__problem": "/d has no val"}, "fail", "/d has no val", "Mount or copy"),
        ("run directory", {"run_dir__sees_token": False}, "fail", "", "shared file system"),
        ("network", {"interface": None}, "fail", "10.0.0.2", "--launch.interface"),
        ("network", {"host_resolves": False}, "warn", "the host name node2 has", "/etc/hosts"),
        ("limits", {"infiniband": ["mlx5_0"]}, "warn", "64 KiB of locked memory", "LimitMEMLOCK"),
        ("clock", {"run_dir__clock_offset_sec": 3.5}, "warn", "1.5 s ahead", "chronyc"),
        ("clock", {"run_dir__clock_offset_sec": -56}, "fail", "61.0 s ahead", "chronyc"),
    ],
)  # fmt: skip
def test_the_node_that_is_not_like_the_others_is_named(cluster, name, changed, status, found, fix):
    nodes = cluster(3, gpus=2)
    put(nodes, SECOND, **changed)
    check = verdict(nodes, name)
    assert check.status == status and fix in check.cure
    assert "node2: " in check.found and found in check.found.partition("node2: ")[2]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("free space", {"run_dir__free_bytes": 10 * GIB}),
        ("clock", {"run_dir__clock_offset_sec": 4.6}),
        ("data", {"data__train__digest": None}),
        ("apex", {"apex": "the unrelated one"}),
    ],
)
def test_what_no_job_needs_is_not_asked_for(cluster, name, changed):
    nodes = cluster(3, gpus=2)
    put(nodes, (0, 1, 2), data__train__digest="a" * 64, data__train__images=50)
    put(nodes, SECOND, **changed)
    assert verdict(nodes, name).status == "ok"


def test_data_without_an_index_are_not_called_well(cluster):
    nodes = cluster(1)
    nodes[0]["data"]["train"]["digest"] = None  # as before the first start
    check = verdict(nodes, "data")
    assert check.status == "warn" and "train 10 classes, not indexed yet" in check.found
    root = nodes[0]["data"]["path"]
    assert f"python -m pipeline.prepare index --root={root} " in check.cure


@pytest.mark.parametrize(("engine", "status"), [("horovod", "fail"), ("torch", "ok")])
def test_a_host_name_without_an_address_matters_to_horovod_alone(cluster, engine, status):
    nodes = cluster(1)
    nodes[0]["host_resolves"] = False
    (check,) = (check for check in judge(nodes, None, engine) if check.name == "network")
    assert check.status == status


@pytest.mark.parametrize("problem", [{"nccl": False}, {"problem": "ImportError", "gloo": False}])
def test_horovod_is_needed_by_several_ranks_only(cluster, problem):
    nodes = cluster(1, gpus=2)
    nodes[0]["horovod"] |= problem
    assert verdict(nodes, "Horovod").status == "warn"
    assert verdict(nodes, "Horovod", {"node1": 2}).status == "fail"


def test_both_engines_are_shown(cluster):
    nodes = cluster(1, gpus=2)
    for name in ("Horovod", "torch.distributed"):
        assert verdict(nodes, name) == Check(name, "ok", "built with nccl and gloo")


def test_a_horovod_without_nccl_is_an_error_on_gpus_with_both_ways_out(cluster):
    nodes = cluster(1, gpus=2)
    put(nodes, (0,), horovod__nccl=False)
    check = verdict(nodes, "Horovod", engine="horovod")
    assert check.status == "fail" and "ranks on GPUs would hang" in check.found
    assert "python -m launch.horovod_build --install" in check.cure
    assert "--launch.engine=torch" in check.cure
    assert "torchrun --nproc-per-node=N" in verdict(nodes, "Horovod").cure
    assert verdict(nodes, "Horovod", engine="torch").status == "ok"
    put(nodes, (0,), gpus=[], torch_gpus=0, device="cpu")
    assert verdict(nodes, "Horovod", {"node1": 2}, "horovod").status == "ok"


def test_horovod_may_be_missing_where_torchrun_starts_the_ranks(cluster):
    nodes = cluster(2)
    missing = {"problem": "ModuleNotFoundError: x", "nccl": False, "gloo": False}
    put(nodes, ALL, versions__Horovod=None, horovod=missing)
    told = Check("Horovod", "ok", "not installed; ranks of torchrun need none")
    assert verdict(nodes, "Horovod") == told
    assert verdict(nodes, "Horovod", engine="torch") == told
    check = verdict(nodes, "Horovod", engine="horovod")
    assert check.status == "fail" and "torchrun" in check.cure
    put(nodes, (0,), versions__Horovod="0.28.1", horovod={**missing, "problem": None, "gloo": True})
    assert verdict(nodes, "Horovod").status == "fail", "one node of two has it"


@pytest.mark.parametrize(
    ("engine", "status"), [("torch", "fail"), ("horovod", "warn"), (None, "warn")]
)
def test_a_pytorch_that_cannot_connect_ranks_is_told(cluster, engine, status):
    nodes = cluster(2, gpus=2)
    put(nodes, SECOND, torch_distributed__nccl=False)
    check = verdict(nodes, "torch.distributed", engine=engine)
    assert (check.status, check.found) == (status, "node2: this PyTorch has no NCCL")
    assert "horovodrun" in check.cure


def test_a_cache_of_kernels_that_nodes_share_is_a_warning(cluster):
    nodes = cluster(2, gpus=2)
    assert "/tmp/trainyard-1/triton on ext4" in verdict(nodes, "Triton cache").found
    shared = {"path": "/home/ada/.triton", "file_system": "nfs4 server:/home"}
    put(nodes, ALL, triton_cache=shared)
    check = verdict(nodes, "Triton cache")
    assert check.status == "warn" and "TRITON_CACHE_DIR" in check.cure
    assert "all nodes: /home/ada/.triton on nfs4 server:/home, which other nodes" in check.found
    assert verdict(nodes[:1], "Triton cache", {"node1": 1}).status == "ok"


def test_ranks_are_counted_against_gpus_and_cores(cluster):
    nodes = cluster(2, gpus=4)
    put(nodes, SECOND, usable_cores=1, cores=64)
    ranks = {"node1": 4, "node2": 8}
    assert verdict(nodes, "GPUs", ranks).found == "node2: 8 ranks but 4 GPUs"
    assert verdict(nodes, "GPUs", ranks).status == "fail"
    assert verdict(nodes, "cores", ranks).found == "node2: 8 ranks may use 1 of 64 cores"
    assert verdict(nodes, "cores", ranks).status == "warn"


def test_a_node_may_have_more_gpus_than_ranks(cluster):
    nodes = cluster(2, gpus=4)
    give_gpus(nodes[1], 8)
    assert verdict(nodes, "GPUs", {"node1": 4, "node2": 4}).status == "ok"
    assert verdict(nodes, "GPUs").found == "node2: 8 (the others have 4)"


def test_a_cpu_build_of_pytorch_on_a_gpu_machine_is_told(cluster):
    nodes = cluster(1, gpus=8)
    trouble = {"found": "8 GPUs, but PyTorch is built for CPUs", "cure": "install another"}
    put(nodes, (0,), torch_gpus=0, device="cpu", gpu_trouble=trouble)
    told = Check("GPUs", "fail", trouble["found"], "Install another.")
    assert verdict(nodes, "GPUs") == told
    nodes[0]["asked"]["device"] = "cpu"
    assert verdict(nodes, "GPUs").status == "ok"


def test_gpus_that_are_hidden_are_a_warning_and_fail_where_one_is_asked_for(cluster):
    nodes = cluster(1, gpus=8)
    put(nodes, (0,), torch_gpus=0, device="cpu")
    check = verdict(nodes, "GPUs")
    assert check.status == "warn" and "CUDA_VISIBLE_DEVICES hides 8 GPUs" in check.found
    nodes[0]["asked"]["device"] = "cuda"
    assert verdict(nodes, "GPUs").status == "fail"


def test_nodes_without_a_gpu_say_so_once_and_fail_where_one_is_asked_for(cluster):
    nodes = cluster(64)
    put(nodes, range(64), asked__device="auto")
    told = "all nodes: no NVIDIA GPU, training runs on the CPU"
    assert verdict(nodes, "GPUs") == Check("GPUs", "ok", told)
    put(nodes, range(64), asked__device="cuda")
    check = verdict(nodes, "GPUs")
    assert check.status == "fail" and "set run.device=cpu" in check.cure


def test_gpus_shown_twice_and_gpus_in_use_are_warnings(cluster):
    nodes = cluster(2, gpus=2)
    nodes[1]["gpus"] = copy.deepcopy(nodes[0]["gpus"])
    nodes[1]["gpus"][1]["used_bytes"] = 60 * GIB
    assert verdict(nodes, "GPUs").found == "nodes show the same GPUs (UUID)"
    assert verdict(nodes, "GPU memory").found == "node2: GPU 1 holds 60.0 GiB"


def test_a_norm_layer_that_was_asked_for_must_run(cluster):
    nodes = cluster(2)
    put(nodes, ALL, asked__norm="triton", norm_problems__triton=None)
    put(nodes, SECOND, norm_problems__triton="no C compiler")
    found = "model.norm=triton cannot run: node2: no C compiler"
    assert verdict(nodes, "norm layer").found == found
    put(nodes, ALL, asked__norm="apex", apex="NVIDIA's with bnp")
    put(nodes, SECOND, apex="the unrelated one")
    check = verdict(nodes, "apex")
    assert (check.status, check.found) == ("fail", "node2: the unrelated one")
    assert "APEX_BNP=1" in check.cure


def test_another_data_hash_fails(cluster):
    nodes = cluster(3)
    for node, digest in zip(nodes, "aba", strict=True):
        node["data"]["train"] |= {"digest": digest * 64, "images": 50}
    check = verdict(nodes, "data")
    assert check.status == "fail"
    assert check.found.startswith("train: node2: data hash bbbbbbbbbbbb (the others have")


def test_clocks_that_the_file_system_hides_still_show(cluster):
    nodes = cluster(2)
    nodes[1]["clock_sec"] += 3600
    check = verdict(nodes, "clock")
    assert check.status == "warn" and "3600 s apart" in check.found


def test_without_a_token_a_local_file_system_is_a_warning(cluster):
    nodes = cluster(2)
    put(nodes, ALL, run_dir__sees_token=None, run_dir__file_system="xfs /dev/sda1")
    check = verdict(nodes, "run directory")
    assert check.status == "warn" and "looks local" in check.found
    put(nodes, ALL, run_dir__file_system="nfs4 server:/home")
    assert verdict(nodes, "run directory").status == "ok"


def test_the_loopback_address_is_for_nodes_of_one_machine_only(cluster):
    nodes = cluster(2)
    put(nodes, ALL, address="127.0.0.1", interface="lo")
    assert "which no other node reaches" in verdict(nodes, "network").found
    put(nodes, ALL, host="node1")
    assert verdict(nodes, "network").status == "ok"


def test_open_files_are_measured_against_the_job(cluster):
    nodes = cluster(2)
    assert verdict(nodes, "limits", {"node1": 8, "node2": 8}).status == "ok"
    assert "ulimit -n 2048" in verdict(nodes, "limits", {"node1": 256, "node2": 256}).cure
