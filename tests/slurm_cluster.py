"""A real Slurm on this machine for the tests: several nodes, fake GPUs, its own ports and folder.

Needs Debian's slurm-wlm; no root, no munge, no cgroups. All nodes share this host's name and
address and differ by SLURMD_NODENAME.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jobs import environment, wait_for

NODES = ("node1", "node2")
_BOTH = "node[1-2]"
GPUS_PER_NODE = 8
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
_SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
EnforcePartLimits=ALL
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
SlurmctldTimeout=30
SlurmdTimeout=30
MinJobAge=600
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={nodes} NodeAddr=127.0.0.1 NodeHostname=localhost Port={node_ports} CPUs=16 \
SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:h100:{gpus} \
State=UNKNOWN
PartitionName=debug Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Slurm's programs that are not on this machine."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [program for program in _PROGRAMS if shutil.which(program, path=path) is None]


class Cluster:
    """A running Slurm: `run` gives its commands, `submit` a batch script."""

    def __init__(self, folder: Path, conf: Path) -> None:
        self.folder = folder
        self._conf = conf

    def env(self, **extra: str) -> dict[str, str]:
        """The environment of a user of this cluster."""
        base = environment(SLURM_CONF=str(self._conf), **extra)
        base["PATH"] += os.pathsep + "/usr/sbin"
        return base

    def run(self, *command: str, check: bool = True) -> str:
        """The output of one command."""
        done = subprocess.run(
            command, env=self.env(), capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *command: str, cwd: Path, **env: str) -> str:
        """`sbatch COMMAND...` from `cwd`; the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *command],
            env=self.env(**env), cwd=cwd, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """Slurm's record of a job: JobState, ExitCode, Restarts, ..."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait_for_end(self, job: str, *states: str, timeout_sec: float = 120.0) -> str:
        """Waits until the job is in one of `states`, by default those of its end; which one."""
        ends = states or (
            "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY",
        )  # fmt: skip

        def look() -> str:
            now = self.job(job)["JobState"]
            return now if now in ends else ""

        return wait_for(look, f"job {job} to be {' or '.join(ends)}", timeout_sec)


def processes(marker: str) -> list[int]:
    """Running processes (not zombies) with `marker` in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in text:
            found.append(int(folder.name))
    return found


@contextmanager
def cluster(folder: Path, private: Path | None = None) -> Iterator[Cluster]:
    """Starts a controller and the nodes node1 and node2; stops them at the end.

    `private` is a folder that node2 has for itself, as if it were on its own disk (needs
    root).
    """
    for name in ("state", "run", "log"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    ports = _free_ports(1 + len(NODES))
    # Its sockets' paths may have 107 bytes, which pytest's folders take up.
    spool = tempfile.TemporaryDirectory(prefix="slurm-")
    text = _SLURM_CONF.format(
        folder=folder, spool=spool.name, port=ports[0], user=getpass.getuser(),
        nodes=_BOTH, node_ports=f"[{','.join(map(str, ports[1:]))}]", gpus=GPUS_PER_NODE,
    )  # fmt: skip
    conf.write_text(text)
    # Count-only GPUs make a node invalid; any device file does.
    (folder / "gres.conf").write_text(
        f"AutoDetect=off\nNodeName={_BOTH} Name=gpu Type=h100 File=/dev/tty[0-7]\n"
    )
    running = Cluster(folder, conf)
    with ExitStack() as stack:
        stack.enter_context(spool)
        stack.enter_context(_daemon(running, "slurmctld", "-D"))
        for name in NODES:
            command = ["slurmd", "-D", "-N", name]
            if private is not None and name == NODES[-1]:
                own_disk = 'mount -t tmpfs none "$0" && exec "$@"'
                command = ["unshare", "--mount", "sh", "-c", own_disk, str(private), *command]
            stack.enter_context(_daemon(running, *command))
        wait_for(
            lambda: (
                running.run("sinfo", "-h", "-N", "-o", "%t", check=False).split()
                == ["idle"] * len(NODES)
            ),
            f"idle nodes (logs in {folder}/log)",
            30,
        )
        yield running


@contextmanager
def _daemon(running: Cluster, *command: str) -> Iterator[None]:
    log = open(running.folder / "log" / f"{command[-1]}.out", "w")  # noqa: SIM115
    process = subprocess.Popen(command, env=running.env(), stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, one after another, as Slurm's notation wants them."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    taken = stack.enter_context(socket.socket())
                    taken.bind(("127.0.0.1", port))
            except OSError:
                continue
        return list(range(first, first + count))
    raise AssertionError("no free ports")
