"""--profile: traces of the steps asked for, on two ranks and on one, that change nothing."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections import Counter
from pathlib import Path

import jobs
import pytest
from jobs import resumable
from one_process import train_here
from run_files import differences, newest_checkpoint

from pipeline.config import Config, ConfigError
from pipeline.config.run import profiled_steps
from pipeline.system.failure import PeerLost, Reported, Stopped
from pipeline.train.profile import Profile
from pipeline.train.trainer import Trainer

FINISHED, WRONG_INPUT = 0, 2
IN_EACH_STEP = (
    "data_wait", "agreement", "forward", "backward", "communication", "optimizer",
)  # fmt: skip


def ranges(path: Path) -> Counter[str]:
    """How often each range of ours occurs in a trace."""
    trace = json.loads(gzip.decompress(path.read_bytes()))
    marked = (e["name"] for e in trace["traceEvents"] if e.get("cat") == "user_annotation")
    return Counter(name for name in marked if not name.startswith("Optimizer."))


def steps_in(path: Path) -> list[str]:
    return sorted(name for name in ranges(path) if name.startswith("step "))


def files(run: Path) -> set[str]:
    return {path.name for path in (run / "profile").iterdir()}


@pytest.fixture(scope="module")
def profiled(small_data, tmp_path_factory):
    """`uninterrupted` with three of its steps profiled, across a validation."""
    runs = tmp_path_factory.mktemp("profiled")
    job = jobs.run(
        # Fast sums, as gradients of fixed ones do not travel over Horovod here.
        [
            "-m",
            "pipeline.train",
            *resumable(small_data, runs),
            "--profile",
            "6-8",
            "--run.sums=fast",
        ],
        ranks=2,
    )
    assert job.codes == [FINISHED, FINISHED], job.text
    return runs / "test", job.outputs


def test_each_rank_traces_exactly_the_steps_asked_for_by_phase(profiled):
    run, _ = profiled
    assert files(run) == {
        "steps-6-8-rank0.json.gz", "steps-6-8-rank1.json.gz", "steps-6-8-horovod.json"
    }  # fmt: skip
    for rank in (0, 1):
        found = ranges(run / "profile" / f"steps-6-8-rank{rank}.json.gz")
        assert {name: found[name] for name in IN_EACH_STEP} == dict.fromkeys(IN_EACH_STEP, 3)
        assert {name for name in found if name[:5] == "step "} == {"step 6", "step 7", "step 8"}
        assert found["validation"] == 1


def test_horovods_timeline_covers_the_same_steps(profiled):
    run, _ = profiled
    events = json.loads((run / "profile" / "steps-6-8-horovod.json").read_text())
    names = Counter(event.get("name") for event in events)
    tensors = {e["pid"]: e["args"]["name"] for e in events if "name" in e.get("args", {})}
    reduced = Counter(
        tensors[event["pid"]] for event in events if event.get("name") == "NEGOTIATE_ALLREDUCE"
    )
    gradients = [count for name, count in reduced.items() if name.endswith("gradients.0")]
    assert names["ALLREDUCE"] > 0
    assert gradients == [3], reduced


def test_profiling_changes_nothing_in_the_training(profiled, uninterrupted):
    run, _ = profiled
    found, wanted = newest_checkpoint(run), newest_checkpoint(uninterrupted)
    for name in wanted["momentum"]:  # BN's statistics are each rank's own with fast sums
        assert differences(found["model"][name], wanted["model"][name], name) == []
    assert differences(found["momentum"], wanted["momentum"]) == []


def test_the_log_says_where_the_traces_lie_and_how_to_open_them(profiled):
    run, (said, other) = profiled
    (line,) = [line for line in said.splitlines() if line.startswith("profile: ")]
    assert f"steps 6 to 8 lie in {run}/profile/steps-6-8-rank*.json.gz" in line
    assert "steps-6-8-horovod.json; open them at https://ui.perfetto.dev" in line
    assert "chrome://tracing" in line
    assert "profile: " not in other
    assert "USDT" not in said + other  # Kineto's own lines


GOES_ON = ("--schedule.epochs=1.3", "--schedule.drop_epochs=[1]", "--profile=4-8")


@pytest.fixture(scope="module")
def stopped(small_data, tmp_path_factory):
    """One rank, stopped among the profiled steps and started again: the folder of the run."""
    runs = tmp_path_factory.mktemp("stopped")
    real = Trainer.train_step

    def step(self, *rest):
        if self.state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "train_step", step)
        train_here(small_data, runs, *GOES_ON, "--data.local_batch_size=4")
    (runs / "test" / "profile" / "steps-6-8-rank0.json.gz").write_bytes(b"of an earlier start")
    return train_here(small_data, runs, *GOES_ON)


def test_a_stop_among_the_profiled_steps_leaves_a_whole_trace(stopped):
    trace = stopped / "profile" / "steps-4-8-rank0.json.gz"
    assert steps_in(trace) == ["step 4", "step 5", "step 6"]  # stopped before step 6 computed
    assert ranges(trace)["forward"] == 2 * 2  # one rank accumulates two micro-batches


def test_a_run_that_goes_on_profiles_what_is_left_and_keeps_earlier_files(stopped, small_data):
    profile = stopped / "profile"
    wanted = {
        "steps-4-8-rank0.json.gz", "steps-6-8-rank0.json.gz", "steps-6-8-nr2-rank0.json.gz"
    }  # fmt: skip
    assert files(stopped) == wanted
    assert (profile / "steps-6-8-rank0.json.gz").read_bytes() == b"of an earlier start"
    assert steps_in(profile / "steps-6-8-nr2-rank0.json.gz") == ["step 6", "step 7", "step 8"]
    train_here(small_data, stopped.parent, *GOES_ON, "--schedule.epochs=1.5")
    said = "warning: nothing is profiled: --profile 4-8 lies behind step 9"
    assert said in (stopped / "log.txt").read_text()
    assert files(stopped) == wanted


@pytest.mark.parametrize(("end", "closed"), [(Stopped, True), (PeerLost, False)])
def test_the_trace_of_a_run_that_lost_a_rank_is_not_waited_for(end, closed):
    class Watched(Profile):
        closed = False

        def close(self) -> None:
            self.closed = True

    profile = Watched()
    with pytest.raises(end), profile:
        raise end
    assert profile.closed == closed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("11-13", "--profile 11-13 reaches beyond the run, whose last step is 6"),
        ("8", "--profile 8 asks for more steps than the 7 of the run"),
    ],
)
def test_steps_that_the_run_does_not_have_are_refused(small_data, tmp_path, asked, message):
    with pytest.raises(Reported, match=message):
        train_here(small_data, tmp_path, f"--profile={asked}")
    assert not (tmp_path / "test" / "metrics.jsonl").exists()


@pytest.mark.parametrize("text", ["", "0", "-5", "5-", "8-5", "1-2-3", "1 - 2", "101", "x", "1.5"])
def test_anything_but_steps_is_refused_with_the_form(text):
    with pytest.raises(ConfigError, match="must be a number of steps, such as 5, or the first"):
        Config(profile=text)


@pytest.mark.parametrize(
    ("text", "begin", "total", "steps"),
    [
        ("5", 0, 1000, range(10, 15)),  # after the slow first ones
        ("5", 300, 1000, range(310, 315)),
        ("5", 0, 12, range(7, 12)),
        ("5", 997, 1000, range(997, 1000)),
        ("20-25", 0, 26, range(20, 26)),
        ("20-25", 23, 100, range(23, 26)),
        ("20-25", 26, 100, range(0)),
        ("0-0", 0, 9, range(1)),
    ],
)
def test_steps_are_a_number_after_the_first_ones_or_those_named(text, begin, total, steps):
    assert profiled_steps(text).of_start(begin, total) == steps


def test_a_wrong_form_is_answered_before_torch_is_loaded():
    job = jobs.run(["-X", "importtime", "-m", "pipeline.train", "--profile=20-"])
    assert job.codes == [WRONG_INPUT]
    assert "error: --profile 20- must be a number of steps" in job.text
    loaded = {line.rpartition("|")[2].strip() for line in job.text.splitlines()}
    assert "pipeline.config.run" in loaded
    assert "torch" not in loaded
