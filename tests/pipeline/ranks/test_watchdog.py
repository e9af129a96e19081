"""The watchdog on ranks without torch, which start in a tenth of a second: tests/watchdog_rank.py.

The jobs run side by side; real training hangs in test_hangs.py.
"""

import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest

from pipeline.ranks.heartbeat import Beat, Peer
from pipeline.ranks.watchdog import Report, explain, find_laggards, read_report

SCRIPT = jobs.REPOSITORY / "tests" / "watchdog_rank.py"
CASES = (
    "stall,wait", "wait,freeze", "wait,pause,wait", "wait,wait", "work,stall", "stall", "freeze",
    "finish,finish",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a job of light ranks ended; None stands for a rank that had to be killed."""

    folder: Path
    codes: list[int | None]
    text: str

    @property
    def cause(self) -> str:
        return (self.folder / "failure.txt").read_text()

    def stacks(self, rank: int) -> str:
        return (self.folder / "stacks" / f"rank-{rank}.txt").read_text()

    def who(self, rank: int) -> str:
        return rf"rank {rank} \(process {(self.folder / f'peer-{rank}').read_text()}\) on \S+"


def start(folder: Path, doings: str) -> list[subprocess.Popen[str]]:
    folder.mkdir()
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), doings],
            env=jobs.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(len(doings.split(",")))
    ]  # fmt: skip


def end(folder: Path, doings: str, ranks: list[subprocess.Popen[str]]) -> Ended:
    """Waits for the ranks that can end by themselves, then kills the others, as a launcher does."""
    codes: list[int | None] = [None] * len(ranks)
    try:
        for r, doing in enumerate(doings.split(",")):
            if len(ranks) == 1 or doing not in ("freeze", "pause"):
                codes[r] = ranks[r].wait(30.0)
    finally:
        for rank in ranks:
            rank.kill()
    return Ended(folder, codes, "".join(rank.communicate()[0] for rank in ranks))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Every job of `CASES` after its end."""
    root = tmp_path_factory.mktemp("watched")
    started = {case: start(root / case, case) for case in CASES}
    return {case: end(root / case, case, ranks) for case, ranks in started.items()}


def test_a_rank_that_hangs_in_its_own_work_is_named_with_its_phase(ended):
    job = ended["stall,wait"]
    assert job.codes == [1, 1], job.text
    assert re.match(
        rf"error: no progress within run\.step_timeout_sec=1: {job.who(0)} has been in phase data "
        r"of step 12 for \d s \(stack in \S+/stacks/rank-0\.txt\); rank 1 has waited in phase "
        r"average of step 12 for \d s; .*start again",
        job.cause,
    ), job.cause
    assert job.text.count("error:") == 1, "one rank speaks"
    assert job.cause.splitlines()[0] in job.text
    assert "in stall" in job.stacks(0) and "in wait" in job.stacks(1)


def test_a_rank_whose_native_code_holds_the_gil_still_gives_its_stack(ended):
    job = ended["wait,freeze"]
    assert job.codes == [1, None], job.text
    said = rf"{job.who(1)} is stuck in native code that holds Python's lock \(GIL\) \(stack in"
    assert re.search(said, job.cause), job.cause
    assert "in freeze" in job.stacks(1)


def test_a_stopped_rank_is_named_and_all_others_leave_their_stacks(ended):
    job = ended["wait,pause,wait"]
    assert job.codes == [1, None, 1], job.text
    assert re.search(rf"{job.who(1)} is stopped \(SIGSTOP", job.cause), job.cause
    assert "in wait" in job.stacks(0) and "in wait" in job.stacks(2)


def test_ranks_that_all_wait_for_each_other_are_not_blamed(ended):
    job = ended["wait,wait"]
    assert job.codes == [1, 1], job.text
    assert "all 2 ranks wait for each other, so look at network and GPUs; rank" in job.cause


def test_a_rank_that_still_works_reports_when_another_hangs(ended):
    job = ended["work,stall"]
    assert job.codes == [1, 1], job.text
    assert re.search(rf"sec=1: {job.who(1)} has been in phase data", job.cause), job.cause
    beat = Beat.read(job.stacks(0).splitlines()[1])
    assert (beat.phase, beat.step, beat.waiting) == ("validate", 12, False)
    assert "in work" in job.stacks(0)


def test_a_process_alone_ends_too(ended):
    job = ended["stall"]
    assert job.codes == [1]
    assert "(process" in job.cause and "has been in phase data of step 12" in job.cause


def test_a_frozen_process_alone_leaves_its_stack_and_ends_by_sigalrm(ended):
    job = ended["freeze"]
    assert job.codes == [-signal.SIGALRM]
    assert "in freeze" in job.stacks(0)


def test_beats_keep_the_watchdog_quiet_and_a_good_end_leaves_no_files(ended):
    job = ended["finish,finish"]
    assert job.codes == [0, 0] and job.text == ""
    assert sorted(f.name for f in job.folder.iterdir()) == ["made", "peer-0", "peer-1"]


def report(rank: int, phase: str, step: int, age_sec: float, waiting: bool) -> Report:
    return Report(Peer(rank, "another-host", 100 + rank), Beat(phase, step, age_sec, waiting), True)


def test_the_laggard_is_who_answers_not_or_works_too_long():
    waits = report(0, "average", 7, 30.0, True)
    late, fresh = report(1, "data", 7, 31.0, False), report(2, "validate", 7, 0.1, False)
    silent = Report(Peer(3, "another-host", 103), None, False)
    behind = report(4, "agree", 6, 30.0, True)
    assert find_laggards([waits, late, fresh], 30.0) == [late]
    assert find_laggards([waits, late, fresh, silent], 30.0) == [late, silent]
    assert find_laggards([waits, fresh], 30.0) == [fresh]
    assert find_laggards([waits, behind], 30.0) == [behind]
    assert find_laggards([waits, waits], 30.0) == []


def test_many_laggards_are_counted(tmp_path):
    silent = [Report(Peer(r, "another-host", 100 + r), None, False) for r in range(6)]
    said = explain([*silent, report(6, "agree", 3, 30.0, True)], 30.0, tmp_path)
    assert "rank 2 (process 102) on another-host does not answer: it is stopped, dead or" in said
    assert "so do 3 more ranks; rank 6 has waited in phase agree of step 3 for 30 s;" in said


def test_a_report_is_read_back(tmp_path):
    peer, beat = Peer(0, "here", 5), Beat("save", 12, 3.5, False)
    assert read_report(tmp_path, peer) == Report(peer, None, False)
    for said, found in [(beat.as_json, beat), (beat.as_json[:20] + "\n", None), ("", None)]:
        (tmp_path / "rank-0.txt").write_text(f"{peer}\n{said}Current thread 0x1:\n")
        assert read_report(tmp_path, peer) == Report(peer, found, True)
