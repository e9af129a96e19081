"""The norm layer on our kernels, in Triton's interpreter, against PyTorch's own operators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from norm_checks import error
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.config.training import Shortcut
from pipeline.model.backends import choose_backend, make_norm
from pipeline.model.kernels.ops import batch_norm_act, batch_norm_act_backward
from pipeline.model.norm import BatchNormAct, ends, reference, running_statistics
from pipeline.model.resnet import build_network

C = 12


def activations(seed: int, dtype: torch.dtype = torch.float32, channels: int = C) -> Tensor:
    x = torch.randn(3, channels, 4, 5, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def pair(seed: int = 0, **settings: Any) -> tuple[BatchNormAct, BatchNormAct]:
    """Two equal layers, on the kernels and on the reference."""
    fused = make_norm("triton", C, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.copy_(torch.randn(C, generator=generator))
        for statistic in running_statistics(fused):
            statistic.copy_(torch.rand(C, generator=generator) + 0.5)
    plain = BatchNormAct(C, **settings)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


def require_close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def require_same_layer(fused: nn.Module, plain: nn.Module) -> None:
    require_close(fused.state_dict(), plain.state_dict())
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        require_close(one.grad, other.grad)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"relu": False},
        {"affine": False},
        {"momentum": None},
        {"momentum": 0.3, "eps": 0.1},
    ],
    ids=str,
)
def test_equals_the_reference(settings: dict[str, Any], add: bool, train: bool) -> None:
    fused, plain = pair(**settings)
    results = []
    for layer in (fused.train(train), plain.train(train)):
        x, z = activations(1), activations(2)
        for seed in (7, 8):  # a running mean of several batches
            y = layer(x, z if add else None)
            y.backward(activations(seed).detach())
        results.append([y, x.grad] + ([z.grad] if add else []))
    require_close(results[0], results[1])
    require_same_layer(fused, plain)
    assert fused.num_batches_tracked == (2 if train else 0)


def test_the_interpreter_counts_as_a_place_to_run() -> None:
    assert choose_backend("triton", torch.device("cpu"), "off") == "triton"
    assert choose_backend("auto", torch.device("cpu"), "off") == "reference"


@pytest.mark.parametrize(
    ("change", "along"),
    [
        (lambda inner: None, True),
        (lambda inner: inner.eval(), False),
        (lambda inner: setattr(inner, "relu", True), False),
        (lambda inner: setattr(inner, "compute", reference), False),
    ],
    ids=["same", "eval", "relu", "reference"],
)
def test_a_norm_of_the_residual_is_computed_along_unless_it_differs(
    change: Callable[[BatchNormAct], Any], along: bool
) -> None:
    outer, inner = pair(), pair(1, relu=False)
    calls: list[nn.Module] = []
    results = []
    for layer, layer_of_z in zip(outer, inner, strict=True):
        change(layer_of_z)
        layer_of_z.register_forward_hook(lambda module, *_: calls.append(module))
        x, z = activations(1), activations(2)
        y = layer(x, z, layer_of_z)
        y.backward(activations(3).detach())
        results.append([y, x.grad, z.grad])
    assert calls == ([inner[1]] if along else list(inner))  # along with the other it is not called
    require_close(results[0], results[1])
    require_same_layer(*outer)
    require_same_layer(*inner)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_a_fork_adds_the_gradients_of_its_two_ends(used: tuple[bool, bool], add: bool) -> None:
    fused, plain = pair()
    results = []
    for layer in (fused, plain):
        x, z = activations(1), activations(2)
        two = ends(layer(x, z if add else None, fork=True))
        loss = sum((end * activations(3 + i)).sum() for i, end in enumerate(two) if used[i])
        loss.backward()
        results.append([*two, x.grad] + ([z.grad] if add else []))
    assert results[0][0].data_ptr() == results[0][1].data_ptr()
    require_close(results[0], results[1])
    require_same_layer(fused, plain)


def test_no_fork_without_gradients() -> None:
    fused, _ = pair()
    with torch.no_grad():
        assert isinstance(fused(activations(1), activations(2), fork=True), Tensor)


def test_one_layer_used_twice_before_backward() -> None:
    fused, plain = pair()
    inputs = []
    for layer in (fused, plain):
        x, other = activations(1), activations(2)
        (layer(x) * activations(4) + layer(other)).sum().backward()
        inputs.append([x.grad, other.grad])
    require_close(inputs[0], inputs[1])
    require_same_layer(fused, plain)


def test_a_second_derivative_is_refused() -> None:
    x = activations(1)
    (gradient,) = torch.autograd.grad(pair()[0](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_gradients_reach_the_hooks_that_horovod_uses() -> None:
    fused, plain = pair()
    seen: dict[Tensor, Tensor] = {}
    for parameter in fused.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.update({p: p.grad.clone()}))
    for layer in (fused, plain):
        layer(activations(1)).square().mean().backward()
    assert len(seen) == 2
    for parameter, wanted in zip(fused.parameters(), plain.parameters(), strict=True):
        require_close(seen[parameter], wanted.grad)
    require_same_layer(fused, plain)


def test_inputs_stay_and_row_major_ones_become_channels_last() -> None:
    fused, plain = pair()
    x, z = activations(1).detach().contiguous(), activations(2).detach().contiguous()
    y = fused(x, z)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, activations(1)) and torch.equal(z, activations(2))
    require_close(y, plain(x, z).contiguous(memory_format=torch.channels_last))


def test_under_autocast_activations_are_half_and_parameters_are_not() -> None:
    fused, _ = pair()
    convolution = nn.Conv2d(C, C, 1).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(convolution(activations(1)), activations(2))  # an fp32 residual is cast
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in fused.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer: layer(activations(1, channels=C + 1)), "13 channels came to .* of 12"),
        (lambda layer: layer(activations(1, torch.float64)), "not torch.float64 and torch.float32"),
        (lambda layer: layer.half()(activations(1, torch.float16)), "fp32 parameters, not"),
        (lambda layer: layer(activations(1), activations(2)[:1]), "a residual of"),
        (lambda layer: layer(activations(1)[0]), "expected 4D input"),
        (lambda layer: layer(torch.ones(1, C, 1, 1)), "more than 1 value per channel when train"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(
    call: Callable[[BatchNormAct], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(pair()[0])


@pytest.mark.parametrize("shape", [(1, C, 1, 1), (0, C, 2, 2)])
def test_one_value_per_channel_and_none_are_fine_in_evaluation(shape: tuple[int, ...]) -> None:
    fused, plain = (layer.eval() for layer in pair())
    require_close(fused(torch.ones(shape)), plain(torch.ones(shape)))


@pytest.mark.parametrize("kind", ["plain", "add", "projection"])
def test_opcheck(kind: str) -> None:
    norms = 2 if kind == "projection" else 1
    x, z, dy, dy2 = (activations(seed).detach() for seed in range(4))
    parameters = [torch.rand(C) for _ in range(2 * norms)]
    running = [torch.rand(C) for _ in range(2 * norms)]
    residual = None if kind == "plain" else z
    given = (x, residual, parameters, running, [0.1] * norms, [1e-5] * norms, True, True, True)
    torch.library.opcheck(batch_norm_act, given)
    _, mask, stats = batch_norm_act(*given)
    inner = z if kind == "projection" else None
    add = residual is not None
    torch.library.opcheck(
        batch_norm_act_backward, (dy, dy2, x, inner, parameters, stats, mask, add, True, True)
    )


class Blocks(nn.Module):
    """A stem, a block with a projection, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.main, self.side, self.last = (
            nn.Conv2d(3 if i == 0 else C, C, 1) for i in range(4)
        )
        self.norms = nn.ModuleList(make_norm("triton", C, relu=i != 2) for i in range(4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.stem(images))
        x, skip = ends(self.norms[1](self.main(x), self.side(x), self.norms[2], fork=True))
        x, _ = ends(self.norms[3](self.last(x), skip, fork=True))
        return x.mean((2, 3))


def test_compiled_as_one_graph_it_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    eager = Blocks().to(memory_format=torch.channels_last)
    compiled = copy.deepcopy(eager)
    # aot_eager: all of torch.compile but the code generation, which leaves our operators alone.
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for amp in (False, True):
        for _ in range(2):  # gradients accumulate
            images = activations(1, channels=3).detach()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                found, wanted = run(images), eager(images)
            assert torch.equal(found, wanted)
            found.square().sum().backward(), wanted.square().sum().backward()
    for one, other in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(compiled.buffers(), eager.buffers(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(run.eval()(images), eager.eval()(images))


def step(model: nn.Module, images: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one training step."""
    loss = nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 10)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
def test_a_step_of_a_small_network_equals_the_reference(shortcut: Shortcut | None) -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    config = ModelConfig("cifar", shortcut is not None, 8, shortcut, zero_init_last_norm=False)
    plain, fused = build_network(config, 10), build_network(config, 10, "triton")
    fused.load_state_dict(plain.state_dict())
    exact = copy.deepcopy(plain).double()
    (loss, gradients), (wanted_loss, _), (_, truth) = (
        step(model, images.to(next(model.parameters()).dtype)) for model in (fused, plain, exact)
    )
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert error(gradient, truth[name]) < 6e-5, name  # 2e-5 was seen of deeper ones
        if gradient.ndim == 4:
            assert gradient.permute(0, 2, 3, 1).is_contiguous(), name
    require_close(running_statistics(fused), running_statistics(plain))
    assert torch.equal(fused.bn1.num_batches_tracked, plain.bn1.num_batches_tracked)
