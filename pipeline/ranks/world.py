"""Collective communication between ranks.

`World` is one process alone; `horovod.HorovodWorld` and `torch_engine.TorchWorld` are the same
interface over Horovod and over torch.distributed. Nothing else asks which of them it has.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from pipeline.ranks.gradients import Alone, GradientAverager, OrderedGradients, Summing
from pipeline.ranks.heartbeat import Heartbeat, Peer
from pipeline.system.failure import ExitCode, PeerLost, Reported, code_of, in_words, say_error

T = TypeVar("T")


class World:
    """One process alone. Collectives return what was given."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    on_failure: Callable[[str], object] | None = None
    """Function called on rank 0 with the first cause, before any rank leaves."""

    def __init__(self) -> None:
        self.heartbeat = Heartbeat()
        """This rank's heartbeat, for `pipeline.ranks.watchdog`."""
        self.start = secrets.token_hex(8)
        """A name for this start of the job, the same on every rank, which no other start has."""
        self.peers = [Peer.here(0)]
        """The processes of all ranks, by rank."""

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank: a plain one, as `pipeline.ranks.plain` takes it."""
        return value

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank: a plain one, as `broadcast_object`."""
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

    def start_maximum(self, values: Sequence[int]) -> Callable[[], list[int]]:
        """Starts `maximum`, and returns what waits for its result. Every rank asks for results in
        the order in which it started them."""
        found = list(values)
        return lambda: found

    def maximum(self, values: Sequence[int]) -> list[int]:
        """The element-wise maximum over ranks, by which all ranks reach one decision."""
        return list(values)

    def barrier(self) -> None:
        """Returns when every rank has arrived."""

    def start_timeline(self, path: Path) -> None:
        """Starts writing Horovod's timeline to `path`, which rank 0 must be able to write; needs
        `connect` with `timeline`."""

    def stop_timeline(self) -> None:
        """Stops the timeline; the file is then complete."""

    def last_collectives(self) -> bytes | None:
        """What the engine has recorded of its last collectives, as JSON, from any thread and in any
        state; None if it does not."""
        return None

    def average_gradients(self, model: nn.Module, summing: Summing) -> GradientAverager:
        """Collective. What makes gradients of `model` those of a whole step over all ranks."""
        if summing.sums == "fast" or summing.accumulation == 1:
            return GradientAverager(model, summing.accumulation, summing.statistics)
        return OrderedGradients(model, summing, 0, 1, Alone(next(model.parameters()).device))

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Collective. Runs `work` on rank 0 and gives its result, a plain value, to all; errors as
        `together`."""
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
            raise  # the collectives are broken: agreement is no longer possible
        except Exception as caught:
            error = caught
        self.raise_together(error)
        return cast(T, result)

    def raise_together(self, error: BaseException | None) -> None:
        """Collective. If any rank has an error, all ranks leave with it.

        Rank 0 prints the first one (lowest rank); every rank raises `Reported` from the same
        point, so that none is still inside another collective.
        """
        mine = (
            None if error is None else (_describe(error, self.rank, self.size), int(code_of(error)))
        )
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
        """Collective. Checks that all ranks have the same facts; else all leave, naming those that
        differ.

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
    return (f"rank {rank}: " if size > 1 and rank > 0 else "") + in_words(error)
