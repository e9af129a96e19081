"""Jobs in containers: what is asked of Pyxis and Apptainer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

from launch.slurm.allocation import Allocation, Node, hostnames, this_allocation
from launch.slurm.container import Container, choose_runtime, container_of, mounted, srun
from launch.slurm.meeting import meeting
from launch.slurm.options import split
from pipeline.config import ConfigError

JOB = Allocation("7", (Node("node1", "127.0.0.1", 2, 0),), None, 0)


@pytest.fixture
def pyxis(install):
    """A srun that has the plug-in, and writes what it is asked."""
    install("srun", 'case "$1" in --help) echo "  --container-image=..." ;; *) echo "$@" ;; esac')


@pytest.fixture
def no_runtime(install):
    install("srun", "echo '  --container=PATH  of an OCI bundle'")


def held(*argv: str, gpus: bool = True) -> Container:
    """The container of a command line of launch.slurm."""
    options, program = split(argv)
    found = container_of(options, program, gpus)
    assert found is not None
    return found


def test_pyxis_gets_image_mounts_folder_and_our_variables(pyxis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    container = held("train", "--launch.container=registry#trainyard:1", "--data.root=data")
    env = {"HOROVOD_RANK": "1", "PATH": "/bin", "NCCL_DEBUG": "INFO", "TRAINYARD_NODES": "[]"}
    command = srun(["--nodes=1"], ["launch.slurm.rank", "x"], container, env)
    assert command == [
        "srun", "--mpi=none", "--export=ALL", "--nodes=1",
        "--container-image=registry#trainyard:1", f"--container-mounts={tmp_path}:{tmp_path}",
        f"--container-workdir={tmp_path}",
        "--container-env=HOROVOD_RANK,NCCL_DEBUG,PYTHONNOUSERSITE,TRAINYARD_CONTAINER,TRAINYARD_NODES",
        "python", "-m", "launch.slurm.rank", "x",
    ]  # fmt: skip
    assert container.environment == {"TRAINYARD_CONTAINER": "pyxis", "PYTHONNOUSERSITE": "1"}


@pytest.mark.parametrize("gpus", [True, False])
@pytest.mark.parametrize("program", ["apptainer", "singularity"])
def test_apptainer_runs_the_command_with_gpus_if_the_job_has_some(
    program, gpus, no_runtime, install, tmp_path, monkeypatch
):
    install(program, "exit 0")
    monkeypatch.setattr("launch.slurm.container._APPTAINER", (program,))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.sif").touch()
    container = held("train", "--launch.container=a.sif", "--launch.engine=torch", gpus=gpus)
    command = srun(["--ntasks=2"], ["launch.doctor"], container, {})
    assert command[:4] == ["srun", "--mpi=none", "--export=ALL", "--ntasks=2"]
    assert command[4:] == [
        shutil.which(program), "exec", *["--nv"] * gpus, "--bind", f"{tmp_path}:{tmp_path}",
        "--pwd", str(tmp_path), f"{tmp_path}/a.sif", "python", "-m", "launch.doctor",
    ]  # fmt: skip


def test_without_a_container_tasks_are_of_this_python():
    options, program = split(["train"])
    assert container_of(options, program, True) is None
    assert srun(["-n1"], ["m"]) == [
        "srun",
        "--mpi=none",
        "--export=ALL",
        "-n1",
        sys.executable,
        "-m",
        "m",
    ]


def test_all_that_a_training_reads_and_writes_is_mounted_and_nothing_twice(
    pyxis, tmp_path, monkeypatch
):
    for name in ("checkout/configs", "far/imagenet", "cache", "runs", "own"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "checkout" / "data").symlink_to(tmp_path / "far")
    config = tmp_path / "own" / "x.yaml"
    config.write_text(f"data: {{cache_dir: {tmp_path}/cache, root: data/imagenet}}\n")
    monkeypatch.chdir(tmp_path / "checkout")
    container = held(
        "train", "--launch.container=i", f"--config={config}", f"--run.dir={tmp_path}/runs/new/er",
        "--launch.container_mounts=/a:/b:ro,/c", f"--launch.stage={tmp_path}/scratch/x",
    )  # fmt: skip
    assert container.mounts == (f"{tmp_path}:{tmp_path}", "/a:/b:ro", "/c:/c")
    container = held(
        "train", "--launch.container=i", f"--config={config}", f"--run.dir={tmp_path}/runs/new"
    )
    names = ["cache", "checkout", "far/imagenet", "own", "runs"]
    assert container.mounts == tuple(f"{tmp_path}/{name}:{tmp_path}/{name}" for name in names)


def test_what_the_yaml_names_is_mounted_too(pyxis, tmp_path, monkeypatch):
    """And the files that it builds on, by their folders: a file of the host that is mounted by
    itself cannot be replaced by another."""
    for name in ("checkout", "own", "base", "lists", "weights", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "y.yaml").write_text("init: ../weights/new.pth\n")
    (tmp_path / "own" / "x.yaml").write_text("base: ../base/y.yaml\ninit: ../weights/a.pth\n")
    monkeypatch.chdir(tmp_path / "checkout")
    options = ["--config", "../own/x.yaml", "--data.exclude=../lists/new.csv", "--data.root=d"]
    container = held("train", "--launch.container=i", *options)
    names = ["base", "checkout", "lists", "own", "weights"]
    assert container.mounts == tuple(f"{tmp_path}/{name}:{tmp_path}/{name}" for name in names)
    # What an earlier job has left on the first node need not be on the others.
    (tmp_path / "scratch" / "left").mkdir()
    container = held("train", "--launch.container=i", f"--launch.stage={tmp_path}/scratch/left")
    assert f"{tmp_path}/scratch:{tmp_path}/scratch" in container.mounts


@pytest.mark.parametrize("given", ["runs/a", "runs/a/checkpoints/best.pt"])
@pytest.mark.parametrize("kept", ["data: {{root: {}/far}}", "data: {{root: {}/far, odd: 1}}"])
def test_an_evaluation_sees_the_run_that_keeps_its_result_and_the_runs_data(
    kept, given, pyxis, tmp_path, monkeypatch
):
    for name in ("checkout", "runs/a/checkpoints", "far"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoints" / "best.pt").touch()
    (tmp_path / "runs" / "a" / "config.yaml").write_text(kept.format(tmp_path))
    monkeypatch.chdir(tmp_path / "checkout")
    container = held("evaluate", "--launch.container=i", "--checkpoint", str(tmp_path / given))
    names = ["checkout", *(["far"] if "odd" not in kept else []), "runs/a"]
    assert container.mounts == tuple(f"{tmp_path}/{name}:{tmp_path}/{name}" for name in names)


def test_the_root_is_never_mounted(tmp_path):
    assert mounted(["/no/such/folder", str(tmp_path)]) == [str(tmp_path)]


def test_no_folder_that_the_image_needs_is_mounted_in_place_of_one_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="/opt/no/such does not exist, and .* make it first"):
        mounted(["/opt/no/such"])
    assert mounted(["/etc/passwd", "/dev/null"]) == ["/dev/null", "/etc/passwd"]


@pytest.mark.parametrize("odd", ["a b", "a$b", 'a"b'])
def test_a_folder_that_enroot_cannot_mount_is_named_and_apptainer_mounts_it(
    odd, pyxis, install, tmp_path, monkeypatch
):
    (tmp_path / odd).mkdir()
    monkeypatch.chdir(tmp_path / odd)
    with pytest.raises(ConfigError, match="Enroot cannot mount .* rename the folder, or reach it"):
        held("train", "--launch.container=i")
    with pytest.raises(ConfigError, match="Enroot cannot mount /a b:/b, for the ' ' in it"):
        monkeypatch.chdir(tmp_path)
        held("train", "--launch.container=i", "--launch.container_mounts=/a b:/b")
    install("apptainer", "exit 0")
    monkeypatch.chdir(tmp_path / odd)
    container = held("train", "--launch.container=i", "--launch.container_runtime=apptainer")
    assert container.mounts == (f"{tmp_path}/{odd}:{tmp_path}/{odd}",)


def test_an_image_is_named_as_its_runtime_has_it(pyxis, install, tmp_path, monkeypatch):
    """To Pyxis x.sqsh is a name in a registry, and to Apptainer reg#x a file."""
    install("apptainer", "exit 0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.sqsh").touch()
    assert held("train", "--launch.container=x.sqsh").image == f"{tmp_path}/x.sqsh"
    assert held("train", "--launch.container=reg#a/x:1").image == "reg#a/x:1"
    by = "--launch.container_runtime=apptainer"
    assert held("train", by, "--launch.container=reg#a/x:1").image == "docker://reg/a/x:1"
    assert held("train", by, "--launch.container=oras://reg/x").image == "oras://reg/x"


