"""The ranks' meeting point: in this process, or in the job's container, which has the engine.

Inside the container it is `python -m launch.slurm.meeting ENGINE ADDRESS HOSTS`: it prints one line
of JSON, the variables that every rank needs, and ends when its stdin does, with the launcher.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

from launch.slurm.allocation import Allocation, one_per_node_environment
from launch.slurm.container import Container, srun
from pipeline.config import ConfigError
from pipeline.ranks.local import open_rendezvous
from pipeline.system.console import say
from pipeline.system.failure import ExitCode
from pipeline.system.launched import Engine

_MARKER = "trainyard-meeting "
_END_SEC = 10.0


@contextlib.contextmanager
def meeting(
    allocation: Allocation, engine: Engine, container: Container | None, env: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Opens the ranks' rendezvous on the first node's address, which is this machine, and yields
    the variables that every rank needs. Raises `ConfigError` if that cannot be."""
    first = allocation.nodes[0]
    if container is not None:
        with _inside(allocation, engine, container, env) as shared:
            yield shared
        return
    try:
        server = open_rendezvous(engine, first.address, allocation.hosts)
    except OSError as error:
        raise ConfigError(_refusal(allocation, error.strerror or str(error))) from error
    try:
        yield server.shared_environment
    finally:
        server.stop()


def _refusal(allocation: Allocation, reason: str) -> str:
    first = allocation.nodes[0]
    return (
        f"the ranks cannot meet at {first.address}, the address of {first.name}: {reason}; this "
        "must run on the job's first node, as a batch script does"
    )


@contextlib.contextmanager
def _inside(
    allocation: Allocation, engine: Engine, container: Container, env: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    first = allocation.nodes[0]
    command = ["launch.slurm.meeting", engine, first.address, json.dumps(allocation.hosts)]
    # Beside the ranks, on their cores: it waits.
    one = ["--nodes=1", "--ntasks=1", f"--nodelist={first.name}", "--overlap", "--cpu-bind=none"]
    started = subprocess.Popen(
        srun([*one, "--gpus=0"] if container.gpus else one, command, container, env),
        env=one_per_node_environment(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert started.stdin is not None and started.stdout is not None
    try:
        said = next((line for line in started.stdout if line.startswith(_MARKER)), None)
        if said is None:
            raise ConfigError(
                f"the ranks' meeting point did not start in {container.image}: its lines are "
                "above; the image needs python, trainyard and the engine"
            )
        answer = json.loads(said.removeprefix(_MARKER))
        if "problem" in answer:
            raise ConfigError(_refusal(allocation, answer["problem"]))
        yield answer
    finally:
        started.stdin.close()
        try:
            started.wait(_END_SEC)
        except subprocess.TimeoutExpired:
            started.terminate()  # by which srun ends its task, too
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(_END_SEC)
            started.kill()
            started.wait()
        started.stdout.close()


def main(argv: list[str]) -> int:
    """Opens the rendezvous and holds it until stdin ends; returns the exit code."""
    # Those of the job are for the ranks; this ends with its launcher.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    engine: Engine = "torch" if argv[0] == "torch" else "horovod"
    hosts = [(str(name), int(ranks)) for name, ranks in json.loads(argv[2])]
    try:
        server = open_rendezvous(engine, argv[1], hosts)
    except (OSError, ImportError) as error:
        reason = (
            (error.strerror or str(error))
            if isinstance(error, OSError)
            else f"{error} in this image"
        )
        say(_MARKER + json.dumps({"problem": reason}))
        return ExitCode.WRONG_INPUT
    say(_MARKER + json.dumps(server.shared_environment))
    sys.stdin.read()
    server.stop()
    return ExitCode.FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
