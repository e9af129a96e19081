"""Communication over Horovod. The only module that imports it, besides
`pipeline.ranks.rendezvous`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.ranks.addresses import address_trouble
from pipeline.ranks.buckets import BucketedGradients
from pipeline.ranks.checkin import check_in
from pipeline.ranks.connected import ConnectedWorld
from pipeline.ranks.gradients import GradientAverager, Summing
from pipeline.ranks.guard import Guard, abort_told, keep_signs, roll_call
from pipeline.ranks.heartbeat import Peer
from pipeline.ranks.rendezvous import HorovodStore
from pipeline.ranks.shared import orders_writes
from pipeline.system.failure import TrainingError
from pipeline.system.launched import Launched

_NAP_SEC = 0.0002  # between two looks at a running collective
# Ranks on CPUs share their cores with Horovod's thread. Looking for work every 5 ms instead of
# every 1 took two ranks on two cores from 0.70 to 0.77 of independent speed, and to 0.79 with each
# bucket reduced where it lies, without a copy into a fusion buffer (`benchmark scale`). It also
# fixes the order of fast sums, so that a repeated run on as many ranks has the same bits.
_CPU_SETTINGS = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_FUSION_THRESHOLD": "0"}
# Where it has nothing to do in a step, its looking for work takes 12% of each rank's core at 5 ms.
_QUIET_SETTINGS = {**_CPU_SETTINGS, "HOROVOD_CYCLE_TIME": "25"}
# Of NVIDIA's MLPerf runs: look for work every 0.1 ms, in place of 1, and fuse 64 MiB, not 128.
_GPU_SETTINGS = {"HOROVOD_CYCLE_TIME": "0.1", "HOROVOD_FUSION_THRESHOLD": str(64 * 2**20)}


def nccl_built() -> bool:
    """Whether Horovod reduces tensors on GPUs where they lie, by NCCL."""
    import horovod.torch as hvd

    return bool(hvd.nccl_built())


class HorovodWorld(ConnectedWorld):
    """The world of several ranks over Horovod. Every method is collective."""

    def __init__(self, started: Launched, quiet: bool = False) -> None:
        import horovod.torch as hvd

        super().__init__()
        settings = _GPU_SETTINGS if torch.cuda.is_available() else _CPU_SETTINGS
        one_machine = started.local_size == started.size and orders_writes()
        if quiet and settings is _CPU_SETTINGS and one_machine:
            settings = _QUIET_SETTINGS
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        trouble = address_trouble("horovod", started.local_size < started.size)
        store = self._store = HorovodStore.of_launcher()
        if store is None:  # as under mpirun, where MPI tells who is lost
            if trouble is not None:
                raise TrainingError(trouble)
            self._init(hvd)
            self._meet(None)
            return
        start = self._met = check_in(store, started.rank, started.size, "horovod", trouble)
        with Guard(store, started.rank, start) as guard:
            with abort_told(guard):
                self._init(hvd)
            self._meet(start)
        keep_signs(store, started.rank, start)

    def _silent(self) -> list[Peer]:
        # Horovod tells only its log whose address failed.
        alone = all(peer.host == self.peers[0].host for peer in self.peers)
        if self._store is None or alone:
            return []
        return roll_call(self._store, self.rank, self._met)

    def _init(self, hvd: Any) -> None:
        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    @contextmanager
    def _collective(self) -> Iterator[None]:
        from horovod.common.exceptions import HorovodInternalError

        try:
            yield
        except HorovodInternalError as error:
            raise self._peer_lost(str(error).split("\n")[0]) from error

    def _wait(self, handle: Any) -> Any:
        """The result of a collective, awaited asleep.

        Horovod's own wait is a loop of sched_yield (0.28.1), which takes the core from the very
        threads that reduce. Sleeping took two ranks on two cores from 0.63 to 0.83 of independent
        speed in one interleaved run of `benchmark scale` on a busy machine.
        """
        with self.heartbeat.waits():
            while not self._hvd.poll(handle):
                time.sleep(_NAP_SEC)
        return self._hvd.synchronize(handle)

    def _broadcast(self, tensor: Tensor) -> Tensor:
        with self._collective():
            return cast(Tensor, self._wait(self._hvd.broadcast_async(tensor, 0, name="broadcast")))

    def _gather(self, tensor: Tensor) -> Tensor:
        return self.gather_shards(tensor.unsqueeze(0).contiguous(), "gather")

    def gather_shards(self, shard: Tensor, name: str) -> Tensor:
        with self._collective():
            return cast(Tensor, self._wait(self._hvd.allgather_async(shard, name=name)))

    def exchange_shards(self, parts: Tensor) -> Tensor:
        with self._collective():
            received, _ = self._wait(self._hvd.alltoall_async(parts, name="exchange"))
            return cast(Tensor, received)

    def _sum(self, tensor: Tensor) -> Tensor:
        with self._collective():
            handle = self._hvd.allreduce_async(tensor, op=self._hvd.Sum, name="sum")
            return cast(Tensor, self._wait(handle))

    def average_(self, tensors: Sequence[Tensor]) -> None:
        started = [self._start_average(t, f"average.{n}") for n, t in enumerate(tensors)]
        for wait in started:
            wait()

    def _start_maximum(self, values: Sequence[int]) -> Callable[[], list[int]]:
        vector = torch.tensor(list(values), dtype=torch.int64)
        # A name is for one shape: at another, Horovod forgets all it knows of names.
        name = f"maximum.{len(vector)}"
        with self._collective():
            handle = self._hvd.allreduce_async(vector, op=self._hvd.Max, name=name)

        def wait() -> list[int]:
            with self._collective():
                return cast(list[int], self._wait(handle).tolist())

        return wait

    def start_timeline(self, path: Path) -> None:
        self._hvd.start_timeline(str(path))  # no collective: only the coordinator writes

    def stop_timeline(self) -> None:
        self._hvd.stop_timeline()

    def _nccl_problem(self) -> str | None:
        if nccl_built():
            return None
        return (
            "this Horovod is built without NCCL, with which it would hang; start the ranks with "
            "torchrun, whose NCCL comes with PyTorch, or rebuild Horovod where nvcc is on the PATH "
            "by python -m launch.horovod_build --install"
        )

    def _fast_gradients(self, model: nn.Module, summing: Summing) -> GradientAverager:
        # Not Horovod's DistributedOptimizer: it refuses channels-last momentum, steps once in
        # secret when its state is broadcast, and hides SGD's fused AMP path.
        if summing.compression == "bf16":
            raise ValueError(
                "optim.gradient_compression=bf16 cannot run on Horovod, which has no bf16; start "
                "the ranks with torchrun, or set it to fp16 or none"
            )
        return BucketedGradients(model, summing, self._start_average)

    def _start_average(self, tensor: Tensor, name: str) -> Callable[[], object]:
        with self._collective():
            handle = self._hvd.allreduce_async_(tensor, op=self._hvd.Average, name=name)

        def wait() -> None:
            with self._collective():
                self._wait(handle)

        return wait
