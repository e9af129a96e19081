"""The rank that a process has already, and its part of the machine, without asking anybody."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from pipeline.ranks import existing
from pipeline.ranks.existing import existing_rank, share_of_own, told_rank
from pipeline.ranks.places import Share
from pipeline.system.launched import Launched

VARIABLES = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def launched_as(monkeypatch):
    for name in [*VARIABLES, "MASTER_ADDR", "MASTER_PORT", "HOROVOD_RANK", "OMPI_COMM_WORLD_RANK"]:
        monkeypatch.delenv(name, raising=False)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def test_a_process_alone(launched_as):
    assert existing_rank() == Launched()


def test_of_a_launcher(launched_as):
    launched_as(MASTER_ADDR="localhost", MASTER_PORT="1", **VARIABLES)
    assert existing_rank() == Launched("torch", 5, 8, 1, 4)


def test_of_torch_distributed_whoever_started_it(launched_as):
    launched_as(HOROVOD_RANK="3", HOROVOD_SIZE="4")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert existing_rank() == Launched(None, 0, 1, 0, 1)
    finally:
        dist.destroy_process_group()
    assert existing_rank() == Launched("horovod", 3, 4, 0, 1)


def test_that_is_told(launched_as, monkeypatch):
    monkeypatch.setattr(existing, "usable_count", lambda: 4)
    assert told_rank(6, 16) == Launched(None, 6, 16, 2, 4)
    assert told_rank(1, 2) == Launched(None, 1, 2, 1, 2)
    launched_as(MASTER_ADDR="localhost", MASTER_PORT="1", **VARIABLES)
    assert told_rank(5, 8) == Launched("torch", 5, 8, 1, 4)


def test_cores_that_all_may_use_are_shared(monkeypatch):
    rank = Launched("torch", 3, 8, 3, 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(existing, "usable_count", lambda: 0)
    for seen, own in ((16, 4), (5, 5)):  # all of them; those that a launcher has given
        monkeypatch.setattr(existing, "available_cores", lambda seen=seen: seen)
        assert share_of_own(rank) == Share(own, 0)


def test_of_several_gpus_each_rank_has_its_own(monkeypatch):
    for count, gpu in ((4, 3), (1, 0)):  # of one, each rank was given its own
        monkeypatch.setattr(existing, "usable_count", lambda count=count: count)
        assert share_of_own(Launched("torch", 7, 8, 3, 4)).gpu == gpu
    monkeypatch.setattr(existing, "usable_count", lambda: 4)
    monkeypatch.setattr(existing.torch.cuda, "current_device", lambda: 2)
    assert share_of_own(Launched()).gpu == 2
