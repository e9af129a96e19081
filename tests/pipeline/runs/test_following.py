"""What a run says, shown once: the last lines that were there, and those that come."""

import os
import threading

from jobs import wait_for
from made_runs import CIFAR, RunMaker, held_by

from pipeline.runs.follow import Screen, follow
from pipeline.system.failure import ExitCode
from pipeline.train.folder import RunFolder


class Looks(Screen):
    """Remembers what it is shown, and counts the looks at the run."""

    def __init__(self):
        self.said, self.warned, self.number = [], [], 0
        self.say, self.warn = self.said.append, self.warned.append

    def show(self, run):
        self.number += 1


def test_of_the_lines_before_the_last_ones_are_shown(tmp_path):
    folder = RunMaker(tmp_path)("done", CIFAR, steps=400)
    log = folder / "log.txt"
    log.write_text("".join(f"earlier {n}\n" for n in range(12)))
    for past in (10, 0):
        screen = Looks()
        run, code = follow(folder, log, past, screen)
        assert (run.state, code) == ("finished", ExitCode.FINISHED)
        assert screen.said == [f"earlier {n}" for n in range(12 - past, 12)]


def test_a_silent_run_is_followed_on_and_its_silence_is_told_once(tmp_path):
    folder = RunMaker(tmp_path)("far", CIFAR, steps=400, finished=False)
    (folder / "lock").write_text(held_by("elsewhere"))
    for path in folder.iterdir():
        os.utime(path, (1.0, 1.0))
    screen, ends = Looks(), []
    log = folder / "log.txt"
    follower = threading.Thread(
        target=lambda: ends.append(follow(folder, log, 10, screen)), daemon=True
    )
    follower.start()
    wait_for(lambda: screen.number >= 3, "three looks")
    log.write_text("10:00 validated\n")
    wait_for(lambda: screen.said, "the run's next line")
    RunFolder(folder).record_stop("SIGTERM", 401)
    follower.join(60.0)
    assert [(run.state, code) for run, code in ends] == [("stopped", ExitCode.STOPPED)]
    assert screen.said == ["10:00 validated"]
    (warning,) = screen.warned
    assert "its host elsewhere is not this one; whether it continues is not known" in warning
