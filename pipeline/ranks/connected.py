"""The world of several ranks, whatever they communicate over."""

from __future__ import annotations

import re
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.ranks.addresses import own_addresses
from pipeline.ranks.board import CAPACITY_BYTES, Board
from pipeline.ranks.checkin import Start
from pipeline.ranks.gradients import Exchange, GradientAverager, Layout, OrderedGradients, Summing
from pipeline.ranks.heartbeat import Peer
from pipeline.ranks.plain import packed, unpacked
from pipeline.ranks.shared import SharedMemory, Waiting, can_share, map_memories
from pipeline.ranks.world import T, World
from pipeline.system.failure import PeerLost

_DYING_SEC = 0.5  # a killed process closes its connections before it counts as dead
_KNOWER_SEC = 1.0  # a rank on the host of a lost one knows more of it, and speaks first
_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+?)(?:%\w+)?\]:\d+")  # as Gloo writes a peer's


class ConnectedWorld(World):
    """The world of several ranks. Every method is collective."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: Waiting | None = None
        self._board: Board | None = None
        self._decisions: Board | None = None

    def _meet(self, start: Start | None) -> None:
        """Collective. To be called once the engine runs; `start` is what the ranks know of each
        other by then, None without a launcher's store."""
        if start is None:
            here = Peer.here(self.rank)
            rows = self.gather_objects((here.host, here.pid, secrets.token_hex(8), own_addresses()))
            peers = (Peer(r, host, pid, tuple(at)) for r, (host, pid, _, at) in enumerate(rows))
            start = Start(rows[0][2], tuple(peers))
        self.start, self.peers = start.name, list(start.peers)
        if can_share(self):
            waiting = self._waiting = Waiting(self, self._peer_lost)
            # One of its own, as others are put up while a decision is on its way.
            boards = [Board(map_memories(self, Board.size_bytes()), waiting) for _ in range(2)]
            self._board, self._decisions = boards

    @abstractmethod
    def _gather(self, tensor: Tensor) -> Tensor:
        """`gather` over the engine."""

    @abstractmethod
    def _sum(self, tensor: Tensor) -> Tensor:
        """`sum` over the engine."""

    @abstractmethod
    def _start_maximum(self, values: Sequence[int]) -> Callable[[], list[int]]:
        """`start_maximum` over the engine."""

    @abstractmethod
    def _broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's CPU tensor; every rank gives one of its shape and dtype."""

    @abstractmethod
    def exchange_shards(self, parts: Tensor) -> Tensor:
        """`parts` (size, ...) holds one part for each rank; returns those of all ranks for this
        one, (size, ...), by rank. On any one device."""

    @abstractmethod
    def gather_shards(self, shard: Tensor, name: str) -> Tensor:
        """The equally long shards (n,) of all ranks one after the other, (size * n,). A `name` is
        for shards of one length."""

    @abstractmethod
    def _nccl_problem(self) -> str | None:
        """Why this engine cannot reduce tensors on GPUs, and what helps; None if it can."""

    @abstractmethod
    def _fast_gradients(self, model: nn.Module, summing: Summing) -> GradientAverager:
        """Averages gradients in whatever order is quickest."""

    def average_gradients(self, model: nn.Module, summing: Summing) -> GradientAverager:
        device = next(model.parameters()).device
        if device.type == "cuda" and (problem := self._nccl_problem()):
            raise ValueError(f"gradients on GPUs cannot be summed over ranks: {problem}")
        if summing.sums == "fast":
            return self._fast_gradients(model, summing)
        exchange: Exchange = OverNetwork(self, device)
        if device.type == "cpu" and self._waiting is not None:
            exchange = SharedMemory(self, self._waiting)
        return OrderedGradients(model, summing, self.rank, self.size, exchange)

    def broadcast_object(self, value: T) -> T:
        content = packed(value) if self.rank == 0 else torch.zeros(0, dtype=torch.uint8)
        size = self._of_rank0(torch.tensor([len(content)], dtype=torch.int64))
        if self.rank != 0:
            content = torch.zeros(int(size.item()), dtype=torch.uint8)
        content = self._of_rank0(content)
        return value if self.rank == 0 else cast(T, unpacked(content))

    def gather_objects(self, value: T) -> list[T]:
        mine = packed(value)
        sizes = self.gather(torch.tensor([len(mine)]))[:, 0].tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = mine
        everyone = self.gather(padded)
        return [cast(T, unpacked(row[:size])) for row, size in zip(everyone, sizes, strict=True)]

    def _of_rank0(self, tensor: Tensor) -> Tensor:
        """Rank 0's (n,) CPU tensor; every rank gives one of its shape and dtype."""
        if self._board is None or tensor.nbytes > CAPACITY_BYTES:
            return self._broadcast(tensor)
        mine = tensor if self.rank == 0 else tensor[:0]
        return self._board.start(mine.view(torch.uint8))()[0].view(tensor.dtype)

    def gather(self, tensor: Tensor) -> Tensor:
        if self._board is None or tensor.nbytes > CAPACITY_BYTES:
            return self._gather(tensor)
        return self._board.gather(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        if self._board is None or tensor.nbytes > CAPACITY_BYTES:
            return self._sum(tensor)
        return self._board.gather(tensor).sum(0, dtype=tensor.dtype)

    def maximum(self, values: Sequence[int]) -> list[int]:
        if self._board is None:
            return self._start_maximum(values)()
        found: list[int] = (
            self._board.gather(torch.tensor(values, dtype=torch.int64)).amax(0).tolist()
        )
        return found

    def start_maximum(self, values: Sequence[int]) -> Callable[[], list[int]]:
        if self._decisions is None:
            return self._start_maximum(values)
        notes = self._decisions.start(torch.tensor(values, dtype=torch.int64).view(torch.uint8))

        def wait() -> list[int]:
            found: list[int] = torch.stack(notes()).view(torch.int64).amax(0).tolist()
            return found

        return wait

    def barrier(self) -> None:
        self.maximum([0])

    def _silent(self) -> list[Peer]:
        """Ranks of other hosts that are gone, as far as the engine lets it be known."""
        return []

    def _peer_lost(self, reason: str) -> PeerLost:
        """The error for a collective that failed; names the rank that is gone if it can be seen."""
        end = time.monotonic() + _DYING_SEC
        while True:
            lost = [f"{peer} {trouble}" for peer in self.peers if (trouble := peer.trouble())]
            if lost or time.monotonic() > end:
                break
            time.sleep(0.05)
        if lost:
            return PeerLost(f"{', '.join(lost)}; start again to resume from the last checkpoint")
        if any(peer.host != self.peers[0].host for peer in self.peers):
            time.sleep(_KNOWER_SEC)
        who = named_in(reason, self.peers, self.rank)
        if who is None and (silent := self._silent()):
            who = f"and nothing is heard any more of {', '.join(map(str, silent))}"
        who = who or "most often because a peer left"
        return PeerLost(
            f"a collective failed, {who} ({reason}); start again to resume from the last checkpoint"
        )


def named_in(reason: str, peers: Sequence[Peer], rank: int) -> str | None:
    """Who is lost by the address in Gloo's `reason` on `rank`, as part of a sentence; None if it
    names none, or that of several hosts, as the loopback address is."""
    if rank >= len(peers):  # lost before the ranks know each other, as under mpirun
        return None
    here = peers[rank].host
    for address in _ADDRESS.findall(reason):
        held_by = [peer for peer in peers if address.removeprefix("::ffff:") in peer.addresses]
        hosts = {peer.host for peer in held_by}
        if len(hosts) == 1 and here not in hosts:
            if len(held_by) == 1:
                return f"as {held_by[0]} has left or is cut off"
            ranks = ", ".join(str(peer.rank) for peer in held_by)
            return f"as one of the ranks {ranks} on {held_by[0].host} has left or is cut off"
    return None


class OverNetwork:
    """The `Exchange` of ranks on several machines, or on GPUs: each rank gets its part of every
    partial sum, adds up, and gives the result to all. With one sum per rank that moves as many
    bytes as a ring does, but the order of the sums is ours."""

    def __init__(self, world: ConnectedWorld, device: torch.device) -> None:
        self._world, self._device = world, device

    def memory(self, layout: Layout) -> Tensor:
        return torch.zeros(layout.floats, device=self._device)

    def run(self, layout: Layout, memory: Tensor) -> Tensor:
        world, sums = self._world, layout.sums(memory)
        most = max(len(nodes) for nodes in layout.nodes)
        slots = [*layout.nodes[layout.rank].values()]
        slots += [0] * (most - len(slots))  # all ranks send alike; what is too much is not read
        mine = torch.stack([sums[slot] for slot in slots]) if most > 1 else sums[:1]
        parts = mine.view(most, layout.size, -1).transpose(0, 1).contiguous()
        received = world.exchange_shards(parts)
        pieces = {
            node: theirs[number]
            for theirs, nodes in zip(received, layout.nodes, strict=True)
            for number, node in enumerate(nodes)
        }
        sums[0].copy_(world.gather_shards(layout.add_up(pieces), "gradients"))
        statistics = layout.statistics_in(memory)
        return world.gather_shards(statistics.flatten(), "statistics").view(layout.count, -1)
