"""Real ranks of which one is lost between its arrival and its connections."""

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jobs
import pytest

from pipeline.ranks import addresses, checkin, connected, guard
from pipeline.ranks.heartbeat import Peer

# Each rank may take itself to be on a host of its own, so that no other sees its process.
CONNECT = """
import os, signal, socket, sys, time
from pipeline.ranks import addresses, checkin, connect, horovod, store
from pipeline.system.failure import run_command
from pipeline.system.launched import launched

what, rank, apart = sys.argv[1:]
if apart == "apart":
    name = f"node{launched().rank}"
    socket.gethostname = lambda: name
    addresses.resolves = lambda _: True
check_in = checkin.check_in

def lost(*arguments):
    found = check_in(*arguments)
    if launched().rank == int(rank):
        if what == "late":
            time.sleep(60.0)
        elif what != "none":
            os.kill(os.getpid(), {"dies": signal.SIGKILL, "stops": signal.SIGSTOP}[what])
    return found

horovod.check_in = store.check_in = lost
run_command(lambda _: print("connected", len(connect().start)), [])
"""
GLOO_SEC = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "8", "TRAINYARD_START_TIMEOUT": "60"}
CASES = [
    (engine, what, rank, apart)
    for engine in ("horovod", "torch")
    for what, rank, apart in [
        ("none", 0, ""), ("none", 0, "apart"), ("dies", 1, ""), ("dies", 0, ""), ("stops", 1, ""),
        ("stops", 0, ""), ("stops", 1, "apart"),
    ]
] + [("horovod", "late", 1, "")]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    outputs: list[str]
    pids: list[int]

    @property
    def errors(self) -> list[str]:
        return re.findall(r"^error: .*", "\n".join(self.outputs), re.MULTILINE)


def connect(engine, what, rank, apart) -> Ended:
    ranks = jobs.start(["-c", CONNECT, what, str(rank), apart], 3, engine, **GLOO_SEC)
    stays = what in ("stops", "late")
    try:
        for number, process in enumerate(ranks.processes):
            if number != rank or not stays:
                process.wait(jobs.PATIENCE_SEC)
    finally:
        for process in ranks.processes:
            process.kill()
        ranks.wait()
    return Ended(ranks.codes, ranks.outputs, [process.pid for process in ranks.processes])


@pytest.fixture(scope="module")
def ended():
    with ThreadPoolExecutor(3) as pool:
        found = {case: pool.submit(connect, *case) for case in CASES}
    return {case: job.result() for case, job in found.items()}


@pytest.mark.parametrize("engine", ["horovod", "torch"])
@pytest.mark.parametrize("apart", ["", "apart"])
def test_ranks_that_connect_hear_nothing_of_a_guard(ended, engine, apart):
    job = ended[engine, "none", 0, apart]
    assert job.codes == [0, 0, 0] and job.outputs == ["connected 16\n"] * 3


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case[1] in ("dies", "stops")],
    ids=lambda case: "-".join(map(str, case)),
)
def test_a_rank_that_is_lost_while_they_connect_is_named_once(ended, case):
    _, what, rank, apart = case
    job = ended[case]
    others = [code for number, code in enumerate(job.codes) if number != rank]
    assert others == [1, 1], job.outputs
    (error,) = job.errors
    host = f"node{rank}" if apart else r"\S+"
    why = {
        "dies": "died without a word, killed by a signal or out of memory",
        "stops": r"is stopped \(SIGSTOP, Ctrl-Z or a debugger\)",
    }[what]
    if apart:
        why = r"is stopped, dead or cut off: nothing was heard of it for \d+ s"
    speaker = 1 if rank == 0 else 0
    assert re.fullmatch(
        rf"error: rank {speaker}: rank {rank} \(process {job.pids[rank]}\) on {host} {why}.*, "
        "while the ranks connected; start again",
        error,
    ), error


