"""Who started a process, by its environment."""

import subprocess
import sys

import jobs
import pytest

from pipeline.system.launched import Launched, launched

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
HOROVODRUN = {
    "HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("env", "engine"), [(TORCHRUN, "torch"), (HOROVODRUN, "horovod"), (MPIRUN, "horovod")]
)
def test_the_launcher_decides_the_engine(env, engine):
    assert launched(env) == Launched(engine, 3, 4, 1, 2)


def test_nothing_of_a_launcher_is_one_process():
    assert launched({}) == launched({"RANK": "3", "WORLD_SIZE": "4"}) == Launched()


def test_two_launchers_at_once_are_refused_on_one_rank():
    both = TORCHRUN | HOROVODRUN | {"RANK": "0", "HOROVOD_RANK": "0"}
    other = both | {"RANK": "1", "HOROVOD_RANK": "1"}
    train = ["-m", "pipeline.train", "--config", "configs/demo.yaml"]
    first, second = (jobs.run(train, ranks=1, **env) for env in (both, other))
    assert first.codes == second.codes == [2]
    assert first.text == (
        "error: this rank has the variables of two launchers, HOROVOD_RANK (horovodrun) and RANK "
        "(torchrun); start the ranks by one of them, without the other's variables in the "
        "environment\n"
    )
    # No launcher has ended it while it waited for rank 0 to say so.
    assert second.text == first.text.replace("error: ", "error: rank 1: ", 1)


def test_a_rank_of_horovod_without_horovod_is_told_what_to_install():
    code = (
        "import sys; sys.modules['horovod'] = None\n"  # as if not installed
        "import runpy; sys.argv[1:] = ['--config', 'configs/demo.yaml']\n"
        "runpy.run_module('pipeline.train', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=jobs.environment(**HOROVODRUN | {"HOROVOD_RANK": "0"}),
        cwd=jobs.REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "error: this rank was started for Horovod (horovodrun, mpirun), which is not installed for "
        f"{sys.executable}; build it with python -m launch.horovod_build --install, or start the "
        "ranks by torchrun\n"
    )
