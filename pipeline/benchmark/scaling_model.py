"""The time of a step on n GPUs: pure functions, no measurement and no torch.

A step on n GPUs is a step without communication, plus what is left of the gradients' all-reduce
when backward has ended, plus what the ranks' decision takes longer than the step hides, plus what
the engine takes from computing while nothing travels, plus the wait for the slowest:

    step(n) = step + decision(n) + exposed(n) + engine + jitter * E_max(n)
    efficiency = step / step(n)

- An all-reduce of k tensors with S bytes takes latency + (k - 1) * tensor + S * sec_per_byte: the
  alpha-beta model (Thakur, Rabenseifner and Gropp 2005, section 2) with the engine's cost per
  tensor.
- A ring of n ranks moves 2 (n - 1) / n * S over each link in 2 (n - 1) hops (Patarasuk and Yuan
  2009); two levels reduce inside each node, then between nodes, then spread inside (see
  `two_level_cost`).
- Gradients become ready from the last layer to the first while backward runs, and the network sends
  what is ready whenever it is free (Shi, Chu and Li 2019, "MG-WFBP", section III), bucket by bucket
  (`in_buckets`). Fixed sums begin when backward has ended.
- Where ranks have no other cores, an all-reduce that is hidden still takes time from backward,
  which ends so much later.
- The decision on a batch is on its way while the batch before it is computed, in rings of its own
  (`decision_sec`): it costs only what exceeds that.

It leaves out that NCCL's kernels take parts of a GPU, other jobs on the network, and loaders that
cannot keep up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean

import numpy as np

# A convolution's backward pass computes two products, by weights and by images, for forward's one.
BACKWARD_SHARE = 2 / 3
_STARTS = 16


@dataclass(frozen=True)
class Gradient:
    """The gradients of one layer: when they are ready, and how much there is to send."""

    ready: float
    """Share of the backward pass, 0 to 1, after which they are complete."""
    size: int
    """Bytes."""
    tensors: int = 1


@dataclass(frozen=True)
class Cost:
    """The cost of an all-reduce (the module's first formula), in seconds and seconds per byte."""

    latency_sec: float
    sec_per_byte: float
    tensor_sec: float = 0.0
    taken_share: float = 0.0
    """Seconds that each of its seconds takes from the computing of a rank on the same cores. Above
    1 the two also slow each other, by caches and by changes from one to the other."""

    def seconds(self, size: int, tensors: int = 1) -> float:
        """Seconds of `tensors` in flight together, `size` bytes in all."""
        return self.latency_sec + (tensors - 1) * self.tensor_sec + size * self.sec_per_byte

    def together(self, gradients: Sequence[Gradient]) -> float:
        """Seconds of all `gradients` in flight together."""
        return self.seconds(sum(g.size for g in gradients), sum(g.tensors for g in gradients))


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs. Bandwidths in bytes/s, each way."""

    gpus_per_node: int
    gpu_bytes_per_sec: float
    """From one GPU to the others of its node (bus bandwidth)."""
    node_bytes_per_sec: float
    """Between nodes, over all links of one node together."""
    gpu_hop_sec: float
    node_hop_sec: float
    latency_sec: float
    """Of any communication, however many take part: negotiation and launch."""
    tensor_sec: float = 0.0
    """Of each further tensor in flight."""

    def nodes(self, gpus: int) -> int:
        """The number of nodes that `gpus` fill; if several, completely."""
        return -(-gpus // self.gpus_per_node)


def bus_share(ranks: int) -> float:
    """2 (n - 1) / n: bytes over each link of a ring for one byte that is averaged."""
    return 2 * (ranks - 1) / ranks


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(latency, seconds per byte), neither below 0, that fit `seconds` at `sizes` bytes best.

    Least squares of the relative errors (weights 1 / seconds^2), so that small sizes count as much
    as large ones. Of a single size all is latency.
    """
    bytes_, sec = np.asarray(sizes, dtype=float), np.asarray(seconds)
    weights = 1 / sec**2
    alone = float(np.average(sec, weights=weights)), 0.0
    if len(set(sizes)) == 1:
        return alone
    slope, latency = np.polyfit(bytes_, sec, 1, w=1 / sec)
    if slope <= 0:
        return alone
    if latency >= 0:
        return float(latency), float(slope)
    return 0.0, float((weights * bytes_ * sec).sum() / (weights * bytes_**2).sum())


def at_ranks(measured: Cost, measured_ranks: int, ranks: int) -> Cost:
    """The cost `measured` with `measured_ranks` ranks, for a ring of `ranks` over the same links.

    The latency is taken as it is: Horovod's cycle is most of it.
    """
    per_byte = measured.sec_per_byte * bus_share(ranks) / bus_share(measured_ranks)
    return replace(measured, sec_per_byte=per_byte)


def decision_sec(ranks: int, rings: int, hop_sec: float, latency_sec: float = 0.0) -> float:
    """Seconds of the decision of `ranks` ranks: `rings` one after the other of 2 (n - 1) hops each,
    after what any communication takes.

    Horovod has two, its own for what is ready and that of the values; torch.distributed has one.
    """
    return latency_sec + rings * 2 * (ranks - 1) * hop_sec


def ring_cost(gpus: int, cluster: Cluster) -> Cost:
    """One ring through all GPUs, node by node: its slowest link limits it.

    latency + 2 (n - m) gpu_hop + 2 m node_hop (without the second in one node, and then with 2 (n -
    1) gpu_hop) + S * 2 (n - 1) / n / min(gpu, node bandwidth), for n GPUs in m nodes.
    """
    if gpus == 1:
        return Cost(0.0, 0.0)
    nodes = cluster.nodes(gpus)
    hops_sec = 2 * (gpus - nodes) * cluster.gpu_hop_sec
    bytes_per_sec = cluster.gpu_bytes_per_sec
    if nodes > 1:
        hops_sec += 2 * nodes * cluster.node_hop_sec
        bytes_per_sec = min(bytes_per_sec, cluster.node_bytes_per_sec)
    return Cost(cluster.latency_sec + hops_sec, bus_share(gpus) / bytes_per_sec, cluster.tensor_sec)


def two_level_cost(gpus: int, cluster: Cluster) -> Cost:
    """Reduce-scatter in each node, all-reduce of the g shares between nodes, all-gather.

    latency + 2 (g - 1) gpu_hop + 2 ceil(log2 m) node_hop
    + S * (2 (g - 1) / g / gpu bandwidth + 2 (m - 1) / m / node bandwidth)

    for m nodes of g GPUs; between nodes by recursive halving and doubling (Thakur et al. 2005,
    section 4.5). The levels do not overlap, which NCCL's own pipelines do in part.
    """
    if gpus == 1:
        return Cost(0.0, 0.0)
    nodes = cluster.nodes(gpus)
    inside = gpus // nodes
    hops_sec = 2 * (inside - 1) * cluster.gpu_hop_sec
    hops_sec += 2 * math.ceil(math.log2(nodes)) * cluster.node_hop_sec
    per_byte = bus_share(inside) / cluster.gpu_bytes_per_sec
    per_byte += bus_share(nodes) / cluster.node_bytes_per_sec
    return Cost(cluster.latency_sec + hops_sec, per_byte, cluster.tensor_sec)


def in_buckets(gradients: Sequence[Gradient], least_bytes: int) -> list[Gradient]:
    """The same gradients as they travel: together, until a bucket has `least_bytes`."""
    buckets: list[Gradient] = []
    for one in gradients:
        if buckets and buckets[-1].size < least_bytes:
            buckets[-1] = Gradient(one.ready, buckets[-1].size + one.size)
        else:
            buckets.append(Gradient(one.ready, one.size))
    return buckets


def exposed_sec(
    gradients: Sequence[Gradient], backward_sec: float, cost: Cost, free_sec: float = 0.0
) -> float:
    """Seconds by which the last average comes later than backward alone would end.

    `gradients` in the order in which they become ready. Whenever the network is free, the first
    time `free_sec` after backward began, it sends all that is ready in one go, as a cycle of
    Horovod does.
    """
    now, done, sent = 0.0, 0.0, 0  # `done` seconds of backward's own work
    while sent < len(gradients):
        waits = max(free_sec - now, gradients[sent].ready * backward_sec - done, 0.0)
        now, done = now + waits, min(backward_sec, done + waits)
        ready = sent + 1
        while ready < len(gradients) and gradients[ready].ready * backward_sec <= done:
            ready += 1
        sends = cost.together(gradients[sent:ready])
        # Beside backward it is slower by `longer`, and backward has what is left of the core.
        longer = max(1.0, cost.taken_share)
        left = 1 - cost.taken_share / longer
        beside = sends * longer
        if left * beside > backward_sec - done:
            beside = (backward_sec - done) / left
        now += beside + sends - beside / longer
        done, sent = done + left * beside, ready
    return max(0.0, now - done)


def mean_exposed_sec(gradients: Sequence[Gradient], backward_sec: float, cost: Cost) -> float:
    """`exposed_sec`, averaged over where in a cycle of Horovod backward begins.

    What is left at the end depends on that: from one start alone, a faster network could look
    slower.
    """
    starts = [cost.latency_sec * part / _STARTS for part in range(_STARTS)]
    return fmean(exposed_sec(gradients, backward_sec, cost, start) for start in starts)


def without_overlap(gradients: Sequence[Gradient]) -> list[Gradient]:
    """The same gradients, none of which is ready before backward has ended."""
    return [Gradient(1.0, gradient.size, gradient.tensors) for gradient in gradients]


def expected_maximum(count: int) -> float:
    """E_max: by how many standard deviations the slowest of `count` is above the mean.

    Of independent normal times, by Blom's approximation (1958): the (n - 3/8) / (n + 1/4) quantile.
    """
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


@dataclass(frozen=True)
class Step:
    """A step without communication."""

    sec: float
    jitter_sec: float = 0.0
    """Standard deviation of its time on a rank."""
    backward_share: float = BACKWARD_SHARE
    hiding_share: float = BACKWARD_SHARE
    """Share of it that passes while a decision is on its way. On a GPU it sets off when backward is
    launched, which runs much later; on a CPU when backward has ended."""
    engine_share: float = 0.0
    """Share of a rank's core that the engine takes even while nothing travels: Horovod's looks for
    work, each with a message to all ranks."""


@dataclass(frozen=True)
class Prediction:
    """The parts of one step on many GPUs, in seconds."""

    step_sec: float
    """The step without communication."""
    agreement_sec: float
    """What the ranks' decision takes beyond what hides it."""
    exposed_sec: float
    jitter_sec: float
    engine_sec: float = 0.0
    """What the engine takes while nothing travels."""

    @property
    def waits_sec(self) -> float:
        """What a rank waits for others."""
        return self.agreement_sec + self.exposed_sec + self.jitter_sec

    @property
    def efficiency(self) -> float:
        """Speed per GPU over that of one GPU alone."""
        return self.step_sec / (self.step_sec + self.waits_sec + self.engine_sec)


def predict(
    ranks: int, step: Step, gradients: Sequence[Gradient], cost: Cost, decided_sec: float = 0.0
) -> Prediction:
    """A step of `ranks` ranks whose all-reduces take `cost` and whose decisions `decided_sec`.

    One rank communicates with nobody.
    """
    if ranks == 1:
        return Prediction(step.sec, 0.0, 0.0, 0.0)
    exposed = mean_exposed_sec(gradients, step.backward_share * step.sec, cost)
    return Prediction(
        step.sec,
        max(0.0, decided_sec - step.hiding_share * step.sec - exposed),
        exposed,
        step.jitter_sec * expected_maximum(ranks),
        step.sec * step.engine_share / (1 - step.engine_share),
    )