def test_an_engine_that_gives_up_while_all_ranks_live_has_a_last_word(ended):
    job = ended["horovod", "late", 1, ""]
    assert job.codes[0] == job.codes[2] == 1 and len(job.errors) == 1, job.outputs
    assert re.search(
        r"the ranks met, and then could not connect \(the engine's reason is above\); see whether",
        job.errors[0],
    )
    assert "terminate called" in "\n".join(job.outputs)


@pytest.mark.skipif(os.geteuid() != 0, reason="a host name of its own needs root")
@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_a_host_name_without_an_address_is_named_once_before_horovod_crashes(engine):
    script = "import ctypes, os, sys\nfrom launch.doctor.network import network_facts\n"
    script += "print(network_facts()['host_resolves'], flush=True)\n"
    script += (
        "os.execv(sys.executable, [sys.executable, '-c', " + repr(CONNECT) + ", 'none', '0', ''])"
    )
    away = "import ctypes, socket\nctypes.CDLL(None).unshare(0x04000000)\n"
    away += "socket.sethostname('nowhere-known')\n"
    ranks = jobs.run(["-c", away + script], 2, engine)
    assert ranks.outputs[1].startswith("False\n"), ranks.outputs
    if engine == "torch":  # takes the loopback interface, which is enough here
        assert ranks.codes == [0, 0], ranks.outputs
        return
    assert ranks.codes == [2, 2], ranks.outputs
    assert ranks.outputs[0] == (
        "False\nerror: the host name nowhere-known has no address on this machine; add it to "
        "/etc/hosts, or start the ranks with torchrun\n"
    )
    assert ranks.outputs[1] == "False\n"


@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_an_interface_that_is_not_there_is_named(monkeypatch, engine):
    variable = addresses.INTERFACE_OF[engine]
    monkeypatch.setenv(variable, "ib9")
    said = addresses.address_trouble(engine, True)
    assert said.startswith(f"{variable}=ib9 names no network interface with an address on ")
    assert "lo" in said.partition("set it to one of: ")[2]
    monkeypatch.setenv(variable, "lo")
    assert addresses.address_trouble(engine, True) is None


@pytest.mark.parametrize(
    ("engine", "several_nodes", "cure"),
    [
        ("horovod", False, "start the ranks with torchrun"),
        ("torch", True, "set GLOO_SOCKET_IFNAME"),
        ("torch", False, None),
    ],
)
def test_a_host_name_without_an_address_has_a_cure_for_each_engine(
    monkeypatch, engine, several_nodes, cure
):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("HOROVOD_GLOO_IFACE", raising=False)
    monkeypatch.setattr(addresses.socket, "gethostname", lambda: "nowhere.invalid")
    said = addresses.address_trouble(engine, several_nodes)
    assert said == (cure and "the host name nowhere.invalid has no address on this machine; add it "
                    f"to /etc/hosts, or {cure}")  # fmt: skip


PEERS = [
    Peer(0, "a", 10, ("10.0.0.1",)), Peer(1, "b", 11, ("10.0.0.2", "fd00::2")),
    Peer(2, "c", 12, ("10.0.0.3",)), Peer(3, "c", 13, ("10.0.0.3",)),
]  # fmt: skip
PAIR = "[../gloo/transport/tcp/pair.cc:589] Read error [{}]:34567: Connection reset by peer"


@pytest.mark.parametrize(
    ("address", "rank", "who"),
    [
        ("10.0.0.2", 0, "as rank 1 (process 11) on b has left or is cut off"),
        ("fd00::2", 2, "as rank 1 (process 11) on b has left or is cut off"),
        ("::ffff:10.0.0.2", 0, "as rank 1 (process 11) on b has left or is cut off"),
        ("10.0.0.3", 0, "as one of the ranks 2, 3 on c has left or is cut off"),
        ("10.0.0.1", 0, None),
        ("127.0.0.1", 0, None),
        ("10.0.0.9", 0, None),
    ],
)
def test_a_lost_rank_of_another_host_is_named_by_the_address_in_gloos_words(address, rank, who):
    assert connected.named_in(PAIR.format(address), PEERS, rank) == who


