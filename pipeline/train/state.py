"""What a checkpoint holds, and how a run takes it up again."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.config import Config, names_of
from pipeline.config.effect import settings_of, without_effect
from pipeline.data.exclusion import Exclusions
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.order import SCHEME_VERSION
from pipeline.model.network import network_facts
from pipeline.model.norm import running_statistics, swapped_statistics
from pipeline.system.failure import TrainingError
from pipeline.train import warmup
from pipeline.train.metrics import Validation

if TYPE_CHECKING:
    from pipeline.train.job import Job


def fingerprint(
    config: Config, data_hashes: dict[str, str], normalisation: Normalisation = IMAGENET
) -> dict[str, Any]:
    """The facts that must be the same for a checkpoint to belong to a run, as far as they have an
    effect in it (`compared`).

    They are the settings of the kinds `identity` and `kept`; all others are free to change.
    """
    facts: dict[str, Any] = {"random_scheme": SCHEME_VERSION}
    facts |= {f"data hash of {split}": digest for split, digest in data_hashes.items()}
    facts["means and deviations"] = normalisation.digest
    for name in names_of("identity", "kept"):
        value = config.get(name)
        facts[name] = list(value) if isinstance(value, tuple) else value
    # A plain network has the parameters of a residual one with shortcuts A.
    return facts | {f"model.{name}": value for name, value in network_facts(config.model).items()}


def compared(facts: dict[str, Any], config: Config) -> dict[str, Any]:
    """Those of a run's `facts` that make a difference in it, which a checkpoint must share.

    The checkpoint itself keeps all of them, so that wherever one counts both values can be named.
    """
    idle = without_effect(settings_of(config))
    return {name: value for name, value in facts.items() if name not in idle}


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().cpu() for tensor in tensors])


def _gathered_statistics(job: Job) -> Tensor:
    """Collective. Every rank's BN running statistics, (world size, n) fp32 on the CPU."""
    return job.world.gather(_flat(running_statistics(job.model)))


def _unflatten(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def average_statistics(job: Job) -> tuple[list[Tensor], float]:
    """Collective. The mean over ranks of BN's running statistics, and their `spread`; the same bits
    on every rank."""
    gathered, live = _gathered_statistics(job), running_statistics(job.model)
    return _unflatten(gathered.mean(0), live), spread(gathered, [len(one) for one in live])


def spread(statistics: Tensor, channels: list[int]) -> float:
    """How far apart the ranks' BN statistics are, in standard deviations of an activation.

    For each channel the standard deviation over ranks of the running mean, divided by the root of
    the mean running variance; of all channels the root mean square. 0 when all ranks agree. A small
    share of 1 is what different images give; a rise says that ranks see different data, or have
    different weights.

    `statistics` (ranks, n) holds `running_statistics` side by side, whose lengths are `channels`.
    """
    parts = torch.split(statistics.double(), channels, dim=1)
    means, variances = torch.cat(parts[::2], dim=1), torch.cat(parts[1::2], dim=1)
    relative = means.var(dim=0, unbiased=False) / (variances.mean(dim=0) + 1e-5)
    return float(relative.mean().sqrt())


def take(job: Job) -> dict[str, Any]:
    """Collective. The content of a checkpoint before step `job.progress.step`; changes nothing.

    `model` holds the mean over ranks of BN's running statistics, `rank_statistics` every rank's
    own, which the same world size takes up again.
    """
    statistics = _gathered_statistics(job)
    window = job.world.gather(job.window.sums)
    average = _unflatten(statistics.mean(0), running_statistics(job.model))
    with swapped_statistics(job.model, average):
        model = {name: v.detach().cpu().clone() for name, v in job.model.state_dict().items()}
    return {
        "fingerprint": job.fingerprint,
        "step": job.progress.step,
        "position": job.position,
        "history": [dataclasses.asdict(result) for result in job.progress.history],
        "warmup": {"end": job.progress.warmup_end, "hits": warmup.hits_so_far(job)},
        "excluded": {
            "train": job.progress.excluded.rows(),
            "val": list(job.progress.excluded_val),
        },
        "normalisation": job.decode.normalisation.state(),
        "model": model,
        "rank_statistics": statistics,
        "window": window,
        "momentum": momentum(job),
        "precision": job.precision.state_dict(),
        "classes": job.train_set.classes,
        "config": job.config.to_yaml(),
        "threads": {"torch": torch.get_num_threads(), "dali": job.decode.threads},
        "world_size": job.world.size,
        "versions": job.versions,
    }


def size_bytes(job: Job) -> int:
    """About how large a checkpoint is: weights, velocity, and every rank's statistics."""
    tensors = [*job.model.state_dict().values(), *job.model.parameters()]
    statistics = job.world.size * sum(one.nbytes for one in running_statistics(job.model))
    return int(sum(tensor.nbytes for tensor in tensors) + statistics)


def require_finite(content: dict[str, Any]) -> None:
    """Raises `TrainingError` naming a weight or velocity of `take` that is not finite.

    A finite loss can have an infinite gradient, which no loss shows before the next step.
    """
    for name, tensor in [*content["model"].items(), *content["momentum"].items()]:
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{name} is not finite before step {content['step']}, so that no checkpoint is "
                "written; lower optim.base_lr or lengthen schedule.warmup_epochs, and start again "
                "from the last checkpoint"
            )


