"""What DALI says of images: its cause on one line, and its decoders' words once, uncoloured."""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import jobs
import pytest
from image_writers import tiff
from terminal import on_terminal
from zoo_parts import levels, of_mode, saved

from pipeline.data.dali.reasons import cause, cause_of_one
from pipeline.system.native import by_decoders, decoders_words, said_once

DRAWING = """
import ctypes, os, sys
from contextlib import closing
from pathlib import Path
import numpy as np
import torch
from pipeline.data.crops import CenterCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import ValStream
manifest = open_manifest(Path(sys.argv[1]), "train")
settings = DecodeSettings("cpu", torch.device("cpu"), 2)
chunks = [np.arange(len(manifest))] * 3
with closing(Loader(ValStream(manifest, CenterCrop(16, 16)), chunks, 3, len(manifest), settings)) as loader:
    for batch in loader:
        print("a line of Python", file=sys.stderr)
    os.write(2, b"a line of C\\n")
    if sys.argv[2] == "crash":
        os.write(2, b"last words\\n")
        ctypes.string_at(0)
os.write(2, b"after it\\n")
"""  # noqa: E501

REFUSED = """
import os, sys
from pathlib import Path
import numpy as np
import torch
from pipeline.data.crops import CenterCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import ValStream
manifest, before = open_manifest(Path(sys.argv[1]), "train"), os.readlink("/proc/self/fd/2")
def refuse(*_):
    global filtered
    filtered = os.readlink("/proc/self/fd/2") != before
    raise RuntimeError("no memory")
Loader._build = refuse
settings = DecodeSettings("cpu", torch.device("cpu"), 1)
try:
    Loader(ValStream(manifest, CenterCrop(16, 16)), [np.arange(3)], 1, 3, settings)
except RuntimeError as error:
    now = os.readlink("/proc/self/fd/2") != before
    print(f"RuntimeError: {error}, filtered {filtered}, then {now}")
"""


def drawn(root: Path, end: str = "close") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", DRAWING, str(root), end]
    return subprocess.run(command, cwd=jobs.REPOSITORY, capture_output=True, text=True)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two JPEGs that libjpeg warns of, and a good TIFF that a first decoder leaves to a second."""
    folder = tmp_path / "train/a"
    folder.mkdir(parents=True)
    jpeg = saved(of_mode("RGB"), "JPEG")
    for number in (1, 2):
        (folder / f"{number}.jpg").write_bytes(jpeg[:-60] + b"\xff\xd9")
    (folder / "3.tif").write_bytes(tiff(levels(8, 4), 5))
    return tmp_path


def test_decoders_say_each_thing_once_and_all_other_lines_pass(root):
    ran = drawn(root)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    said = [line for line in lines if line.startswith("warning: an image decoder says: ")]
    once = " (said once; python -m pipeline.prepare verify --full names the files)"
    assert sorted(said) == [
        f"warning: an image decoder says: Corrupt JPEG data: premature end of data segment{once}",
        "warning: an image decoder says: Unsupported photometric interpretation: 5, "
        f"compression: 1{once}",
    ]
    assert sorted(line for line in lines if line not in said) == [
        *["a line of C"], *["a line of Python"] * 3, "after it",
    ]  # fmt: skip
    assert "\x1b" not in ran.stderr


def test_the_last_words_of_a_process_that_crashes_arrive(root):
    ran = drawn(root, "crash")
    assert ran.returncode < 0
    assert "last words" in ran.stderr.splitlines()


def passed(content: bytes) -> bytes:
    """What `said_once` makes of it."""
    (out, into_filter), (out_of_filter, end) = os.pipe(), os.pipe()
    os.write(into_filter, content)
    os.close(into_filter)
    said_once(out, end)
    os.close(end)
    with os.fdopen(out_of_filter, "rb") as file:
        return file.read()


def test_a_bar_without_a_newline_goes_on_as_it_is_drawn():
    (lines, into_filter), (out_of_filter, end) = os.pipe(), os.pipe()
    thread = threading.Thread(target=said_once, args=(lines, end))
    thread.start()
    os.write(into_filter, b"\r 40%|####")
    assert os.read(out_of_filter, 99) == b"\r 40%|####"
    os.write(into_filter, b"\r 50%|##### done\nmore")
    os.close(into_filter)
    thread.join()
    assert os.read(out_of_filter, 99) == b"\r 50%|##### done\nmore"


def test_a_full_disk_costs_the_lines_that_do_not_fit_only():
    lines, into_filter = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    thread = threading.Thread(target=said_once, args=(lines, full))
    thread.start()
    for line in (b"one\n", b"another\n"):
        os.write(into_filter, line)
    time.sleep(0.3)
    assert thread.is_alive(), "the next line may have room"
    os.close(into_filter)
    thread.join(10.0)
    assert not thread.is_alive()
    os.close(full)


def fill(pipe: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(pipe, "wb") as file:
        file.write(content)


def test_a_pipe_that_does_not_wait_gets_every_line():
    (lines, into_filter), (out_of_filter, end) = os.pipe(), os.pipe()
    os.set_blocking(end, False)
    thread = threading.Thread(target=said_once, args=(lines, end))
    thread.start()
    wanted = b"".join(b"line %06d\n" % number for number in range(20_000))  # three pipes full
    writer = threading.Thread(target=fill, args=(into_filter, wanted))
    writer.start()
    found = b""
    while len(found) < len(wanted) and select.select([out_of_filter], [], [], 10.0)[0]:
        time.sleep(0.001)
        found += os.read(out_of_filter, 4096)
    for one in (writer, thread):
        one.join(10.0)
    assert found == wanted


def test_a_loader_that_does_not_start_leaves_stderr_as_it_was(root):
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(root)], cwd=jobs.REPOSITORY, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout == "RuntimeError: no memory, filtered True, then False\n", done.stderr


def test_a_bar_over_a_loader_is_removed_at_its_end(small_data, tmp_path):
    data = jobs.copy_data(small_data, tmp_path / "data")
    argv = ["-m", "pipeline.prepare", "mean", f"--root={data}"]
    _, shown = on_terminal(argv)
    bar = shown.rpartition("reading ")[2]
    assert "\r" in bar, f"it stays: {shown!r}"


def test_kinds_differ_in_more_than_numbers():
    lines = [
        b"Corrupt JPEG data: 14 extraneous bytes before marker 0xe0\n",
        b"NCCL INFO something\n",
        b"Corrupt JPEG data: 7 extraneous bytes before marker 0xd9\n",
        b"\x1b[0;31m[ERROR] \x1b[0m[libtiff_decoder] Planar TIFFs are not supported\n",
        b"no newline at its end \xff",
    ]
    first, second, third, fourth = passed(b"".join(lines)).splitlines()
    assert first.startswith(b"warning: an image decoder says: Corrupt JPEG data: 14 extraneous")
    assert third.startswith(b"warning: an image decoder says: Planar TIFFs are not supported (said")
    assert (second, fourth) == (b"NCCL INFO something", b"no newline at its end \xff")


REPORT = """Critical error in pipeline:
Critical error in pipeline:
Error in CPU operator `nvidia.dali.fn.decoders.image_slice`,
which was used in the pipeline definition with the following traceback:

  File "/x/graph.py", line 41, in make_pipeline
    pipe.set_outputs(images)