@pytest.mark.parametrize("odd", ["a:b", "a,b"])
def test_a_folder_that_cannot_be_mounted_is_named(odd, tmp_path):
    (tmp_path / odd).mkdir()
    with pytest.raises(ConfigError, match=f"{odd} cannot be mounted .* rename it"):
        mounted([str(tmp_path / odd)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--launch.container=a.sif"], "neither apptainer nor singularity is on the PATH; ask for"),
        (["--launch.container=a.sqsh"], "srun has no --container-image .*Pyxis is not installed"),
        (["--launch.container=reg#a:1"], "Pyxis is not installed.* and neither apptainer"),
        (
            ["--launch.container=a", "--launch.container_runtime=pyxis"],
            "a cannot be run here: srun has no --container-image",
        ),
        (["--launch.container_mounts=/a:/b"], "go with --launch.container=IMAGE only"),
        (["--launch.container_runtime=apptainer"], "go with --launch.container=IMAGE only"),
        (["--launch.container_runtime=docker"], "docker must be one of auto, pyxis, apptainer"),
    ],
)
def test_a_runtime_that_is_not_there_is_said(argv, message, no_runtime, monkeypatch):
    monkeypatch.setattr("launch.slurm.container._APPTAINER", ("no-such-program",))
    with pytest.raises(ConfigError, match=message):
        container_of(*split(["train", *argv]), gpus=False)


