"""The check before a job: the facts of this machine, the command, and the lines of many nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import copy_data

from launch.doctor.__main__ import node_lines, parse_node_lines, table
from launch.doctor.check import Check
from launch.doctor.gpus import parse_gpus, read_gpus
from launch.doctor.judge import facts, judge
from launch.doctor.network import interface_of, matches, node_address, read_interfaces
from launch.doctor.software import code_digest
from launch.doctor.storage import TOKEN_VARIABLE, token_in
from pipeline.config import DataConfig
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.mini import draw_mini
from pipeline.prepare.options import MiniOptions

REPOSITORY = Path(__file__).resolve().parents[2]
SMI_LINES = (
    "0, NVIDIA H100 80GB HBM3, GPU-11111111-2222-3333-4444-555555555555, 81559, 4, 570.86.15\n"
    "1, NVIDIA H100 80GB HBM3, GPU-66666666-7777-8888-9999-000000000000, 81559, 2048, 570.86.15\n"
)


def doctor(*argv: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HOROVOD_", "SLURM", "NCCL"))}
    return subprocess.run(
        [sys.executable, "-m", "launch.doctor", *argv],
        cwd=REPOSITORY, env=clean | {"OMP_NUM_THREADS": "1"} | env,
        input=stdin, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_facts_are_json_and_tell_what_this_machine_is(tmp_path):
    node = facts(tmp_path, None, "cpu", "auto", "bf16")
    assert json.loads(json.dumps(node)) == node
    assert node["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert node["horovod"] == {"problem": None, "nccl": node["horovod"]["nccl"], "gloo": True}
    assert node["norm_problems"]["reference"] is None
    assert node["device"] == "cpu" and node["usable_cores"] <= node["cores"]
    assert abs(node["run_dir"]["clock_offset_sec"]) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_is_not_made_yet_is_judged_by_its_parent_and_not_made(tmp_path):
    node = facts(tmp_path / "runs" / "demo", None, "cpu", "auto", "bf16")
    assert not node["run_dir"]["exists"] and node["run_dir"]["free_bytes"] > 0
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_below_a_file_is_a_problem(tmp_path):
    (tmp_path / "runs").write_text("a file")
    node = facts(tmp_path / "runs" / "demo", None, "cpu", "auto", "bf16")
    checks = {check.name: check for check in judge([node])}
    assert checks["run directory"].status == "fail"
    assert f"{tmp_path}/runs cannot be written" in checks["run directory"].found


def test_only_a_node_that_sees_the_token_shares_the_run_directory(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    with token_in(tmp_path / "shared") as token:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        assert facts(tmp_path / "shared", None, "cpu", "auto", "bf16")["run_dir"]["sees_token"]
        other = facts(tmp_path / "other", None, "cpu", "auto", "bf16")
    assert other["run_dir"]["sees_token"] is False
    found = {check.name: check for check in judge([other])}["run directory"]
    assert found.status == "fail" and "is not the folder of the first node" in found.found
    assert "shared file system" in found.cure
    assert list((tmp_path / "shared").iterdir()) == []


def test_the_data_hash_comes_from_a_manifest_and_nothing_is_scanned(small_data, tmp_path):
    data, cache = copy_data(small_data, tmp_path / "data"), tmp_path / "cache"
    cache.mkdir()
    settings = DataConfig(root=str(data), cache_dir=str(cache))
    before = facts(None, settings, "cpu", "auto", "bf16")["data"]
    assert before["train"] == {"problem": None, "cure": "", "classes": 10, "images": None} | {
        "digest": None
    }
    assert list(cache.iterdir()) == []
    manifest = open_manifest(data, "train", cache)
    after = facts(None, settings, "cpu", "auto", "bf16")["data"]
    assert after["train"]["digest"] == manifest.digest and after["train"]["images"] == 50
    assert after["val"]["digest"] is None


def test_the_archive_of_cifar_10_is_looked_into(tmp_path):
    draw_mini(MiniOptions(tmp_path / "mini", train=50, test=10))
    done = doctor("--", "--config", "configs/mini/plain-20.yaml", f"--data.root={tmp_path}/mini")
    assert "train 50 images, hash " in done.stdout and "val 10 images, hash " in done.stdout
    done = doctor("--", "--config", "configs/mini/plain-20.yaml", f"--data.root={tmp_path}")
    assert done.returncode == 2 and "\nfail  data" in done.stdout, done.stdout


def test_gpus_are_read_from_nvidia_smi(install):
    install("nvidia-smi", f"cat <<'END'\n{SMI_LINES}END")
    gpus, driver, problem = read_gpus()
    assert (driver, problem) == ("570.86.15", None)
    assert gpus[1] == {
        "index": 1, "name": "NVIDIA H100 80GB HBM3", "used_bytes": 2 << 30,
        "uuid": "GPU-66666666-7777-8888-9999-000000000000", "memory_bytes": 81559 << 20,
    }  # fmt: skip


def test_memory_that_nvidia_smi_does_not_know_is_unknown():
    assert parse_gpus("0, GB10, GPU-1, [N/A], [N/A], 580.1\n")[0][0]["memory_bytes"] is None


def test_a_broken_driver_is_told_in_its_own_words(install):
    install("nvidia-smi", "echo 'NVML: Driver/library version mismatch'; exit 18")
    node = facts(None, None, "auto", "auto", "bf16")
    check = {check.name: check for check in judge([node])}["driver"]
    assert check.status == "fail" and "Driver/library version mismatch" in check.found


@pytest.mark.parametrize("text", ["no comma here", "a, b, c, d, e, f"])
def test_lines_that_nvidia_smi_never_wrote_are_a_problem_not_a_crash(install, text):
    install("nvidia-smi", f"echo '{text}'")
    gpus, driver, problem = read_gpus()
    assert (gpus, driver) == ([], None) and "cannot be read" in problem


def test_the_interface_that_holds_the_nodes_address_is_found():
    interfaces = read_interfaces()
    assert interface_of("127.0.0.1", interfaces) == "lo"
    assert interface_of(node_address(), interfaces) is not None
    assert interface_of("203.0.113.7", interfaces) is None


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ("eth", {"eth0", "eth1"}),
        ("=eth0", {"eth0"}),
        ("=eth0,ib0", {"eth0", "ib0"}),
        ("^eth,lo", {"ib0"}),
        ("^=eth1", {"eth0", "ib0", "lo"}),
    ],
)
def test_nccls_way_to_name_interfaces(wanted, taken):
    names = {"eth0", "eth1", "ib0", "lo"}
    assert {name for name in names if matches(name, wanted, "NCCL_SOCKET_IFNAME")} == taken


def test_horovods_interface_is_a_whole_name():
    assert matches("eth0", "eth0", "HOROVOD_GLOO_IFACE")
    assert not matches("eth0", "eth", "HOROVOD_GLOO_IFACE")


def test_the_code_of_two_checkouts_differs_by_any_file(tmp_path):
    for folder in ("launch", "pipeline"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("x = 1\n")
    before = code_digest(tmp_path)
    (tmp_path / "pipeline" / "a.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != before


def test_the_command_ends_with_0_and_a_table_where_all_is_well(small_data, tmp_path):
    data = copy_data(small_data, tmp_path / "data")  # no other test has indexed it
    done = doctor(
        "--data-root", str(data), "--run-dir", str(tmp_path), "--device", "cpu"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 failed, " in done.stdout and str(tmp_path) in done.stdout
    assert "train 10 classes" in done.stdout


def test_the_command_ends_with_2_and_the_cure_under_what_failed(tmp_path):
    done = doctor("--", "--config", "configs/demo.yaml", f"--data.root={tmp_path}/none")
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("fail  data"))
    assert f"the data directory {tmp_path}/none does not exist" in lines[at]
    assert lines[at + 1].lstrip().startswith("-> Make the demo set with")


def test_json_holds_facts_and_checks(tmp_path):
    done = doctor("--json", "--run-dir", str(tmp_path), "--norm", "apex")
    told = json.loads(done.stdout)
    norm = next(check for check in told["checks"] if check["name"] == "norm layer")
    assert done.returncode == 2 and norm["status"] == "fail"
    assert norm["found"].startswith("model.norm=apex cannot run: ")
    assert told["nodes"][0]["run_dir"]["path"] == str(tmp_path)


def test_an_interface_that_the_environment_names_and_is_not_there_fails():
    done = doctor("--device", "cpu", NCCL_SOCKET_IFNAME="^lo", HOROVOD_GLOO_IFACE="ib7")
    assert done.returncode == 2
    assert "HOROVOD_GLOO_IFACE=ib7, and there is no such interface" in done.stdout


def test_a_wrong_setting_is_answered_with_the_right_one():
    done = doctor("--config", "configs/demo.yaml", "--dta.root=x")
    assert done.returncode == 2
    assert "there is no setting --dta.root; did you mean --data.root?" in done.stderr


def test_collect_takes_no_settings_of_its_own():
    done = doctor("--collect", "--device", "cpu")
    assert done.returncode == 2 and "give the settings to --node" in done.stderr


def test_the_lines_of_nodes_are_collected_and_judged(tmp_path):
    argv = ("--node", "--run-dir", str(tmp_path), "--device", "cpu")
    printed = "".join(doctor(*argv, SLURMD_NODENAME=f"node{n}").stdout for n in (2, 1))
    assert [node["node"] for node in parse_node_lines(printed)] == ["node1", "node2"]
    done = doctor("--collect", stdin=f"srun: a word of Slurm\n{printed}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 (node1, node2)" in done.stdout


def test_node_lines_survive_labels_and_being_mixed():
    first = {"node": "node1", "text": "a b  c " * 400}
    second = {"node": "node2", "text": "é" * 700}
    mine, yours = (node_lines(node).splitlines() for node in (first, second))
    assert len(mine) > 2 and all(len(line.encode()) < 1024 for line in mine + yours)
    mixed = [line for pair in zip(mine, yours, strict=False) for line in pair]
    mixed += mine[len(yours) :] + yours[len(mine) :]
    text = "\n".join(f"{n % 2}: {line}" for n, line in enumerate(mixed))
    # Lines of one process carry one process id, here that of this test for both nodes.
    assert parse_node_lines(text) == [first, second]


def test_a_node_whose_lines_are_cut_is_left_out_and_named():
    node = facts(None, None, "cpu", "auto", "bf16")
    whole = node_lines(node | {"node": "node1"})
    cut = node_lines(node | {"node": "node2"}).splitlines()[0]
    nodes = parse_node_lines(whole + cut)
    check = judge(nodes, {"node1": 8, "node2": 8})[0]
    assert (check.status, check.found) == ("fail", "no answer from node2")


def test_the_table_is_aligned_and_counts():
    text = table([Check("a", "ok", "fine", ""), Check("longer", "warn", "odd", "Mend it.")])
    assert text.splitlines() == [
        "ok    a       fine",
        "warn  longer  odd",
        "              -> Mend it.",
        "0 failed, 1 to look at, 1 ok",
    ]


@pytest.mark.gpu
def test_a_gpu_is_found_and_usable():
    node = facts(None, None, "cuda", "auto", "bf16")
    checks = {check.name: check for check in judge([node])}
    assert node["device"] == "cuda" and node["torch_gpus"] >= 1 and node["driver"]
    assert checks["GPUs"].status in ("ok", "warn"), checks["GPUs"]
