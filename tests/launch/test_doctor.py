"""The check before a job: the facts of this machine, the command, and the lines of many nodes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import REPOSITORY, copy_data, environment

from launch.doctor.__main__ import main, node_lines, parse_node_lines, table
from launch.doctor.check import Check
from launch.doctor.gpus import gpu_facts
from launch.doctor.judge import facts, judge
from launch.doctor.network import interface_of, matches, node_address
from launch.doctor.software import code_digest
from launch.doctor.storage import token_in
from pipeline.config import ConfigError, DataConfig
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.mini import draw_mini
from pipeline.prepare.options import MiniOptions
from pipeline.ranks.addresses import addresses_by_interface
from pipeline.system.failure import ExitCode, Reported

SMI_LINES = (
    "0, NVIDIA H100 80GB HBM3, GPU-11111111-2222-3333-4444-555555555555, 81559, 4, 570.86.15\n"
    "1, GB10, GPU-66666666-7777-8888-9999-000000000000, [N/A], 2048, 570.86.15\n"
)


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Runs the command here, without what a launcher has set; its exit code and what it prints."""
    monkeypatch.chdir(REPOSITORY)
    for name in os.environ:
        if name.startswith(("HOROVOD_", "SLURM", "NCCL")):
            monkeypatch.delenv(name)

    def run(*argv: str, **env: str) -> tuple[int, str]:
        with monkeypatch.context() as given:
            for name, value in env.items():
                given.setenv(name, value)
            try:
                main(list(argv))
            except Reported as failed:
                return failed.code, capsys.readouterr().out
        return ExitCode.FINISHED, capsys.readouterr().out

    return run


def this_node(run_dir=None, data=None, device="cpu"):
    return facts(run_dir, data, device, "auto", "bf16")


def verdict(node, name):
    return next(check for check in judge([node]) if check.name == name)


def test_facts_are_json_and_describe_this_machine(tmp_path):
    node = this_node(tmp_path)
    assert json.loads(json.dumps(node)) == node
    assert node["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert node["horovod"] == {"problem": None, "nccl": node["horovod"]["nccl"], "gloo": True}
    assert node["torch_distributed"]["gloo"] is True
    assert node["triton_cache"]["path"].endswith("/triton")
    assert node["norm_problems"]["reference"] is None
    assert node["device"] == "cpu" and node["usable_cores"] <= node["cores"]
    assert abs(node["run_dir"]["clock_offset_sec"]) < 60
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [Path("/dev/shm"), Path.cwd()])
def test_the_file_system_of_the_run_directory_is_named(place):
    command = ["df", "--output=fstype,source", place]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = this_node(place)["run_dir"]["file_system"]
    assert found.split() == shown.splitlines()[1].split()


def test_a_file_system_that_is_not_shown_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [])
    assert this_node(tmp_path)["run_dir"]["file_system"] == "unknown"


def test_a_run_directory_that_is_not_made_yet_is_judged_by_its_parent_and_not_made(tmp_path):
    node = this_node(tmp_path / "runs" / "demo")
    assert not node["run_dir"]["exists"] and node["run_dir"]["free_bytes"] > 0
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_below_a_file_is_a_problem(tmp_path):
    (tmp_path / "runs").write_text("a file")
    node = this_node(tmp_path / "runs" / "demo")
    check = verdict(node, "run directory")
    assert check.status == "fail" and f"{tmp_path}/runs cannot be written" in check.found


