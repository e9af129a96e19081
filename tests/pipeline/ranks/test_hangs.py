"""Real ranks that hang: who is named, with what stacks, and what is kept.

Each job has a rank 1 that hangs in step 5, one step after the checkpoint of step 4. A rank that
would hang for ever is killed once the other has left, as a launcher does.
"""

import json
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
from run_files import checkpoint_steps, newest_checkpoint

from pipeline.ranks.world import World
from pipeline.system.launched import Engine
from pipeline.train.folder import RunFolder
from pipeline.train.lock import first_cause_kept

AT_ONCE = 3  # jobs side by side: most of their time they wait
FAILED = 1
LIMIT_SEC = 4.0  # the first step on a busy machine must stay below
LEAVES = ("sleep-", "kill-average")  # faults whose rank ends by itself
WATCHED = f"--run.step_timeout_sec={LIMIT_SEC:g}"
STARTS = f"--run.start_timeout_sec={2 * LIMIT_SEC:g}"
SHORT = ("--schedule.epochs=1", "--schedule.drop_epochs=[]")
FAST = "--run.sums=fast"  # gradients travel through the engine, not through shared memory
# The seventh batch of a rank is that of step 6; it is prepared while step 4 is computed.
SLEEPS, DIES, PAUSES, NEVER = (
    "sleep-loader:7:1", "kill-average:6:1", "pause-step:5:1", "never-start:60:1"
)  # fmt: skip
CASES: dict[tuple[str, Engine], tuple[str, ...]] = {
    (SLEEPS, "horovod"): (WATCHED,),
    (SLEEPS, "torch"): (WATCHED, FAST),
    (DIES, "horovod"): (WATCHED, FAST),
    (DIES, "torch"): (WATCHED, FAST),
    (DIES + " beside shared memory", "torch"): (),  # found by the one who waits for it
    (PAUSES, "torch"): (WATCHED,),
    (PAUSES + " in gloo", "horovod"): (FAST,),
    (NEVER, "horovod"): (WATCHED,),
    (NEVER, "torch"): (WATCHED,),
    ("sleep-index:1:1", "horovod"): (STARTS,),
    ("sleep-index:2:0", "torch"): (STARTS,),
    ("sleep-largest:2:1", "torch"): (STARTS,),
    ("sleep-end:1:1", "horovod"): (WATCHED, *SHORT),
    ("sleep-save:2:0", "torch"): (WATCHED, *SHORT),
    ("sleep-exit:5:all", "horovod"): SHORT,
    ("slow-index:12:0", "torch"): (STARTS, *SHORT),
}


@dataclass(frozen=True)
class Hung:
    """How a job ended: exit codes, None for a rank that had to be killed; rank 0's output."""

    run: Path
    codes: list[int | None]
    text: str
    pids: list[int]

    @property
    def errors(self) -> list[str]:
        return re.findall(r"^error: .*", self.text, re.MULTILINE)

    @property
    def rank1(self) -> str:
        return rf"rank 1 \(process {self.pids[1]}\) on \S+"

    @property
    def reports(self) -> Path:
        """The folder of the reports of the job's only start."""
        (folder,) = (self.run / "stacks").iterdir()
        return folder

    def stacks(self, rank: int) -> str:
        return (self.reports / f"rank-{rank}.txt").read_text()


def hang(case: tuple[str, Engine], data: Path, runs: Path) -> Hung:
    """Runs a job of `CASES` until its rank 0 has left."""
    fault, engine = case[0].split(" ")[0], case[1]
    # Counted from the moment that rank 0 is there itself.
    limit = "2" if fault == NEVER else "60"
    env = {"HOROVOD_START_TIMEOUT": limit, "TRAINYARD_START_TIMEOUT": limit}
    if case[0].endswith("gloo"):
        env["HOROVOD_GLOO_TIMEOUT_SECONDS"] = "4"
    argv = [str(jobs.SABOTEUR), fault, *jobs.resumable(data, runs), *CASES[case]]
    ranks = jobs.start(argv, ranks=2, engine=engine, **env)
    leaving = ranks.processes if fault.startswith((*LEAVES, "slow-")) else ranks.processes[:1]
    try:
        jobs.wait_for(lambda: all(p.poll() is not None for p in leaving), str(case))
        codes = [process.poll() for process in ranks.processes]
    finally:
        for process in ranks.processes:
            process.kill()
        ranks.wait()
    pids = [process.pid for process in ranks.processes]
    return Hung(runs / "test", codes, ranks.text, pids)


@pytest.fixture(scope="module")
def hung(small_data, tmp_path_factory):
    """Every job of `CASES` after its end."""
    root = tmp_path_factory.mktemp("hung")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = {c: pool.submit(hang, c, small_data, root / str(n)) for n, c in enumerate(CASES)}
    yield {case: job.result() for case, job in found.items()}
    shutil.rmtree(root)


def assert_told(job: Hung, *parts: str) -> None:
    """Rank 0 left with FAILED; one line of error, which holds `parts`, is in the log and in
    failure.txt; the checkpoint before the hang is whole."""
    assert job.codes[0] == FAILED, job.text
    (error,) = job.errors
    for part in parts:
        assert re.search(part, error), error
    assert (job.run / "failure.txt").read_text().splitlines()[0] == error.replace("rank 0: ", "", 1)
    assert error.replace("rank 0: ", "", 1).removeprefix("error: ") in job.text
    assert checkpoint_steps(job.run)[-1] == newest_checkpoint(job.run)["step"] == 4, job.text


