"""Whether a job holds a run's folder, found out without taking its lock.

To take the lock, even shared and for a moment, could turn away a run that starts just then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from pipeline.train.folder import Holder, RunFolder

_FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, process


def is_locked(run: RunFolder) -> bool:
    """Whether a lock on the run is seen from this host.

    Sees every lock of this host and, where the file system's server tells (NFS), those of others;
    on Lustre the locks of other hosts stay unseen.
    """
    try:
        about = run.lock.stat()
    except OSError:
        return False
    return _in_table(about, run.holder()) or _server_says(run.lock)


def _in_table(about: os.stat_result, holder: Holder | None) -> bool:
    """Whether /proc/locks, the kernel's own table, has a `flock` of the file.

    It is known by device and inode. On overlayfs and btrfs stat gives a number of no disk (major
    0) instead of the table's device: there by inode and the process that the lock file names.
    """
    try:
        with open("/proc/locks", encoding="ascii") as table:
            rows = [line.split() for line in table]
    except OSError:
        return False
    for row in rows:
        # 1: FLOCK ADVISORY WRITE 13448 fe:00:5349560 0 EOF; "->" marks one that only waits
        if len(row) < 6 or row[1] != "FLOCK":
            continue
        major, minor, inode = row[5].split(":")
        same_device = os.makedev(int(major, 16), int(minor, 16)) == about.st_dev
        same_process = holder is not None and row[4] == str(holder.process)
        if int(inode) != about.st_ino:
            continue
        if same_device or (os.major(about.st_dev) == 0 and same_process):
            return True
    return False


def _server_says(lock: Path) -> bool:
    """Whether a lock would be in the way, asked by F_GETLK, which takes none.

    On NFS the kernel turns a `flock` into a lock of the whole file at the server, which answers
    for all hosts; a local file system knows of no such lock.
    """
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with contextlib.suppress(OSError), open(lock, "rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, wanted)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    return False