def test_only_a_node_that_sees_the_token_shares_the_run_directory(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    with token_in(tmp_path / "shared") as token:
        monkeypatch.setenv(*next(iter(token.items())))
        assert this_node(tmp_path / "shared")["run_dir"]["sees_token"]
        other = this_node(tmp_path / "other")
    assert other["run_dir"]["sees_token"] is False
    check = verdict(other, "run directory")
    assert check.status == "fail" and "is not the folder of the first node" in check.found
    assert list((tmp_path / "shared").iterdir()) == []


def test_the_data_hash_comes_from_a_manifest_and_nothing_is_scanned(small_data, tmp_path):
    data, cache = copy_data(small_data, tmp_path / "data"), tmp_path / "cache"
    cache.mkdir()
    settings = DataConfig(root=str(data), cache_dir=str(cache))
    before = this_node(None, settings)["data"]
    assert before["train"] == {"problem": None, "cure": "", "classes": 10, "images": None} | {
        "digest": None
    }
    assert list(cache.iterdir()) == []
    manifest = open_manifest(data, "train", cache)
    after = this_node(None, settings)["data"]
    assert after["train"]["digest"] == manifest.digest and after["train"]["images"] == 50
    assert after["val"]["digest"] is None


def test_the_archive_of_cifar_10_is_looked_into(tmp_path, doctor):
    draw_mini(MiniOptions(tmp_path / "mini", train=50, test=10))
    argv = ("--", "--config", "configs/mini/plain-20.yaml")
    _, said = doctor(*argv, f"--data.root={tmp_path}/mini")
    assert "train 50 images, hash " in said and "val 10 images, hash " in said
    code, said = doctor(*argv, f"--data.root={tmp_path}")
    assert code == 2 and "\nfail  data" in said


def test_gpus_are_read_from_nvidia_smi(install):
    install("nvidia-smi", f"cat <<'END'\n{SMI_LINES}END")
    found = gpu_facts()
    assert (found["driver"], found["gpu_problem"]) == ("570.86.15", None)
    assert found["gpus"][0]["memory_bytes"] == 81559 << 20
    assert found["gpus"][1] == {
        "index": 1, "name": "GB10", "uuid": "GPU-66666666-7777-8888-9999-000000000000",
        "used_bytes": 2 << 30, "memory_bytes": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("echo 'NVML: Driver/library version mismatch'; exit 18", "code 18: NVML: Driver/library"),
        ("echo 'no comma here'", "cannot be read: no comma here"),
        ("echo 'a, b, c, d, e, f'", "cannot be read: a b c d e f"),
    ],
)
def test_a_driver_that_gives_no_sensible_answer_is_a_problem_in_its_own_words(
    install, answer, problem
):
    install("nvidia-smi", answer)
    found = gpu_facts()
    assert (found["gpus"], found["driver"]) == ([], None) and problem in found["gpu_problem"]


def test_the_interface_that_holds_the_nodes_address_is_found():
    interfaces = addresses_by_interface()
    assert interface_of("127.0.0.1", interfaces) == "lo"
    assert interface_of(node_address(), interfaces) is not None
    assert interface_of("203.0.113.7", interfaces) is None


@pytest.mark.parametrize(
    ("variable", "wanted", "taken"),
    [
        ("HOROVOD_GLOO_IFACE", "eth0", {"eth0"}),
        ("HOROVOD_GLOO_IFACE", "eth", set()),
        ("GLOO_SOCKET_IFNAME", "eth0,ib0", {"eth0", "ib0"}),
        ("NCCL_SOCKET_IFNAME", "eth", {"eth0", "eth1"}),
        ("NCCL_SOCKET_IFNAME", "=eth0", {"eth0"}),
        ("NCCL_SOCKET_IFNAME", "=eth0,ib0", {"eth0", "ib0"}),
        ("NCCL_SOCKET_IFNAME", "^eth,lo", {"ib0"}),
        ("NCCL_SOCKET_IFNAME", "^=eth1", {"eth0", "ib0", "lo"}),
    ],
)
def test_how_the_environment_names_interfaces(variable, wanted, taken):
    names = {"eth0", "eth1", "ib0", "lo"}
    assert {name for name in names if matches(name, wanted, variable)} == taken


