"""On the hollow GPU: the host's CPU time and the launches of a training step, by norm layer.

usage: host_step.py DEPTH BATCH ROUNDS; prints a JSON object by side: "reference", "triton" and
"graphs" (triton, in CUDA graphs). The sides alternate.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import harness
import torch
import torch.nn.functional as F

from pipeline.config import ModelConfig
from pipeline.model.backends import Backend
from pipeline.model.resnet import build_network
from pipeline.train.graphs import GraphedNetwork
from pipeline.train.optimizer import build_optimizer
from pipeline.train.precision import Precision

_WARM_UP, _STEPS = 5, 3  # steps of a side before the rounds, and of one round


def make_step(depth: int, batch: int, norm: Backend, graphs: bool) -> Callable[[], None]:
    """A step on one batch: bf16, SGD, as the trainer takes it."""
    device = torch.device("cuda", 0)
    model = build_network(ModelConfig(depth=depth), 1000, norm).to(device).train()
    images = torch.empty(batch, 224, 224, 3, device=device).permute(0, 3, 1, 2)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    optimizer = build_optimizer(model, 0.1, 0.9, 1e-4, False)
    precision = Precision("bf16", device)
    forward: torch.nn.Module = model
    if graphs:
        forward = GraphedNetwork(model, partial(precision.autocast, cached=False), False)

    def step() -> None:
        with precision.autocast():
            loss = F.cross_entropy(forward(images), labels)
        precision.backward(loss)
        precision.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(depth: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """By side: `cpu_ms` of a step, the lower quartile over rounds, and counts of one step."""
    sides = {
        "reference": make_step(depth, batch, "reference", False),
        "triton": make_step(depth, batch, "triton", False),
        "graphs": make_step(depth, batch, "triton", True),
    }
    found: dict[str, dict[str, float]] = {}
    for name, step in sides.items():
        for _ in range(_WARM_UP):
            step()
        before = harness.counts()
        step()
        after = harness.counts()
        found[name] = {count: after[count] - before[count] for count in after}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            for _ in range(_STEPS):
                started = time.process_time()
                step()
                times[name].append(1e3 * (time.process_time() - started))
    for name, values in times.items():
        found[name]["cpu_ms"] = sorted(values)[len(values) // 4]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = harness.empty_convolutions()
    print(json.dumps(measure(*map(int, sys.argv[1:4]))))
    harness.leave()
