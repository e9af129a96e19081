"""What an error says when it ends a process, and with which code."""

import errno
import os
import subprocess
import sys

import jobs
import pytest

from pipeline.system.failure import ExitCode, Reported, TrainingError, code_of, in_words

FAILS = r"/d/x cannot be used: {}; see that its file system answers and start again"

ERRORS = [
    (OSError(errno.EIO, os.strerror(errno.EIO), "/d/x"), FAILS.format("Input/output error"), 1),
    (OSError(errno.ESTALE, os.strerror(errno.ESTALE), b"/d/x"),
     FAILS.format("Stale file handle"), 1),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/d/x"),
     "/d/x cannot be used: No space left on device; make room there and start again", 1),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/d/x"),
     "/d/x cannot be used: Permission denied; give this user access to it, or mount it "
     "read-write, and start again", 2),
    (OSError(errno.EROFS, os.strerror(errno.EROFS), "/d/x"),
     "/d/x cannot be used: Read-only file system; give this user access to it, or mount it "
     "read-write, and start again", 2),
    (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/d/x"),
     "/d/x cannot be used: No such file or directory; repair or remove it and start again", 2),
    (MemoryError(), "out of memory; give each rank more, by fewer ranks or data.threads on a node",
     1),
    (ConnectionResetError("by the peer"), "ConnectionResetError: by the peer", 1),
    (ValueError("a rule"), "a rule", 2),
    (TrainingError("a cause"), "a cause", 1),
    (Reported("a cause", ExitCode.STOPPED), "Reported: a cause", 75),
]  # fmt: skip


@pytest.mark.parametrize(("error", "words", "code"), ERRORS, ids=[e[1] for e in ERRORS])
def test_an_error_says_what_failed_and_what_to_do(error, words, code):
    assert (in_words(error), code_of(error)) == (words, code)


@pytest.mark.parametrize(("debug", "lines"), [((), 1), (("--debug",), None)])
def test_what_a_file_system_refuses_ends_a_command_in_one_line(tmp_path, debug, lines):
    program = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.system.failure import run_command\n"
        f"run_command(lambda _: Path({str(tmp_path)!r}).read_bytes(), sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *debug], env=jobs.environment(), capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == ExitCode.WRONG_INPUT
    assert f"error: {tmp_path} cannot be used: Is a directory; repair or remove" in done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)
    assert lines is None or len(done.stderr.splitlines()) == lines, done.stderr
