"""What a loader is asked for, checked as a configuration is: the same names, rules and messages."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import ConfigError, DataConfig, require, setting_types
from pipeline.config.run import RunConfig
from pipeline.config.values import Refused, read, refusal
from pipeline.config.yaml_file import unknown_setting
from pipeline.config.yaml_text import Quoted
from pipeline.data.batches import split_global_batch
from pipeline.ranks.existing import existing_rank, initialised_rank, told_rank
from pipeline.system.launched import Launched

_OWN = ("root", "global_batch_size", "local_batch_size", "image_size", "threads")
"""Settings of the data that are arguments of their own, some by another name."""
_ARGUMENTS = (
    "root", "split", "batch_size", "image_size", "seed", "global_batch_size", "rank", "world_size",
    "device", "threads", "drop_last", "channels_last", "classes",
)  # fmt: skip
"""What a loader takes by name besides the settings of the data."""
_MIXED = ("mixup", "cutmix")
"""Settings of the data that are done with whole micro-batches and change labels."""
_OF_DATALOADER = {
    "shuffle": "train is in an order by seed, and val in its own",
    "sampler": "which images a rank has follows from rank and world_size",
    "num_workers": "DALI's threads are set by threads",
    "prefetch_factor": "the batches that wait ready are set by prefetch_batches",
    "pin_memory": "batches are given on the device",
}
"""Arguments that PyTorch's DataLoader has, and what there is instead."""
_BATCH_SIZE = 64
_ARGUMENT = {"data.local_batch_size": "batch_size", "run.seed": "seed"}
"""The loader's own names of settings that have another."""


@dataclass(frozen=True)
class Asked:
    """What a loader is to do. `data` has `local_batch_size` images in a batch, `accumulation` of
    which make this rank's part of a step."""

    data: DataConfig
    seed: int
    rank: int
    world_size: int
    accumulation: int


@contextlib.contextmanager
def _by_argument() -> Iterator[None]:
    """Errors of the body name what the caller has given."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        for setting, argument in _ARGUMENT.items():
            said = said.replace(setting, argument)
        kind = ConfigError if isinstance(error, ConfigError) else ValueError
        raise kind(said) from error.__cause__


@_by_argument()
def asked(
    given: Mapping[str, Any], others: Mapping[str, Any], seed: int, batch_size: int | None,
    global_batch_size: int | None, rank: Launched,
) -> Asked:  # fmt: skip
    """The settings of the data that are `given`, and by their names the `others`, with a batch of
    its size on each rank, of its size over all ranks, or of both, and else of 64 on each.

    Raises `ConfigError` for a name or a value that a configuration would refuse, and `ValueError`
    for a batch that does not fit the number of ranks.
    """
    known = [field.name for field in dataclasses.fields(DataConfig) if field.name not in _OWN]
    for name in others:
        require(
            name not in _OF_DATALOADER,
            f"Loader: there is no setting {name}, as {_OF_DATALOADER.get(name)}; leave it out",
        )
        if name not in known:
            raise unknown_setting(name, "Loader", [*known, *_ARGUMENTS])
    for name in _MIXED:
        require(
            not others.get(name),
            f"{name}={others.get(name)} mixes images and labels of a batch in the training step, "
            f"not in a loader; mix the batches in your own loop, and leave {name} out",
        )
    values = {name: _read(f"data.{name}", value) for name, value in {**given, **others}.items()}
    each = None if batch_size is None else _read("data.local_batch_size", batch_size)
    require(each is None or each >= 1, f"data.local_batch_size={each} must be at least 1")
    if global_batch_size is None:
        each = _BATCH_SIZE if each is None else each
        whole = each * rank.size
    else:
        whole = _read("data.global_batch_size", global_batch_size)
        each = whole if each is None else each  # one batch a step
    data = DataConfig(**values, global_batch_size=whole, local_batch_size=each)
    micro, accumulation = split_global_batch(whole, data.local_batch_size, rank.size)
    data = dataclasses.replace(data, local_batch_size=micro)
    run = RunConfig(seed=_read("run.seed", seed))
    return Asked(data, run.seed, rank.rank, rank.size, accumulation)


def _read(name: str, value: Any) -> Any:
    """The value of a setting, of its type. Raises `ConfigError` for one of another."""
    try:
        return read(Quoted(value) if isinstance(value, str) else value, setting_types()[name])
    except Refused as error:
        raise ConfigError(refusal(f"{name}=", value, error)) from error


def require_still_own(asked: Asked) -> None:
    """Raises `RuntimeError` if torch.distributed says another rank than the one that was found: it
    has been initialised since, and every rank would have the images of another."""
    found = initialised_rank()
    if found is not None and (found.rank, found.size) != (asked.rank, asked.world_size):
        raise RuntimeError(
            f"this loader was made as rank {asked.rank} of {asked.world_size}, and "
            f"torch.distributed, initialised since, has this process as rank {found.rank} of "
            f"{found.size}; make the loader after init_process_group, or give it rank and "
            "world_size"
        )


def own_rank(rank: int | None, world_size: int | None) -> Launched:
    """The rank that is asked for, or without one that which the process has. Raises `ConfigError`
    for half an answer, and for a rank that does not exist."""
    if rank is None and world_size is None:
        return existing_rank()
    require(
        rank is not None and world_size is not None,
        f"rank={rank} and world_size={world_size} go together; give both, or neither for those of "
        "torch.distributed or the launcher",
    )
    try:
        rank, world_size = operator.index(rank), operator.index(world_size)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(
            f"rank={rank!r} and world_size={world_size!r} must be whole numbers"
        ) from error
    require(
        0 <= rank < world_size,
        f"rank={rank} must lie in [0, {world_size}), as world_size={world_size} says",
    )
    return told_rank(rank, world_size)