@pytest.mark.parametrize("mounts", ["data:/data", "/a:/b:ro:x", "/a:b"])
def test_a_mount_that_is_none_is_refused(mounts, pyxis):
    with pytest.raises(ConfigError, match="must be SOURCE:TARGET or SOURCE:TARGET:FLAGS with abs"):
        held("train", "--launch.container=i", f"--launch.container_mounts={mounts}")


def test_an_image_that_is_not_there_is_refused(pyxis):
    with pytest.raises(ConfigError, match="/no/such.sqsh does not exist; give an image that every"):
        held("train", "--launch.container=/no/such.sqsh")


def test_the_runtime_follows_the_image_then_the_cluster(pyxis, install):
    install("apptainer", "exit 0")
    assert choose_runtime("x.sif", "auto") == "apptainer"
    assert choose_runtime("x.sqsh", "auto") == "pyxis"
    assert choose_runtime("reg#x", "auto") == "pyxis"
    assert choose_runtime("docker://x", "apptainer") == "apptainer"
    assert choose_runtime("docker://x", "auto") == "pyxis"
    assert choose_runtime("oras://x", "auto") == "apptainer"


# The launcher itself inside an image, without Slurm's programs.


def no_scontrol(*command: str) -> str:
    from launch.slurm.allocation import output_of

    return output_of("no-such-scontrol", *command[1:])


