"""The layer on apex. A stand-in written from apex's interface takes its place: apex has to be built
from source for a GPU. What it shows is what we hand to apex, not what apex makes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.backends import make_norm
from pipeline.model.norm import BatchNormAct

STAND_IN = '''
import torch
from torch.nn.modules.batchnorm import _BatchNorm

class BatchNorm2d_NHWC(_BatchNorm):
    """The interface of apex.contrib.groupbn.batch_norm: (N, H, W, C) fp16, no eps or momentum."""
    def __init__(self, num_features, fuse_relu=False, bn_group=1):
        super().__init__(num_features)
        self.fuse_relu, self.bn_group = fuse_relu, bn_group
        self.minibatch_mean = torch.empty(num_features)

    def forward(self, x, z=None):
        assert x.dtype == torch.float16 and x.is_contiguous() and self.bn_group == 1
        y = torch.nn.functional.batch_norm(
            x.float().permute(0, 3, 1, 2), self.running_mean, self.running_var, self.weight,
            self.bias, self.training, self.momentum, self.eps,
        ).permute(0, 2, 3, 1)
        if z is not None:
            assert self.fuse_relu and z.dtype == torch.float16 and z.is_contiguous()
            y = y + z.float()
        return (y.relu() if self.fuse_relu else y).half()
'''


@pytest.fixture(autouse=True)
def apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "apex" / "contrib" / "groupbn"
    folder.mkdir(parents=True)
    (folder / "batch_norm.py").write_text(STAND_IN)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    for name in [m for m in sys.modules if m.partition(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))


def activations(seed: int) -> Tensor:
    x = torch.randn(3, 8, 4, 5, generator=torch.Generator().manual_seed(seed)).half()
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("add", [True, False])
def test_equals_the_reference(add: bool, train: bool) -> None:
    layers = make_norm("apex", 8, momentum=None), BatchNormAct(8, momentum=None)
    results = []
    for layer in layers:
        layer.eps = 0.01
        layer.train(train)
        for seed in (1, 2):
            x, z = activations(seed), activations(4)
            y = layer(x, z if add else None)
        y.float().square().sum().backward()
        assert y.is_contiguous(memory_format=torch.channels_last)
        results.append([y, x.grad, layer.weight.grad, layer.bias.grad, dict(layer.state_dict())])
    torch.testing.assert_close(results[0], results[1], rtol=4e-3, atol=4e-3)
    assert list(layers[0].state_dict()) == list(nn.BatchNorm2d(8).state_dict())
    assert layers[0].num_batches_tracked == (2 if train else 0)


def test_a_norm_of_the_residual_goes_first() -> None:
    layer, inner = make_norm("apex", 8), make_norm("apex", 8, relu=False)
    y = layer(activations(1), activations(2), inner)
    wanted = BatchNormAct(8)(activations(1), BatchNormAct(8, relu=False)(activations(2)))
    torch.testing.assert_close(y, wanted, rtol=4e-3, atol=4e-3)
    assert inner.num_batches_tracked == 1


def test_channels_come_in_multiples_of_4() -> None:
    with pytest.raises(ValueError, match="channels in multiples of 4, not 6"):
        make_norm("apex", 6)


def test_what_apex_cannot_take_is_refused() -> None:
    layer = make_norm("apex", 8)
    with pytest.raises(ValueError, match=r"not torch.float32 on cpu; set optim\.amp=fp16"):
        layer(activations(1).float())
    with pytest.raises(ValueError, match="adds only before a ReLU"):
        make_norm("apex", 8, relu=False)(activations(1), activations(2))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer(torch.ones(1, 8, 1, 1).half())
