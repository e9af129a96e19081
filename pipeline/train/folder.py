"""A run's folder: the names of its files, their content, and which folders are runs.

The contract between the writers and the readers of such a folder. Imports nothing heavy, so that
commands that only read answer at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipeline.config import Config
from pipeline.system.failure import TrainingError
from pipeline.system.files import patiently, remove_partials
from pipeline.system.launched import launched_rank
from pipeline.system.words import printable, shell_word
from pipeline.train.events import last, read_metrics

log = logging.getLogger("trainyard")

HOLDS = "a run's folder holds config.yaml and metrics.jsonl"
NO_RUN = "is no run: it has no config.yaml and no lock"
REPORT = "report.md"
"""Name of the file of `pipeline.report` by which its folder, often among the runs, is known."""

EVALUATION = "evaluate-{}.json"
"""Name of a result of `pipeline.evaluate`; the words in it say what was evaluated."""

TABLE = "{}.csv"
"""Name of the table of one kind of line, train or val, in a run's folder `csv`."""

_CHECKPOINT = re.compile(r"step-(\d{9})\.pt")

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Holder:
    """The job that holds a run's lock, or held it last. `since` is its host's local time."""

    process: int
    host: str
    slurm_job: str | None
    since: str | None
    start: str | None = None
    """The name of the job's start, which no other has; None in locks of earlier versions."""

    @classmethod
    def here(cls, start: str | None = None) -> Holder:
        """This process as a holder, from now on."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(os.getpid(), socket.gethostname(), os.environ.get("SLURM_JOB_ID"), since, start)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, on this host."""
        return self.host == socket.gethostname()

    @property
    def as_json(self) -> str:
        """The holder as the line in the lock file."""
        return json.dumps(asdict(self)) + "\n"

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.process} on {self.host}{job}, since {self.since}"


@dataclass(frozen=True)
class Stop:
    """A run's end by a signal, before step `step`. Both None: the disk had no room for the
    record."""

    signal: str | None
    step: int | None

    @classmethod
    def read(cls, text: str) -> Stop:
        """The stop that `stopped.txt` records."""
        return _from_json(cls, text) or cls(None, None)


def _from_json(kind: type[_Kind], text: str) -> _Kind | None:
    try:
        return kind(**json.loads(text))
    except (ValueError, TypeError):
        return None