def test_without_scontrol_the_jobs_variables_say_nodes_and_gpus(capsys):
    env = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_GPUS_PER_NODE": "h100:2",
    }  # fmt: skip
    addresses = {"node1": "10.0.0.1", "node2": "10.0.0.2"}
    found = this_allocation(env, no_scontrol, addresses.get)
    assert found.nodes == (Node("node1", "10.0.0.1", 2, 2), Node("node2", "10.0.0.2", 2, 2))
    assert "scontrol is not here" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="node2, the address of node2 in Slurm, does not resolve"):
        this_allocation(env, no_scontrol, {"node1": "10.0.0.1"}.get)
    del env["SLURM_GPUS_PER_NODE"]
    one = {**env, "SLURM_JOB_GPUS": "0,1,5"}
    assert [node.gpus for node in this_allocation(one, no_scontrol, addresses.get).nodes] == [3, 3]
    assert this_allocation(env, no_scontrol, addresses.get).nodes[0].gpus == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("n[1-2,05],gpu", ["n1", "n2", "n05", "gpu"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
    ],
)
def test_host_lists_are_spelled_out_as_slurm_does(text, names):
    assert hostnames(text) == names


def test_a_requeue_without_scontrol_says_what_to_do(monkeypatch, capsys):
    from launch.slurm.requeue import requeue

    monkeypatch.setenv("PATH", "/no/such")
    requeue("7", saved=True)
    assert "run scontrol requeue 7 on the cluster, or submit it again" in capsys.readouterr().out


def test_a_launcher_without_srun_is_told_where_to_run():
    env = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_TASKS_PER_NODE": "1",
        "PATH": "/usr/bin",
    }  # fmt: skip
    if shutil.which("srun", path="/usr/bin"):
        env["PATH"] = "/no/such"
    done = subprocess.run(
        [sys.executable, "-m", "launch.slurm", "train", "--run.device=cpu"],
        env={**jobs.environment(), **env}, cwd=jobs.REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "srun is not here" in line and "--launch.container=IMAGE" in line


_ON_THE_HOST = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from launch.slurm.__main__ import container_of, split
options, program = split(["train", "--launch.container=reg#a", "--data.root=/"])
print(len(program.doctor_settings), container_of(options, program, True).image)
"""


def test_the_launcher_of_a_container_needs_little_on_the_host(pyxis):
    heavy = "torch,horovod,nvidia,numba,numpy,pyarrow,tensorboard,matplotlib,PIL,tqdm,triton"
    done = subprocess.run(
        [sys.executable, "-c", _ON_THE_HOST, heavy],
        cwd=jobs.REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("1 reg#a\n", 0), done.stderr


# The ranks' meeting point in the image.


@pytest.fixture
def image(install, tmp_path) -> Container:
    """An image of this Python, whose runtime runs the command as it is."""
    install("srun", 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"')
    install("apptainer", f'shift 6; PATH={Path(sys.executable).parent}:$PATH; exec "$@"')
    return Container("x.sif", "apptainer", ("/a:/a",), "/", False)


@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_ranks_meet_at_a_server_that_runs_in_the_image(engine, image):
    name = {"horovod": "HOROVOD_GLOO_RENDEZVOUS_PORT", "torch": "MASTER_PORT"}[engine]
    with meeting(JOB, engine, image, jobs.environment()) as shared:
        assert shared["HOROVOD_CONTROLLER" if engine == "horovod" else "MASTER_ADDR"]
        assert listens(int(shared[name]))
    assert not listens(int(shared[name])), "it ends with the launcher"


def listens(port: int) -> bool:
    import socket

    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_an_image_without_the_engine_or_on_another_node_is_said(image, install):
    far = Allocation("7", (Node("node1", "192.0.2.1", 2, 0),), None, 0)
    message = "the ranks cannot meet at 192.0.2.1, the address of node1: .*; this must run on the"
    with (
        pytest.raises(ConfigError, match=message),
        meeting(far, "torch", image, jobs.environment()),
    ):
        pass
    install("apptainer", "echo 'FATAL: no such image' >&2; exit 255")
    message = (
        "the ranks' meeting point did not start in x.sif: its lines are above; the image needs"
    )
    with (
        pytest.raises(ConfigError, match=message),
        meeting(JOB, "torch", image, jobs.environment()),
    ):
        pass
