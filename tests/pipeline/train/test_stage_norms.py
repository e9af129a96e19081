"""Norms by stage, and how far apart the ranks' BN statistics are."""

import math

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.resnet import build_network
from pipeline.train.optimizer import named_norms, norms
from pipeline.train.state import spread


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"depth": 18}, ["stem", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ({"family": "cifar", "depth": 20}, ["stem", "layer1", "layer2", "layer3", "fc"]),
    ],
)
def test_norms_are_of_each_stage_and_of_the_whole(settings, stages):
    model = build_network(ModelConfig(**settings), 10, "reference")
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    found = named_norms(model, norms(model))
    names = list(found)
    assert names[0] == "gradient_norm"
    assert names[1:] == [f"{kind}_norm_{s}" for kind in ("gradient", "weight") for s in stages]
    of_stages = [found[f"gradient_norm_{stage}"] for stage in stages]
    assert math.hypot(*of_stages) == pytest.approx(found["gradient_norm"], rel=1e-5)
    weights = torch.cat([p.detach().flatten() for p in model.fc.parameters()])
    assert found["weight_norm_fc"] == pytest.approx(float(weights.norm()), rel=1e-5)


def test_ranks_with_the_same_statistics_have_no_spread():
    row = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0, 1.0])  # means of 3 channels, their variances
    assert spread(row.unsqueeze(0), [3, 3]) == 0
    assert spread(torch.stack([row] * 4), [3, 3]) == 0


def test_the_spread_is_in_standard_deviations_of_an_activation():
    # Two layers, of 2 and 1 channels: only the second layer's mean differs, by 1 of deviation 4.
    first = [0.0, 1.0, 1.0, 1.0, 3.0, 16.0]
    second = [0.0, 1.0, 1.0, 1.0, 5.0, 16.0]
    found = spread(torch.tensor([first, second]), [2, 2, 1, 1])
    assert found == pytest.approx(math.sqrt((1 / 4) ** 2 / 3), rel=1e-4)
