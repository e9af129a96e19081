"""Phases of a step: they beat the heart, are timed, and appear in a trace while one is made."""

import time

import pytest
import torch

from pipeline.ranks.heartbeat import Heartbeat
from pipeline.train.phases import PHASES, Phases

CPU = torch.device("cpu")


def seconds(phases: Phases) -> dict[str, float]:
    return dict(zip(PHASES, phases.seconds(), strict=True))


def test_a_phase_beats_the_heart_with_its_name_and_step():
    heartbeat = Heartbeat()
    phases = Phases(heartbeat, CPU)
    with phases("data_wait", 7):
        assert (heartbeat.now().phase, heartbeat.now().step) == ("data_wait", 7)
    with phases("forward"):
        assert (heartbeat.now().phase, heartbeat.now().step) == ("forward", 7)


def test_times_of_a_phase_add_up_until_a_restart_also_past_an_error():
    phases = Phases(Heartbeat(), CPU)
    for _ in range(2):
        with phases("backward"):
            time.sleep(0.01)
    with pytest.raises(KeyError), phases("checkpoint"):
        time.sleep(0.01)
        raise KeyError
    found = seconds(phases)
    assert found["backward"] >= 0.02
    assert found["checkpoint"] >= 0.01
    assert found["forward"] == 0
    phases.restart()
    assert set(phases.seconds()) == {0.0}


def test_the_longest_time_without_a_beat_is_told_once():
    heartbeat = Heartbeat()
    heartbeat.beat("data_wait", 1)
    heartbeat.take_longest_sec()
    time.sleep(0.02)
    heartbeat.beat("agreement")
    heartbeat.beat("forward")
    assert heartbeat.take_longest_sec() >= 0.02
    assert heartbeat.take_longest_sec() == 0


def test_a_trace_has_the_phases_that_were_annotated_only():
    phases = Phases(Heartbeat(), CPU)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with phases("data_wait"):
            torch.ones(3)
        phases.annotate(True)
        with phases("forward"):
            torch.ones(3)
        phases.annotate(False)
        with phases("optimizer"):
            torch.ones(3)
    assert {event.key for event in profiler.key_averages()} & set(PHASES) == {"forward"}


@pytest.mark.gpu
def test_on_a_gpu_phases_are_timed_on_the_device_without_waiting_for_it():
    device = torch.device("cuda")
    phases = Phases(Heartbeat(), device)
    matrix = torch.randn(8192, 8192, device=device)
    (matrix @ matrix).sum().item()
    started = time.perf_counter()
    with phases("forward"):
        for _ in range(20):
            torch.mm(matrix, matrix)
    issued = time.perf_counter() - started
    found = seconds(phases)
    assert found["forward"] > 2 * issued
    phases.restart()
    assert set(phases.seconds()) == {0.0}
