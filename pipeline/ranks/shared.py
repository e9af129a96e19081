"""Fixed sums between the ranks of one machine: through memory that all of them see.

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

import numpy as np
import torch
from torch import Tensor

from pipeline.ranks.gradients import Layout, blocks
from pipeline.ranks.heartbeat import Peer
from pipeline.ranks.world import World

_HEADER_BYTES = 4096  # a page: the rank's counter of barriers
_NAP_SEC = 0.00005  # between two looks at the others; a rank on the same core has work to do
_LIFE_SEC = 0.2  # between two looks at whether the others live


class SharedMemory:
    """The `Exchange` of ranks on CPUs of one machine.

    `peer_lost(reason)` makes the error for a rank that will never come.
    """

    def __init__(self, world: World, peer_lost: Callable[[str], Exception]) -> None:
        self._world, self._peer_lost = world, peer_lost
        self._memories: list[Tensor] = []
        self._arrived: list[np.ndarray] = []
        self._barriers = 0

    def memory(self, layout: Layout) -> Tensor:
        world = self._world
        size_bytes = _HEADER_BYTES + 4 * layout.floats
        mine = os.memfd_create("trainyard-gradients")
        try:
            os.ftruncate(mine, size_bytes)
            everyone = world.gather_objects((world.peers[world.rank], mine))
            mapped = world.together(lambda: [_mapped(*one, size_bytes) for one in everyone])
        finally:
            os.close(mine)
        self._arrived = [np.frombuffer(one, np.int64, 1) for one in mapped]
        self._memories = [
            torch.frombuffer(one, dtype=torch.float32, offset=_HEADER_BYTES) for one in mapped
        ]
        return self._memories[world.rank]

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
        """Collective. Returns when every rank has come here; raises the error of `peer_lost` when
        one never will."""
        self._barriers += 1
        self._arrived[self._world.rank][0] = self._barriers
        missing = [rank for rank in range(self._world.size) if rank != self._world.rank]
        look_at_lives = time.monotonic() + _LIFE_SEC
        with self._world.heartbeat.waits():
            while missing := [rank for rank in missing if self._arrived[rank][0] < self._barriers]:
                time.sleep(_NAP_SEC)
                if time.monotonic() > look_at_lives:
                    look_at_lives = time.monotonic() + _LIFE_SEC
                    self._require_alive([self._world.peers[rank] for rank in missing])

    def _require_alive(self, peers: Sequence[Peer]) -> None:
        gone = [str(peer.rank) for peer in peers if not peer.alive]
        # It may have arrived and left between the two looks.
        if any(self._arrived[int(rank)][0] < self._barriers for rank in gone):
            raise self._peer_lost(f"rank {', '.join(gone)} has left")


def can_share(world: World) -> bool:
    """Collective. Whether all ranks run on this machine and see each other's memory.

    Only on processors whose cores see each other's writes in their order, on which `_barrier`
    relies.
    """
    probe, sign = os.memfd_create("trainyard-probe"), secrets.token_bytes(16)
    try:
        os.write(probe, sign)
        everyone = world.gather_objects((world.peers[world.rank], probe, sign))
        sees_all = platform.machine() == "x86_64" and all(_shows(*one) for one in everyone)
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
