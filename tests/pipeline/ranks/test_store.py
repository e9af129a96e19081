"""The store at which ranks of torch.distributed meet."""

import psutil
import pytest

from pipeline.ranks import store
from pipeline.ranks.checkin import Start
from pipeline.ranks.store import TorchRendezvous
from pipeline.system.failure import TrainingError
from pipeline.system.launched import Launched


def listening() -> set[tuple[str, int]]:
    return {tuple(c.laddr) for c in psutil.Process().net_connections() if c.status == "LISTEN"}


def test_the_launchers_store_listens_on_the_jobs_address_only_and_until_it_is_stopped():
    before = listening()
    server = TorchRendezvous("127.0.0.1", [("node1", 2), ("node2", 1)])
    found = [server.environment(rank) for rank in range(3)]
    (opened,) = listening() - before
    assert opened == ("127.0.0.1", int(found[0]["MASTER_PORT"]))
    server.stop()
    assert listening() == before


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(OSError, match="Cannot assign requested address"):
        TorchRendezvous("203.0.113.7", [("node1", 1)])


def test_a_store_that_is_gone_after_the_ranks_have_met_is_told_in_words(monkeypatch):
    server = TorchRendezvous("127.0.0.1", [("node1", 2)])
    for name, value in server.environment(1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "check_in", lambda *_: Start("this-start", ()))
    met = store.meet(Launched("torch", 1, 2, 1, 2))

    def gone(*_given, **_named):
        raise store.DistError("the client socket has failed to connect\nmore")

    monkeypatch.setattr(store, "TCPStore", gone)
    said = r"^the store of the job at 127\.0\.0\.1:\d+ cannot be reached \(the client socket .*\)"
    with pytest.raises(TrainingError, match=said):
        met.second()
    server.stop()
