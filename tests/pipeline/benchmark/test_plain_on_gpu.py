"""What only a GPU can show of the benchmarks: steps as CUDA graphs, and times told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pipeline.benchmark import device as devices
from pipeline.benchmark.network import NormCase
from pipeline.benchmark.norm import Layer, kernel_seconds
from pipeline.benchmark.options import Amp, StepOptions
from pipeline.benchmark.plain import PlainTraining, Setting, train_setting
from pipeline.benchmark.result import Result
from pipeline.benchmark.step import measure_table
from pipeline.model.backends import interpreting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(interpreting(), reason="kernels are interpreted")]

CUDA = torch.device("cuda", 0)


@pytest.fixture
def deterministic() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def state(training: PlainTraining) -> dict[str, Tensor]:
    """Parameters, buffers and the optimizer's momentum, the live tensors."""
    momentum = {
        name: training.optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in training.model.named_parameters()
    }
    return training.model.state_dict() | {f"momentum of {name}": m for name, m in momentum.items()}


def moved(training: PlainTraining, step: Callable[[], None]) -> dict[str, Tensor]:
    """How far each tensor of the state goes in one step."""
    before = {name: tensor.clone() for name, tensor in state(training).items()}
    step()
    torch.cuda.synchronize()
    return {name: tensor - before[name] for name, tensor in state(training).items()}


def in_one(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


@pytest.mark.parametrize("amp", ["fp16", "bf16"])
@pytest.mark.usefixtures("deterministic")
def test_a_captured_step_with_triton_equals_one_that_is_not(amp: Amp) -> None:
    plain, captured = (train_setting(Setting(50, amp, "triton", 64), 16, CUDA) for _ in range(2))
    graphed = captured.in_graphs()
    graphed.step()  # records
    for _ in range(3):
        # From the same state each time: training a network again magnifies any difference.
        for one, other in zip(state(plain).values(), state(captured).values(), strict=True):
            one.copy_(other)
        wanted, found = moved(plain, plain.step), moved(captured, graphed.step)
        for name, count in found.items():
            if name.endswith("num_batches_tracked"):
                assert count == wanted[name] == 1
        for part in ("running", "momentum of", "weight", "bias"):
            # PyTorch's pooling adds up gradients in no fixed order, before the first layers.
            one, other = (
                in_one({n: t for n, t in m.items() if part in n}) for m in (wanted, found)
            )
            assert one.norm() > 0
            assert float((other - one).norm() / one.norm()) < 0.01, part
        assert float(graphed.loss) == pytest.approx(float(plain.loss), rel=1e-3)


def test_a_capture_that_fails_leaves_the_stream_as_it_was() -> None:
    before = torch.cuda.current_stream()
    x = torch.ones(8, device=CUDA)

    def work() -> None:
        if torch.cuda.is_current_stream_capturing():
            x.sum().item()  # a graph cannot wait for the device

    with pytest.raises(RuntimeError):
        devices.capture(work)
    assert torch.cuda.current_stream() == before
    assert float((x + 1).sum()) == 16.0


@pytest.mark.parametrize("kind", ["plain", "add", "projection"])
def test_the_profiler_tells_the_kernels_of_a_layer_apart(kind: str) -> None:
    layer = Layer(NormCase(28, 128, kind, kind != "plain"), 32, torch.float16, "triton", CUDA)
    forward, both = layer.forward(), layer.both()
    assert 0 < forward < both
    kernels = kernel_seconds(layer)
    if isinstance(kernels, str):
        pytest.skip(kernels)  # drivers may forbid it; the benchmark names it as well
    assert sum(kernels.values()) < 3 * both


def test_the_copy_and_the_products_are_within_what_a_gpu_can_do() -> None:
    copied = devices.Copy(CUDA).bytes_per_sec()
    assert 1e10 < copied < 3e13
    assert 1e12 < devices.flop_per_sec(CUDA, torch.float16) < 1e16


def test_the_table_has_eager_and_triton_with_and_without_graphs() -> None:
    options = StepOptions(
        device="cuda", depths="18", amps="fp16", sides="eager,triton", batch=8, pixels=64,
        table_rounds=1, table_steps=2,
    )  # fmt: skip
    result = Result("step", dict(vars(options)), figures={"not_run": {}})
    measure_table(options, CUDA, result, lambda _: None)
    assert result.figures["not_run"] == {}
    assert set(result.spreads) == {
        f"{side}{how}_resnet18_fp16_images_per_sec"
        for side in ("eager", "triton")
        for how in ("", "_graph")
    }
