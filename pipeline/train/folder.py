"""A run's folder: what lies in it, its lock, and the first cause of a failure."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.ranks.watchdog import forget_stacks
from pipeline.ranks.world import World
from pipeline.system import files
from pipeline.system.console import log_to_file
from pipeline.system.failure import (
    FellWithPeer,
    PeerLost,
    Reported,
    Stopped,
    TrainingError,
    forget_last_end,
    record_first_cause,
)
from pipeline.train.monitor.metrics_file import read_metrics

HOLDS = "a run's folder holds config.yaml and metrics.jsonl"
_MARKS = ("config.yaml", "metrics.jsonl")
_RANKS = re.compile(r" batch: \d+ = ([\d,]+) ranks? x ")


def holds_run(folder: Path) -> bool:
    """Whether `folder` is that of a run which has come as far as training."""
    return all((folder / name).is_file() for name in _MARKS)


def why_no_run(folder: Path) -> str:
    """What is wrong with a `folder` that `holds_run` denies, in one sentence."""
    if not folder.exists():
        return f"{folder} is no run: there is no such folder; {HOLDS}"
    if not folder.is_dir():
        return f"{folder} is no run but a file; give the run's folder: {HOLDS}"
    inner = sorted({p.parent for p in folder.glob("*/config.yaml") if holds_run(p.parent)})
    if inner:
        return f"{folder} is no run but holds {len(inner)} of them; give {folder}/*/"
    names = [name for name in _MARKS if not (folder / name).is_file()]
    return f"{folder} is no run: it has no {' and no '.join(names)}; {HOLDS}"


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, none if there are none yet; a line that a kill has cut is left
    out with a warning."""
    lines = read_metrics(folder / "metrics.jsonl", warn=True)
    return [line for line in lines if isinstance(line, dict)]


def read_settings(folder: Path) -> dict[str, Any]:
    """Every setting by `part.name`; what the run's version did not know has its default.

    Raises ValueError naming the file if config.yaml is none.
    """
    text = _text(folder)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{folder}/config.yaml is not YAML ({' '.join(str(error).split())}); start the run "
            "again, which writes it anew, or leave the run out"
        ) from error
    defaults = yaml.safe_load(Config().to_yaml())
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise ValueError(f"{folder}/config.yaml holds no resolved settings; {HOLDS}")
    settings: dict[str, Any] = {}
    for part in {**defaults, **tree}:
        values: dict[str, Any] = {}
        for source in (defaults.get(part), tree.get(part)):
            values |= source if isinstance(source, dict) else {"": source}
        settings |= {f"{part}.{name}".rstrip("."): value for name, value in values.items()}
    return settings


def read_versions(folder: Path) -> dict[str, str]:
    """The comments at the head of a run's config.yaml: `# torch: 2.13.0`."""
    found = {}
    for line in _text(folder).splitlines():
        if not line.startswith("# "):
            break
        name, _, value = line[2:].partition(": ")
        found[name] = value
    return found


def read_ranks(folder: Path) -> int | None:
    """The number of ranks at a run's last start, as its log has it; None: it is not there."""
    try:
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    said = _RANKS.findall(text)
    return int(said[-1].replace(",", "")) if said else None


def _text(folder: Path) -> str:
    return (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def locked(folder: Path, world: World) -> Iterator[Path]:
    """Collective. Makes the run's folder and holds it until the job ends."""
    held = contextlib.ExitStack()

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lock"
        try:
            lock = held.enter_context(files.locked(path, wait=False))
        except BlockingIOError as error:
            holder = path.read_text(encoding="utf-8", errors="replace").strip() or "another job"
            raise ValueError(
                f"the run in {folder} is in use by {holder}; wait for it or choose another run.name"
            ) from error
        except OSError as error:
            if error.filename is not None:  # the file, not its lock
                raise
            raise ValueError(
                f"the run in {folder} cannot be locked: {error.strerror}; its file system has no "
                "locks (Lustre: mount it with -o flock), so set run.dir to another one"
            ) from error
        job_id = os.environ.get("SLURM_JOB_ID")
        said = (
            f"process {os.getpid()} on {socket.gethostname()}"
            + (f", Slurm job {job_id}" if job_id else "")
            + time.strftime(", since %Y-%m-%d %H:%M:%S\n")
        )
        os.ftruncate(lock, 0)
        os.write(lock, said.encode())

    with held:
        world.on_rank0(take)
        yield folder


@contextlib.contextmanager
def first_cause_kept(run_dir: Path, world: World) -> Iterator[None]:
    """Keeps the first cause of a failure in the run's `failure.txt`."""
    if world.rank == 0:
        forget_last_end(run_dir)
        forget_stacks(run_dir)
        log_to_file(run_dir)
        world.on_failure = lambda message: record_first_cause(run_dir, message)
    try:
        yield
    except (Stopped, Reported, KeyboardInterrupt):
        raise  # what was reported is recorded already, before any rank left
    except PeerLost as error:
        if not record_first_cause(run_dir, str(error)):
            raise FellWithPeer(
                f"rank {world.rank} ends because another rank failed; {run_dir}/failure.txt has "
                "the cause"
            ) from error
        raise
    except Exception as error:
        known = isinstance(error, TrainingError | ValueError)
        cause = str(error) if known else f"{type(error).__name__}: {error}"
        record_first_cause(run_dir, f"rank {world.rank}: {cause}")
        raise
