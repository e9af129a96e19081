"""BN statistics as true averages over training images, as the paper's authors tested with.

The mean and variance of a channel are those of its values over all the images together: with chunks
k of n_k images, mean m_k and biased variance v_k,

    mean = sum(n_k m_k) / N        variance = sum(n_k (v_k + m_k^2)) / N - mean^2

which is the law of total variance: the spread within chunks and that of the chunks' means. The mean
of the v_k alone would leave out the second. Each chunk goes through the network in training mode,
normalised by its own statistics, as in training (Wu & Johnson 2021, "Rethinking 'Batch' in
BatchNorm", section 3, PreciseBN). Weights do not change.
"""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import Config, require
from pipeline.data.batches import split_global_batch
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.exclusion import Exclusions
from pipeline.data.images import ImageSet
from pipeline.data.stream import ImageStream, TrainStream, train_stream
from pipeline.evaluate.members import Member
from pipeline.model.norm import norm_layers, running_statistics
from pipeline.ranks.places import Share
from pipeline.ranks.world import World
from pipeline.train.freezing import freeze
from pipeline.train.precision import Precision

_BLOCKS = 64
"""Number of blocks in which chunks are summed, each by one rank. More ranks than blocks gain
nothing; a ResNet-152 has 1.2 MB of sums in each."""


def recompute(
    member: Member, train_set: ImageSet, images: int, world: World, share: Share,
    device: torch.device,
) -> Member:  # fmt: skip
    """Collective. `member` with true averages over `images` training crops, those at positions
    0 .. `images` - 1 of its run.

    Raises `Reported` on every rank if `train_set` is not what it was trained on, or one met a bad
    file.
    """
    config = member.as_trained
    model, stream, decode = world.together(lambda: _opened(member, train_set, share, device))
    size = chunk_size(config, member.trained.world_size, member.config.data.local_batch_size)
    precision = Precision(config.optim.amp, device)
    set_true_averages(model, stream, statistics_chunks(images, size), precision, decode, world)
    # Nothing else: the counts of batches are this rank's, not the training's.
    statistics = {
        name: value.detach().cpu()
        for name, value in model.state_dict().items()
        if name.endswith(("running_mean", "running_var"))
    }
    weights = member.trained.weights | statistics
    return dataclasses.replace(member, trained=dataclasses.replace(member.trained, weights=weights))


def _opened(
    member: Member, train_set: ImageSet, share: Share, device: torch.device
) -> tuple[nn.Module, TrainStream, DecodeSettings]:
    """The network, its training crops and their decoding. Raises `ConfigError`."""
    config, trained = member.as_trained, member.trained
    trained_on = trained.fingerprint.get("data hash of train")  # None: imported weights
    require(
        trained_on in (None, train_set.digest),
        f"--bn-images needs the images that {trained.path} was trained on: their data hash is "
        f"{str(trained_on)[:16]}, that of {config.data.root} is {train_set.digest[:16]}; set "
        "data.root",
    )
    require(
        list(train_set.classes) == trained.classes,
        f"--bn-images needs training images of the {len(trained.classes)} classes of "
        f"{trained.path}; those of {config.data.root} are {len(train_set.classes)} others; set "
        "data.root",
    )
    # A fused backend would not call the norm layers of projections one by one.
    model = freeze(trained.build(device), trained.config.model.frozen)
    stream = train_stream(train_set, config.data, config.run.seed, trained.normalisation)
    stream.exclusions = Exclusions(trained.excluded["train"])
    decode = choose_decoding(config.data, device, share, (train_set,), trained.normalisation)
    side = config.data.train_size
    return model, stream, decode.for_shape((side, side))


