"""What only a GPU can show of the norm kernels: the same checks on the device, and whole networks.

The tiles, and so the order of sums, are those of training.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from norm_checks import Case, error, in_float64, require_close, tensors, with_kernels

from pipeline.config import ModelConfig
from pipeline.model.backends import choose_backend, interpreting, make_norm
from pipeline.model.kernels.ops import backward_pass, forward_pass
from pipeline.model.norm import running_statistics
from pipeline.model.resnet import build_network

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(interpreting(), reason="kernels are interpreted")]

KINDS = ["plain", "add", "projection"]
SIZES = {3: (9, 57, 31), 64: (7, 56, 56), 100: (5, 29, 13), 256: (8, 56, 56), 2048: (33, 7, 7)}
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_float64(dtype: torch.dtype, channels: int, kind: str, train: bool) -> None:
    fork = kind != "plain"
    require_close(Case(channels, SIZES[channels], dtype, kind, True, train, fork, device="cuda"))


def test_variance_is_exact_far_from_zero() -> None:
    case = Case(64, (16, 56, 56), mean=300.0, device="cuda")
    given = tensors(case)
    found, wanted = with_kernels(case, given), in_float64(case, given)
    fresh = [result["running1"] - 0.9 * given.running[1] for result in (found, wanted)]
    assert error(*fresh) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_equal_inputs_give_equal_bits(kind: str) -> None:
    case = Case(256, (16, 28, 28), torch.float16, kind, fork=True, device="cuda")
    first = with_kernels(case, tensors(case))
    for _ in range(5):
        again = with_kernels(case, tensors(case))
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_nan_goes_where_torch_takes_it() -> None:
    case = Case(16, (2, 3, 3), kind="add", device="cuda")
    given = tensors(case)
    given.x[0, 3, 1, 1] = float("nan")
    given.z[1, 5, 0, 2] = float("nan")
    found, wanted = with_kernels(case, given), in_float64(case, given)
    assert found["y"].isnan().sum() == 2 * 9 + 1
    for name in wanted:
        assert torch.equal(found[name].isnan(), wanted[name].isnan()), name
    assert torch.equal(found["dz"][:, 3], given.dy[:, 3])


def test_more_than_2_to_the_31_elements() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GB of GPU memory")
    channels, count = 64, 8200  # 2.15e9 elements of 64 x 64 images
    x = torch.randn(count, 64, 64, channels, device="cuda", dtype=torch.float16)
    x = x.permute(0, 3, 1, 2)
    parameters = [torch.ones(channels, device="cuda"), torch.zeros(channels, device="cuda")]
    running = [torch.zeros(channels, device="cuda"), torch.ones(channels, device="cuda")]
    y, mask, stats = forward_pass(
        x, None, parameters, running, [1.0], [1e-5], relu=True, train=True, keep_mask=True
    )
    wanted = (x[-2:].float() - stats[0, 0, :, None, None]) * stats[0, 1, :, None, None]
    assert error(y[-2:], wanted.relu()) < 2**-11 + 1e-6
    *_, dx = backward_pass(y, None, x, None, parameters, stats, mask, False, True, True)
    assert error(running[1], torch.ones_like(running[1])) < 1e-3
    assert dx[-2:].isfinite().all() and dx[-2:].any()


def test_auto_takes_triton() -> None:
    assert choose_backend("auto", CUDA, "fp16") == "triton"


def step(
    model: nn.Module, images: Tensor, amp: torch.dtype | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of one training step, and what it made of the running statistics."""
    labels = torch.arange(len(images), device="cuda")
    with torch.autocast("cuda", amp, enabled=amp is not None):
        loss = nn.functional.cross_entropy(model(images), labels)
    scale = 1024 if amp == torch.float16 else 1
    (loss * scale).backward()
    return [p.grad / scale for p in model.parameters()], running_statistics(model)


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Euclidean, as a share of the length of `wanted`, all tensors taken as one vector."""
    flat, target = (torch.cat([t.flatten().double() for t in list_]) for list_ in (found, wanted))
    return float((flat - target).norm() / target.norm())


@pytest.mark.parametrize("amp", [None, torch.float16, torch.bfloat16], ids=str)
def test_a_step_of_resnet50_is_as_exact_as_the_reference(amp: torch.dtype | None) -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 128, 128, device="cuda")
    images = images.contiguous(memory_format=torch.channels_last)
    config = ModelConfig(depth=50, zero_init_last_norm=False)
    plain = build_network(config, 1000).cuda()
    for name, parameter in plain.named_parameters():
        if name.endswith("bn3.weight"):  # damps the branches: else gradients hold few digits
            nn.init.constant_(parameter, 0.2)
    fused = build_network(config, 1000, "triton").cuda()
    fused.load_state_dict(plain.state_dict())
    exact = copy.deepcopy(plain).double()
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        truth = step(exact, images.double(), None)
        found, wanted = step(fused, images, amp), step(plain, images, amp)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    for i, what in enumerate(("gradients", "running statistics")):
        # All of them at once: a single sign that flips before a ReLU moves single ones by percents.
        ours, theirs = (distance(result[i], truth[i]) for result in (found, wanted))
        assert ours < 2 * theirs + 1e-5, f"{what}: {ours:.1e}, the reference {theirs:.1e}"


@pytest.mark.slow
def test_compiled_it_equals_eager() -> None:
    torch.manual_seed(0)
    config = ModelConfig(depth=18, zero_init_last_norm=False)
    eager = build_network(config, 10, "triton").cuda()
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True)
    images = torch.randn(8, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.arange(8, device="cuda")
    for forward in (eager, run):
        nn.functional.cross_entropy(forward(images), labels).backward()
    for one, other in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert error(one.grad, other.grad) < 1e-2  # cuDNN may pick other algorithms, in TF32


def test_captured_in_a_cuda_graph() -> None:
    layer, inner = (make_norm("triton", 64, relu=relu).cuda() for relu in (True, False))
    x, z = (
        torch.randn(8, 64, 14, 14, device="cuda").contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    x.requires_grad_()

    def run() -> None:
        layer.zero_grad(set_to_none=False)
        layer(x, z, inner).square().mean().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    eager = layer.weight.grad.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    layer.weight.grad.zero_()
    before = layer.running_mean.clone()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(layer.weight.grad, eager)
    assert not torch.equal(layer.running_mean, before)
