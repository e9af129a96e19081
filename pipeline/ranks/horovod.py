"""Communication over Horovod. The only module that imports it."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.ranks.heartbeat import Peer
from pipeline.ranks.rendezvous import check_in
from pipeline.ranks.world import Compression, GradientAverager, T, World
from pipeline.system.failure import PeerLost

_NAP_SEC = 0.0002  # between two looks at a running collective
_DYING_SEC = 0.5  # a killed process closes its connections before it counts as dead
_KNOWER_SEC = 1.0  # a rank on the host of a lost one knows more of it, and speaks first
# Ranks on CPUs share their cores with Horovod's thread. Looking for work every 5 ms instead of
# every 1 took two ranks on two cores from 0.70 to 0.77 of independent speed, and to 0.79 with each
# gradient reduced where it lies, without a copy into a fusion buffer (`benchmark scale`). It also
# fixes the order of every sum, so that a run has the same bits each time at any number of ranks.
_CPU_SETTINGS = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_FUSION_THRESHOLD": "0"}


def nccl_built() -> bool:
    """Whether Horovod reduces tensors on GPUs where they lie, by NCCL."""
    import horovod.torch as hvd

    return bool(hvd.nccl_built())


def _unpacked(data: Tensor) -> Any:
    """The object that `torch.save` turned into `data`, from a rank of this job, not a file."""
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=False)


class HorovodWorld(World):
    """The world of several ranks over Horovod. Every method is collective."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        super().__init__()
        if not torch.cuda.is_available():
            for name, value in _CPU_SETTINGS.items():
                os.environ.setdefault(name, value)
        check_in()
        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self.peers = []
        self.peers = self.gather_objects(Peer.here(self.rank))

    @contextmanager
    def _collective(self) -> Iterator[None]:
        from horovod.common.exceptions import HorovodInternalError

        try:
            yield
        except HorovodInternalError as error:
            raise self._peer_lost(str(error).split("\n")[0]) from error

    def _peer_lost(self, reason: str) -> PeerLost:
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
        return PeerLost(
            f"a collective failed, most often because a peer left ({reason}); start again to "
            "resume from the last checkpoint"
        )

    def _wait(self, handle: Any) -> Tensor:
        """The result of a collective, awaited asleep.

        Horovod's own wait is a loop of sched_yield (0.28.1), which takes the core from the very
        threads that reduce. Sleeping took two ranks on two cores from 0.63 to 0.83 of independent
        speed in one interleaved run of `benchmark scale` on a busy machine.
        """
        self.heartbeat.waiting = True
        while not self._hvd.poll(handle):
            time.sleep(_NAP_SEC)
        self.heartbeat.waiting = False
        return cast(Tensor, self._hvd.synchronize(handle))

    def broadcast_object(self, value: T) -> T:
        # torch.save, not pickle: tensors travel as raw bytes, and keep their strides.
        payload = io.BytesIO()
        if self.rank == 0:
            torch.save(value, payload)
        size = torch.tensor([payload.getbuffer().nbytes], dtype=torch.int64)
        with self._collective():
            size = self._wait(self._hvd.broadcast_async(size, 0, name="object_size"))
            data = torch.zeros(int(size.item()), dtype=torch.uint8)
            if self.rank == 0:
                data = torch.frombuffer(payload.getbuffer(), dtype=torch.uint8)
            data = self._wait(self._hvd.broadcast_async(data, 0, name="object"))
        if self.rank == 0:
            return value
        return cast(T, _unpacked(data))

    def gather_objects(self, value: T) -> list[T]:
        payload = io.BytesIO()
        torch.save(value, payload)
        mine = torch.frombuffer(payload.getbuffer(), dtype=torch.uint8)
        sizes = self.gather(torch.tensor([len(mine)]))[:, 0].tolist()
        with self._collective():
            everyone = self._wait(self._hvd.allgather_async(mine, name="objects"))
        return [_unpacked(part) for part in torch.split(everyone, sizes)]

    def gather(self, tensor: Tensor) -> Tensor:
        with self._collective():
            stacked = tensor.unsqueeze(0).contiguous()
            return self._wait(self._hvd.allgather_async(stacked, name="gather"))

    def sum(self, tensor: Tensor) -> Tensor:
        with self._collective():
            return self._wait(self._hvd.allreduce_async(tensor, op=self._hvd.Sum, name="sum"))

    def average_(self, tensors: Sequence[Tensor]) -> None:
        handles = [self._start_average(t, f"average.{n}") for n, t in enumerate(tensors)]
        for handle in handles:
            self._finish(handle)

    def maximum(self, values: Sequence[int]) -> list[int]:
        vector = torch.tensor(list(values), dtype=torch.int64)
        with self._collective():
            handle = self._hvd.allreduce_async(vector, op=self._hvd.Max, name="maximum")
            agreed = self._wait(handle)
        return cast(list[int], agreed.tolist())

    def barrier(self) -> None:
        self.maximum([0])

    def start_timeline(self, path: Path) -> None:
        self._hvd.start_timeline(str(path))  # no collective: only the coordinator writes

    def stop_timeline(self) -> None:
        self._hvd.stop_timeline()

    def average_gradients(self, model: nn.Module, compression: Compression) -> GradientAverager:
        return OverlappedAverager(self, model, compression)

    def _start_average(self, tensor: Tensor, name: str) -> Any:
        """Starts replacing a row-major tensor by its average, under a name common to all ranks;
        returns the handle for `_finish`."""
        with self._collective():
            return self._hvd.allreduce_async_(tensor, op=self._hvd.Average, name=name)

    def _finish(self, handle: Any) -> None:
        """Waits until `_start_average` is done."""
        with self._collective():
            self._wait(handle)


class OverlappedAverager(GradientAverager):
    """Starts one in-place all-reduce per parameter as soon as its gradient is complete.

    Horovod's own DistributedOptimizer is not used: it refuses channels-last momentum, steps once
    in secret when its state is broadcast, and hides SGD's fused AMP path.
    """

    def __init__(self, world: HorovodWorld, model: nn.Module, compression: Compression) -> None:
        self._world = world
        self._half = compression == "fp16"
        self._pending: list[tuple[Any, Tensor, Tensor]] = []
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def start(parameter: Tensor) -> None:
            if not self.enabled:
                return
            assert parameter.grad is not None, name
            gradient = row_major_view(parameter.grad)
            sent = gradient.half() if self._half else gradient
            handle = self._world._start_average(sent, f"gradient.{name}")
            self._pending.append((handle, gradient, sent))

        return start

    def synchronize(self) -> None:
        for handle, gradient, sent in self._pending:
            self._world._finish(handle)
            if self._half:
                gradient.copy_(sent)
        self._pending.clear()


def row_major_view(tensor: Tensor) -> Tensor:
    """A view of the same memory whose dimensions lie in memory order.

    Horovod refuses tensors that are not row-major, which channels-last weights are not; their
    (O, H, W, I) view is. Raises `ValueError` for any other layout, since a copy would go unseen.
    """
    if tensor.is_contiguous():
        return tensor
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)
    raise ValueError(
        f"a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is neither "
        "row-major nor channels-last"
    )
