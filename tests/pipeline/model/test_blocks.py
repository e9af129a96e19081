"""Shortcuts by their values: option A against numpy, plain blocks without any."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.model.norm import BatchNormAct, ends
from pipeline.model.resnet import BasicBlock, BlockStyle, Bottleneck, ZeroPadding, shape_change


def activations(count: int, channels: int, height: int, width: int) -> Tensor:
    x = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sides", [(8, 8), (7, 5), (1, 1)])
def test_option_a_is_strided_and_padded_with_zeros(sides: tuple[int, int]) -> None:
    x = activations(2, 3, *sides).requires_grad_()
    y = ZeroPadding(3, 7, 2)(x)
    wanted = np.zeros((2, 7, (sides[0] + 1) // 2, (sides[1] + 1) // 2), np.float32)
    wanted[:, :3] = x.detach().numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(y.detach().numpy(), wanted)
    # What the fused norm layers take as it is; anything else costs them a copy.
    assert y.contiguous(memory_format=torch.channels_last).data_ptr() == y.data_ptr()

    weights = torch.arange(1.0, y.numel() + 1).view_as(y)
    (y * weights).sum().backward()
    gradient = np.zeros(x.shape, np.float32)
    gradient[:, :, ::2, ::2] = weights.numpy()[:, :3]
    np.testing.assert_array_equal(x.grad.numpy(), gradient)
    assert x.grad.permute(0, 2, 3, 1).is_contiguous()


def test_option_a_keeps_half_precision() -> None:
    y = ZeroPadding(4, 8, 2)(activations(1, 4, 6, 6).bfloat16())
    assert y.dtype == torch.bfloat16


def test_which_blocks_have_what_shortcut() -> None:
    def found(option: str | None, *shape: int) -> str:
        return type(shape_change(*shape, BlockStyle(option))).__name__

    same, wider, strided = (8, 8, 1), (8, 16, 1), (8, 8, 2)
    for changed in (wider, strided):
        assert found("A", *changed) == "ZeroPadding"
        assert found("B", *changed) == found("C", *changed) == "Sequential"
    assert found("A", *same) == found("B", *same) == "NoneType"
    assert found("C", *same) == "Sequential"
    assert {found(None, *shape) for shape in (same, wider, strided)} == {"NoneType"}


def test_option_a_has_no_parameters_and_no_names() -> None:
    padded = BasicBlock(8, 16, 2, BlockStyle("A"))
    plain = BasicBlock(8, 16, 2, BlockStyle(None))
    assert list(padded.state_dict()) == list(plain.state_dict())
    assert not list(padded.downsample.parameters()) and not list(padded.downsample.buffers())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_of_option_a_adds_the_padded_input_before_its_relu(
    block: type[BasicBlock] | type[Bottleneck],
) -> None:
    layer = block(8, 16, 2, BlockStyle("A")).eval()
    x = activations(2, 8, 6, 6)
    last = layer.bn2 if isinstance(layer, BasicBlock) else layer.bn3
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 0.25)
    y, _ = ends(layer(x))
    wanted = np.full(y.shape, 0.25, np.float32)
    wanted[:, :8] += x.numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(y.detach().numpy(), np.maximum(wanted, 0))


def test_a_plain_block_is_its_two_layers() -> None:
    layer = BasicBlock(8, 8, 1, BlockStyle(None)).eval()
    x = activations(2, 8, 6, 6)
    assert isinstance(layer.bn2, BatchNormAct) and layer.bn2.relu
    wanted = layer.bn2(layer.conv2(layer.bn1(layer.conv1(x))))
    assert torch.equal(layer(x), wanted)
    torch.nn.init.zeros_(layer.bn2.weight)
    assert not layer(x).any()  # nothing else gets through
