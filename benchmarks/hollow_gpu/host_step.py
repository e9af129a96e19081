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
from typing import Any

import harness
import torch
import torch.nn.functional as F

from pipeline.benchmark.result import interleave
from pipeline.config import ModelConfig
from pipeline.model.backends import Backend
from pipeline.model.resnet import build_network
from pipeline.train.graphs import GraphedNetwork
from pipeline.train.optimizer import build_optimizer
from pipeline.train.precision import Precision

_WARM_UP, _STEPS = 5, 3  # steps of a side before it is counted, and in one round


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


def counted(step: Callable[[], None]) -> dict[str, int]:
    """What one step counts, after a few others."""
    for _ in range(_WARM_UP):
        step()
    before = harness.counts()
    step()
    after = harness.counts()
    return {name: after[name] - before[name] for name in after}


def cpu_ms(step: Callable[[], None]) -> float:
    """Milliseconds of CPU, of all threads, in a step of one round."""
    started = time.process_time()
    for _ in range(_STEPS):
        step()
    return 1e3 * (time.process_time() - started) / _STEPS


def measure(depth: int, batch: int, rounds: int) -> dict[str, Any]:
    """By side: `counts` of a step, and `cpu_ms` of each round."""
    sides = {
        "reference": make_step(depth, batch, "reference", False),
        "triton": make_step(depth, batch, "triton", False),
        "graphs": make_step(depth, batch, "triton", True),
    }
    counts = {name: counted(step) for name, step in sides.items()}
    spreads = interleave(rounds, {name: partial(cpu_ms, step) for name, step in sides.items()})
    return {name: {"counts": counts[name], "cpu_ms": list(spreads[name].rounds)} for name in sides}


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = harness.empty_convolutions()
    print(json.dumps(measure(*map(int, sys.argv[1:4]))))
    harness.leave()
