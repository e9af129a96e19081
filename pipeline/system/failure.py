"""The end of a job: exit codes, the first cause of a failure in one line; and stop signals,
remembered until all ranks act on them together.

Imports nothing heavy, so that a wrong setting is answered before torch is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import Any, NoReturn

from pipeline.system.console import output_refused, say
from pipeline.system.launched import launched_rank, launched_size

log = logging.getLogger("trainyard")

# By strength, as ranks agree on the highest index that any has received. SIGUSR1 says that time is
# nearly up: save and have the job resume later. The others say: save and leave (SIGUSR2 is SIGTERM
# by way of srun, which does not pass that on; SIGHUP comes when the terminal is closed).
STOP_SIGNALS = ("", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT", "SIGTERM")
GO_ON = 0
_LEAVE = ("SIGHUP", "SIGINT", "SIGTERM")
LATER = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT}
"""What launch/slurm/rank.py blocks until the program listens (`StopSignal`) or meets the other
ranks (`heed_signals`). SIGTERM, since srun sends it when the first rank has failed: a rank that
still loads would die of it, and its code would be the job's in place of the first one's. SIGINT,
since launch/local.py passes on a Ctrl-C."""

CAUSE_FILE = "TRAINYARD_CAUSE_FILE"
"""The environment variable with the file, not there yet, into which the first rank with an error
writes it: launchers that print much after it repeat it as their last line."""

END_SEC = 120.0
"""How long a rank may take to end after its work, as a GPU's driver takes seconds."""
_BEYOND_SEC = 10
_SHIPPED = "TRAINYARD_SHIPPED"
"""The environment variable with the configuration that a launcher has said to come along: its ranks
need not say it again."""
_SPEECH_SEC = 3.0  # in which rank 0 says why all end
_TURN_SEC = 0.4  # between two other ranks that have the same to say


class ExitCode(IntEnum):
    """Exit codes of a rank. horovodrun itself returns 1 for any but FINISHED."""

    FINISHED = 0
    FAILED = 1
    WRONG_INPUT = 2
    """Wrong configuration or data: starting again changes nothing."""
    STOPPED = 75
    """A signal stopped the run: a good checkpoint is written (`Stopped`), or there was nothing to
    save yet (`StoppedEarly`). Start again to resume."""


class TrainingError(RuntimeError):
    """The job cannot continue; the message names the cause and what to do."""


class PeerLost(TrainingError):
    """A collective failed because another rank is gone."""


class Reported(Exception):
    """Every rank has the same error; rank 0 prints it and all exit with its code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class FellWithPeer(Exception):
    """This rank ends because another failed first, which has reported the cause."""


class Stopped(Exception):
    """A signal stopped the run; its checkpoint is written."""

    def __init__(self, by: str = "") -> None:
        super().__init__(by)
        self.by = by
        """Which signal, of `STOP_SIGNALS`."""


class StoppedEarly(KeyboardInterrupt):
    """A signal came before there was anything to save: no `Exception`, as it may come anywhere."""


USERS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
"""What a file system refuses at every start, until somebody repairs it."""


def _is_without_dali(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name in ("nvidia", "nvidia.dali")


def is_told(error: BaseException) -> bool:
    """Whether an error says in words what went wrong, so that a traceback adds nothing."""
    if _is_without_dali(error):
        return True
    of_file = isinstance(error, OSError) and error.filename is not None
    return of_file or isinstance(error, ValueError | TrainingError | MemoryError)


def in_words(error: BaseException) -> str:
    """An error as one sentence, with what to do about it where that is known."""
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return f"out of memory{said}; give each rank more, by fewer ranks or data.threads on a node"
    if isinstance(error, OSError) and error.filename is not None:
        place, reason = error.filename, error.strerror or str(error)
        return f"{os.fsdecode(place)} cannot be used: {reason}; {cure(error)}"
    if _is_without_dali(error):
        # An extra, as no dependency can express which of its two wheels fits a PyTorch.
        return (
            "DALI, which reads the images, is not installed; run pip install 'trainyard[gpu]', or "
            "'trainyard[gpu-cuda12]' for a PyTorch built for CUDA 12"
        )
    return str(error) if is_told(error) else f"{type(error).__name__}: {error}"


def cure(error: OSError) -> str:
    """What to do about what a file system refuses."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give this user access to it, or mount it read-write, and start again"
    if error.errno in USERS:
        return "repair or remove it and start again"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{'make room there' if full else 'see that its file system answers'} and start again"


