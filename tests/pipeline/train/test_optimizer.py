"""SGD's groups, its bits, the layout of its buffers; norms by stage of the network."""

import math

import jobs
import pytest
import torch
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.norm import BatchNormAct
from pipeline.model.resnet import build_network
from pipeline.train.optimizer import build_optimizer, named_norms, norms, set_lr


def small() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), BatchNormAct(4), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    model.to(memory_format=torch.channels_last)
    return model


def backward(model: nn.Module, seed: int = 0, side: int = 8) -> None:
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(seed))
    model(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()


@pytest.mark.parametrize(("decay", "expected"), [(True, 1e-4), (False, 0.0)])
def test_each_parameter_is_in_one_group_and_norm_and_bias_have_their_own_decay(decay, expected):
    model = build_network(ModelConfig(depth=18), 10)
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, decay_norm_and_bias=decay)
    weights, others = optimizer.param_groups
    assert (weights["name"], weights["weight_decay"]) == ("weights", 1e-4)
    assert (others["name"], others["weight_decay"]) == ("norm_and_bias", expected)
    assert {"fc.weight", "layer2.0.downsample.0.weight"} <= set(weights["param_names"])
    assert {"fc.bias", "layer2.0.downsample.1.weight"} <= set(others["param_names"])
    assert (len(weights["params"]), len(others["params"])) == (21, 41)
    held = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    assert all(held[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize("decay", [True, False])
def test_steps_have_the_bits_of_torchs_own_optimizer_also_when_the_rate_falls(decay):
    ours, theirs = small(), small()
    optimizer = build_optimizer(ours, 0.5, 0.9, 0.01, decay_norm_and_bias=decay)
    decays = [0.01 if decay or p.ndim > 1 else 0.0 for p in theirs.parameters()]
    groups = [
        {"params": [p], "weight_decay": d}
        for p, d in zip(theirs.parameters(), decays, strict=True)
    ]  # fmt: skip
    wanted = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    for step, lr in enumerate((0.5, 0.5, 0.05)):
        set_lr(optimizer, lr)
        for group in wanted.param_groups:
            group["lr"] = lr
        for model, one in ((ours, optimizer), (theirs, wanted)):
            backward(model, step)
            one.step()
            one.zero_grad()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(found, expected)
        assert found.grad is None


def test_momentum_buffers_stay_channels_last_also_after_a_load():
    model = build_network(ModelConfig(depth=18), 10)
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, decay_norm_and_bias=False)
    backward(model, side=32)
    optimizer.step()
    loaded = build_optimizer(
        build_network(ModelConfig(depth=18), 10), 0.1, 0.9, 1e-4, decay_norm_and_bias=False
    )
    loaded.load_state_dict(optimizer.state_dict())
    for one in (optimizer, loaded):
        kernels = [p for p in one.param_groups[0]["params"] if p.ndim == 4]
        buffers = [one.state[p]["momentum_buffer"] for p in kernels]
        assert [b.permute(0, 2, 3, 1).is_contiguous() for b in buffers] == [True] * 20


def test_a_first_step_skipped_by_loss_scaling_leaves_the_momentum_at_zero():
    # The fused SGD skips inside its kernel, which never fills buffers made in that step.
    model = small()
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, decay_norm_and_bias=False)
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
    before = [parameter.detach().clone() for parameter in model.parameters()]
    backward(model)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(not buffer.any() for buffer in buffers)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_step_does_not_load_the_compiler():
    program = """
import sys, torch
from pipeline.train.optimizer import Update, build_optimizer
for kind in ("sgd", "lars", "lamb"):
    layer = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(layer, 0.1, 0.9, 0.1, True, Update(kind))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print("compiler" if "torch._dynamo" in sys.modules else "light")
"""
    assert jobs.run(["-c", program]).text == "light\n"


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"depth": 18}, ["stem", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ({"family": "cifar", "depth": 20}, ["stem", "layer1", "layer2", "layer3", "fc"]),
    ],
)
def test_norms_are_of_each_stage_and_of_the_whole(settings, stages):
    model = build_network(ModelConfig(**settings), 10, "reference")
    backward(model, side=32)
    model.fc.bias.grad = None  # a parameter without a gradient is left out
    found = named_norms(model, norms(model))
    by_stage = [f"{kind}_norm_{stage}" for kind in ("gradient", "weight") for stage in stages]
    assert list(found) == ["gradient_norm", *by_stage]
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    assert found["gradient_norm"] == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)
    of_stages = [found[f"gradient_norm_{stage}"] for stage in stages]
    assert math.hypot(*of_stages) == pytest.approx(found["gradient_norm"], rel=1e-5)
    weights = torch.cat([p.detach().flatten() for p in model.fc.parameters()])
    assert found["weight_norm_fc"] == pytest.approx(float(weights.norm()), rel=1e-5)
    model.fc.weight.grad[0] = math.inf
    found = named_norms(model, norms(model))
    assert (found["gradient_norm"], found["gradient_norm_fc"]) == (None, None)
    assert found["gradient_norm_stem"] == pytest.approx(of_stages[0])
