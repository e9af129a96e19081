"""The optimizers' steps beside those of torch and timm; LARS and LAMB under loss scaling."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import OptimConfig
from pipeline.system.failure import TrainingError
from pipeline.train.optimizer import (
    Update,
    build_optimizer,
    clip_,
    moments_of,
    restore_state,
    take_state,
)
from pipeline.train.precision import Precision
from pipeline.train.state import require_finite

# Computed by torch and timm; the file says by which versions.
REFERENCES = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "references.json").read_text(encoding="utf-8")
)
PROBLEM = REFERENCES["optimizer_problem"]
CPU = torch.device("cpu")
# Each with the lr and the settings that its name in the file says.
KINDS = {
    "sgd lr 0.1 momentum 0.9 weight_decay 1e-4": (
        0.1, OptimConfig(decay_norm_and_bias=True),
    ),
    "sgd nesterov lr 0.1 momentum 0.9 weight_decay 1e-4": (
        0.1, OptimConfig(decay_norm_and_bias=True, nesterov=True),
    ),
    "lars (timm Lars, trust_coeff 0.001, eps 1e-8, always_adapt false) lr 2.0 momentum 0.9 "
    "weight_decay 5e-5 on weight, 0 on bias": (
        2.0, OptimConfig(optimizer="lars", weight_decay=5e-5),
    ),
    # timm's clips gradients to a norm of 1 by itself.
    "lamb (timm Lamb defaults) lr 0.005 weight_decay 0.02 on weight, 0 on bias": (
        0.005, OptimConfig(optimizer="lamb", weight_decay=0.02, clip_norm=1.0),
    ),
}  # fmt: skip
LARGE = {
    "lars": OptimConfig(optimizer="lars"),
    "lars nesterov": OptimConfig(optimizer="lars", nesterov=True),
    "lars without momentum": OptimConfig(optimizer="lars", momentum=0.0),
    "lamb": OptimConfig(optimizer="lamb", decay_norm_and_bias=True),
}


class Problem(nn.Module):
    """A weight and a bias, whose gradients are given."""

    def __init__(self, device: torch.device = CPU) -> None:
        super().__init__()
        for name, value in PROBLEM["start"].items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, device=device)))

    def take(self, gradients: dict[str, Tensor], scale: float = 1.0) -> None:
        for name, parameter in self.named_parameters():
            parameter.grad = gradients[name].to(parameter.device) * scale


GRADIENTS = [
    {name: torch.tensor(value) for name, value in one.items()} for one in PROBLEM["gradients"]
]
OVERFLOW = {name: torch.full_like(value, float("inf")) for name, value in GRADIENTS[0].items()}


def built(model: nn.Module, optim: OptimConfig, lr: float = 0.1) -> torch.optim.Optimizer:
    return build_optimizer(
        model, lr, optim.momentum, optim.weight_decay, optim.decay_norm_and_bias, Update.of(optim)
    )


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and the optimizer's tensors, copied."""
    moments = moments_of(take_state(optimizer, model))
    return {name: value.detach().clone() for name, value in model.named_parameters()} | moments


