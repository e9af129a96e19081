"""How a job ends: signals, a loss that is not a number, wrong input, and a run in use."""

import json
import re
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
import torch
from jobs import SABOTEUR, resumable, small_settings, train, wait_for
from run_files import checkpoint_steps, metrics, newest_checkpoint, state_differences

FINISHED, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75


@dataclass(frozen=True)
class Stop:
    """One start that a signal ended: exit codes, output, and what then lay in the run's folder."""

    codes: list[int]
    text: str
    first_step: int
    last_step: int
    failed: bool
    said: str


class Run:
    """A run that signals stop and new starts take up."""

    def __init__(self, data: Path, runs: Path) -> None:
        self.path = runs / "test"
        # Slow enough that no start reaches the end before its signal.
        self.slow = [str(SABOTEUR), "slow-step:0.2:all", *resumable(data, runs)]
        self.plain = ["-m", "pipeline.train", *resumable(data, runs)]

    def newest(self) -> int:
        """Step of the newest checkpoint, 0 without any."""
        return max(checkpoint_steps(self.path), default=0)

    def stop_rank(self, rank: int, number: signal.Signals) -> Stop:
        """Starts 2 ranks and signals one of them, from outside; nothing else makes them save."""
        first, lines = self.newest(), len(metrics(self.path))
        ranks = jobs.start([*self.slow, "--run.checkpoint_every_steps=null"], ranks=2)
        wait_for(lambda: len(metrics(self.path)) > lines, "the next line of metrics")
        ranks.send(number, rank)
        ranks.wait()
        return self._stopped(ranks.codes, ranks.text, first)

    def stop_horovodrun(self, number: signal.Signals) -> Stop:
        """Starts 2 ranks under horovodrun and signals that."""
        first = self.newest()
        job = jobs.horovodrun(self.slow)
        wait_for(lambda: self.newest() > first, f"a checkpoint after step {first}")
        job.send_signal(number)
        text = jobs.finish(job)
        return self._stopped([job.returncode], text, first)

    def _stopped(self, codes: list[int], text: str, first: int) -> Stop:
        failed = (self.path / "failure.txt").exists()
        word = self.path / "stopped.txt"
        said = word.read_text() if word.exists() else ""
        assert newest_checkpoint(self.path)["step"] == self.newest(), "the newest is not whole"
        return Stop(codes, text, first, self.newest(), failed, said)


@dataclass(frozen=True)
class Stopped:
    """A run stopped four times, then finished, then started once more."""

    path: Path
    stops: dict[str, Stop]
    finished: jobs.Ranks
    again: jobs.Ranks


@pytest.fixture(scope="module")
def stopped(small_data, tmp_path_factory):
    """The run after six starts."""
    runs = tmp_path_factory.mktemp("stopped")
    run = Run(small_data, runs)
    stops = {
        "SIGTERM to horovodrun": run.stop_horovodrun(signal.SIGTERM),
        "SIGTERM": run.stop_rank(1, signal.SIGTERM),
        "SIGINT": run.stop_rank(0, signal.SIGINT),
        "SIGUSR1": run.stop_rank(1, signal.SIGUSR1),
    }
    yield Stopped(run.path, stops, finished=jobs.run(run.plain, ranks=2), again=jobs.run(run.plain))
    shutil.rmtree(runs)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_at_a_step_boundary(stopped, name):
    stop = stopped.stops[name]
    assert stop.codes == [STOPPED, STOPPED], stop.text
    assert not stop.failed
    assert json.loads(stop.said) == {"signal": name, "step": stop.last_step}
    assert "error:" not in stop.text and "Traceback" not in stop.text, stop.text
    assert f"resuming from {stopped.path}/checkpoints" in stop.text
    assert 0 < stop.first_step < stop.last_step < 19
    assert f"stopped before step {stop.last_step} by {name}; start again to go on" in stop.text


def test_sigterm_to_horovodrun_leaves_a_whole_checkpoint(stopped):
    stop = stopped.stops["SIGTERM to horovodrun"]
    assert stop.codes != [FINISHED]
    assert 0 < stop.last_step < 19


def test_a_stopped_run_started_again_ends_with_the_bits_of_the_uninterrupted_one(
    stopped, uninterrupted
):
    assert stopped.finished.codes == [FINISHED, FINISHED], stopped.finished.text
    assert state_differences(stopped.path, uninterrupted) == []
    assert metrics(stopped.path) == metrics(uninterrupted)


def test_a_finished_run_started_again_says_so(stopped):
    last = metrics(stopped.path)[-1]
    assert stopped.again.codes == [FINISHED], stopped.again.text
    said = f"the run in {stopped.path} is finished: top-1 {last['top1']:.2%}, top-5 "
    assert said in stopped.again.text
    assert last["event"] == "done"


def test_a_loss_that_is_not_a_number_on_one_rank_ends_all_together(small_data, tmp_path):
    argv = [str(SABOTEUR), "nan-loss:4:1", *small_settings(small_data, tmp_path)]
    options = ["--run.checkpoint_every_steps=1", "--optim.base_lr=0.32"]  # 0.01 for 8 images
    ranks = jobs.run([*argv, *options], ranks=2)
    cause = "rank 1: the loss is nan at step 4 with lr 0.01; lower optim.base_lr or lengthen"
    assert ranks.codes == [FAILED, FAILED]
    assert re.findall(r"^error: .*", ranks.text, re.MULTILINE) == [
        f"error: {cause} schedule.warmup_epochs, and start again from the last checkpoint"
    ]
    assert (tmp_path / "test" / "failure.txt").read_text().startswith(f"error: {cause}")
    assert checkpoint_steps(tmp_path / "test")[-1] == 4, "a checkpoint has the NaN in it"
    for tensor in newest_checkpoint(tmp_path / "test")["model"].values():
        assert torch.isfinite(tensor).all()
    shutil.rmtree(tmp_path)


def test_wrong_input_is_said_once_and_every_rank_leaves_with_its_code(small_data, tmp_path):
    ranks = jobs.run(train(small_data, tmp_path, "--data.global_batch_size=7"), ranks=2)
    assert ranks.codes == [WRONG_INPUT, WRONG_INPUT]
    assert ranks.text.strip() == (
        "error: data.global_batch_size=7 is not divisible by 2 ranks; the nearest that are: 6 and 8"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_use_is_refused_and_its_holder_named(small_data, tmp_path):
    holder = jobs.start([str(SABOTEUR), "slow-step:60:all", *small_settings(small_data, tmp_path)])
    lock = tmp_path / "test" / "lock"
    wait_for(lambda: lock.exists() and lock.read_text(), "the first job to hold the run")
    second = jobs.run(train(small_data, tmp_path))
    holder.send(signal.SIGKILL, 0)
    holder.wait()
    assert second.codes == [WRONG_INPUT]
    who = rf"process {holder.processes[0].pid} on {socket.gethostname()}, since 20\S+ \S+"
    assert re.search(
        rf"^error: the run in {lock.parent} is in use by {who}; wait for it or choose another "
        r"run\.name$",
        second.text,
        re.MULTILINE,
    ), second.text