BOTH = pytest.mark.parametrize("engine", ["horovod", "torch"])


@BOTH
def test_a_rank_that_sleeps_in_the_loader(hung, engine):
    job = hung[SLEEPS, engine]
    assert_told(
        job,
        rf"{job.rank1} has been in phase data_wait of step \d for \d s",
        r"rank 0 has waited in phase \w+ of step \d for \d s",
    )
    assert job.codes[1] == FAILED
    assert "in sleep_for_ever" in job.stacks(1)
    recorded = job.reports / "rank-0-collectives.json"
    assert recorded.exists() == (engine == "torch")
    if engine == "torch":
        assert "gloo:all_reduce" in {
            e["profiling_name"] for e in json.loads(recorded.read_text())["entries"]
        }
    assert "in until" in job.stacks(0)


def test_a_rank_that_is_stopped_while_others_wait_in_shared_memory(hung):
    job = hung[PAUSES, "torch"]
    assert_told(job, rf"{job.rank1} is stopped \(SIGSTOP, Ctrl-Z or a debugger\)")
    assert "in until" in job.stacks(0)


def test_a_stopped_rank_that_gloo_gives_up_before_the_watchdog(hung):
    job = hung[PAUSES + " in gloo", "horovod"]
    assert_told(job, rf"error: rank 0: {job.rank1} is stopped \(SIGSTOP, Ctrl-Z or a debugger\);")


@pytest.mark.parametrize(
    "case", [(DIES, "horovod"), (DIES, "torch"), (DIES + " beside shared memory", "torch")]
)
def test_a_rank_that_dies_in_a_collective(hung, case):
    job = hung[case]
    assert job.codes[1] == -signal.SIGKILL
    assert_told(job, rf"{job.rank1} died without a word, killed by a signal")


@BOTH
def test_a_rank_that_never_starts(hung, engine):
    job, variable = hung[NEVER, engine], {"horovod": "HOROVOD", "torch": "TRAINYARD"}[engine]
    assert job.codes == [FAILED, None], job.text
    assert job.errors == [
        "error: rank 0: rank 1 of 2 did not start within 2 s; see what the launcher and that node "
        f"say, or allow more time with {variable}_START_TIMEOUT (in seconds)"
    ]
    assert not job.run.exists()


@pytest.mark.parametrize(
    ("fault", "engine", "rank", "phase"),
    [
        ("sleep-index:1:1", "horovod", 1, "index"),
        ("sleep-index:2:0", "torch", 0, "index"),
        ("sleep-largest:2:1", "torch", 1, "largest"),
    ],
)
def test_a_rank_that_blocks_before_the_first_step(hung, fault, engine, rank, phase):
    job = hung[fault, engine]
    assert job.codes[rank] == FAILED, job.text
    (error,) = job.errors
    assert re.search(
        rf"no progress within run\.start_timeout_sec=8: rank {rank} \(process {job.pids[rank]}\) "
        rf"on \S+ has been in phase {phase} of step 0 for \d+ s .*; start again, with a higher "
        r"run\.start_timeout_sec if this was honest work$",
        error,
    ), error
    assert (job.run / "failure.txt").read_text().splitlines()[0] == error
    assert "in sleep_for_ever" in job.stacks(rank)


def test_a_rank_that_blocks_after_the_last_step(hung):
    job = hung["sleep-end:1:1", "horovod"]
    (error,) = job.errors
    assert re.search(rf"step_timeout_sec=4: {job.rank1} has been in phase end of step 7", error)
    assert job.codes[1] == FAILED and checkpoint_steps(job.run)[-1] == 7


def test_a_write_that_never_ends_holds_up_the_next_save_and_no_step(hung):
    job = hung["sleep-save:2:0", "torch"]
    (error,) = job.errors
    assert re.search(r"step_timeout_sec=4: rank 0 .* in phase checkpoint of step 6 ", error), error
    assert "in sleep_for_ever" in job.stacks(0)
    assert checkpoint_steps(job.run)[-1] == newest_checkpoint(job.run)["step"] == 2


def test_a_rank_that_does_not_end_after_its_work(hung):
    job = hung["sleep-exit:5:all", "horovod"]
    assert job.codes == [FAILED, FAILED]
    assert job.errors[0].startswith(
        "error: rank 0: its work is done, and it did not end within 5 s: the engine or a driver"
    )
    assert "finished: top-1" in job.text


def test_an_index_that_takes_longer_than_the_limit_and_gets_on_is_waited_for(hung):
    job = hung["slow-index:12:0", "torch"]
    assert job.codes == [0, 0] and job.errors == [], job.text


def test_the_next_start_forgets_how_the_last_one_ended(tmp_path):
    (tmp_path / "stacks").mkdir()
    for name in ("failure.txt", "stacks/rank-1.txt"):
        (tmp_path / name).write_text("old")
    with first_cause_kept(RunFolder(tmp_path), World()):
        assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]
