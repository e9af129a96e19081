"""Training in recorded stages equals training without, to the bit.

On a CPU a recorder that runs the work again takes the place of CUDA graphs: everything but the
capture itself is the program's own. Those marked gpu capture.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from one_process import train_here
from run_files import metrics, state_differences
from torch import Tensor, nn

from pipeline.config import Config, ConfigError, ModelConfig
from pipeline.config.training import Shortcut
from pipeline.model.backends import Backend
from pipeline.model.resnet import ResNet, build_network
from pipeline.train import state
from pipeline.train.freezing import freeze
from pipeline.train.graphs import CudaRecorder, GraphedNetwork, Recorder, Tensors, require_graphs
from pipeline.train.optimizer import build_optimizer
from pipeline.train.precision import Mode, Precision

CPU = torch.device("cpu")


class RunsAgain:
    """Records by running, repeats by running again into the same memory."""

    def __init__(self, _: torch.device) -> None:
        self.log: list[tuple[str, int]] = []
        self._count = 0

    def warm_up(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        found, number = work(), self._count
        self._count += 1

        def again() -> None:
            self.log.append(("repeated", number))
            with torch.enable_grad():
                fresh = work()
            with torch.no_grad():
                for static, new in zip(found, fresh, strict=True):
                    if static is not None:
                        static.copy_(new)

        return again, found


def network(
    shortcut: Shortcut | None = None, residual: bool = True, norm: Backend = "reference"
) -> ResNet:
    torch.manual_seed(0)
    config = ModelConfig("cifar", residual, 8, shortcut, zero_init_last_norm=False)
    return build_network(config, 10, norm)


def batches(
    count: int, device: torch.device = CPU, side: int = 16
) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.randn(4, 3, side, side, generator=draw)
        labels = torch.randint(0, 10, (4,), generator=draw)
        images = images.contiguous(memory_format=torch.channels_last)
        yield images.to(device), labels.to(device)


def graphed(
    model: ResNet, precision: Precision, accumulation: int, recorder: Callable[..., Recorder]
) -> GraphedNetwork:
    autocast = partial(precision.autocast, cached=False)
    return GraphedNetwork(model, autocast, accumulation > 1, recorder)


def train(
    forward: nn.Module, model: ResNet, precision: Precision, accumulation: int,
    keep_gradients: bool = False, validated: bool = True, side: int = 16,
) -> list[Tensor]:  # fmt: skip
    """Three steps with a validation after each; returns losses, parameters and buffers."""
    device = next(model.parameters()).device
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, False)
    if keep_gradients:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    results: list[Tensor] = []
    data = batches(3 * accumulation, device, side)
    for _ in range(3):
        model.train()
        for _ in range(accumulation):
            images, labels = next(data)
            with precision.autocast():
                loss = nn.functional.cross_entropy(forward(images), labels)
            precision.backward(loss / accumulation)
            results.append(loss.detach().clone())
        precision.step(optimizer)
        optimizer.zero_grad(set_to_none=not keep_gradients)
        if validated:
            model.eval()
            with torch.no_grad(), precision.autocast():
                results.append(forward(images[:3]).clone())  # another shape
    return results + [p.detach() for p in model.parameters()] + list(model.buffers())


def require_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("keep_gradients", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("shortcut", "residual", "amp"),
    [("A", True, "off"), ("B", True, "bf16"), ("C", True, "off"), (None, False, "bf16")],
)
def test_training_in_recorded_stages_has_the_same_bits(
    shortcut: Shortcut | None, residual: bool, amp: Mode, accumulation: int, keep_gradients: bool
) -> None:
    model = network(shortcut, residual)
    plain = copy.deepcopy(model)
    precision = Precision(amp, CPU)
    recorded = graphed(model, precision, accumulation, RunsAgain)
    found = train(recorded, model, precision, accumulation, keep_gradients)
    require_equal(found, train(plain, plain, precision, accumulation, keep_gradients))
    assert int(model.bn1.num_batches_tracked) == 3 * accumulation  # none of the recording


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("parts", [("stem",), ("stem", "1"), ("2",), ("stem", "1", "2", "3")])
def test_frozen_stages_have_the_same_bits_and_those_in_front_no_backward_pass(
    parts: tuple[str, ...],
) -> None:
    model = freeze(network("B"), parts)
    plain = copy.deepcopy(model)
    recorders: list[RunsAgain] = []

    def recorder(device: torch.device) -> RunsAgain:
        recorders.append(RunsAgain(device))
        return recorders[0]

    precision = Precision("bf16", CPU)
    found = train(graphed(model, precision, 2, recorder), model, precision, 2, False)
    require_equal(found, train(plain, plain, precision, 2, False))
    backward = {"stem": 4, "1": 3, "2": 5, "3": 1}[parts[-1]]
    assert {number for _, number in recorders[0].log} == set(range(5 + backward))
    assert recorders[0]._count == 5 + backward, "a pass was recorded that nothing needs"


@pytest.mark.usefixtures("one_thread")
def test_gradients_are_handed_on_before_the_stage_before_is_repeated() -> None:
    model = network()
    recorders: list[RunsAgain] = []

    def recorder(device: torch.device) -> RunsAgain:
        recorders.append(RunsAgain(device))
        return recorders[0]

    forward = graphed(model, Precision("off", CPU), 1, recorder)
    images, _ = next(batches(1))
    forward(images)
    log = recorders[0].log
    log.clear()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _, name=name: log.append((name.partition(".")[0], -1))
        )
    forward(images).sum().backward()
    # Recorded were 5 stages forward, 0 to 4, then backward, 5 (the head) to 9.
    found = list(dict.fromkeys(log))
    assert found[:5] == [("repeated", number) for number in range(5)]
    order = [("repeated", 5), ("fc", -1), ("repeated", 6), ("layer3", -1), ("repeated", 7),
             ("layer2", -1), ("repeated", 8), ("layer1", -1), ("repeated", 9)]  # fmt: skip
    assert found[5:14] == order
    assert {name for name, _ in found[14:]} == {"conv1", "bn1"}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_images_of_another_shape_are_recorded_in_place_of_the_first(accumulation: int) -> None:
    model = network()
    plain = copy.deepcopy(model)
    precision = Precision("off", CPU)
    recorders: list[RunsAgain] = []

    def recorder(device: torch.device) -> RunsAgain:
        recorders.append(RunsAgain(device))
        return recorders[-1]

    recorded = graphed(model, precision, accumulation, recorder)
    first: weakref.ref[Any] | None = None
    for side in (8, 16):
        found = train(recorded, model, precision, accumulation, side=side)
        require_equal(found, train(plain, plain, precision, accumulation, side=side))
        first = first or weakref.ref(recorded._stages[0])
    gc.collect()
    assert first is not None and first() is None, "its memory is given up"
    assert len(recorders) == 2, "once for each shape"
    assert recorded._stages[0].inputs[0].shape == (4, 3, 16, 16)
    assert int(model.bn1.num_batches_tracked) == 2 * 3 * accumulation  # none of the recordings
    log = [*recorders[0].log]
    recorded(next(batches(1))[0])
    assert recorders[0].log == log, "the first are repeated no more"


@pytest.mark.usefixtures("one_thread")
def test_a_gradient_left_where_a_graph_writes_is_noticed() -> None:
    forward = graphed(network(), Precision("off", CPU), 1, RunsAgain)
    images, _ = next(batches(1))
    forward(images).sum().backward()
    with pytest.raises(AssertionError, match="gradient of the last step was left"):
        forward(images).sum().backward()


@pytest.mark.usefixtures("one_thread")
def test_a_run_in_recorded_stages_has_the_same_bits_also_after_a_resume(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "--data.local_batch_size=4", "--schedule.epochs=2", "--schedule.drop_epochs=[1]",
        "--run.keep_checkpoints=9", "--run.checkpoint_every_steps=5",
    )  # fmt: skip
    plain = train_here(small_data, tmp_path, *options, "--run.name=plain")
    monkeypatch.setattr(state, "require_graphs", lambda *_: None)  # they run on this CPU here
    recorded = partial(GraphedNetwork, recorder=RunsAgain)
    monkeypatch.setattr(state, "GraphedNetwork", recorded)
    whole = train_here(small_data, tmp_path, *options, "--run.name=whole", "--model.graphs=true")
    assert state_differences(whole, plain) == []
    assert metrics(whole) == metrics(plain)
    resumed = train_here(
        small_data, tmp_path, *options, "--run.name=resumed", "--model.graphs=true",
        f"--resume={whole}/checkpoints/step-000000005.pt",
    )  # fmt: skip
    assert state_differences(resumed, plain) == []


def test_on_a_cpu_graphs_are_refused() -> None:
    config = Config(model=ModelConfig(graphs=True))
    with pytest.raises(ValueError) as error:
        require_graphs(config, CPU)
    assert str(error.value) == (
        "model.graphs=true needs an NVIDIA GPU and the device is cpu; set model.graphs=false or "
        "run.device=cuda"
    )
    require_graphs(Config(), CPU)
    require_graphs(config, torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"compile": True}, "model.graphs=true and model.compile=true are two ways to launch less"),
        ({"norm": "apex"}, "model.graphs=true cannot hold the kernels of model.norm=apex"),
    ],
)
def test_what_graphs_cannot_hold_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(graphs=True, **other)


@pytest.mark.gpu
@pytest.mark.parametrize("frozen", [(), ("stem", "1")])
@pytest.mark.parametrize("norm", ["reference", "triton"])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize(("accumulation", "keep_gradients"), [(1, False), (2, False), (2, True)])
def test_captured_it_equals_eager(
    norm: Backend, amp: Mode, accumulation: int, keep_gradients: bool, frozen: tuple[str, ...]
) -> None:
    device = torch.device("cuda", 0)
    model = freeze(network(norm=norm).to(device), frozen)
    plain = copy.deepcopy(model)
    precisions = Precision(amp, device, 1024.0), Precision(amp, device, 1024.0)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        recorded = graphed(model, precisions[0], accumulation, CudaRecorder)
        found = train(recorded, model, precisions[0], accumulation, keep_gradients)
        wanted = train(plain, plain, precisions[1], accumulation, keep_gradients)
    for one, other in zip(found, wanted, strict=True):
        away, size = (one.double() - other.double()).norm(), other.double().norm()
        # A capture may choose another algorithm, which sums in another order.
        assert away <= (1e-3 if amp == "off" else 0.03) * size + 1e-4


@pytest.mark.gpu
def test_a_captured_pass_launches_one_graph_for_each_stage() -> None:
    model = network(norm="triton").cuda()
    forward = graphed(model, Precision("bf16", torch.device("cuda", 0)), 1, CudaRecorder)
    images, labels = next(batches(1, torch.device("cuda", 0)))
    for _ in range(2):
        nn.functional.cross_entropy(forward(images).float(), labels).backward()
        model.zero_grad(set_to_none=True)
    with torch.profiler.profile() as profile:
        nn.functional.cross_entropy(forward(images).float(), labels).backward()
    names = [event.name for event in profile.events()]
    assert names.count("cudaGraphLaunch") == 2 * len(model.stages())