def require_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("name", REFERENCES["optimizers"])
def test_every_step_is_that_of_the_reference(name):
    lr, optim = KINDS[name]
    model = Problem()
    optimizer, precision = built(model, optim, lr), Precision("off", CPU, clip_norm=optim.clip_norm)
    for gradients, wanted in zip(GRADIENTS, REFERENCES["optimizers"][name], strict=True):
        model.take(gradients)
        precision.step(optimizer)
        for parameter, values in wanted.items():
            found = getattr(model, parameter).detach()
            torch.testing.assert_close(found, torch.tensor(values), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", LARGE)
def test_a_skipped_step_leaves_every_bit_as_it_was_and_the_others_as_without_it(kind, monkeypatch):
    def ask(*_):
        pytest.fail("the host was asked whether to step")

    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", ask)
    left, right = Problem(), Problem()
    jobs = []
    for model in (left, right):
        precision = Precision("fp16", CPU, init_scale=1024.0)
        precision.backward(model.weight.sum() * 0)  # which is when the scale comes to be
        jobs.append((model, built(model, LARGE[kind]), precision))
    model, optimizer, precision = jobs[0]
    for skipped_first in (True, False):
        before = everything(model, optimizer)
        model.take(OVERFLOW)
        precision.step(optimizer)
        require_equal(everything(model, optimizer), before)
        for one, optimizer_of_one, precision_of_one in jobs:
            one.take(GRADIENTS[int(skipped_first)], precision_of_one.scale)
            precision_of_one.step(optimizer_of_one)
        require_equal(everything(left, jobs[0][1]), everything(right, jobs[1][1]))
    assert (precision.skipped_steps, precision.scale) == (2, 256)
    assert all(value.isfinite().all() for value in everything(model, optimizer).values())


@pytest.mark.parametrize("kind", LARGE)
def test_no_step_asks_the_host_for_a_number(kind):
    """Tensors on the meta device have none: whatever asks for one raises."""
    meta = torch.device("meta")
    model = Problem(meta)
    optimizer = built(model, LARGE[kind])
    model.take(GRADIENTS[0])
    for scale, overflow in ((None, None), (torch.ones((), device=meta),) * 2):
        optimizer.grad_scale, optimizer.found_inf = scale, overflow
        clip_(optimizer, 1.0)
        optimizer.step()


def test_layers_of_zeros_and_layers_without_a_gradient_step_without_a_scale_of_their_own():
    for optim in (LARGE["lars"], LARGE["lamb"]):
        model = Problem()
        model.register_parameter("other", nn.Parameter(torch.ones(2, 2)))
        with torch.no_grad():
            model.weight.zero_()
        optimizer = built(model, optim)
        gradient = 1000 * GRADIENTS[0]["weight"]
        model.weight.grad = gradient.clone()
        optimizer.step()
        # Adam's first step is 1 a weight, where its epsilon is nothing beside the gradient.
        moved = gradient.sign() if optim.optimizer == "lamb" else gradient
        torch.testing.assert_close(model.weight.detach(), -0.1 * moved, rtol=1e-6, atol=0)
        assert model.other.tolist() == [[1.0, 1.0]] * 2
        assert torch.equal(model.weight.grad, gradient)


@pytest.mark.parametrize("name", KINDS)
def test_state_goes_through_a_checkpoint_bit_for_bit(name):
    lr, optim = KINDS[name]
    whole, first, second = Problem(), Problem(), Problem()
    optimizers = [built(model, optim, lr) for model in (whole, first, second)]
    for gradients in GRADIENTS[:2]:
        for model, optimizer in zip((whole, first), optimizers, strict=False):
            model.take(gradients)
            optimizer.step()
    stored = deepcopy(take_state(optimizers[1], first))
    assert list(stored) == ["momentum"] + ["lamb"] * (optim.optimizer == "lamb")
    second.load_state_dict(first.state_dict())
    restore_state(optimizers[2], second, stored)
    for gradients in GRADIENTS[2:]:
        for model, optimizer in ((whole, optimizers[0]), (second, optimizers[2])):
            model.take(gradients)
            optimizer.step()
    require_equal(everything(second, optimizers[2]), everything(whole, optimizers[0]))
    require_equal(moments_of(stored), moments_of(take_state(optimizers[1], first)))


def test_a_moment_that_is_not_finite_is_named_before_a_checkpoint_holds_it():
    model = Problem()
    content = take_state(built(model, LARGE["lamb"]), model)
    content |= {"model": model.state_dict(), "step": 7}
    require_finite(content)
    content["lamb"]["second_moment"]["bias"][0] = float("inf")
    with pytest.raises(
        TrainingError, match="the second moment of bias is not finite before step 7"
    ):
        require_finite(content)


def test_a_step_leaves_the_gradients_as_they_are():
    for optim in LARGE.values():
        model = Problem()
        optimizer = built(model, optim)
        model.take(GRADIENTS[0])
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.grad, GRADIENTS[0][name])
        optimizer.zero_grad()
        assert model.weight.grad is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", LARGE)
def test_on_a_gpu_steps_are_those_of_a_cpu(kind):
    models = [Problem(), Problem(torch.device("cuda", 0))]
    for model in models:
        optimizer = built(model, LARGE[kind])
        for gradients in GRADIENTS:
            model.take(gradients)
            clip_(optimizer, 1.0)
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-5, atol=1e-6)
