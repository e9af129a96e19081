"""Running statistics that all ranks move by the same micro-batches, in the same order."""

import copy

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.norm import running_statistics
from pipeline.model.recording import BatchStatistics
from pipeline.model.resnet import build_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_network(ModelConfig(family="cifar", depth=8, zero_init_last_norm=False), 10)


def batches(count):
    torch.manual_seed(1)
    return [torch.randn(4, 3, 16, 16) * (n + 1) for n in range(count)]


def test_they_are_those_of_torch_up_to_its_rounding(model):
    by_torch = copy.deepcopy(model).train()
    recorded = BatchStatistics(model.train())
    for images in batches(3):
        assert torch.equal(model(images), by_torch(images))
        recorded.apply(recorded.batch[None])
    found, wanted = model.state_dict(), by_torch.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
    assert found["bn1.num_batches_tracked"] == 3


def test_a_step_in_one_piece_is_one_in_several(model):
    other = copy.deepcopy(model)
    rows = torch.rand(4, len(BatchStatistics(copy.deepcopy(model)).batch))
    whole, parts = BatchStatistics(model), BatchStatistics(other)
    whole.apply(rows)
    for row in rows:
        parts.apply(row[None])
    assert all(map(torch.equal, running_statistics(model), running_statistics(other)))


def test_the_order_counts(model):
    other = copy.deepcopy(model)
    rows = torch.rand(4, len(BatchStatistics(copy.deepcopy(model)).batch))
    BatchStatistics(model).apply(rows)
    BatchStatistics(other).apply(rows.flip(0))
    assert not torch.equal(running_statistics(model)[0], running_statistics(other)[0])


def test_evaluation_reads_the_running_ones(model):
    recorded = BatchStatistics(model)
    before = model.eval()(batches(1)[0])
    recorded.apply(torch.rand(1, len(recorded.batch)) + 1.0)
    assert not torch.equal(model(batches(1)[0]), before)
    assert not recorded.batch.any(), "an evaluation records nothing"
