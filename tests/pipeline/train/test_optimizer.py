"""SGD's groups, its arithmetic by hand, and the layout of its buffers."""

import math

import jobs
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model.norm import BatchNormAct
from pipeline.model.resnet import build_network
from pipeline.train.optimizer import build_optimizer, gradient_norm, set_lr


def small() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), BatchNormAct(4), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    model.to(memory_format=torch.channels_last)
    return model


def backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 8, 8, generator=generator)
    model(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()


def test_every_parameter_is_in_exactly_one_group_under_its_own_name() -> None:
    model = build_network(ModelConfig(depth=50), 10)
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, decay_norm_and_bias=False)
    held = [
        (name, id(parameter))
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]
    assert len(held) == 161
    assert sorted(held) == sorted((name, id(p)) for name, p in model.named_parameters())


@pytest.mark.parametrize(("decay", "expected"), [(True, 1e-4), (False, 0.0)])
def test_norm_and_bias_are_a_group_with_its_own_decay(decay: bool, expected: float) -> None:
    optimizer = build_optimizer(
        build_network(ModelConfig(depth=18), 10), 0.1, 0.9, 1e-4, decay_norm_and_bias=decay
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["weights", "norm_and_bias"]
    assert groups["weights"]["weight_decay"] == 1e-4
    assert groups["norm_and_bias"]["weight_decay"] == expected
    weights, others = groups["weights"]["param_names"], groups["norm_and_bias"]["param_names"]
    assert (
        len(weights) == 21 and "fc.weight" in weights and "layer2.0.downsample.0.weight" in weights
    )
    assert len(others) == 41 and "fc.bias" in others and "layer2.0.downsample.1.weight" in others


@pytest.mark.parametrize("decay", [True, False])
def test_two_steps_equal_the_computation_by_hand(decay: bool) -> None:
    model = small()
    optimizer = build_optimizer(model, 0.5, 0.9, 0.01, decay_norm_and_bias=decay)
    velocity: dict[str, Tensor] = {}
    for step, lr in enumerate((0.5, 0.05)):  # lr falls: PyTorch's convention differs from Caffe's
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        backward(model, step)
        expected = {}
        for name, p in model.named_parameters():
            weight_decay = 0.01 if decay or p.ndim > 1 else 0.0
            gradient = p.grad.double() + weight_decay * p.detach().double()
            velocity[name] = 0.9 * velocity.get(name, torch.zeros_like(gradient)) + gradient
            expected[name] = p.detach().double() - lr * velocity[name]
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-6, atol=1e-7)


def test_set_lr_reaches_every_group() -> None:
    optimizer = build_optimizer(small(), 0.1, 0.9, 1e-4, decay_norm_and_bias=False)
    set_lr(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_momentum_buffers_stay_channels_last_also_after_a_load() -> None:
    def channels_last(optimizer: torch.optim.SGD) -> list[bool]:
        weights = optimizer.param_groups[0]["params"]
        buffers = [optimizer.state[p]["momentum_buffer"] for p in weights if p.ndim == 4]
        return [buffer.permute(0, 2, 3, 1).is_contiguous() for buffer in buffers]

    model = build_network(ModelConfig(depth=50), 10)
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, decay_norm_and_bias=False)
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    model(images).square().mean().backward()
    optimizer.step()
    assert channels_last(optimizer) == [True] * 53

    loaded = build_optimizer(
        build_network(ModelConfig(depth=50), 10), 0.1, 0.9, 1e-4, decay_norm_and_bias=False
    )
    loaded.load_state_dict(optimizer.state_dict())
    assert channels_last(loaded) == [True] * 53


def test_gradient_norm_is_that_of_all_gradients_as_one_vector() -> None:
    model = small()
    backward(model, 0)
    values = [v for p in model.parameters() for v in p.grad.flatten().tolist()]
    norm = gradient_norm(model.parameters())
    assert norm.shape == ()
    assert norm.item() == pytest.approx(math.sqrt(math.fsum(v * v for v in values)), rel=1e-5)


def test_gradient_norm_leaves_out_missing_gradients_and_shows_infinite_ones() -> None:
    model = small()
    backward(model, 0)
    model[3].bias.grad = None
    rest = [p for p in model.parameters() if p is not model[3].bias]
    assert gradient_norm(model.parameters()) == gradient_norm(rest)
    model[0].weight.grad[0] = float("inf")
    assert gradient_norm(model.parameters()).isinf()


def test_a_first_step_skipped_by_loss_scaling_leaves_the_momentum_at_zero() -> None:
    # The fused SGD skips inside its kernel, which never fills buffers made in that step.
    model = small()
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, decay_norm_and_bias=False)
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
    before = [parameter.detach().clone() for parameter in model.parameters()]
    backward(model, 0)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(not buffer.any() for buffer in buffers)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_steps_have_the_bits_of_torchs_own_optimizer() -> None:
    ours, theirs = small(), small()
    optimizer = build_optimizer(ours, 0.5, 0.9, 0.01, decay_norm_and_bias=True)
    wanted = torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        for model, optimizer_ in ((ours, optimizer), (theirs, wanted)):
            backward(model, step)
            optimizer_.step()
            optimizer_.zero_grad()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(found, expected)
        assert found.grad is None


def test_a_step_does_not_load_the_compiler() -> None:
    program = """
import sys, torch
from pipeline.train.optimizer import build_optimizer
layer = torch.nn.Linear(2, 2)
optimizer = build_optimizer(layer, 0.1, 0.9, 0.0, True)
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad(set_to_none=True)
print("compiler" if "torch._dynamo" in sys.modules else "light")
"""
    job = jobs.run(["-c", program])
    assert job.text == "light\n"
