"""BN statistics that are those of all values over all training images together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import Config, DataConfig
from pipeline.data.crops import RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import TrainStream
from pipeline.evaluate.averages import chunk_size, set_true_averages, statistics_chunks
from pipeline.model.norm import BatchNormAct
from pipeline.ranks.world import World
from pipeline.train.precision import Precision

CPU = torch.device("cpu")
DECODE = DecodeSettings("cpu", CPU, threads=1)


@pytest.fixture(scope="module")
def stream(small_data):
    return TrainStream(open_manifest(small_data, "train"), RandomResizedCrop(32), seed=3)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), BatchNormAct(8), nn.Conv2d(8, 4, 3), BatchNormAct(4)
    )


def all_at_once(stream, images: int) -> torch.Tensor:
    chunk = np.arange(images, dtype=np.int64)
    loader = Loader(stream, [chunk], 1, images, DECODE)
    batch = next(loader)
    loader.close()
    return batch.images


@pytest.mark.parametrize("chunk", [2, 30])
@torch.no_grad()
def test_mean_and_variance_are_those_of_all_values_together(stream, chunk):
    model = small_model()
    chunks = statistics_chunks(30, chunk)
    set_true_averages(model, stream, chunks, Precision("off", CPU), DECODE, World())
    # The spread of the chunks' means is part of the variance. The first layer's input does not
    # depend on how anything was normalised.
    values = model[0](all_at_once(stream, 30)).double()
    mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=False)
    assert (variance > 0.01).any()
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert not model.training
    assert model[1].momentum == 0.1


@torch.no_grad()
def test_later_layers_see_each_chunk_normalised_by_its_own_statistics(stream):
    model = small_model()
    chunks = statistics_chunks(30, 10)
    set_true_averages(model, stream, chunks, Precision("off", CPU), DECODE, World())
    values = []
    for part in all_at_once(stream, 30).split(10):
        first = model[0](part)
        mean, variance = first.mean((0, 2, 3)), first.var((0, 2, 3), unbiased=False)
        normal = (first - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        values.append(model[2](normal.relu()).double())
    expected = torch.cat(values)
    torch.testing.assert_close(
        model[3].running_mean.double(), expected.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    variance = expected.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(model[3].running_var.double(), variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "size", "chunks"), [(50, 4, 12), (3, 2, 1), (2, 8, 1), (8, 4, 2)]
)
def test_chunks_are_about_equal_and_never_smaller_than_asked(images, size, chunks):
    found = statistics_chunks(images, size)
    assert np.concatenate(found).tolist() == list(range(images))
    lengths = [len(chunk) for chunk in found]
    assert len(found) == chunks
    assert min(lengths) >= min(size, images) and max(lengths) - min(lengths) <= 1


def test_a_chunk_is_what_training_normalised_over_unless_memory_is_short():
    config = Config(DataConfig(global_batch_size=256, local_batch_size=64))
    assert chunk_size(config, trained_ranks=2, local_batch_size=64) == 64
    assert chunk_size(config, trained_ranks=8, local_batch_size=64) == 32
    assert chunk_size(config, trained_ranks=2, local_batch_size=16) == 16
    assert chunk_size(config, trained_ranks=256, local_batch_size=64) == 2


@torch.no_grad()
def test_a_frozen_layer_keeps_its_statistics(stream):
    model = small_model()
    model[1].frozen = True
    model[1].running_mean.add_(0.3)
    kept, moved = (model[n].running_mean.clone() for n in (1, 3))
    chunks = statistics_chunks(30, 10)
    set_true_averages(model, stream, chunks, Precision("off", CPU), DECODE, World())
    assert torch.equal(model[1].running_mean, kept)
    assert torch.equal(model[1].running_var, torch.ones(8))
    assert not torch.equal(model[3].running_mean, moved)
