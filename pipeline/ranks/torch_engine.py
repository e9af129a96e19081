"""Communication over torch.distributed: NCCL for tensors on GPUs, Gloo for all others. The only
module that imports it, besides `pipeline.ranks.store`."""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.ranks.buckets import BucketedGradients
from pipeline.ranks.checkin import start_timeout_sec
from pipeline.ranks.connected import ConnectedWorld
from pipeline.ranks.gradients import GradientAverager, Summing
from pipeline.ranks.guard import Guard
from pipeline.ranks.store import meet
from pipeline.system.failure import PeerLost, TrainingError
from pipeline.system.launched import Launched

# Its new name from torch 2.14 on, which warns of the old one.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_RECORDED = "2000"  # collectives that the flight recorder remembers
_FOREVER = datetime.timedelta(days=30)  # the watchdog ends a job that hangs, and names the laggard


class TorchWorld(ConnectedWorld):
    """The world of several ranks over torch.distributed. Every method is collective."""

    def __init__(self, started: Launched) -> None:
        super().__init__()
        self.rank, self.size = started.rank, started.size
        self.local_rank, self.local_size = started.local_rank, started.local_size
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED)  # read by init_process_group
        leave()  # an earlier world of this process may have left its groups
        met = meet(started)
        _made.append(met.start.name)
        with Guard(met.second(), self.rank, met.start):
            self._connect(met.groups)
            self._groups: dict[str, Any] = {}
            atexit.register(leave)
            self._meet(met.start)

    def _connect(self, store: Any) -> None:
        limit_sec = start_timeout_sec("torch")
        limit = datetime.timedelta(seconds=limit_sec)
        try:
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.size, timeout=limit
            )
            # Decisions are on their way while gradients and objects are.
            self._control = dist.new_group(backend="gloo", timeout=limit)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(
                f"the ranks met, and then could not connect within {limit_sec} s ({reason}); see "
                "whether another rank has failed and whether nodes reach each other by "
                "GLOO_SOCKET_IFNAME, or allow more time with TRAINYARD_START_TIMEOUT (in seconds)"
            ) from error
        for group in (dist.group.WORLD, self._control):
            dist.distributed_c10d._set_pg_timeout(_FOREVER, group)

    @contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except PeerLost:  # also a RuntimeError, and told already
            raise
        except RuntimeError as error:  # a DistError, or Gloo's own
            raise self._peer_lost(str(error).strip().split("\n")[0]) from error

    def _wait(self, work: Any) -> None:
        """Waits until a collective is done, or, of tensors on a GPU, lets the stream wait."""
        with self._collective(), self.heartbeat.waits():
            work.wait()

    def _group_of(self, tensor: Tensor) -> Any:
        """Collective. The group for tensors on the device of `tensor`."""
        kind = tensor.device.type
        if kind not in self._groups:
            backend = "nccl" if kind == "cuda" else "gloo"
            with self._collective():
                self._groups[kind] = dist.new_group(backend=backend, timeout=_FOREVER)
        return self._groups[kind]

    def _broadcast(self, tensor: Tensor) -> Tensor:
        with self._collective():
            self._wait(dist.broadcast(tensor, 0, async_op=True))
        return tensor

    def _gather(self, tensor: Tensor) -> Tensor:
        found = torch.empty(self.size, *tensor.shape, dtype=tensor.dtype)
        with self._collective():
            self._wait(dist.all_gather(list(found), tensor.contiguous(), async_op=True))
        return found

    def gather_shards(self, shard: Tensor, name: str) -> Tensor:
        del name
        found = torch.empty(self.size * len(shard), dtype=shard.dtype, device=shard.device)
        group = self._group_of(shard)
        with self._collective():
            self._wait(_all_gather(found, shard, group, async_op=True))
        return found

    def exchange_shards(self, parts: Tensor) -> Tensor:
        found, group = torch.empty_like(parts), self._group_of(parts)
        with self._collective():
            self._wait(dist.all_to_all_single(found, parts, group=group, async_op=True))
        return found

    def _sum(self, tensor: Tensor) -> Tensor:
        found = tensor.clone()
        with self._collective():
            self._wait(dist.all_reduce(found, async_op=True))
        return found

    def average_(self, tensors: Sequence[Tensor]) -> None:
        for wait in [self._start_average(tensor, "") for tensor in tensors]:
            wait()

    def _start_maximum(self, values: Sequence[int]) -> Callable[[], list[int]]:
        vector = torch.tensor(list(values), dtype=torch.int64)
        with self._collective():
            work = dist.all_reduce(vector, dist.ReduceOp.MAX, self._control, async_op=True)

        def wait() -> list[int]:
            self._wait(work)
            found: list[int] = vector.tolist()
            return found

        return wait

    def last_collectives(self) -> bytes | None:
        # Not public yet (2.13); torch's own heartbeat monitor writes the same.
        dump = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
        return None if dump is None else bytes(dump())

    def _nccl_problem(self) -> str | None:
        if dist.is_nccl_available():
            return None
        return "this PyTorch is built without NCCL; install one that is built for CUDA"

    def _fast_gradients(self, model: nn.Module, summing: Summing) -> GradientAverager:
        return BucketedGradients(model, summing, self._start_average)

    def _start_average(self, tensor: Tensor, _name: str) -> Callable[[], None]:
        group = self._group_of(tensor)
        operation = dist.ReduceOp.AVG
        if tensor.device.type == "cpu":  # Gloo only sums
            tensor.div_(self.size)
            operation = dist.ReduceOp.SUM
        with self._collective():
            work = dist.all_reduce(tensor, operation, group, async_op=True)
        return lambda: self._wait(work)


_made: list[str] = []  # the starts whose groups this process has


def has_groups() -> bool:
    """Whether the groups of this process are a `TorchWorld`'s."""
    return bool(_made)


def leave() -> None:
    """Ends this process's groups, if there are any."""
    _made.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
