"""The norm layer is nn.BatchNorm2d + add + ReLU, bit for bit."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.norm import BatchNormAct, norm_layers, running_statistics, swapped_statistics

C = 12


def activations(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(5, C, 6, 7, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def pair(relu: bool) -> tuple[BatchNormAct, nn.BatchNorm2d]:
    layer, plain = BatchNormAct(C, relu), nn.BatchNorm2d(C)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(C, generator=generator))
        plain.bias.copy_(torch.randn(C, generator=generator))
    layer.load_state_dict(plain.state_dict())
    return layer, plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("add", [True, False])
def test_equals_batch_norm_add_relu_bit_for_bit(
    add: bool, relu: bool, train: bool, dtype: torch.dtype
) -> None:
    layer, plain = pair(relu)
    layer(activations(9)), plain(activations(9))  # running statistics that are not the initial ones
    layer.train(train), plain.train(train)
    x, z, x_plain, z_plain = (activations(seed, dtype) for seed in (1, 2, 1, 2))

    y = layer(x, z if add else None)
    expected = plain(x_plain)
    expected = expected + z_plain if add else expected
    expected = torch.relu(expected) if relu else expected
    upstream = activations(3, dtype).detach()
    y.backward(upstream)
    expected.backward(upstream)

    assert torch.equal(x, x_plain) and torch.equal(z, z_plain)  # the inputs are left alone
    assert torch.equal(y, expected)
    assert y.dtype == dtype
    for value in (y, x.grad, z.grad) if add else (y, x.grad):
        assert value.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x.grad, x_plain.grad)
    assert not add or torch.equal(z.grad, z_plain.grad)
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.bias.grad, plain.bias.grad)
    for name, value in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), name


def test_state_dict_is_that_of_batch_norm_both_ways() -> None:
    layer, plain = BatchNormAct(C), nn.BatchNorm2d(C)
    layer(activations(1))
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    fresh = BatchNormAct(C)
    fresh.load_state_dict(plain.state_dict())
    for name, value in layer.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert fresh.num_batches_tracked == 1


def test_one_value_per_channel_is_refused_in_training_only() -> None:
    layer, x = BatchNormAct(C), torch.ones(1, C, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer(x)
    assert layer.eval()(x).shape == x.shape


def model() -> nn.Sequential:
    return nn.Sequential(BatchNormAct(3), nn.Conv2d(3, 5, 1), BatchNormAct(5, relu=False))


def test_running_statistics_are_the_live_buffers_in_layer_order() -> None:
    net = model()
    first, second = norm_layers(net)
    found = running_statistics(net)
    expected = [first.running_mean, first.running_var, second.running_mean, second.running_var]
    assert len(found) == 4
    assert all(a is b for a, b in zip(found, expected, strict=True))
    assert all(value.dtype == torch.float32 for value in found)


def test_swapped_statistics_are_used_and_the_old_bits_come_back() -> None:
    net = model()
    net(torch.randn(4, 3, 5, 5))
    running_statistics(net)[0][0] = float("nan")  # even a NaN comes back
    before = [value.numpy().tobytes() for value in running_statistics(net)]
    addresses = [value.data_ptr() for value in running_statistics(net)]
    others = [torch.full_like(value, 4.0) for value in running_statistics(net)]
    x = torch.zeros(1, 3, 2, 2)

    with pytest.raises(KeyboardInterrupt), swapped_statistics(net, others):
        inside = net[0].eval()(x)
        net.train()(torch.randn(4, 3, 5, 5))  # writes the statistics: lost afterwards
        raise KeyboardInterrupt

    assert torch.equal(inside, torch.zeros_like(inside))  # relu((0 - 4) / 2), not NaN
    assert [value.numpy().tobytes() for value in running_statistics(net)] == before
    assert [value.data_ptr() for value in running_statistics(net)] == addresses
    assert torch.equal(others[0], torch.full_like(others[0], 4.0))


def test_statistics_of_another_model_are_refused() -> None:
    values = running_statistics(nn.Sequential(BatchNormAct(3), BatchNormAct(1)))
    with (
        pytest.raises(AssertionError, match="another model's statistics"),
        swapped_statistics(model(), values),
    ):
        pass