def momentum(job: Job) -> dict[str, Tensor]:
    """SGD's velocity by parameter name, on the CPU, strides kept.

    Not `optimizer.state_dict()`: that also holds settings (fused, foreach) which belong to the
    machine, and which loading would carry over to another.
    """
    return {
        name: job.optimizer.state[parameter]["momentum_buffer"].detach().cpu().clone()
        for name, parameter in job.model.named_parameters()
        if job.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    }


def restore(job: Job, content: dict[str, Any]) -> None:
    """Collective. Puts every rank where `take` was; `content` comes from rank 0.

    BN's running statistics and the open window of metrics are each rank's own again at the same
    world size; at another the mean, and the sum on rank 0. Ends by comparing digests over ranks.
    """
    job.progress.step = content["step"]
    job.progress.history = [Validation(**result) for result in content["history"]]
    job.progress.warmup_end = content["warmup"]["end"]
    warmup.restore(job, content["warmup"]["hits"])
    excluded = content.get("excluded", {"train": [], "val": []})
    job.progress.excluded = Exclusions(excluded["train"])
    job.progress.excluded_val = tuple(excluded["val"])
    job.apply_exclusions()
    job.model.load_state_dict(content["model"])
    statistics, window = content["rank_statistics"], content["window"]
    if len(statistics) == job.world.size:
        live = running_statistics(job.model)
        for buffer, value in zip(live, _unflatten(statistics[job.world.rank], live), strict=True):
            buffer.copy_(value)
        job.window.sums.copy_(window[job.world.rank])
    elif job.world.rank == 0:
        job.window.sums.copy_(window.sum(0))
    for name, parameter in job.model.named_parameters():
        if name in content["momentum"]:
            velocity = content["momentum"][name].to(parameter.device, copy=True)
            job.optimizer.state[parameter]["momentum_buffer"] = velocity
    job.precision.load_state_dict(content["precision"])
    job.world.require_same({"state after loading": digest(job)})


def digest(job: Job) -> str:
    """16 hex digits over weights, velocity, loss scale and progress."""
    summary = hashlib.sha256()
    velocity = momentum(job)
    for name, parameter in job.model.named_parameters():
        for tensor in (parameter.detach().cpu(), velocity.get(name)):
            if tensor is not None:
                summary.update(tensor.contiguous().numpy().tobytes())
    summary.update(repr((job.precision.state_dict(), job.progress)).encode())
    return summary.hexdigest()[:16]
