"""How a run stands, from files that its start or its end has left in all orders."""

import os
import time

import pytest
from made_runs import CIFAR, RunMaker

from pipeline.observing.state import read_state


@pytest.fixture
def make_run(tmp_path):
    return RunMaker(tmp_path)


def elsewhere(folder, age_sec):
    (folder / "lock").write_text("process 1 on elsewhere, Slurm job 7, since 2026-11-21 10:00:22\n")
    for path in folder.iterdir():
        os.utime(path, (time.time() - age_sec,) * 2)
    return folder


def test_a_run_on_another_host_runs_as_long_as_it_gives_signs_of_life(make_run):
    folder = make_run("a", CIFAR, steps=400, finished=False)
    young = read_state(elsewhere(folder, 60))
    assert (young.state, young.holder.host) == ("running", "elsewhere")
    assert young.note == "by the age of its files; the locks of elsewhere are not seen here"
    # run.step_timeout_sec, 600 s, would have ended it
    assert read_state(elsewhere(folder, 700)).state == "interrupted"
    (folder / "stopped.txt").write_text("SIGUSR1 before step 401\n")
    stopped = read_state(elsewhere(folder, 60))
    assert (stopped.state, stopped.note) == ("stopped", "by SIGUSR1 before step 401")


def test_a_longer_step_timeout_keeps_a_silent_run_alive(make_run):
    folder = make_run("a", CIFAR | {"run.step_timeout_sec": 3600.0}, steps=400, finished=False)
    assert read_state(elsewhere(folder, 700)).state == "running"


def test_a_sign_of_life_from_the_future_is_of_now(make_run):
    assert read_state(elsewhere(make_run("a", CIFAR, steps=400), -100)).age_sec == 0.0


def test_a_finished_run_whose_next_start_failed_is_still_finished(make_run):
    folder = make_run("a", CIFAR, steps=400)
    (folder / "failure.txt").write_text("error: the data are gone\nrank 0 on here\n")
    run = read_state(folder)
    assert (run.state, run.note) == ("finished", "a later start failed: the data are gone")


def test_a_start_that_failed_before_its_configuration_was_written_is_told(tmp_path):
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    (tmp_path / "failure.txt").write_text("error: no images\nrank 0 on here\n")
    run = read_state(tmp_path)
    assert (run.state, run.note, run.network, run.step) == ("failed", "no images", None, 0)


def test_the_length_is_what_is_set_or_what_the_last_start_said(make_run):
    set_in_steps = CIFAR | {"schedule.epochs": None, "schedule.steps": 64000}
    folder = make_run("steps", set_in_steps, steps=800)
    run = read_state(folder)
    assert (run.step, run.total_steps, run.epoch, run.epochs) == (800, 64000, 2, None)
    folder = make_run("epochs", CIFAR | {"schedule.epochs": 10.0}, steps=800)
    assert read_state(folder).total_steps is None
    said = "2026-11-21 10:00:26 batch: 128 = 2 ranks x 32 images x 2 accumulated; steps {}\n"
    (folder / "log.txt").write_text(said.format("0 to 1000") + said.format("800 to 1600"))
    run = read_state(folder)
    assert (run.total_steps, run.epoch, run.epochs) == (1600, 5.0, 10.0)


def test_metrics_of_another_make_do_not_end_the_look(make_run):
    folder = make_run("a", CIFAR, steps=400)
    (folder / "metrics.jsonl").write_text('5\n{"event": "val"}\n{"step": "many", "event": "x"}\n')
    run = read_state(folder)
    assert (run.state, run.step, run.best_top1) == ("interrupted", 0, None)
