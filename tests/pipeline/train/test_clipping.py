"""Gradients clipped by their common norm."""

import json
import math
from copy import deepcopy

import pytest
import torch
from one_process import train_here
from torch import nn

from pipeline.train.optimizer import build_optimizer, clip_
from pipeline.train.precision import Precision, TrainingDiverged

CPU = torch.device("cpu")


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(torch.linspace(-1, 2, 20).view(5, 4)).square().sum()


def optimizer_of(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return build_optimizer(model, lr, 0.9, 0.0, decay_norm_and_bias=False)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("most", [0.25, 1e6])
def test_it_has_the_bits_of_torchs_own(most):
    ours, theirs = layers(), layers()
    for model in (ours, theirs):
        loss_of(model).backward()
    before = gradients(ours)
    # In the order of the groups, in which the squares are summed.
    optimizer = optimizer_of(ours)
    ordered = [
        dict(theirs.named_parameters())[name]
        for group in optimizer.param_groups
        for name in group["param_names"]
    ]
    clip_(optimizer, most)
    nn.utils.clip_grad_norm_(ordered, most)
    for found, wanted in zip(gradients(ours), gradients(theirs), strict=True):
        assert torch.equal(found, wanted)
    norm = math.hypot(*(float(one.norm()) for one in gradients(ours)))
    if most < 1:
        assert norm == pytest.approx(most, rel=1e-5)
    else:
        assert all(torch.equal(a, b) for a, b in zip(gradients(ours), before, strict=True))


def test_fp16_clips_what_has_been_unscaled_whether_somebody_read_it_or_not():
    exact, asked, unasked = layers(), layers(), layers()
    for model, mode in ((exact, "off"), (asked, "fp16"), (unasked, "fp16")):
        precision, optimizer = Precision(mode, CPU, clip_norm=0.01), optimizer_of(model)
        for _ in range(2):
            precision.backward(loss_of(model))
            if model is asked:
                precision.unscale_(optimizer)
            precision.step(optimizer)
            optimizer.zero_grad()
    for one, other, wanted in zip(
        asked.parameters(), unasked.parameters(), exact.parameters(), strict=True
    ):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_clipped_step_is_skipped_for_a_gradient_that_is_not_finite_which_is_named(value):
    model = layers()
    before = deepcopy(model.state_dict())
    precision = Precision("fp16", CPU, max_skipped_steps=2, clip_norm=1.0)
    optimizer = optimizer_of(model)

    def step() -> None:
        optimizer.zero_grad()
        precision.backward(loss_of(model))
        model[2].weight.grad[0, 0] = value
        precision.step(optimizer)

    step()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    with pytest.raises(TrainingDiverged, match=r"gradient of 2\.weight is not finite"):
        step()


def first_lines(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "train"]


def test_the_logged_norm_is_that_before_clipping(small_data, tmp_path):
    options = ("--schedule.epochs=0.4", "--run.log_every_steps=1")
    free = first_lines(train_here(small_data, tmp_path / "free", *options))
    run = train_here(small_data, tmp_path / "clipped", *options, "--optim.clip_norm=0.001")
    clipped = first_lines(run)
    assert clipped[0]["gradient_norm"] == free[0]["gradient_norm"] > 0.01
    assert clipped[1]["loss"] != free[1]["loss"], "nothing was clipped"


@pytest.mark.gpu
def test_on_a_gpu_it_does_not_wait():
    model = layers().cuda()
    optimizer, precision = (
        optimizer_of(model),
        Precision("fp16", torch.device("cuda", 0), clip_norm=1),
    )
    images = torch.linspace(-1, 2, 20, device="cuda").view(5, 4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            precision.backward(model(images).square().sum())
            precision.step(optimizer)
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