def code_of(error: BaseException) -> ExitCode:
    """The exit code of a process that an error ends."""
    if isinstance(error, Reported):
        return error.code
    by_user = isinstance(error, OSError) and error.filename is not None and error.errno in USERS
    by_user = by_user or _is_without_dali(error) or isinstance(error, ValueError)
    return ExitCode.WRONG_INPUT if by_user else ExitCode.FAILED


def say_error(message: str) -> None:
    """Writes the line `error: ...` to the log, or to stderr before there is one."""
    sentence = " ".join(message.split())
    _keep_for_launcher(sentence)
    if log.handlers:
        log.error("error: %s", sentence)
    else:
        # The launcher may have closed the pipe already; failure.txt still has the cause.
        say(f"error: {sentence}", stream=sys.stderr)


def _keep_for_launcher(sentence: str) -> None:
    """Writes the first error of the job's ranks into the file that their launcher has named."""
    kept = os.environ.get(CAUSE_FILE)
    if kept:
        with contextlib.suppress(OSError), open(kept, "x", encoding="utf-8") as file:
            file.write(sentence)


def run_command(main: Callable[[list[str]], object], argv: list[str]) -> NoReturn:
    """Runs a command and exits the process with its code and at most one line of error.

    `main` gets the arguments without `--debug`, which shows the traceback of an error. Whoever
    closes stdout early, as `| head -1` does, changes neither the work nor its code; output that
    does not fit on a disk does.
    """
    _open_streams()
    debug = "--debug" in argv
    _say_shipped(argv)
    code = _guarded(main, [a for a in argv if a != "--debug"], debug)
    _keep_code()
    reason = output_refused()
    if reason is not None and code == ExitCode.FINISHED:
        say_error(f"not all of the output could be written: {reason}")
        code = ExitCode.FAILED
    if launched_size() > 1:
        _end_for_sure()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # The launcher closed the pipe; Python would turn that into code 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code is ExitCode.FAILED and launched_size() > 1:
        # Horovod's shutdown at interpreter exit waits for ranks that may never come.
        os._exit(code)
    sys.exit(int(code))


def _open_streams() -> None:
    """Makes the standard streams take all text, and be there: a file opened in place of a closed
    one would get what C code prints."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that are not in its charset
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a pipe may bring other programs' lines too


def _say_shipped(argv: list[str]) -> None:
    """Says on rank 0 which file `--config` takes, where it is none of the working folder."""
    after = ["", *argv]
    for before, argument in zip(after, argv, strict=False):
        asked = argument if before == "--config" else argument.removeprefix("--config=")
        if asked.startswith("configs/") and (argument != asked or before == "--config"):
            from pipeline.config.yaml_file import shipped  # needs YAML: only who reads any

            said = os.environ.get(_SHIPPED) == asked
            if launched_rank() == 0 and not said and (found := shipped(asked)) is not None:
                os.environ[_SHIPPED] = asked
                say(f"{asked} is not in this folder: taken from {found}", stream=sys.stderr)


def _guarded(main: Callable[[list[str]], object], argv: list[str], debug: bool) -> int:
    try:
        main(argv)
        return ExitCode.FINISHED
    except SystemExit as end:  # of --help, or of a command that has said why
        return end.code if isinstance(end.code, int) else ExitCode.FINISHED
    except Stopped:
        return ExitCode.STOPPED
    except StoppedEarly as error:
        return _stopped_early(str(error))
    except FellWithPeer as error:
        log.error("%s", error)  # does not begin with `error:`, which marks the first cause
        return ExitCode.FAILED
    except Reported as error:
        if debug and launched_rank() == 0:
            _show_traceback()
        return error.code
    except ValueError as error:
        if debug:
            _show_traceback()
        _say_once(str(error))
        return ExitCode.WRONG_INPUT
    except KeyboardInterrupt:
        return ExitCode.FAILED
    except Exception as error:  # the last resort: every failure ends as one line and a code
        if debug or not is_told(error):
            _show_traceback()
        message = in_words(error)
        say_error(f"rank {launched_rank()}: {message}" if launched_size() > 1 else message)
        return code_of(error)


def _show_traceback() -> None:
    """Shows the traceback of the present error; a line of a message in it is not taken for ours."""
    lines = traceback.format_exc().rstrip("\n").split("\n")
    say(*(f" {line}" if line.startswith("error:") else line for line in lines), stream=sys.stderr)


def _keep_code() -> None:
    """Ignores SIGTERM so that it cannot change the exit code: the launcher sends it to all when the
    first of several failing ranks exits, and would take the others for victims."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_for_sure() -> None:
    """Ends the process if it has not ended after `END_SEC`: on the way out Horovod and drivers wait
    for ranks that may never come. SIGALRM ends it if Python's lock is held for ever."""

    def end() -> None:
        time.sleep(END_SEC)
        say_error(
            f"rank {launched_rank()}: its work is done, and it did not end within {END_SEC:g} s: "
            "the engine or a driver waits, most often for another rank; see what that one says"
        )
        os._exit(ExitCode.FAILED)

    threading.Thread(target=end, name="end", daemon=True).start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(END_SEC) + _BEYOND_SEC)


