"""Ranks and what they tell each other. The only module that imports Horovod.

`World` is one process alone; `HorovodWorld` is the same interface over Horovod. Nothing else asks
which of the two it has.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.check_in import check_in
from pipeline.failure import ExitCode, PeerLost, Reported, TrainingError, say_error
from pipeline.gradient_averaging import Compression, GradientAverager, OverlappedAverager
from pipeline.peers import Peer
from pipeline.watchdog import Heartbeat

T = TypeVar("T")
_NAP_SEC = 0.0002  # between two looks at a running collective
_DYING_SEC = 0.5  # a killed process closes its connections before it counts as dead
_KNOWER_SEC = 1.0  # a rank on the host of a lost one knows more of it, and speaks first
# Ranks on CPUs share their cores with Horovod's thread. Looking for work every 5 ms instead of
# every 1 took two ranks on two cores from 0.70 to 0.77 of independent speed, and to 0.79 with each
# gradient reduced where it lies, without a copy into a fusion buffer (`benchmark scale`). It also
# fixes the order of every sum, so that a run has the same bits each time at any number of ranks.
_CPU_SETTINGS = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_FUSION_THRESHOLD": "0"}


class World:
    """One process alone. Collectives return what was given."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    on_failure: Callable[[str], object] | None = None
    """Called on rank 0 with the first cause, before any rank leaves."""

    def __init__(self) -> None:
        self.heartbeat = Heartbeat()
        """Where this rank stands, for `pipeline.watchdog`."""
        self.peers = [Peer.here(0)]
        """The processes of all ranks, by rank."""

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        return value

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank."""
        return [value]

    def gather(self, tensor: Tensor) -> Tensor:
        """Stacks equal-shaped CPU tensors: (size, *shape), by rank, on every rank."""
        return tensor.unsqueeze(0).clone()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of a CPU tensor; exact for integers."""
        return tensor.clone()

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces row-major floating-point `tensors` by their averages over ranks, in place.

        They lie on any one device, and all of them are in flight together, as gradients are.
        """

    def maximum(self, values: Sequence[int]) -> list[int]:
        """The element-wise maximum over ranks: how all ranks come to one decision."""
        return list(values)

    def barrier(self) -> None:
        """Returns when every rank has come here."""

    def start_timeline(self, path: Path) -> None:
        """Begins to write what Horovod does to `path`, where rank 0 can write; needs `connect`
        with `timeline`."""

    def stop_timeline(self) -> None:
        """Ends what `start_timeline` began; the file is whole then."""

    def average_gradients(self, model: nn.Module, compression: Compression) -> GradientAverager:
        """Makes backward average the gradients of `model`'s parameters over ranks."""
        del model, compression
        return GradientAverager()

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Collective. Runs `work` on rank 0 and gives its result to all; errors as `together`."""
        result = self.together(work if self.rank == 0 else lambda: None)
        return cast(T, self.broadcast_object(result))

    def together(self, work: Callable[[], T]) -> T:
        """Collective. Runs `work` on every rank and gives each its own result.

        If it fails anywhere, rank 0 prints the first error and every rank raises `Reported`.
        """
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except PeerLost:
            raise  # the collectives are broken: no agreement is possible any more
        except Exception as caught:
            error = caught
        self.raise_together(error)
        return cast(T, result)

    def raise_together(self, error: BaseException | None) -> None:
        """Collective. If any rank brings an error, all ranks leave with it.

        Rank 0 prints the first one (lowest rank); every rank raises `Reported` from the same
        point, so that none is still inside another collective.
        """
        mine = None if error is None else (_describe(error, self.rank, self.size), _code(error))
        errors = [brought for brought in self.gather_objects(mine) if brought is not None]
        if errors:
            message, code = errors[0]
            if self.rank == 0:
                say_error(message)
                if self.on_failure is not None:
                    self.on_failure(message)
            self.barrier()
            raise Reported(message, ExitCode(code)) from error

    def require_same(self, facts: dict[str, Any]) -> None:
        """Collective. Every rank must hold the same facts; else all leave, naming who differs.

        A fact that a rank does not know is not compared with it.
        """
        everyone = self.gather_objects(facts)
        for name in dict.fromkeys(name for other in everyone for name in other):
            values = {r: str(other[name]) for r, other in enumerate(everyone) if name in other}
            found = list(values.values())
            if len(set(found)) > 1:
                common = max(found, key=found.count)  # of two ranks, rank 0 is right
                odd = [f"rank {r} has {v}" for r, v in values.items() if v != common]
                self.raise_together(
                    ValueError(
                        f"the ranks differ in {name}: {', '.join(odd)}, the others have {common}; "
                        "start all ranks with the same code, packages, configuration and data"
                    )
                )


def _describe(error: BaseException, rank: int, size: int) -> str:
    where = f"rank {rank}: " if size > 1 and rank > 0 else ""
    plain = isinstance(error, ValueError | TrainingError)
    return where + (str(error) if plain else f"{type(error).__name__}: {error}")


def _code(error: BaseException) -> int:
    if isinstance(error, Reported):
        return int(error.code)
    return int(ExitCode.WRONG_INPUT if isinstance(error, ValueError) else ExitCode.FAILED)


def connect(step_timeout_sec: float | None = None, timeline: bool = False) -> World:
    """The world this process was launched into: Horovod's when a launcher started several ranks,
    otherwise one process alone, for which Horovod need not be installed.

    `step_timeout_sec` is when the watchdog acts; Horovod logs who is missing after half of it.
    `timeline` is whether `start_timeline` will be called. Raises `TrainingError` if a rank does not
    start.
    """
    if "HOROVOD_RANK" not in os.environ and "OMPI_COMM_WORLD_RANK" not in os.environ:
        return World()
    if step_timeout_sec is not None:
        stalled_sec = str(max(1, int(step_timeout_sec / 2)))
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", stalled_sec)
    if timeline:
        os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")  # read by hvd.init
    return HorovodWorld()


def nccl_built() -> bool:
    """Whether Horovod reduces tensors on GPUs where they lie, by NCCL."""
    import horovod.torch as hvd

    return bool(hvd.nccl_built())


def _unpacked(data: Tensor) -> Any:
    """What `torch.save` made the bytes `data` of. They come from a rank of this job, not a file."""
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=False)


class HorovodWorld(World):
    """Several ranks over Horovod. Every method is collective."""

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
            return PeerLost(f"{', '.join(lost)}; start again to go on from the last checkpoint")
        if any(peer.host != self.peers[0].host for peer in self.peers):
            time.sleep(_KNOWER_SEC)
        return PeerLost(
            f"a collective failed, most often because a peer left ({reason}); start again to go on "
            "from the last checkpoint"
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
        return OverlappedAverager(model, compression, self._start_average, self._finish)

    def _start_average(self, tensor: Tensor, name: str) -> Any:
        """Begins to replace `tensor` by its average over ranks; the handle for `_finish`."""
        with self._collective():
            return self._hvd.allreduce_async_(tensor, op=self._hvd.Average, name=name)

    def _finish(self, handle: Any) -> None:
        with self._collective():
            self._wait(handle)
