"""On the hollow GPU: `pipeline.train` itself, and how often it waits in a step between two lines of
metrics.

usage: training.py FIRST LAST ARGUMENT...; prints a JSON object after step LAST, and ends there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import harness
import nvidia.dali.backend
import torch

from pipeline.train.__main__ import main
from pipeline.train.precision import Precision
from pipeline.train.trainer import Trainer


def count_steps(first: int, last: int) -> None:
    """Makes the trainer count from step `first` until before `last`, and print that."""
    waits, take, before = harness.Waits(), Trainer.train_step, {}

    def train_step(self: Trainer, *arguments: Any) -> Any:
        step = self.state.step
        if step == first:
            before.update(harness.counts())
            waits.on = True
        if step == last:
            waits.on = False
            steps, after = last - first, harness.counts()
            each = {name: (after[name] - before[name]) / steps for name in after}
            places = {place: n / steps for place, n in waits.places.most_common(5)}
            print(json.dumps(each | {"places": places}))
            harness.leave()
        return take(self, *arguments)

    Trainer.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    kept = harness.empty_convolutions()
    nvidia.dali.backend.GetCUDADeviceCount = lambda: 0  # its decoders need a GPU that computes
    Precision._check = lambda *_: None  # type: ignore[method-assign]  # counts are noise there
    torch.set_num_threads(1)
    count_steps(int(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
