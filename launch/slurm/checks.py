"""The doctor in a Slurm job: checks nodes before the ranks start, NCCL's transport afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from launch.doctor.__main__ import parse_node_lines, table
from launch.doctor.judge import judge
from launch.doctor.network import nccl_transport, transport_check
from launch.doctor.storage import token_in
from launch.end import say
from launch.slurm.allocation import Allocation, one_per_node, one_per_node_environment
from launch.slurm.container import Container, srun
from launch.slurm.options import LaunchOptions, Program
from pipeline.config import ConfigError
from pipeline.ranks.addresses import INTERFACE_OF
from pipeline.system import console
from pipeline.system.console import counted
from pipeline.system.files import locked
from pipeline.train.folder import RunFolder

_PATIENCE_SEC = 120.0
_NCCL_PATIENCE_SEC = 900.0


def examine(
    allocation: Allocation,
    program: Program,
    options: LaunchOptions,
    container: Container | None = None,
) -> None:
    """Runs the doctor on every node, in `container` if there is one, and prints what is wrong.

    Raises `ConfigError` if a check failed, after the table with the fixes.
    """
    ranks = {node.name: node.ranks for node in allocation.nodes}
    with _nothing_left_if_refused(program.run_dir):
        answers = parse_node_lines(_ask_nodes(allocation, program, options, container))
        checks = judge(answers, ranks, options.engine)
        failed = [check.name for check in checks if check.status == "fail"]
        if failed or any(check.status == "warn" for check in checks):
            console.say(*table([one for one in checks if one.status != "ok"]).split("\n"))
        if failed:
            raise ConfigError(
                f"the check before the job failed: {', '.join(failed)}; the table above has the "
                "fixes (--launch.doctor=false starts without the check)"
            )
    passed, nodes = counted(len(checks), "check"), counted(len(ranks), "node")
    say(f"{passed} passed on {nodes}")


@contextlib.contextmanager
def _nothing_left_if_refused(run_dir: Path | None) -> Iterator[None]:
    """Removes the run's folder if it was made for the check and no run begins in it."""
    is_new = run_dir is not None and not run_dir.exists()
    try:
        yield
    except ConfigError:
        if run_dir is not None and is_new:
            with contextlib.suppress(OSError):  # never made, or no longer empty
                run_dir.rmdir()
        raise


def _ask_nodes(
    allocation: Allocation, program: Program, options: LaunchOptions, container: Container | None
) -> str:
    """What `launch.doctor --node` prints on each node of the job."""
    doctor = ["launch.doctor", "--node", "--", *program.doctor_settings]
    env = one_per_node_environment(os.environ)
    if options.interface is not None:
        env[INTERFACE_OF[options.engine]] = options.interface
    with contextlib.ExitStack() as stack:
        if program.run_dir is not None:
            env |= stack.enter_context(token_in(program.run_dir))
        if container is not None:
            env |= container.environment
        command = srun(one_per_node(allocation), doctor, container, env)
        try:
            done = subprocess.run(
                command, env=env, stdout=subprocess.PIPE, text=True, errors="replace",
                timeout=_PATIENCE_SEC,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ConfigError(
                f"the check of the nodes did not end within {_PATIENCE_SEC:.0f} s: a file system "
                "or a GPU driver hangs on one of them"
            ) from error
    return done.stdout


def nccl_logging(run_dir: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Variables that make NCCL log to the run's folder; none if the user logs elsewhere."""
    if "NCCL_DEBUG" in env or "NCCL_DEBUG_FILE" in env:
        say("NCCL_DEBUG is set, so NCCL's transport is not looked at")
        return {}
    folder = RunFolder(run_dir).nccl
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(run_dir)
    # Of a run in use they are another job's, and this one will be refused.
    with contextlib.suppress(OSError), contextlib.ExitStack() as held:
        if run.lock.exists():
            held.enter_context(locked(run.lock, wait=False))
        for old in folder.glob("*.log"):
            old.unlink()
    return {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(folder / "%h.%p.log")}


def watch_nccl(run_dir: Path, nodes: int, nap_sec: float = 10.0) -> threading.Thread:
    """Warns in the log, once, if the ranks on `nodes` nodes communicate over plain sockets."""

    def look() -> None:
        end = time.monotonic() + _NCCL_PATIENCE_SEC
        while time.monotonic() < end:
            logs = RunFolder(run_dir).nccl.glob("*.log")
            text = "\n".join(log.read_text(errors="replace") for log in logs)
            if nccl_transport(text) is not None:
                check = transport_check(text, nodes)
                if check.status != "ok":
                    console.say(f"warning: {check.name}: {check.found} -> {check.cure}")
                return
            time.sleep(nap_sec)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread
