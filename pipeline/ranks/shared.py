"""Memory that all ranks of one machine see, and fixed sums through it.

Each rank's gradients lie in memory of its own that the others map too. When all ranks have
computed, each sums its part of them over all ranks, in the order of `pipeline.ranks.summation`,
and writes the average back to every rank. No copy, no message, no other thread.
"""

from __future__ import annotations

import mmap
import os
import platform
import secrets
import socket
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.ranks.gradients import Layout, blocks
from pipeline.ranks.heartbeat import Peer
from pipeline.ranks.world import World

_HEADER_BYTES = 4096  # a page: the rank's counter of barriers
_NAP_SEC = 0.00005  # between two looks at the others; a rank on the same core has work to do
_LIFE_SEC = 0.2  # between two looks at whether the others live
# How long a stopped rank is waited for: as long as Gloo would, by its own variable if it is set.
_STOPPED_SEC = 30.0


@dataclass(frozen=True)
class Mapped:
    """Memory of every rank, by rank, as this rank sees it; zeros at first."""

    rank: int
    memories: list[mmap.mmap]


def map_memories(world: World, size_bytes: int) -> Mapped:
    """Collective, where `can_share`. Maps `size_bytes` of every rank."""
    mine = os.memfd_create("trainyard")
    try:
        os.ftruncate(mine, size_bytes)
        everyone = zip(world.peers, world.gather_objects(mine), strict=True)
        mapped = world.together(lambda: [_mapped(*one, size_bytes) for one in everyone])
    finally:
        os.close(mine)
    return Mapped(world.rank, mapped)


class Waiting:
    """Waits for what other ranks write, asleep, and with an eye on their lives.

    `peer_lost(reason)` makes the error for a rank that will never come.
    """

    def __init__(self, world: World, peer_lost: Callable[[str], Exception]) -> None:
        self._heartbeat, self._peers, self._peer_lost = world.heartbeat, world.peers, peer_lost

    def until(self, came: Callable[[int], bool]) -> None:
        """Returns when `came` is true of every rank; raises the error of `peer_lost` when it never
        will be."""
        missing = [peer.rank for peer in self._peers if not came(peer.rank)]
        if not missing:
            return
        look_at_lives = time.monotonic() + _LIFE_SEC
        running = time.monotonic()  # when none of them was seen stopped
        with self._heartbeat.waits():
            while missing := [rank for rank in missing if not came(rank)]:
                time.sleep(_NAP_SEC)
                if time.monotonic() > look_at_lives:
                    look_at_lives = time.monotonic() + _LIFE_SEC
                    if not any(self._peers[rank].trouble() for rank in missing):
                        running = time.monotonic()
                    self._require_alive(missing, came, time.monotonic() - running)

    def _require_alive(
        self, missing: Sequence[int], came: Callable[[int], bool], stopped_sec: float
    ) -> None:
        gone = [rank for rank in missing if not self._peers[rank].alive]
        if stopped_sec > float(os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", _STOPPED_SEC)):
            gone = list(missing)
        # It may have come and left between the two looks.
        if any(not came(rank) for rank in gone):
            raise self._peer_lost(f"rank {', '.join(map(str, gone))} has left or is stopped")


class SharedMemory:
    """The `Exchange` of ranks on CPUs of one machine."""

    def __init__(self, world: World, waiting: Waiting) -> None:
        self._world, self._waiting = world, waiting
        self._memories: list[Tensor] = []
        self._arrived: list[np.ndarray] = []
        self._barriers = 0

    def memory(self, layout: Layout) -> Tensor:
        mapped = map_memories(self._world, _HEADER_BYTES + 4 * layout.floats)
        self._arrived = [np.frombuffer(one, np.int64, 1) for one in mapped.memories]
        self._memories = [
            torch.frombuffer(one, dtype=torch.float32, offset=_HEADER_BYTES)
            for one in mapped.memories
        ]
        return self._memories[mapped.rank]

    def run(self, layout: Layout, memory: Tensor) -> Tensor:
        self._barrier()
        statistics = torch.cat([layout.statistics_in(one) for one in self._memories])
        sums = [layout.sums(one) for one in self._memories]
        shard = layout.numel // layout.size
        for part in blocks(shard * layout.rank, shard * (layout.rank + 1)):
            pieces = {
                node: theirs[slot, part]
                for theirs, nodes in zip(sums, layout.nodes, strict=True)
                for node, slot in nodes.items()
            }
            average = layout.add_up(pieces)
            for theirs in sums:
                if theirs[0, part].data_ptr() != average.data_ptr():
                    theirs[0, part].copy_(average)
        self._barrier()
        return statistics

    def _barrier(self) -> None:
        """Collective. Returns when every rank has come here."""
        self._barriers += 1
        self._arrived[self._world.rank][0] = self._barriers
        self._waiting.until(lambda rank: bool(self._arrived[rank][0] >= self._barriers))


def orders_writes() -> bool:
    """Whether this processor's cores see each other's writes in their order, on which all here
    relies."""
    return platform.machine() == "x86_64"


def can_share(world: World) -> bool:
    """Collective. Whether all ranks run on this machine and see each other's memory."""
    probe, sign = os.memfd_create("trainyard-probe"), secrets.token_bytes(16)
    try:
        os.write(probe, sign)
        everyone = zip(world.peers, world.gather_objects((probe, sign)), strict=True)
        sees_all = orders_writes() and all(_shows(peer, *one) for peer, one in everyone)
        return all(world.gather_objects(sees_all))
    finally:
        os.close(probe)


def _shows(peer: Peer, descriptor: int, sign: bytes) -> bool:
    """Whether this rank sees the very file that the peer has opened: in a container of its own, the
    same process number may be another process, this one too."""
    path = _path(peer, descriptor)
    try:
        if peer.host != socket.gethostname() or not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(len(sign) + 1) == sign
    except OSError:
        return False


def _mapped(peer: Peer, descriptor: int, size_bytes: int) -> mmap.mmap:
    opened = os.open(_path(peer, descriptor), os.O_RDWR)
    try:
        return mmap.mmap(opened, size_bytes)
    finally:
        os.close(opened)


def _path(peer: Peer, descriptor: int) -> str:
    # Not a name in /dev/shm: it would stay there after a kill, and containers give it 64 MB.
    return f"/proc/{peer.pid}/fd/{descriptor}"