def statistics_chunks(images: int, chunk_size: int) -> list[np.ndarray]:
    """Positions 0 .. `images` - 1 in consecutive chunks as equal as can be, none of them below
    `chunk_size` unless `images` is."""
    return np.array_split(np.arange(images, dtype=np.int64), max(1, images // chunk_size))


def chunk_size(config: Config, trained_ranks: int, local_batch_size: int) -> int:
    """Number of images over which training normalised, or fewer if memory is short; at least 2."""
    data = config.data
    micro_batch, _ = split_global_batch(
        data.global_batch_size, data.local_batch_size, trained_ranks
    )
    return max(2, min(micro_batch, local_batch_size))


def set_true_averages(
    model: nn.Module, stream: ImageStream, chunks: list[np.ndarray], precision: Precision,
    decode: DecodeSettings, world: World,
) -> None:  # fmt: skip
    """Collective. Replaces the running statistics of `model` by those over `chunks` of `stream`.

    `model` has reference norm layers (a fused one would not call the projections') and is left in
    eval mode. The result has the same bits on any number of ranks: blocks of chunks are the same at
    each, every block is summed in float64 by one rank, and the blocks are added in order. Raises
    `Reported` on every rank if one met a bad file.
    """
    blocks = np.array_split(np.arange(len(chunks)), min(_BLOCKS, len(chunks)))
    mine = range(
        world.rank * len(blocks) // world.size, (world.rank + 1) * len(blocks) // world.size
    )
    length = sum(statistic.numel() for statistic in running_statistics(model))
    sums = torch.zeros(len(blocks), length, dtype=torch.float64)

    def sum_own() -> None:
        numbers = [number for block in mine for number in blocks[block]]
        largest = max(len(chunk) for chunk in chunks)
        own = (chunks[number] for number in numbers)
        with closing(Loader(stream, own, len(numbers), largest, decode)) as loader:
            for block in mine:
                sums[block] = _block_sums(model, loader, len(blocks[block]), precision, world)

    frozen = [layer for layer in norm_layers(model) if getattr(layer, "frozen", False)]
    kept = [statistic.clone() for statistic in running_statistics(frozen)]
    model.train()
    world.together(sum_own)
    model.eval()
    # Exact: each block is zero on all ranks but one.
    blocks_of_all = world.sum(sums)
    total = torch.zeros(length, dtype=torch.float64)
    for row in blocks_of_all:
        total += row
    _put(model, total / sum(len(chunk) for chunk in chunks))
    for statistic, own in zip(running_statistics(frozen), kept, strict=True):
        statistic.copy_(own)


@torch.no_grad()
def _block_sums(
    model: nn.Module, loader: Loader, count: int, precision: Precision, world: World
) -> Tensor:
    """Sums over the next `count` chunks of n m and n (v + m^2) by layer, flat float64, on the
    CPU."""
    layers = list(norm_layers(model))
    momenta = [layer.momentum for layer in layers]
    values: dict[nn.Module, int] = {}

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        values[layer] = given[0].numel() // given[0].shape[1]

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    for layer in layers:
        layer.momentum = 1.0  # the running statistics become the chunk's own
    total: Tensor | None = None
    for _ in range(count):
        batch = next(loader)
        world.heartbeat.beat("BN statistics")
        with precision.autocast():
            model(batch.images)
        flat = []
        for layer in layers:
            assert layer.running_mean is not None and layer.running_var is not None
            mean, unbiased = layer.running_mean.double(), layer.running_var.double()
            variance = unbiased * ((values[layer] - 1) / values[layer])
            flat += [mean, variance + mean.square()]
        weighted = torch.cat(flat) * len(batch.labels)
        total = weighted if total is None else total + weighted
    for hook in hooks:
        hook.remove()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    assert total is not None, "an empty block"
    return total.cpu()  # host sync


@torch.no_grad()
def _put(model: nn.Module, means: Tensor) -> None:
    """Writes E[x] and E[x^2], flat by layer, as running mean and variance."""
    statistics = running_statistics(model)
    parts = torch.split(means, [statistic.numel() for statistic in statistics])
    for index in range(0, len(parts), 2):
        mean, square = parts[index], parts[index + 1]
        statistics[index].copy_(mean)
        # Rounding may leave a constant channel a little below 0.
        statistics[index + 1].copy_((square - mean.square()).clamp_min(0.0))
