"""A rank of an earlier start that wakes up leaves the start that has the run by then alone."""

import logging
import os
import re
import shutil
import signal
from pathlib import Path

import jobs
import pytest
from one_process import train_here
from run_files import checkpoint_steps, metrics

from pipeline.ranks.world import World
from pipeline.system.failure import FellWithPeer, PeerLost, TrainingError
from pipeline.train import lock
from pipeline.train.folder import Holder, RunFolder
from pipeline.train.lock import first_cause_kept, record_hang
from pipeline.train.trainer import Trainer


@pytest.fixture
def taken(tmp_path) -> RunFolder:
    """A run that another start has taken."""
    run = RunFolder(tmp_path)
    run.lock.write_text(Holder.here("another-start").as_json)
    return run


def files(run: RunFolder) -> list[str]:
    return sorted(str(file.relative_to(run.path)) for file in run.path.rglob("*"))


@pytest.mark.parametrize("error", [PeerLost("rank 0 is gone"), OSError("stale"), ValueError("x")])
def test_the_cause_of_an_earlier_starts_failure_is_not_that_of_this_one(taken, error):
    world = World()
    world.rank = 1  # rank 0 forgets what it finds when it begins
    said = "^rank 1 ends because its start of the job is over: "
    with pytest.raises(FellWithPeer, match=said), first_cause_kept(taken, world):
        raise error
    assert files(taken) == ["lock"]


def test_a_hang_of_an_earlier_start_is_not_that_of_this_one(taken, caplog):
    record_hang(taken, 1, "this-start", "no progress")
    assert re.search("its start of the job is over: the run in .* is now that of", caplog.text)
    assert files(taken) == ["lock"]


def test_a_run_that_was_taken_is_written_no_more(taken):
    with pytest.raises(TrainingError, match=r"is now that of process \d+ .*: this start lost its"):
        taken.require_of("this-start")
    taken.require_of("another-start")


def test_a_line_of_metrics_costs_ranks_no_collectives_for_the_lock(
    small_data, tmp_path, monkeypatch
):
    record, within, made = Trainer._record, [], []

    def counted(name, call):
        def collective(*given):
            made.extend([name] * len(within))
            return call(*given)

        return collective

    def recorded(trainer, measured):
        within.append(1)
        record(trainer, measured)
        within.clear()

    monkeypatch.setattr(Trainer, "_record", recorded)
    for name in ("gather", "gather_objects", "broadcast_object", "maximum", "barrier"):
        monkeypatch.setattr(World, name, counted(name, getattr(World, name)))
    lines = [e for e in metrics(train_here(small_data, tmp_path)) if e["event"] == "train"]
    assert len(lines) > 1
    assert made == ["maximum", "gather"] * len(lines)  # a loss that is no number; the line


def test_lines_of_the_log_ask_for_the_lock_now_and_then_and_after_a_pause(tmp_path, monkeypatch):
    run, world, now, asked = RunFolder(tmp_path), World(), [100.0], []
    run.lock.write_text(Holder.here(world.start).as_json)
    monkeypatch.setattr(lock.time, "monotonic", lambda: now[0])
    ask = RunFolder.is_of
    monkeypatch.setattr(RunFolder, "is_of", lambda *given: asked.append(1) or ask(*given))
    log = logging.getLogger("trainyard")
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(log, "level", logging.INFO)
    with first_cause_kept(run, world):
        for _ in range(50):
            log.info("a line")
        assert len(asked) == 1
        run.lock.write_text(Holder.here("another-start").as_json)
        now[0] += 60.0  # it was away
        log.info("a line too late")
    assert run.log.read_text().count("a line\n") == 50
    assert "too late" not in run.log.read_text()


@pytest.mark.parametrize(
    "lock", ["", "{}", '{"process": 1, "host": "h", "slurm_job": null, "since": null}']
)
def test_a_lock_that_names_no_start_is_of_any(tmp_path, lock):
    run = RunFolder(tmp_path)
    run.lock.write_text(lock)
    assert run.is_of("this-start")


def start(argv: list[str]) -> jobs.Ranks:
    return jobs.start([str(jobs.SABOTEUR), *argv], 2, "torch", HOROVOD_GLOO_TIMEOUT_SECONDS="6")


def test_a_stopped_rank_that_wakes_up_in_the_next_start_changes_nothing(
    small_data, tmp_path, uninterrupted
):
    """Rank 1 is stopped in step 5, its job given up; when it wakes, the next start has trained."""
    run, settings = RunFolder(tmp_path / "test"), jobs.resumable(small_data, tmp_path)
    first = start(["pause-step:5:1", *settings, "--run.step_timeout_sec=5"])
    second = None
    try:
        jobs.wait_for(lambda: first.processes[0].poll() is not None, "the end of rank 0")
        assert run.first_cause() is not None
        second = start(["slow-step:0.2:all", *settings])
        jobs.wait_for(lambda: run.first_cause() is None, "the second start")
        jobs.wait_for(lambda: checkpoint_steps(run.path)[-1] > 4, "its first checkpoint")
        os.kill(first.processes[1].pid, signal.SIGCONT)
        first.wait()
        assert second.processes[0].poll() is None, "the second start has ended before the first"
        second.wait()
    finally:
        for process in [*first.processes, *(second.processes if second else [])]:
            process.kill()
    assert first.codes[1] == 1, first.text
    assert "rank 1 ends because its start of the job is over" in first.outputs[1]
    assert second.codes == [0, 0], second.text
    assert not run.failure.exists() and not run.stacks.exists()
    assert metrics(run.path)[-1] == metrics(uninterrupted)[-1]
    shutil.rmtree(run.path)


def test_a_start_that_lost_its_lock_writes_no_checkpoint_and_no_metrics(small_data, tmp_path):
    """As when an NFS server has taken the lock from a node that was away."""
    run, settings = RunFolder(tmp_path / "test"), jobs.resumable(small_data, tmp_path)
    job = jobs.start([str(jobs.SABOTEUR), "slow-step:0.2:all", *settings])
    jobs.wait_for(lambda: checkpoint_steps(run.path), "a checkpoint")
    run.lock.write_text(Holder.here("another-start").as_json)
    steps, lines = checkpoint_steps(run.path), len(metrics(run.path))
    job.wait()
    assert job.codes == [1]
    assert re.search(r"^error: the run in \S+ is now that of process", job.text, re.MULTILINE)
    # One of each may have been on its way.
    assert len(set(checkpoint_steps(run.path)) - set(steps)) <= 1
    assert len(metrics(run.path)) <= lines + 1
    assert not Path(run.failure).exists()
    assert "error:" not in run.log.read_text()