def test_a_rank_that_is_lost_before_the_ranks_know_each_other_is_told_without_a_name():
    assert connected.named_in(PAIR.format("10.0.0.2"), PEERS[:1], 1) is None


class Memory:
    """A store in which some ranks sign at every look, and some have left."""

    def __init__(self, signing: set[int], left: set[int]) -> None:
        self.signing, self.left, self.looks = signing, left, 0

    def put(self, _key: str, _value: str) -> bool:
        return True

    def get(self, key: str) -> str | None:
        what, _, rank = key.split("-")
        self.looks += 1
        if what == "sign":
            return str(self.looks) if int(rank) in self.signing else "7"
        return "yes" if int(rank) in self.left else None


# Ranks 0, 1 and 2 are the first of the hosts a, b and c.
@pytest.mark.parametrize(
    ("rank", "signing", "left", "lost"),
    [
        (1, {0, 1, 2}, set(), []),  # rank 0 lives and has not seen the failure
        (1, {0, 1}, set(), [2]),
        (3, {1, 2}, set(), [0]),
        (1, {1}, {0}, [2]),  # rank 0 has seen it, and is gone by now
        (1, set(), set(), []),  # the store takes no signs
    ],
)
def test_only_a_rank_whose_signs_have_stopped_is_called_lost(
    monkeypatch, rank, signing, left, lost
):
    monkeypatch.setattr(guard, "_CALL_SEC", 0.2)
    monkeypatch.setattr(guard, "_LOOK_SEC", 0.05)
    start = checkin.Start("start", tuple(PEERS))
    found = guard.roll_call(Memory(signing, left), rank, start)
    assert [peer.rank for peer in found] == lost


def test_first_ranks_of_hosts_sign_where_there_are_several():
    assert guard._signing(PEERS) == PEERS[:3]
    assert guard._signing(PEERS[2:]) == []


LOST = """
import os, signal, socket, sys, time
from pipeline.ranks import addresses, checkin, connect
from pipeline.system.failure import run_command
from pipeline.system.launched import launched

rank = launched().rank
socket.gethostname = lambda: f"node{rank}"
addresses.resolves = lambda _: True
# Of two ranks on one machine each has the addresses of both; here only the one that is lost.
checkin.own_addresses = lambda: ["127.0.0.1"] if rank == 1 else []

def main(_):
    import torch
    world = connect()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        world.sum(torch.zeros(4))

run_command(main, [])
"""


WORDS = {
    # Horovod tells the address only its own log.
    "horovod": r"and nothing is heard any more of rank 1 \(process \d+\) on node1 \(",
    "torch": r"as rank 1 \(process \d+\) on node1 has left or is cut off \(.*\[127\.0\.0\.1\]:\d+",
}


@pytest.mark.parametrize("engine", WORDS)
def test_a_killed_rank_that_is_alone_on_its_node_is_named(engine):
    ranks = jobs.run(["-c", LOST], 2, engine)
    assert ranks.codes == [1, -signal.SIGKILL]
    said = rf"^error: rank 0: a collective failed, {WORDS[engine]}.*\); start again"
    assert re.search(said, ranks.outputs[0], re.MULTILINE), ranks.outputs[0]


@pytest.mark.parametrize("rank", [1, 2])
def test_of_three_nodes_of_one_rank_each_the_killed_one_is_named(rank):
    script = LOST.replace("if rank == 1:\n", f"if rank == {rank}:\n").replace(
        "if rank == 1 else []", "if rank == 7 else []"
    )
    ranks = jobs.run(["-c", script], 3, "horovod")
    assert ranks.codes == [-signal.SIGKILL if r == rank else 1 for r in range(3)]
    errors = re.findall(r"^error: .*", ranks.text, re.MULTILINE)
    who = rf"rank {rank} \(process {ranks.processes[rank].pid}\) on node{rank}"
    assert len(errors) == 2, ranks.text
    for error in errors:
        assert re.search(rf"nothing is heard any more of {who} \(Horovod", error), error
