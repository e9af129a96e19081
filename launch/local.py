"""Runs a training or an evaluation on several ranks of this machine.

    python -m launch.local [-np N] [--launch.engine=torch] train|evaluate [its options]

What `launch.slurm` does on the nodes of a job, without horovodrun, torchrun and ssh: the ranks
write to this terminal as they are, and the last line is the first cause of a failure. It returns
what the ranks returned: 0 finished, 2 wrong configuration or data, 75 stopped with a good
checkpoint, else 1. Ctrl-C saves and stops, a second Ctrl-C ends the ranks at once.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.end import End, exit_code, say
from launch.repeat import kept_cause
from launch.slurm.options import PROGRAMS, Program, program_of, require_engine
from launch.slurm.rank import DIE_WITH
from pipeline.config import ConfigError, require
from pipeline.config.parser import program as name_of
from pipeline.config.reading import command_parser, parse
from pipeline.ranks.local import LocalRanks, start_ranks
from pipeline.system.console import counted
from pipeline.system.failure import CAUSE_FILE, END_SEC, LATER, ExitCode, run_command, say_error
from pipeline.system.gpus import no_gpu_here, visible_gpus
from pipeline.system.launched import Engine, launched_rank, launched_size, without_ranks

ON_RANKS = ("train", "evaluate")
DESCRIPTION = (
    "Runs train or evaluate, with the options of python -m pipeline.train or pipeline.evaluate, on "
    "N ranks of this machine. The last line is the first cause of a failure; Ctrl-C saves and "
    "stops, a second one ends at once."
)
_NAP_SEC = 0.1
# As long as Slurm gives the others, by default, to write what they know.
_LAST_WORDS_SEC = 30.0
_LEAVE = (signal.SIGINT, signal.SIGTERM)
_RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class LocalOptions:
    """The options of this launcher."""

    ranks: int
    engine: Engine


def main(argv: list[str]) -> None:
    """Checks, starts the ranks, waits for them and prints how they ended.

    Raises `ConfigError` before a rank starts, and `SystemExit` with the code that the job earned.
    """
    options, program = split(argv)
    require(
        launched_size() == 1,
        f"another launcher has started launch.local as rank {launched_rank()} of {launched_size()} "
        f"(RANK or HOROVOD_RANK is set); start it once on a machine, or in its place "
        f"python -m {program.module}",
    )
    require_engine(options.engine, options.ranks)
    check_ranks(options.ranks, program)
    if "--debug" in sys.argv:  # run_command has consumed it; the ranks should show tracebacks, too
        program = program.with_options("--debug")
    relay = Relay(saves=program.run_dir is not None)
    try:
        code = run_ranks(options, program, relay)
    finally:
        relay.ignore()
    if code:
        sys.exit(code)


def split(argv: Sequence[str]) -> tuple[LocalOptions, Program]:
    """Parses the launcher's options and the program; refuses wrong ones before anything starts."""
    at = next((i for i, word in enumerate(argv) if word in PROGRAMS), len(argv))
    engine = [word for word in argv[at:] if word.startswith("--launch.")]  # may stand anywhere
    rest = [word for word in argv[at:] if word not in engine]
    parser = command_parser("launch.local", DESCRIPTION)
    parser.usage = "%(prog)s [-np N] [--launch.engine E] train|evaluate [its options]"
    parser.add_argument(
        "-np", dest="ranks", type=int, metavar="N",
        help="number of ranks; default: one for each GPU, or 1 without any",
    )  # fmt: skip
    parser.add_argument(
        "--launch.engine", dest="engine", type=Engine, default="horovod",
        help="what connects the ranks: horovod, or torch for torch.distributed",
    )  # fmt: skip
    own = argv[:at] if rest else _without_program(argv)
    given = parse(parser, [*own, *engine])
    require(
        bool(rest) and rest[0] in ON_RANKS,
        _runs(rest[0] if rest else "nothing", "give it one of them, as in {0} -np 2 train"),
    )
    program = program_of(rest[0], rest[1:])
    ranks = given["ranks"]
    if ranks is None:
        ranks = 1 if program.on_cpu else max(1, len(visible_gpus()))
    require(ranks >= 1, f"-np {ranks} must be at least 1")
    return LocalOptions(ranks, given["engine"]), program


def _without_program(argv: Sequence[str]) -> Sequence[str]:
    """The options of a command line on which no program stands, for --help and for errors."""
    word = next((w for w in argv if w[0:1].isalpha()), None)
    meant = difflib.get_close_matches(word or "", ON_RANKS, 1) or ON_RANKS[:1]
    require(
        word is None,
        _runs(str(word), f"did you mean {meant[0]}?"),
    )
    return argv


def _runs(word: str, cure: str) -> str:
    """What this launcher runs, and not `word`; `cure` has the launcher's name at {0}."""
    name = name_of("launch.local")
    return f"{name} runs {' or '.join(ON_RANKS)}, not {word}; {cure.format(name)}"


def check_ranks(ranks: int, program: Program) -> None:
    """Raises `ConfigError` for more ranks than GPUs; says so of more ranks than cores.

    Ranks on CPUs may share a core, which is slow but right; of a GPU they cannot.
    """
    device = program.device
    gpus = [] if device == "cpu" else visible_gpus()
    if gpus:
        require(
            ranks <= len(gpus),
            f"-np {ranks} is more than the {counted(len(gpus), 'GPU')} here (nvidia-smi and "
            f"CUDA_VISIBLE_DEVICES show them); give -np {len(gpus)}, or --run.device=cpu",
        )
        return
    if device == "cuda":
        raise ConfigError(f"run.device=cuda, but {no_gpu_here()}; set run.device=auto or cpu")
    cores = len(os.sched_getaffinity(0))
    if ranks > cores:
        say(f"warning: {ranks} ranks share {counted(cores, 'core')}, which is slow; give -np less")