def heed_signals() -> None:
    """Takes the signals that were blocked while the program loaded."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LATER)


def _stopped_early(name: str) -> ExitCode:
    """Says on rank 0 that the signal `name` came before there was anything to save."""
    by_launcher = name == "SIGTERM" and launched_size() > 1
    if launched_rank() != 0:
        _keep_code()
        time.sleep(_SPEECH_SEC)  # the first to exit makes the launcher kill rank 0 mid-sentence
    elif by_launcher:
        say(
            "ended by the launcher's SIGTERM, most often because another rank failed; see its "
            "lines", stream=sys.stderr,
        )  # fmt: skip
    else:
        say(f"stopped by {name} before the first step; start again", stream=sys.stderr)
    return ExitCode.FAILED if by_launcher else ExitCode.STOPPED


def _say_once(message: str) -> None:
    """Says an error that all ranks may have, or this one alone, before they can ask each other.

    Rank 0 says it and exits, whereupon the launcher sends SIGTERM to the others. A rank that
    gets none in its time is the first to fail, and says it itself.
    """
    rank = launched_rank()
    if rank == 0:
        say_error(message)
        return
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    heed_signals()
    end = time.monotonic() + _SPEECH_SEC + _TURN_SEC * min(rank, 8)
    while not ended and time.monotonic() < end:
        time.sleep(0.05)
    if not ended:
        say_error(f"rank {rank}: {message}")


class StopSignal:
    """Remembers a stop signal instead of dying of it. Prints nothing: stdout may be closed.

    With `whole_command` the body is all that the process does. Then a signal to leave raises
    `StoppedEarly` until `hold`: there is nothing to save yet, and what starts may wait for other
    ranks for minutes; those that a scheduler sends ahead of its end of the job are remembered from
    the first. After the body all are ignored: they must not change the code that it has earned.
    Outside the main thread, where Python hears no signals, it hears none.
    """

    def __init__(self, whole_command: bool = False) -> None:
        self.received: int = GO_ON
        """Index in `STOP_SIGNALS` of the strongest signal so far."""
        self._whole_command, self._holds = whole_command, not whole_command
        self._previous: dict[int, Any] = {}

    def hold(self) -> None:
        """From now on remembers signals to leave too."""
        self._holds = True

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in STOP_SIGNALS[1:]:
            number = signal.Signals[name]
            if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the job must outlive its terminal
            self._previous[number] = signal.signal(number, self._remember)
        try:
            heed_signals()
        except StoppedEarly:  # one that was held back; Python calls `__exit__` after a body only
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._whole_command else handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._holds and name in _LEAVE:
            raise StoppedEarly(name)
        self.received = max(self.received, STOP_SIGNALS.index(name))
