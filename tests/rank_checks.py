"""What ranks must hold together: `rank_checks.py FOLDER [apart]` on each rank, for
test_distributed.py; apart: as if each were on a machine of its own.

A check is a function of the world that asserts. It runs on every rank, and finishes its
collectives before its first assertion: a rank that fails alone leaves no other one waiting.
`FOLDER/<rank>.json` holds each check's outcome: null, or the traceback.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model.norm import BatchNormAct
from pipeline.model.resnet import build_network
from pipeline.ranks import connect, connected
from pipeline.ranks.board import CAPACITY_BYTES
from pipeline.ranks.connected import ConnectedWorld, OverNetwork
from pipeline.ranks.gradients import Exchange, GradientAverager, OrderedGradients, Summing, Sums
from pipeline.ranks.shared import SharedMemory, Waiting
from pipeline.ranks.world import World
from pipeline.system.failure import ExitCode, Reported, TrainingError, run_command
from pipeline.train.optimizer import build_optimizer
from pipeline.train.precision import Precision

CPU = torch.device("cpu")
MICRO_BATCH = 4


def small_model() -> nn.Module:
    """A few layers, channels-last, the same weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), BatchNormAct(8), nn.Conv2d(8, 8, 3, bias=False),
        nn.Flatten(), nn.Linear(8 * 16, 5),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def micro_batch(index: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """Images (4, 3, side, side) channels-last and labels (4,), other ones for each index."""
    generator = torch.Generator().manual_seed(index)
    images = torch.randn(MICRO_BATCH, 3, side, side, generator=generator)
    labels = torch.randint(0, 5, (MICRO_BATCH,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def backward(model: nn.Module, index: int, side: int = 8, share: int = 1) -> None:
    """Adds the gradients of micro-batch `index`, its loss divided by `share`."""
    images, labels = micro_batch(index, side)
    (F.cross_entropy(model(images), labels) / share).backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients by parameter name, strides kept."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_after_the_other(model: nn.Module, indices: range, side: int = 8) -> dict[str, Tensor]:
    """The mean gradients over micro-batches, computed without any other rank.

    Each micro-batch starts from the model's own BN statistics, as on a rank of its own.
    """
    parts = []
    for index in indices:
        alone = deepcopy(model)
        backward(alone, index, side)
        parts.append(gradients(alone))
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def require_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Asserts the same bits under the same names."""
    assert found.keys() == wanted.keys()
    differ = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not differ, f"these differ: {differ}"


def flat(model: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def averaged_gradients_are_the_mean_of_the_halves(world: World) -> None:
    """ResNet-18, channels-last; BN normalises each half by itself."""
    torch.manual_seed(0)
    model = build_network(ModelConfig(depth=18, zero_init_last_norm=False), 10)
    wanted = one_after_the_other(model, range(world.size), side=32)
    averager = world.average_gradients(model, Summing())
    backward(model, world.rank, side=32)
    averager.synchronize()
    require_equal(gradients(model), wanted)


def strides_of_weights_and_gradients_stay(world: World) -> None:
    model = small_model()
    before = {name: p.stride() for name, p in model.named_parameters()}
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    averager = world.average_gradients(model, Summing())
    backward(model, world.rank)
    gradient = model[0].weight.grad
    assert gradient is not None
    address = gradient.data_ptr()
    averager.synchronize()
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert {name: p.stride() for name, p in model.named_parameters()} == before
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses
    assert {name: g.stride() for name, g in gradients(model).items()} == before
    assert gradient is model[0].weight.grad and gradient.data_ptr() == address, "a copy was made"


def fp16_compression_is_close(world: World) -> None:
    model = small_model()
    wanted = one_after_the_other(model, range(world.size))
    averager = world.average_gradients(model, Summing(compression="fp16"))
    backward(model, world.rank)
    averager.synchronize()
    found = gradients(model)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    for name, gradient in wanted.items():
        # Two fp16 roundings (2**-11 each) and that of the sum; the rest is cancellation.
        torch.testing.assert_close(found[name], gradient, rtol=3e-3, atol=3e-4)
    assert any(not torch.equal(found[name], wanted[name]) for name in wanted), "not compressed"


def accumulation_reduces_on_the_last_micro_batch_only(world: World) -> None:
    model, count = small_model(), 2
    first = world.rank * count
    # BN's batch statistics are those of each micro-batch; running ones do not enter training.
    alone = one_after_the_other(model, range(first, first + 1))
    wanted = one_after_the_other(model, range(world.size * count))
    averager = world.average_gradients(model, Summing(accumulation=count))
    with averager.micro_batch(0):
        backward(model, first, share=averager.divisor)
    local = gradients(model)
    with averager.micro_batch(1):
        backward(model, first + 1, share=averager.divisor)
    averager.synchronize()
    require_equal(local, {name: gradient / count for name, gradient in alone.items()})
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)


def steps_in_order(
    averager: GradientAverager, model: nn.Module, first: int, count: int
) -> list[dict[str, Tensor]]:
    """The gradients of two steps over the micro-batches [first, first + count), each of which says
    its number to the others."""
    found = []
    for _ in range(2):
        for number in range(count):
            with averager.micro_batch(number):
                backward(model, first + number, share=averager.divisor)
            averager.statistics[number] = first + number
        averager.synchronize()
        found.append(gradients(model))
        averager.clear()
    return found


def sums_in_order_have_the_bits_of_one_rank(world: World) -> None:
    # In memory that is shared these ranks can share it whatever they take themselves to be.
    ways: list[Callable[[], Exchange]] = [
        lambda: SharedMemory(world, Waiting(world, lambda reason: AssertionError(reason))),
        lambda: OverNetwork(cast(ConnectedWorld, world), CPU),
    ]
    outcomes = []
    for way in ways:
        for count in range(1, 6):  # of each rank: sums of one and of several nodes
            model, alone = small_model(), small_model()
            summing = Summing(count, "fixed", statistics=3)
            averager = OrderedGradients(model, summing, world.rank, world.size, way())
            found = steps_in_order(averager, model, world.rank * count, count)
            whole = dataclasses.replace(summing, accumulation=world.size * count)
            by_one = World().average_gradients(alone, whole)
            wanted = steps_in_order(by_one, alone, 0, world.size * count)
            outcomes.append((count, found, wanted, averager.all_statistics, by_one.all_statistics))
    chosen = world.average_gradients(small_model(), Summing(1, "fixed"))
    for count, found, wanted, theirs, ours in outcomes:
        for one, other in zip(found, wanted, strict=True):
            require_equal(one, other)
        assert torch.equal(theirs, ours), f"{count} micro-batches each"
        assert theirs[:, 0].tolist() == list(range(world.size * count))
    assert isinstance(chosen, OrderedGradients)
    apart = sys.argv[2:] == ["apart"]
    assert isinstance(chosen._exchange, OverNetwork if apart else SharedMemory)


def a_parameter_that_the_loss_does_not_reach_keeps_no_one_waiting(world: World) -> None:
    outcomes = []
    for sums in ("fast", "fixed"):
        model = small_model()
        model.register_parameter("unused", nn.Parameter(torch.ones(3)))
        wanted = one_after_the_other(small_model(), range(world.size))
        averager = world.average_gradients(model, Summing(sums=cast(Sums, sums)))
        for _ in range(2):
            averager.clear()
            with averager.micro_batch(0):
                backward(model, world.rank)
            averager.synchronize()
        outcomes.append((gradients(model), wanted))
    for found, wanted in outcomes:
        assert found.pop("unused").tolist() == [0.0] * 3
        require_equal(found, wanted)


def an_inf_on_one_rank_skips_the_step_on_both(world: World) -> None:
    model = small_model()
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, decay_norm_and_bias=True)
    averager = world.average_gradients(model, Summing())
    precision = Precision("fp16", CPU, init_scale=1024.0)

    def step(fault: bool) -> None:
        images, labels = micro_batch(world.rank)
        with precision.autocast():
            loss = F.cross_entropy(model(images), labels)
        precision.backward(loss * float("inf") if fault else loss)
        averager.synchronize()
        precision.step(optimizer)
        averager.clear()

    weights = [flat(model)]
    scales = [precision.scale]
    for fault in (world.rank == 1, False):
        step(fault)
        weights.append(flat(model))
        scales.append(precision.scale)
    everyone = world.gather(weights[2])
    assert torch.equal(weights[1], weights[0]), "the step with an inf changed the weights"
    assert not torch.equal(weights[2], weights[1]), "the step after it was skipped too"
    assert scales == [1024.0, 512.0, 512.0]
    assert precision.skipped_steps == 1
    assert torch.equal(everyone[0], everyone[1]), "the ranks' weights differ"


def integer_sums_are_exact(world: World) -> None:
    beyond_float64 = 2**53 + 1
    mine = torch.tensor([beyond_float64 + world.rank, world.rank, -world.rank])
    summed = world.sum(mine)
    ranks_sum = sum(range(world.size))
    assert summed.dtype == torch.int64
    assert summed.tolist() == [world.size * beyond_float64 + ranks_sum, ranks_sum, -ranks_sum]
    assert mine.tolist() == [beyond_float64 + world.rank, world.rank, -world.rank], "was changed"


def float64_sums_keep_their_precision(world: World) -> None:
    summed = world.sum(torch.tensor([1.0 + world.rank * 2.0**-50], dtype=torch.float64))
    assert summed.tolist() == [sum(1.0 + rank * 2.0**-50 for rank in range(world.size))]


def averages_in_place_go_together(world: World) -> None:
    tensors = [torch.full((3,), float(world.rank)), torch.full((2,), 4.0 * world.rank).half()]
    world.average_(tensors)
    mean = (world.size - 1) / 2
    assert [tensor.tolist() for tensor in tensors] == [[mean] * 3, [4 * mean] * 2]


def the_maximum_is_element_wise(world: World) -> None:
    agreed = world.maximum([world.rank, -world.rank, 7, world.rank == 1])
    assert agreed == [world.size - 1, 0, 7, 1]


def what_is_too_long_for_the_board_goes_over_the_engine(world: World) -> None:
    floats = CAPACITY_BYTES // 4 + 1
    mine = torch.full((floats,), float(world.rank))
    gathered, summed = world.gather(mine), world.sum(mine.long())
    got = world.broadcast_object(mine + 5)
    assert gathered.shape == (world.size, floats)
    assert [row.unique().tolist() for row in gathered] == [[rank] for rank in range(world.size)]
    assert summed.unique().tolist() == [sum(range(world.size))]
    assert got.unique().tolist() == [5.0]


def a_decision_is_on_its_way_while_others_are_taken(world: World) -> None:
    outcomes = []
    for number in range(5):
        decision = world.start_maximum([number, world.rank])
        between = [world.maximum([10 * number + world.rank]), world.gather_objects(number)]
        world.barrier()
        outcomes.append((decision(), between))
    last = world.size - 1
    for number, (decided, between) in enumerate(outcomes):
        assert decided == [number, last]
        assert between == [[10 * number + last], [number] * world.size]


def gather_stacks_by_rank(world: World) -> None:
    mine = torch.full((2, 3, 4, 4), float(world.rank)).to(memory_format=torch.channels_last)
    gathered = world.gather(mine + torch.arange(3.0).view(1, 3, 1, 1))
    scalars = world.gather(torch.tensor(world.rank, dtype=torch.int64))
    objects = world.gather_objects({"rank": world.rank, "none": None})
    assert gathered.shape == (world.size, 2, 3, 4, 4)
    for rank in range(world.size):
        assert gathered[rank, 1, :, 3, 2].tolist() == [rank, rank + 1.0, rank + 2.0]
    assert scalars.tolist() == list(range(world.size))
    assert objects == [{"rank": rank, "none": None} for rank in range(world.size)]


def broadcast_objects_keep_tensors_and_strides(world: World) -> None:
    torch.manual_seed(1)
    kernel = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    sent = {"kernel": kernel, "half": kernel[0].half(), "step": 7, "names": ["a", "b"]}
    got = world.broadcast_object(sent if world.rank == 0 else {})
    result = world.on_rank0(lambda: f"made by rank {world.rank}")
    assert torch.equal(got["kernel"], kernel) and got["kernel"].stride() == kernel.stride()
    assert torch.equal(got["half"], kernel[0].half())
    assert (got["step"], got["names"]) == (7, ["a", "b"])
    assert result == "made by rank 0"


def _reported(action: Callable[[], object]) -> Reported | None:
    try:
        action()
    except Reported as error:
        return error
    return None


def facts_that_differ_name_the_rank(world: World) -> None:
    facts = {"configuration": "same", "torch": "2.12.0" if world.rank == 1 else "2.13.0"}
    error = _reported(lambda: world.require_same(facts))
    fine = _reported(lambda: world.require_same({"data hash": "same everywhere"}))
    assert error is not None and error.code is ExitCode.WRONG_INPUT
    assert error.message.startswith(
        "the ranks differ in torch: rank 1 has 2.12.0, the others have 2.13.0;"
    ), error.message
    assert fine is None


def an_error_on_one_rank_ends_the_work_on_all(world: World) -> None:
    def work() -> int:
        if world.rank == 1:
            raise TrainingError("the disk of this rank is full")
        return world.rank

    error = _reported(lambda: world.together(work))
    results = world.gather_objects(world.together(lambda: world.rank * 10))
    assert error is not None and error.code is ExitCode.FAILED
    assert error.message == "rank 1: the disk of this rank is full"
    assert results == [rank * 10 for rank in range(world.size)], "the ranks are out of step"


def of_several_errors_the_lowest_rank_is_reported(world: World) -> None:
    error = _reported(lambda: world.raise_together(ValueError(f"found by {world.rank}")))
    assert error is not None and error.message == "found by 0"


CHECKS = {
    check.__name__: check
    for check in (
        averaged_gradients_are_the_mean_of_the_halves,
        strides_of_weights_and_gradients_stay,
        fp16_compression_is_close,
        accumulation_reduces_on_the_last_micro_batch_only,
        sums_in_order_have_the_bits_of_one_rank,
        a_parameter_that_the_loss_does_not_reach_keeps_no_one_waiting,
        an_inf_on_one_rank_skips_the_step_on_both,
        integer_sums_are_exact,
        float64_sums_keep_their_precision,
        averages_in_place_go_together,
        the_maximum_is_element_wise,
        gather_stacks_by_rank,
        what_is_too_long_for_the_board_goes_over_the_engine,
        a_decision_is_on_its_way_while_others_are_taken,
        broadcast_objects_keep_tensors_and_strides,
        facts_that_differ_name_the_rank,
        an_error_on_one_rank_ends_the_work_on_all,
        of_several_errors_the_lowest_rank_is_reported,
    )
}


def main(argv: list[str]) -> None:
    """Runs all checks, then leaves as a rank does whose work failed on rank 1."""
    torch.set_num_threads(1)
    if argv[1:] == ["apart"]:
        connected.can_share = lambda _: False
    world = connect()
    outcomes: dict[str, str | None] = {}
    for name, check in CHECKS.items():
        try:
            check(world)
            outcomes[name] = None
        except Exception:
            outcomes[name] = traceback.format_exc()
    Path(argv[0], f"{world.rank}.json").write_text(json.dumps(outcomes))

    def fail_on_rank1() -> None:
        if world.rank == 1:
            raise ValueError("the last error of the checks; nothing is to be fixed")

    world.together(fail_on_rank1)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
