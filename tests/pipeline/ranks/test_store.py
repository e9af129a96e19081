"""The store at which ranks of torch.distributed meet."""

import psutil
import pytest

from pipeline.ranks.store import TorchRendezvous


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
