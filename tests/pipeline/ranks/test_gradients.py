"""Sums of gradients that have the same bits however the micro-batches are shared out."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from rank_checks import backward, gradients, require_equal, small_model
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.ranks.connected import OverNetwork
from pipeline.ranks.gradients import Alone, Layout, OrderedGradients, Summing
from pipeline.ranks.summation import steps_of, total
from pipeline.ranks.world import World

COUNT = 24  # micro-batches of a step


def as_text(count: int, ranks: int) -> str:
    """The sum over `count` micro-batches with its brackets, as that many ranks form it."""
    sums = {}
    for rank in range(ranks):
        first = rank * count // ranks
        steps, nodes = steps_of(first, count // ranks)
        kept, at_hand = [], ""
        for number, step in enumerate(steps, first):
            at_hand = f"({at_hand}+{number})" if at_hand else str(number)
            for _ in range(step.adds):
                at_hand = f"({kept.pop()}+{at_hand})"
            if step.keeps:
                kept.append(at_hand)
                at_hand = ""
        sums |= zip(nodes, [*kept, at_hand], strict=True)
    return total(sums, count, lambda left, right: f"({left}+{right})")


def test_the_tree_adds_neighbours_first():
    assert as_text(5, 1) == "(((0+1)+(2+3))+4)"
    assert as_text(6, 3) == "(((0+1)+(2+3))+(4+5))"


@pytest.mark.parametrize("count", range(1, 41))
def test_the_order_of_a_sum_does_not_depend_on_the_ranks(count):
    found = {as_text(count, ranks) for ranks in range(1, count + 1) if count % ranks == 0}
    assert len(found) == 1, found


@pytest.mark.parametrize("accumulation", [1, 2, 3, 8, 31, 64])
def test_a_rank_keeps_few_partial_sums(accumulation):
    layout = Layout(0, 1, accumulation, numel=16, statistics=0)
    assert layout.slots <= 1 + math.log2(accumulation)


class Side:
    """The `Exchange` of ranks that take turns in this process: each sees all memories, and writes
    into its own only."""

    def __init__(self, memories: list[torch.Tensor]) -> None:
        self._memories = memories

    def memory(self, layout):
        self._memories.append(torch.zeros(layout.floats))
        return self._memories[-1]

    def run(self, layout, memory):
        before = [one.clone() for one in self._memories[: layout.size]]
        pieces = {
            node: layout.sums(theirs)[slot]
            for theirs, nodes in zip(before, layout.nodes, strict=True)
            for node, slot in nodes.items()
        }
        self._memories.append(memory.clone())
        layout.sums(self._memories[-1])[0] = layout.add_up(pieces)
        return torch.cat([layout.statistics_in(one) for one in self._memories[: layout.size]])


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8, 12, 24])
def test_any_number_of_ranks_has_the_bits_of_one(one_thread, ranks):
    alone = small_model()
    averager = World().average_gradients(alone, Summing(COUNT, "fixed"))
    for number in range(COUNT):
        with averager.micro_batch(number):
            backward(alone, number, share=averager.divisor)
    averager.synchronize()

    memories: list[torch.Tensor] = []
    share = COUNT // ranks
    for rank in range(ranks):
        model = small_model()
        one = OrderedGradients(model, Summing(share, "fixed"), rank, ranks, Side(memories))
        for number in range(share):
            with one.micro_batch(number):
                backward(model, rank * share + number)
    one.synchronize()  # of the last rank, which sees the others
    one._flat.place(one._layout.sums(memories[-1])[0])
    require_equal(gradients(model), gradients(alone))


def test_the_mean_is_that_of_the_micro_batches(one_thread):
    alone, model = small_model(), small_model()
    for number in range(6):
        backward(alone, number, share=6)
    averager = World().average_gradients(model, Summing(6, "fixed"))
    for _ in range(2):  # nothing of a step is left for the next
        for number in range(6):
            with averager.micro_batch(number):
                backward(model, number, share=averager.divisor)
        averager.synchronize()
        for name, found in gradients(model).items():
            torch.testing.assert_close(found, gradients(alone)[name], rtol=1e-5, atol=1e-7)
        averager.clear()


@pytest.mark.gpu
def test_a_gpu_adds_in_the_same_order_and_keeps_the_addresses_of_its_gradients():
    model = small_model().cuda()
    averager = World().average_gradients(model, Summing(6, "fixed"))
    addresses = []
    for _ in range(2):
        for number in range(6):
            with averager.micro_batch(number):
                # A gradient whose bits do not depend on a convolution's.
                sum((p.sum() * (number + 0.1) for p in model.parameters()), start=0.0).backward()
        averager.synchronize()
        addresses.append([p.grad.data_ptr() for p in model.parameters()])
        a, b, c, d, e, f = (torch.tensor(number + 0.1) for number in range(6))
        wanted = (((a + b) + (c + d)) + (e + f)) / 6
        for found in gradients(model).values():
            assert torch.equal(found.cpu(), wanted.expand(found.shape))
        averager.clear()
    assert addresses[0] == addresses[1]


class Operations(TorchDispatchMode):
    """Counts the tensor operations of its body by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Echo:
    """A world of ranks that all have what this one has."""

    def exchange_shards(self, parts):
        return parts

    def gather_shards(self, shard, name):
        return torch.cat([shard, shard])


def test_the_exchange_over_a_network_has_no_operation_that_would_wait_for_a_gpu():
    exchange = OverNetwork(Echo(), torch.device("cpu"))  # type: ignore[arg-type]
    layout = Layout(0, 2, accumulation=3, numel=64, statistics=4)  # two partial sums
    assert len(layout.nodes[0]) == 2
    memory = exchange.memory(layout)
    with Operations() as seen:
        exchange.run(layout, memory)
    # An index by a list is copied to the device from memory that is not pinned.
    waiting = {"index", "index_select", "_local_scalar_dense", "nonzero", "_to_copy"}
    assert seen.counts.keys() & waiting == set(), seen.counts


def test_a_gpu_adds_whole_tensors_where_a_core_adds_what_fits_its_cache():
    layout = Layout(0, 1, accumulation=3, numel=2**20, statistics=0)
    found = {}
    for device in ("cpu", "meta"):
        exchange = Alone(torch.device(device))
        memory = exchange.memory(layout)
        with Operations() as seen:
            exchange.run(layout, memory)
        found[device] = seen.counts["add_"]
    assert found["meta"] == len(layout.nodes[0]) - 1 < found["cpu"]
