"""CIFAR networks against section 4.2 of the paper."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.norm import BatchNormAct
from pipeline.model.resnet import ResNet, Shortcut, ZeroPadding, cifar_resnet

DEPTHS = [20, 32, 44, 56, 110, 1202]


def on_meta(depth: int, shortcut: Shortcut | None = "A") -> ResNet:
    with torch.device("meta"):
        return cifar_resnet(depth, 10, shortcut=shortcut)


def images(count: int, size: int) -> Tensor:
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


# Table 6 of the paper, and the sum over layers for 6n + 2 of them.
@pytest.mark.parametrize(
    ("depth", "paper"),
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)],
)
def test_parameter_count_is_the_papers(depth: int, paper: float) -> None:
    n = (depth - 2) // 6
    stages = 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    count = sum(p.numel() for p in on_meta(depth).parameters())
    assert count == 9 * (3 * 16 + stages) + norms + 64 * 10 + 10
    assert round(count / 1e6, 2 if paper < 1 else 1) == paper


# Convolutions of a stage cost alike, but the first of the second and third: half.
@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("shortcut", ["A", None])
def test_multiply_adds_at_32(depth: int, shortcut: Shortcut | None) -> None:
    n, each = (depth - 2) // 6, 9 * 16**2 * 32**2
    with FlopCounterMode(display=False) as counter:
        on_meta(depth, shortcut)(torch.empty(1, 3, 32, 32, device="meta"))
    stem, classifier = 9 * 3 * 16 * 32**2, 640
    assert counter.get_total_flops() == 2 * (stem + (6 * n - 1) * each + classifier)


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_is_the_number_of_weight_layers(depth: int) -> None:
    layers = [m for m in on_meta(depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_shapes_of_every_stage() -> None:
    model = on_meta(20)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("conv1", "layer1", "layer2", "layer3"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out.shape)})
        )
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert shapes == {
        "conv1": (2, 16, 32, 32),
        "layer1": (2, 16, 32, 32),
        "layer2": (2, 32, 16, 16),
        "layer3": (2, 64, 8, 8),
    }


@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_every_depth_and_shortcut_goes_forward_and_backward(
    depth: int, shortcut: Shortcut | None
) -> None:
    model = cifar_resnet(depth, 10, shortcut=shortcut)
    goes_forward_and_backward(model)
    modules = list(model.modules())
    assert sum(isinstance(m, ZeroPadding) for m in modules) == (2 if shortcut == "A" else 0)
    projections = sum(isinstance(m, BatchNormAct) and not m.relu for m in modules)
    assert projections == {"A": 0, "B": 2, "C": (depth - 2) // 2, None: 0}[shortcut]


def test_1202_layers_go_forward_and_backward() -> None:
    goes_forward_and_backward(cifar_resnet(1202, 10))


def goes_forward_and_backward(model: ResNet) -> None:
    logits = model(images(2, 8))
    assert logits.shape == (2, 10) and logits.isfinite().all()
    logits.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if p.ndim == 4:
            assert p.grad.permute(0, 2, 3, 1).is_contiguous(), name


@pytest.mark.parametrize("depth", [2, 7, 21, -4])
def test_unknown_depth_says_which_exist(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth} does not .* 6n \+ 2: 8, 14, 20, "):
        cifar_resnet(depth, 10)


@pytest.mark.parametrize("shortcut", ["A", None])
def test_a_cifar_network_learns(shortcut: Shortcut | None) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(8, 10, shortcut=shortcut)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(images(8, 32)), torch.arange(8) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
