"""The network applied to whole images gives, window by window, what the dense network gives."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.evaluate.members import FullyConvolutional
from pipeline.evaluate.protocol import STRIDES
from pipeline.model.resnet import build_network, global_average


def network(family: str = "imagenet", depth: int = 18, classes: int = 7):
    torch.manual_seed(0)
    config = ModelConfig(family, depth=depth, zero_init_last_norm=False)
    return build_network(config, classes, "reference").eval()


def images(*shape: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape).to(memory_format=torch.channels_last)


@torch.no_grad()
def test_every_cell_of_the_score_map_is_the_dense_score_of_its_window():
    dense = network()
    batch = images(1, 3, 96, 160)
    scores = FullyConvolutional(dense, window=2).score_map(batch)
    features = dense.features(batch)
    assert features.shape[2:] == (3, 5)
    assert scores.shape == (1, 7, 2, 4)
    for y in range(2):
        for x in range(4):
            window = features[:, :, y : y + 2, x : x + 2]
            expected = dense.fc(global_average(window))
            torch.testing.assert_close(scores[:, :, y, x], expected, rtol=1e-5, atol=1e-6)
    mean = scores.flatten(2).mean(2)
    torch.testing.assert_close(FullyConvolutional(dense, window=2)(batch), mean)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "depth", "side"),
    [
        *[("imagenet", 18, side) for side in (64, 65)],
        ("imagenet", 50, 33),
        *[("cifar", 8, side) for side in (32, 33)],
    ],
)
def test_the_feature_map_has_the_cells_that_the_protocol_reckons_with(family, depth, side):
    features = network(family, depth).features(images(1, 3, side, side))
    assert features.shape[-1] == -(-side // STRIDES[family])
