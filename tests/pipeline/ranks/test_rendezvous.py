"""Ranks that meet before their engine starts, over a real rendezvous."""

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jobs
import pytest

from pipeline.ranks import addresses
from pipeline.ranks.checkin import check_in, start_timeout_sec
from pipeline.ranks.local import open_rendezvous, start_ranks

COME = {
    "horovod": """
from pipeline.ranks import addresses
from pipeline.ranks.checkin import check_in
from pipeline.ranks.rendezvous import HorovodStore
from pipeline.system.failure import run_command
from pipeline.system.launched import launched

me = launched()
run_command(lambda _: check_in(HorovodStore.of_launcher(), me.rank, me.size, "horovod"), [])
""",
    "torch": """
from pipeline.ranks.store import meet
from pipeline.system.failure import run_command
from pipeline.system.launched import launched

run_command(lambda _: meet(launched()), [])
""",
}
RANK = {"horovod": "HOROVOD_RANK", "torch": "RANK"}
LIMIT = {"horovod": "HOROVOD_START_TIMEOUT", "torch": "TRAINYARD_START_TIMEOUT"}
LIMIT_SEC = {"horovod": "3", "torch": "10"}  # torch itself takes seconds to load
ENGINES = tuple(COME)


def meet(engine, absent: int | None) -> tuple[list[int], list[str]]:
    """Exit codes and outputs by rank of a job of three in which rank `absent` ends before it
    comes."""
    stay = f"import os, sys; os.environ['{RANK[engine]}'] == '{absent}' and sys.exit(9)\n"
    limit = {LIMIT[engine]: LIMIT_SEC[engine]}
    started = start_ranks(
        [sys.executable, "-c", stay + COME[engine]], 3, jobs.environment(**limit), engine,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=jobs.REPOSITORY,
    )  # fmt: skip
    with started:
        outputs = [process.communicate(timeout=60.0)[0] for process in started.processes]
        return [process.returncode for process in started.processes], outputs


@pytest.fixture(scope="module", params=ENGINES)
def met(request):
    """The engine, and what `meet` returns for each rank that may be absent, all at once: they
    mostly wait."""
    with ThreadPoolExecutor() as pool:
        found = {a: pool.submit(meet, request.param, a) for a in (None, 0, 2)}
    return request.param, {absent: job.result() for absent, job in found.items()}


def test_ranks_that_all_come_go_on(met):
    _, jobs_of = met
    assert jobs_of[None] == ([0, 0, 0], ["", "", ""])


def test_rank_0_names_who_did_not_start(met):
    engine, jobs_of = met
    codes, outputs = jobs_of[2]
    assert codes == [1, 1, 9]
    limit = LIMIT_SEC[engine]
    assert outputs[0] == (
        f"error: rank 0: rank 2 of 3 did not start within {limit} s; see what the launcher and "
        f"that node say, or allow more time with {LIMIT[engine]} (in seconds)\n"
    )
    assert outputs[1] == "rank 1 ends because rank 2 did not start\n"


def test_the_next_rank_speaks_when_rank_0_did_not_start(met):
    engine, jobs_of = met
    codes, outputs = jobs_of[0]
    assert codes == [9, 1, 1]
    limit = LIMIT_SEC[engine]
    assert outputs[1].startswith(f"error: rank 1: rank 0 of 3 did not start within {limit} s; ")
    assert outputs[2] == "rank 2 ends because rank 0 did not start\n"


class Shelf(dict):
    """A `Store` in memory; several threads may use it."""

    def put(self, key, value):
        self[key] = value
        return True


def start_all(shelf, ranks):
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: check_in(shelf, rank, 3, "torch"), ranks))


def test_a_second_start_in_the_same_store_is_not_taken_for_the_first():
    """As torchrun starts ranks anew: what those before left in the store is still there."""
    shelf = Shelf()
    first = start_all(shelf, (0, 1, 2))
    with ThreadPoolExecutor(3) as pool:
        early = [pool.submit(check_in, shelf, rank, 3, "torch") for rank in (0, 1)]
        time.sleep(0.5)
        assert not any(job.done() for job in early), "rank 2 has not come again"
        second = [check_in(shelf, 2, 3, "torch"), *(job.result() for job in early)]
    assert len(set(first)) == len(set(second)) == 1 and first[0] != second[0]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_rendezvous_that_is_gone_is_named():
    port = free_port()
    env = jobs.environment(
        HOROVOD_RANK="0", HOROVOD_SIZE="2", HOROVOD_START_TIMEOUT="1",
        HOROVOD_GLOO_RENDEZVOUS_ADDR="127.0.0.1", HOROVOD_GLOO_RENDEZVOUS_PORT=str(port),
    )  # fmt: skip
    rank = subprocess.run(
        [sys.executable, "-c", COME["horovod"]], env=env, text=True, capture_output=True, timeout=60
    )
    assert rank.returncode == 1
    said = f"error: rank 0: the launcher's rendezvous at 127.0.0.1:{port} cannot be reached ("
    assert rank.stderr.startswith(said), rank.stderr


def test_a_store_of_torch_that_is_gone_is_named():
    env = jobs.environment(
        RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
        TRAINYARD_START_TIMEOUT="1",
    )  # fmt: skip
    rank = subprocess.run(
        [sys.executable, "-c", COME["torch"]], env=env, text=True, capture_output=True, timeout=60
    )
    assert rank.returncode == 1
    said = f"error: rank 1: the store of the job at 127.0.0.1:{env['MASTER_PORT']} cannot be reach"
    assert rank.stderr.splitlines()[-1].startswith(said), rank.stderr


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", ["0", "-1", "ten", ""])
def test_a_bad_time_limit_is_refused(monkeypatch, value, engine):
    monkeypatch.setenv(LIMIT[engine], value)
    with pytest.raises(ValueError, match=f"{LIMIT[engine]}={value} must be a whole number"):
        start_timeout_sec(engine)


@pytest.mark.parametrize(("address", "is_open"), [("127.0.0.1", False), ("", True), ("::", True)])
def test_a_port_that_is_open_on_every_interface_is_told_from_one_that_is_not(address, is_open):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        assert addresses.open_to_all(port) == is_open
    assert not addresses.open_to_all(port)


def test_our_own_start_is_open_to_this_machine_alone():
    for engine in ENGINES:
        server = open_rendezvous(engine, "127.0.0.1", [("localhost", 2)])
        names = ("HOROVOD_GLOO_RENDEZVOUS_PORT", "MASTER_PORT")
        (port,) = (v for k, v in server.shared_environment.items() if k in names)
        assert not addresses.open_to_all(int(port))
        server.stop()


def test_horovodruns_open_port_is_told(caplog, monkeypatch):
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", port)
        monkeypatch.setattr(addresses, "own_addresses", lambda: ["192.0.2.1"])
        with caplog.at_level("INFO", logger="trainyard"):
            addresses.warn_if_open("horovod")
            addresses.warn_if_open(None)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"network: horovodrun takes connections at port {port} ")
