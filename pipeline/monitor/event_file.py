"""TensorBoard's event files, written whole and at once.

torch's SummaryWriter hands records to a thread, which a full disk ends for good while a flush waits
for it (tensorboard 2.21); here a record that finds no room waits for the next.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.monitor.patient_file import PatientFile, Room

_PREFIX = "events.out.tfevents"
_RUN = "run "


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files in `folder`, in the order in which it reads them."""
    return sorted(folder.glob(f"{_PREFIX}.*"))


def run_of(path: Path) -> str | None:
    """The id of the run that an event file is of; None if it has none, as files of others and of
    earlier versions do."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for record in islice(RawEventFileLoader(str(path)).Load(), 2):
        said = str(Event.FromString(record).session_log.msg)
        if said.startswith(_RUN):
            return said.removeprefix(_RUN)
    return None


class EventFile:
    """A new event file of the run `run_id`, from which on nothing that `folder` has at `purge_step`
    or later counts."""

    def __init__(self, folder: Path, purge_step: int, room: Room, run_id: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, which begin with a second: this
        # one's must come after those of all earlier starts, whatever the clock did since.
        seconds = [int(time.time())] + [_second(path) + 1 for path in event_files(folder)]
        name = f"{_PREFIX}.{max(seconds):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = PatientFile(folder / name, room)
        now = time.time()
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START, msg=_RUN + run_id)
        self._write(Event(wall_time=now, step=purge_step, session_log=start))

    def add(self, summary: Any, position: int, wall_time: float | None = None) -> None:
        """Adds a `Summary` at `position`, of now unless `wall_time` (seconds) is given."""
        from tensorboard.compat.proto.event_pb2 import Event

        now = time.time() if wall_time is None else wall_time
        self._write(Event(wall_time=now, step=position, summary=summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.write(record.getvalue())


def _second(path: Path) -> int:
    second = path.name[len(_PREFIX) + 1 :].partition(".")[0]
    return int(second) if second.isdigit() else 0


def events_at(folder: Path, position: int) -> Iterator[Any]:
    """The events at `position` in the newest file that has some, as they were written."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for path in reversed(event_files(folder)):
        events = (Event.FromString(record) for record in RawEventFileLoader(str(path)).Load())
        found = [event for event in events if event.step == position and event.summary.value]
        if found:
            yield from found
            return