def test_the_code_of_two_checkouts_differs_by_any_file(tmp_path):
    for folder in ("launch", "pipeline"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("x = 1\n")
    before = code_digest(tmp_path)
    (tmp_path / "pipeline" / "a.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != before


def test_the_command_ends_with_0_and_a_table_where_all_is_well(small_data, tmp_path, doctor):
    data = copy_data(small_data, tmp_path / "data")  # no other test has indexed it
    code, said = doctor("--data-root", str(data), "--run-dir", str(tmp_path), "--device", "cpu")
    assert code == 0, said
    assert "\n0 failed, " in said and str(tmp_path) in said
    assert "train 10 classes" in said


def test_the_command_ends_with_2_and_the_fix_under_what_failed(tmp_path):
    argv = ["launch.doctor", "--", "--config", "configs/demo.yaml", f"--data.root={tmp_path}/none"]
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("fail  data"))
    assert f"the data directory {tmp_path}/none does not exist" in lines[at]
    assert lines[at + 1].lstrip().startswith("-> Make the demo set with")


def test_the_engine_that_is_to_be_used_can_be_named(doctor, monkeypatch):
    monkeypatch.setattr("launch.doctor.software.version_of", lambda name: "1")
    absent = {"problem": "ImportError: x", "nccl": False, "gloo": False}
    monkeypatch.setattr("launch.doctor.software._horovod", lambda: absent)
    _, said = doctor("--device", "cpu", "--engine", "torch")
    assert "ok    Horovod            not usable; ranks of torchrun need none" in said
    _, said = doctor("--device", "cpu", "--engine", "horovod")
    assert "warn  Horovod            ImportError: x" in said


def test_json_holds_facts_and_checks(tmp_path, doctor):
    code, said = doctor("--json", "--run-dir", str(tmp_path), "--norm", "apex")
    told = json.loads(said)
    norm = next(check for check in told["checks"] if check["name"] == "norm layer")
    assert code == 2 and norm["status"] == "fail"
    assert norm["found"].startswith("model.norm=apex cannot run: ")
    assert told["nodes"][0]["run_dir"]["path"] == str(tmp_path)


def test_an_interface_that_the_environment_names_and_is_not_there_fails(doctor):
    code, said = doctor("--device", "cpu", NCCL_SOCKET_IFNAME="^lo", HOROVOD_GLOO_IFACE="ib7")
    assert code == 2
    assert "HOROVOD_GLOO_IFACE=ib7, and there is no such interface" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--config", "configs/demo.yaml", "--dta.root=x"), "--dta.root; did you mean --data.root"),
        (("--collect", "--device", "cpu"), "give the settings to --node"),
    ],
)
def test_settings_that_are_not_taken_are_refused(argv, message, doctor):
    with pytest.raises(ConfigError, match=message):
        doctor(*argv)


def test_the_lines_of_nodes_are_collected_and_judged(tmp_path, doctor, monkeypatch):
    argv = ("--node", "--run-dir", str(tmp_path), "--device", "cpu")
    printed = [doctor(*argv, SLURMD_NODENAME=f"node{n}")[1] for n in (2, 1)]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"srun: a word of Slurm\n{''.join(printed)}"))
    code, said = doctor("--collect")
    assert code == 0, said
    assert "2 (node1, node2)" in said


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
    node = this_node()
    whole = node_lines(node | {"node": "node1"})
    cut = node_lines(node | {"node": "node2"}).splitlines()[0]
    nodes = parse_node_lines(whole + cut)
    check = judge(nodes, {"node1": 8, "node2": 8})[0]
    assert (check.status, check.found) == ("fail", "no answer from node2")


def test_the_table_is_aligned_and_counts():
    text = table([Check("a", "ok", "fine", ""), Check("longer", "warn", "odd", "Fix it.")])
    assert text.splitlines() == [
        "ok    a       fine",
        "warn  longer  odd",
        "              -> Fix it.",
        "0 failed, 1 to look at, 1 ok",
    ]


@pytest.mark.gpu
def test_a_gpu_is_found_and_usable():
    node = this_node(device="cuda")
    assert node["device"] == "cuda" and node["torch_gpus"] >= 1 and node["driver"]
    assert verdict(node, "GPUs").status in ("ok", "warn"), verdict(node, "GPUs")
