"""The watchdog on ranks without torch, which start in a tenth of a second: tests/watchdog_rank.py.

The jobs run side by side; real training hangs in test_hangs.py.
"""

import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest

from pipeline.ranks.heartbeat import Beat, Heartbeat, Peer
from pipeline.ranks.reports import Limit, Report, explain, find_laggards, read_report
from pipeline.ranks.watchdog import Watchdog
from pipeline.ranks.world import World

SCRIPT = jobs.REPOSITORY / "tests" / "watchdog_rank.py"


@dataclass(frozen=True)
class Ended:
    """How a job of light ranks ended; None stands for a rank that had to be killed."""

    folder: Path
    codes: list[int | None]
    text: str

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
                codes[r] = ranks[r].wait(120.0)
    finally:
        for rank in ranks:
            rank.kill()
    return Ended(folder, codes, "".join(rank.communicate()[0] for rank in ranks))


# What each rank does, its exit code, what the cause says (WHO0 stands for rank 0's name), and the
# function that each rank's last stack shows.
HANGS = [
    ("stall,wait", [1, 1],
     r"error: no progress within run\.step_timeout_sec=1: WHO0 has been in phase data of step 12 "
     r"for \d s \(stack in \S+/stacks/rank-0\.txt\); rank 1 has waited in phase average of step 12 "
     r"for \d s; .*start again", {0: "stall", 1: "wait"}),
    ("wait,freeze", [1, None],
     r"WHO1 is stuck in native code that holds Python's lock \(GIL\) \(stack in", {1: "freeze"}),
    ("wait,pause,wait", [1, None, 1], r"WHO1 is stopped \(SIGSTOP", {0: "wait", 2: "wait"}),
    ("wait,wait", [1, 1], "all 2 ranks wait for each other, so look at network and GPUs; rank", {}),
    ("work,stall", [1, 1], "sec=1: WHO1 has been in phase data", {0: "work"}),
    ("stall", [1], r"\(process \d+\).* has been in phase data of step 12", {0: "stall"}),
    ("freeze", [-signal.SIGALRM], None, {0: "freeze"}),  # alone, with nobody to report to
]  # fmt: skip
QUIET, HONEST = "finish,finish", "toil,patience,patience"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Every job of `HANGS` after its end, and one without a hang."""
    root = tmp_path_factory.mktemp("watched")
    started = {
        case: start(root / case, case) for case in [QUIET, HONEST, *(hang[0] for hang in HANGS)]
    }
    return {case: end(root / case, case, ranks) for case, ranks in started.items()}


@pytest.mark.parametrize(("case", "codes", "cause", "stacks"), HANGS, ids=[h[0] for h in HANGS])
def test_a_hang_ends_the_job_and_names_who_holds_it_up(ended, case, codes, cause, stacks):
    job = ended[case]
    assert job.codes == codes, job.text
    if cause is not None:
        told = (job.folder / "failure.txt").read_text()
        cause = re.sub(r"WHO(\d)", lambda found: job.who(int(found[1])), cause)
        assert re.search(cause, told), told
        assert job.text.count("error:") == 1, "one rank speaks"
        assert told.splitlines()[0] in job.text
    for rank, function in stacks.items():
        assert f"in {function}" in job.stacks(rank)


def test_a_rank_that_still_works_reports_where_it_stands(ended):
    beat = Beat.read(ended["work,stall"].stacks(0).splitlines()[1])
    assert (beat.phase, beat.step, beat.waiting) == ("validate", 12, False)


def test_beats_keep_the_watchdog_quiet_and_a_good_end_leaves_no_files(ended):
    job = ended[QUIET]
    assert job.codes == [0, 0] and job.text == ""
    assert sorted(f.name for f in job.folder.iterdir()) == ["made", "peer-0", "peer-1"]


def test_a_rank_waits_beyond_the_limit_for_one_that_makes_progress(ended):
    job = ended[HONEST]
    assert job.codes == [0, 0, 0] and job.text == ""


PAUSED = """
import sys, time
from pipeline.ranks.reports import Limit
from pipeline.ranks.watchdog import watched
from pipeline.ranks.world import World

world = World()
with watched(world, Limit(1.0)):
    world.heartbeat.beat("evaluate")
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(20):
        world.heartbeat.beat("evaluate")
        time.sleep(0.2)
"""


def test_a_single_process_that_was_paused_goes_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED], env=jobs.environment(TMPDIR=str(tmp_path)), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(8.0)  # beyond its limit of 1 s, and its alarm after 5 more
    process.send_signal(signal.SIGCONT)
    text = process.communicate("\n", 60)[0]
    assert (process.returncode, text) == (0, "")
    assert tmp_path.exists() and list(tmp_path.iterdir()) == []


def test_only_the_folder_of_a_runs_reports_goes_with_them(tmp_path):
    world = World()
    for on_hang, left in ((None, True), (print, False)):
        folder = tmp_path / "above" / "start"
        watchdog = Watchdog(folder, world.peers, 0, world.heartbeat, None, on_hang)
        watchdog.make_folder()
        watchdog.open_report()
        assert (folder / "rank-0.pulse").read_bytes() == b"0" * 20, "its room on the disk"
        watchdog.start()
        watchdog.close()
        assert not folder.exists() and folder.parent.exists() == left


@pytest.mark.parametrize("trouble", [False, True])
def test_who_waits_for_other_hosts_declares_no_hang_unless_it_sees_a_lost_rank(tmp_path, trouble):
    me = Peer.here(1)
    peers = [Peer(0, "another-host", 123), me, Peer(2, me.host, 2**22 if trouble else me.pid)]
    watchdog = Watchdog(tmp_path / "x", peers, 1, Heartbeat(), None, None)
    waits = Beat("index", 0, 500.0, True)
    assert watchdog._hangs(waits, Limit(1.0)) is trouble


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
    said = explain([*silent, report(6, "agree", 3, 30.0, True)], Limit(30.0), tmp_path)
    assert "rank 2 (process 102) on another-host does not answer: it is stopped, dead or" in said
    assert "so do 3 more ranks; rank 6 has waited in phase agree of step 3 for 30 s;" in said


def test_a_report_is_read_back(tmp_path):
    peer, beat = Peer(0, "here", 5), Beat("save", 12, 3.5, False)
    assert read_report(tmp_path, peer) == Report(peer, None, False)
    for said, found in [(beat.as_json, beat), (beat.as_json[:20] + "\n", None), ("", None)]:
        (tmp_path / "rank-0.txt").write_text(f"{peer}\n{said}Current thread 0x1:\n")
        assert read_report(tmp_path, peer) == Report(peer, found, True)


@pytest.mark.parametrize(("ranks", "words"), [(1, "1 rank on h waits"), (2, "2 ranks on h wait")])
def test_who_waits_for_other_hosts_is_counted(tmp_path, ranks, words):
    waits = [Report(Peer(r, "h", 9), Beat("index", 0, 30.0, True), True) for r in range(ranks)]
    said = explain(waits, Limit(30.0), tmp_path, [Peer(5, "g", 9)])
    assert f": the {words} for those on g; rank 0 has" in said