encountered:

{}
Current pipeline object is no longer valid.
"""


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("nvImageCodec failure: '#3'", "nvImageCodec failure: '#3'"),
        ("Failed to decode sample #4 : ", "Failed to decode"),
        ("Invalid sample_type: 8197", "Invalid sample_type: 8197"),
        (
            "The cropping window [0..5] is not valid for image dimensions [3]\n"
            "C++ context: [/opt/dali/dali/util/crop_window.h:91]",
            "The cropping window [0..5] is not valid for image dimensions [3]",
        ),
        (
            '[/opt/dali/dali/slice.h:72] Assert on "a <= b" failed: end before start\n'
            "Stacktrace (3 entries):\n[frame 0]: /x.so",
            'Assert on "a <= b" failed: end before start',
        ),
        ("", "no reason given"),
    ],
)
def test_the_cause_of_dali_is_on_one_line_without_places(said, wanted):
    assert cause(REPORT.format(said)) == wanted


def test_an_image_of_which_dali_says_only_that_it_failed_has_damaged_data():
    assert cause_of_one(REPORT.format("Failed to decode sample #0 : ")) == "its data are damaged"
    assert cause_of_one(REPORT.format("nvImageCodec failure: '#3'")) == "nvImageCodec failure: '#3'"


def test_a_report_of_another_form_is_told_as_it_is():
    assert cause("std::bad_alloc") == "std::bad_alloc"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Premature end of JPEG file", "Premature end of JPEG file"),
        ("libpng error: IDAT: CRC error", "libpng error: IDAT: CRC error"),
        ("TIFFReadDirectory: Warning, Bogus", "TIFFReadDirectory: Warning, Bogus"),
        (
            "\x1b[0;31m[ERROR] \x1b[0m[libjpeg_turbo_decoder] Could not decode jpeg code stream - "
            "Premature end of JPEG data. Stopped at line 14/29",
            "Premature end of JPEG data. Stopped at line 14/29",
        ),
        (
            "[ WARN:0@1.090] global grfmt_png.cpp:779 readFromStreamOrBuffer PNG input is short",
            "PNG input is short",
        ),
        (
            "[ERROR:0@19.222] global loadsave.cpp:1409 imdecode_ imdecode_(''): can't read data: "
            "OpenCV(4.13.0) /opt/src/modules/imgcodecs/src/bitstrm.cpp:200: error",
            "can't read data",
        ),
    ],
)
def test_lines_of_decoders_are_known(line, words):
    assert by_decoders(line)
    assert decoders_words(line, failed=True) == words
    assert (decoders_words(line, failed=False) == "") is ("[" in line)


@pytest.mark.parametrize("line", ["NCCL WARN x", "error: a sentence", "Traceback (most recent"])
def test_other_lines_are_not_of_decoders(line):
    assert not by_decoders(line)
