"""How a run stands, from files that its start or its end has left in all orders."""

import json
import os
import socket
import time

import pytest
from made_runs import CIFAR, RunMaker, event, held_by, start

from pipeline.runs.listing import describe, list_runs
from pipeline.runs.state import read_state
from pipeline.train.folder import RunFolder


@pytest.fixture
def make_run(tmp_path):
    return RunMaker(tmp_path)


def elsewhere(folder, age_sec):
    (folder / "lock").write_text(held_by("elsewhere", slurm_job="7"))
    for path in folder.iterdir():
        os.utime(path, (time.time() - age_sec,) * 2)
    return folder


def test_a_run_on_another_host_runs_as_long_as_it_gives_signs_of_life(make_run):
    folder = make_run("a", CIFAR, steps=400, finished=False)
    young = read_state(elsewhere(folder, 60))
    assert (young.state, young.holder.host) == ("running", "elsewhere")
    assert young.note == "by the age of its files; the locks of elsewhere are not seen here"
    # run.step_timeout_sec is 600 s; a validation may take longer, and writes nothing
    silent = read_state(elsewhere(folder, 700))
    assert silent.state == "silent"
    assert silent.note == "no sign for 11 min; its host elsewhere is not this one"
    RunFolder(folder).record_stop("SIGUSR1", 401)
    stopped = read_state(elsewhere(folder, 60))
    assert (stopped.state, stopped.note) == ("stopped", "by SIGUSR1 before step 401")


def test_a_longer_step_timeout_keeps_a_silent_run_alive(make_run):
    folder = make_run("a", CIFAR | {"run.step_timeout_sec": 3600.0}, steps=400, finished=False)
    assert read_state(elsewhere(folder, 700)).state == "running"


def test_a_run_of_this_host_whose_lock_is_free_is_interrupted_however_young(make_run):
    folder = make_run("a", CIFAR, steps=400, finished=False)
    (folder / "lock").write_text(held_by(socket.gethostname()))
    found = read_state(folder)
    assert (found.state, found.note) == ("interrupted", "it left no word of its end")
    (folder / "lock").write_text("")
    assert read_state(folder).state == "interrupted"


def test_a_sign_of_life_from_the_future_is_of_now(make_run):
    assert read_state(elsewhere(make_run("a", CIFAR, steps=400), -100)).age_sec == 0.0


def test_a_finished_run_whose_next_start_failed_is_still_finished(make_run):
    folder = make_run("a", CIFAR, steps=400)
    (folder / "failure.txt").write_text("error: the data are gone\nrank 0 on here\n")
    run = read_state(folder)
    assert (run.state, run.note) == ("finished", "a later start failed: the data are gone")


def test_a_start_that_failed_before_its_configuration_was_written_is_told(tmp_path):
    (tmp_path / "lock").write_text(held_by("elsewhere"))
    (tmp_path / "failure.txt").write_text("error: no images\nrank 0 on here\n")
    run = read_state(tmp_path)
    assert (run.state, run.note, run.network, run.step) == ("failed", "no images", None, 0)


def test_the_length_is_what_is_set_or_what_the_last_start_said(make_run):
    folder = make_run("epochs", CIFAR | {"schedule.epochs": 10.0}, steps=800)
    assert (read_state(folder).total_steps, read_state(folder).epoch) == (None, None)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for total_steps in (1000, 1600):
            file.write(json.dumps(start(total_steps=total_steps)) + "\n")
    run = read_state(folder)
    assert (run.step, run.total_steps, run.epoch, run.epochs) == (800, 1600, 5.0, 10.0)
    in_steps = CIFAR | {"schedule.epochs": None, "schedule.steps": 800}
    folder = make_run("steps", in_steps, steps=800, train=204_800)
    run = read_state(folder)
    assert (run.step, run.total_steps, run.epoch, run.epochs) == (800, 800, 0.5, 0.5)
    assert "0.50/0.5 " in describe(list_runs(folder), folder)


def test_metrics_of_another_make_do_not_end_the_look(make_run):
    folder = make_run("a", CIFAR, steps=400)
    (folder / "metrics.jsonl").write_text('5\n{"event": "val"}\n{"step": "many", "event": "x"}\n')
    run = read_state(folder)
    assert (run.state, run.step, run.best_top1) == ("interrupted", 0, None)


def test_the_speed_is_the_median_of_the_last_lines_of_training(make_run):
    folder = make_run("a", CIFAR, steps=400)
    assert read_state(folder).images_per_sec is None
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for speed in (9000, 9000, 9000, 801, 2, 800, 802, 9000):
            file.write(json.dumps(event("train", 400, images_per_sec=speed)) + "\n")
    run = read_state(folder)
    assert run.images_per_sec == run.as_json["images_per_sec"] == 801
    assert " 801 " in describe(list_runs(folder), folder)
