"""The ranks' decision on the next batch is on its way while the present one is computed."""

from __future__ import annotations

import dataclasses
import time
from contextlib import contextmanager

import pytest
import torch

from pipeline.benchmark.resident import resident_config, resident_training
from pipeline.benchmark.scale import delay_decisions
from pipeline.ranks.gradients import GradientAverager
from pipeline.ranks.world import World

CPU = torch.device("cpu")


class Noted(World):
    """One process that notes when decisions and gradients are started and awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self._decisions = 0

    def start_maximum(self, values):
        number, self._decisions = self._decisions, self._decisions + 1
        self.events.append(f"decision {number} starts")
        wait = super().start_maximum(values)

        def noted():
            self.events.append(f"decision {number} is awaited")
            return wait()

        return noted

    def average_gradients(self, model, summing):
        return NotedGradients(model, self.events)


class NotedGradients(GradientAverager):
    def __init__(self, model, events) -> None:
        super().__init__(model)
        self._events = events

    @contextmanager
    def micro_batch(self, number):
        yield
        self._events.append("backward is launched")

    def synchronize(self):
        self._events.append("gradients are awaited")


def trained(world: World, folder, steps: int) -> None:
    config = resident_config(18, 32, 2, folder)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, sums="fast"))
    resident_training(config, world, CPU).run(steps)


def test_the_next_decision_starts_before_gradients_are_awaited(tmp_path, one_thread):
    world = Noted()
    trained(world, tmp_path, 3)
    a_step = [
        "decision {k} is awaited", "backward is launched", "decision {next} starts",
        "gradients are awaited",
    ]  # fmt: skip
    assert world.events == ["decision 0 starts"] + [
        event.format(k=k, next=k + 1) for k in range(3) for event in a_step
    ]


def test_a_delayed_decision_comes_later_and_is_the_same():
    world = World()
    delay_decisions(world, 0.05)
    started = time.monotonic()
    waits = [world.start_maximum([number, 7]) for number in range(2)]
    assert [wait() for wait in waits] == [[0, 7], [1, 7]]
    assert time.monotonic() - started >= 0.05


def test_an_error_of_a_delayed_decision_is_raised_where_it_is_awaited():
    class Failing(World):
        def start_maximum(self, values):
            def wait():
                raise RuntimeError("a peer left")

            return wait

    world = Failing()
    delay_decisions(world, 0.0)
    wait = world.start_maximum([1])
    with pytest.raises(RuntimeError, match="a peer left"):
        wait()