class _Inside:
    """The path of this name in a run's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunFolder, owner: type[RunFolder]) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, whether or not anything is in it."""

    path: Path

    config = _Inside("config.yaml")
    """The resolved configuration; versions and commit as comments, for people."""
    metrics = _Inside("metrics.jsonl")
    """One JSON object a line: `start`, `train`, `val` and `done` events."""
    log = _Inside("log.txt")
    """What rank 0 said, for people."""
    lock = _Inside("lock")
    """Locked while a job trains the run; names the job."""
    failure = _Inside("failure.txt")
    """The first cause of a failure, in the line that people saw, and its rank."""
    stop = _Inside("stopped.txt")
    """Which signal stopped the run, and before which step."""
    origin = _Inside("origin.txt")
    """The checkpoint of another run with which this one began."""
    checkpoints = _Inside("checkpoints")
    """The folder of checkpoints."""
    tensorboard = _Inside("tensorboard")
    """The folder of TensorBoard's event files."""
    csv = _Inside("csv")
    """The folder of tables of the lines of metrics: `TABLE`."""
    wandb = _Inside("wandb")
    """The folder in which W&B keeps its files."""
    wandb_id = _Inside("wandb.json")
    """The run's identity at W&B, so that a resumed run is the same one there."""
    mlflow_id = _Inside("mlflow.json")
    """The run's identity at MLflow, and where that keeps it."""
    profile = _Inside("profile")
    """The folder of traces."""
    stacks = _Inside("stacks")
    """The folder in which the ranks of a job that hangs report."""
    nccl = _Inside("nccl")
    """The folder of NCCL's logs, by host and process."""

    @property
    def mlruns(self) -> Path:
        """MLflow's folder of all runs that lie beside this one, unless it is told of another place.
        Hidden, as `runs/*/` names runs."""
        return self.path.parent / ".mlruns"

    @property
    def evaluations(self) -> list[Path]:
        """The results of `pipeline.evaluate`, by name."""
        return sorted(self.path.glob(EVALUATION.format("*")))

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here, however far it got: it holds config.yaml or lock."""
        return self.config.is_file() or self.lock.is_file()

    @property
    def has_trained(self) -> bool:
        """Whether the run has got as far as training."""
        return self.config.is_file() and self.metrics.is_file()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the run's metrics, none if there are none yet; a line that a kill has cut
        is left out with a warning."""
        return read_metrics(self.metrics, warn=True)

    def last(self, event: str) -> Mapping[str, Any]:
        """The last line of metrics of one kind; empty if there is none."""
        return last(read_metrics(self.metrics), event)

    def settings(self) -> dict[str, Any]:
        """Every setting by `part.name`; what the run's version did not know has its default.

        Raises ValueError naming the file if config.yaml is none.
        """
        text = self.config.read_text(encoding="utf-8", errors="replace")
        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"{self.config} is not YAML ({' '.join(str(error).split())}); start the run "
                "again, which rewrites it, or leave the run out"
            ) from error
        if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
            raise ValueError(f"{self.config} holds no resolved settings; {HOLDS}")
        settings: dict[str, Any] = {}
        for source in (yaml.safe_load(Config().to_yaml()), tree):
            for part, values in source.items():
                named = values if isinstance(values, dict) else {"": values}
                settings |= {f"{part}.{name}".rstrip("."): value for name, value in named.items()}
        return settings

    def holder(self) -> Holder | None:
        """The last holder named in the lock; None if there is none, or this user may not read it.

        Raises `OSError` if the file system does not answer.
        """
        try:
            return _from_json(Holder, self.lock.read_text(encoding="utf-8", errors="replace"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            return None

    def is_of(self, start: str) -> bool:
        """Whether no other start than `start` holds the run, as far as its lock says: one that does
        not answer says nothing."""
        try:
            holder = self.holder()
        except OSError:
            return True
        return holder is None or holder.start in (None, start)

    def require_of(self, start: str) -> None:
        """Raises `TrainingError` if another start has taken the run from this one."""
        if not self.is_of(start):
            raise TrainingError(
                f"the run in {self.path} is now that of {self.holder()}: this start lost its lock, "
                "as a network file system takes it from a host that was away; nothing more is "
                "written here, so let the other start go on"
            )

    def record_first_cause(self, message: str) -> bool:
        """Writes the cause of a failure unless a rank has done so already; True when this call
        wrote it, or when there is no folder to write it into."""
        if not os.path.isdir(self.path):  # which does not raise where the disk does not answer
            return True
        cause, host = printable(" ".join(message.split())), socket.gethostname()
        try:
            with open(self.failure, "x", encoding="utf-8") as file:
                file.write(f"error: {cause}\nrank {launched_rank()} on {host}\n")
        except FileExistsError:
            return False
        except OSError:
            pass  # A full or vanished disk must not hide the cause, which is printed next.
        return True

    def first_cause(self) -> str | None:
        """The cause of the run's failure, or None if it did not fail.

        A file without words is a failure too: the disk had room for its name only.
        """
        try:
            first, *_ = self.failure.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return None
        return first.strip().removeprefix("error: ") or (
            "the disk was too full for the cause, which is on the console of the job"
        )

    def record_stop(self, by: str, step: int) -> None:
        """Writes which signal stopped the run, and before which step."""
        word = json.dumps({"signal": by, "step": step})
        with contextlib.suppress(OSError):  # a full disk: the checkpoint is written, that counts
            self.stop.write_text(word + "\n", encoding="utf-8")

    def stopped(self) -> Stop | None:
        """How a signal stopped the run; None if none did."""
        try:
            return Stop.read(self.stop.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None

    def forget_last_end(self) -> None:
        """Removes what an earlier start of this run left about its end, and half-written files: the
        folder has one writer, who calls this."""
        remove_partials(self.path)
        self.failure.unlink(missing_ok=True)
        self.stop.unlink(missing_ok=True)
        shutil.rmtree(self.stacks, ignore_errors=True)


def why_no_run(run: RunFolder) -> str:
    """What is wrong with a folder for which `has_trained` is false, in one sentence."""
    folder = run.path
    if not folder.exists():
        return f"{folder} is no run: there is no such folder; {HOLDS}"
    if not folder.is_dir():
        return f"{folder} is no run but a file; give the run's folder: {HOLDS}"
    inner = [entry for entry in folder.iterdir() if RunFolder(entry).has_trained]
    if inner:
        all_of_them = f"{shell_word(str(folder))}/*/"
        return f"{folder} is no run but holds {len(inner)} of them; give {all_of_them}"
    names = [path.name for path in (run.config, run.metrics) if not path.is_file()]
    what = "has no training yet" if run.is_run else "is no run"
    return f"{folder} {what}: it has no {' and no '.join(names)}; {HOLDS}"


class Checkpoints:
    """The names in a run's folder of checkpoints: `step-<9 digits>.pt`, and `best.pt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "best.pt"
        """The checkpoint of the best validation."""

    def path(self, step: int) -> Path:
        """Where the checkpoint before step `step` lies."""
        return self.folder / f"step-{step:09d}.pt"

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first. Raises `OSError` if the folder is there
        and does not say."""
        found = map(_CHECKPOINT.fullmatch, self._names())
        return sorted(int(match.group(1)) for match in found if match)

    def others(self) -> list[Path]:
        """The files there that end in .pt and are of no step, by name. Raises as `steps` does."""
        names = [name for name in self._names() if name.endswith(".pt") and name[0] != "."]
        return [self.folder / name for name in sorted(names) if not _CHECKPOINT.fullmatch(name)]

    def _names(self) -> list[str]:
        def read() -> list[str]:
            try:
                return os.listdir(self.folder)
            except FileNotFoundError:
                return []

        return patiently(read, OSError, self._refused)

    def _refused(self, error: OSError, nap_sec: float) -> str:
        reason = error.strerror or error
        return f"{self.folder} cannot be read: {reason}; tried again in {nap_sec:g} s"


def run_of(file: Path) -> RunFolder | None:
    """The run to which the checkpoint or configuration `file` belongs, or whose folder it is; None
    if there is none."""
    itself = RunFolder(file.absolute())
    if os.path.isfile(itself.config):  # also of what is no path: nothing is raised
        return itself
    place = file.absolute().parent
    for run in (RunFolder(place.parent), RunFolder(place)):
        if place == run.checkpoints or file.absolute() == run.config:
            return run if run.config.is_file() else None
    return None


def why_unreadable(error: OSError) -> str:
    """Why a run cannot be read, as the end of a sentence about it."""
    name = f" of {Path(error.filename).name}" if error.filename else ""
    return f"cannot be read ({error.strerror}{name})"


def find_runs(below: Path) -> list[Path]:
    """The folders of the runs below `below`, in order, not looked into; none if it is no folder."""
    return [folder for folder, reason in search(below) if not reason]


def search(below: Path) -> list[tuple[Path, str]]:
    """Runs, with an empty reason, and the topmost folders without any, with the reason; nothing if
    `below` is no folder. A report's folder is neither."""
    if not below.is_dir():
        return []
    try:
        if RunFolder(below).is_run:
            return [(below, "")]
        with os.scandir(below) as entries:
            inner = sorted(Path(e.path) for e in entries if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        return [(below, why_unreadable(error))]
    found: list[tuple[Path, str]] = []
    for child in inner:
        if os.path.isfile(child / REPORT):  # which is false where it may not be looked at
            continue
        try:
            closed = child.is_symlink() and not RunFolder(child).is_run
            within = [] if closed else search(child)
        except OSError as error:  # a link into somebody else's folder
            within = [(child, why_unreadable(error))]
        found += within if any(reason != NO_RUN for _, reason in within) else [(child, NO_RUN)]
    return found