def run_ranks(options: LocalOptions, program: Program, relay: Relay) -> int:
    """Starts the ranks, waits for their end and reports it; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
        kept = Path(folder) / "cause.txt"
        clean = without_ranks(os.environ, "horovod", "torch")
        env = {**clean, CAUSE_FILE: str(kept), DIE_WITH: str(os.getpid())}
        end = LocalEnd(program.run_dir, kept)
        argv = [sys.executable, "-m", "launch.slurm.rank", *program.module_and_options]
        # In sessions of their own: Ctrl-C on the terminal comes to this process alone.
        with _held():
            ranks = start_ranks(argv, options.ranks, env, options.engine, start_new_session=True)
        with ranks:
            relay.watch(ranks)
            code = wait(ranks, relay)
            end.codes = [process.returncode for process in ranks.processes]
        if relay.again:
            then = "; a next start resumes from the last checkpoint" if program.run_dir else ""
            say_error(f"ended at once by a second {relay.again.name}{then}")
            return ExitCode.FAILED
        return end.report(code, relay.received)


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Holds back signals while ranks are started, which inherit that until they listen: a Ctrl-C
    must not end a Python that still loads with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LATER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait(ranks: LocalRanks, relay: Relay) -> int:
    """Waits for the end of all ranks; returns the code of the first that failed, or 0.

    The others then get SIGTERM, and SIGKILL when they have had time for their last words, or after
    a signal, to which all leave together, for closing what they have open.
    """
    first, deadline = 0, float("inf")
    while True:
        codes = [process.poll() for process in ranks.processes]
        failed = [code for code in codes if code]
        if failed and not first:
            first = failed[0]
            stopped = first == ExitCode.STOPPED and relay.received is not None
            deadline = time.monotonic() + (END_SEC if stopped else _LAST_WORDS_SEC)
            _signal(ranks, signal.SIGTERM)
        if None not in codes:
            return first
        if relay.again or time.monotonic() > deadline:
            _signal(ranks, signal.SIGKILL)
        time.sleep(_NAP_SEC)


def _signal(ranks: LocalRanks, number: signal.Signals) -> None:
    for process in ranks.processes:
        process.send_signal(number)  # does nothing to one that has ended


class Relay:
    """Passes signals on to the ranks, from its creation on."""

    def __init__(self, saves: bool = True) -> None:
        """`saves`: whether the ranks save when they stop."""
        self._saves = saves
        self.received: signal.Signals | None = None
        """The first signal."""
        self.again: signal.Signals | None = None
        """A second one to leave, after which the ranks are ended."""
        self._ranks: LocalRanks | None = None
        for number in _RELAYED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._pass_on)

    def watch(self, ranks: LocalRanks) -> None:
        """Names the ranks, which get what came while they were being started."""
        self._ranks = ranks
        if self.received is not None:
            _signal(ranks, self.received)

    def ignore(self) -> None:
        """Ignores signals from now on: they must not change the code that the job has earned."""
        for number in _RELAYED:
            signal.signal(number, signal.SIG_IGN)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        which = signal.Signals(number)
        if self.received in _LEAVE:
            self.again = which if which in _LEAVE else self.again
            return
        if which is signal.SIGINT:
            words = (
                b"saving and stopping; Ctrl-C again ends without saving"
                if self._saves
                else b"stopping; Ctrl-C again ends at once"
            )
            # Not `say`: this may have interrupted it.
            os.write(2, b"\nlaunch: " + words + b"\n")
        # A warning may come before it, as a scheduler's SIGUSR1.
        self.received = which if which in _LEAVE else self.received or which
        if self._ranks is not None:
            _signal(self._ranks, which)


class LocalEnd(End):
    """The end of ranks on this machine. `kept` has what the first of them said (`CAUSE_FILE`)."""

    may_come_late = False

    def __init__(self, run_dir: Path | None, kept: Path) -> None:
        super().__init__(run_dir)
        self._kept = kept
        self.codes: list[int] = []
        """The ranks' own exit codes, negative for a signal."""

    def say_cause(self, run: object, found: str) -> None:
        """Prints the line of failure.txt with the cause: on one machine the host says nothing."""
        line = found.split("\n")[0].removeprefix("error: ").strip()
        say_error(line or kept_cause(self._kept) or "the disk was too full for the cause")

    def without_record(self, code: int, received: signal.Signals | None) -> int:
        """As `launch.end.End`."""
        cause = kept_cause(self._kept)
        killed = {rank: -code for rank, code in enumerate(self.codes) if code < 0}
        if cause is not None:
            say_error(cause)
            return exit_code(code)
        if received is not None and self.run is None:
            say(f"stopped by {received.name}; start it again")
            return ExitCode.STOPPED
        if received is not None:  # it reached ranks that did not listen yet
            return self.early(received)
        if killed:
            rank, number = next(iter(killed.items()))
            say_error(
                f"rank {rank} was ended by {signal.Signals(number).name}: exhausted memory if by "
                "SIGKILL (see dmesg), else a fault in a library; see the lines above"
            )
        else:
            say_error(f"a rank ended with code {code} and left no cause; see the lines above")
        return exit_code(code)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
