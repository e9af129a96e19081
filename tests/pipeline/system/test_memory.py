"""Whether this process keeps what it frees, by the pages that the kernel has to give it."""

import os
import subprocess
import sys

import pytest

BYTES = 96 << 20  # above every limit of malloc
PAGES = BYTES // os.sysconf("SC_PAGESIZE")

USE = f"""
import resource
import sys
from pipeline.system.memory import give_back_freed_memory, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * {BYTES}
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()
"""


def printed(then: str, **environment: str) -> list[int]:
    """What a process prints that uses large tensors."""
    known = {name: value for name, value in os.environ.items() if "MALLOC" not in name.upper()}
    known.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", USE + then],
        env=known | environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return [int(word) for word in done.stdout.split()]


def test_what_is_freed_is_used_again_without_the_kernel():
    before, first, kept, after = printed("""
print(faults())
assert keep_freed_memory()
print(faults(), faults())
give_back_freed_memory()
print(faults())
""")
    assert before >= 4 * PAGES and after >= 4 * PAGES, "else this test says nothing"
    assert first < 2 * PAGES and kept < PAGES / 10


def test_what_was_kept_is_given_back_at_once():
    kept, given_back = printed("""
assert keep_freed_memory()
before = held()
faults()
print(held() - before)
give_back_freed_memory()
print(held() - before)
""")
    assert kept > 0.9 * BYTES and given_back < 0.1 * BYTES


@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_settings_of_the_user_stay(setting):
    then = "assert not keep_freed_memory()\nprint(faults())\ngive_back_freed_memory()"
    assert printed(then, **setting)[0] >= 4 * PAGES


def test_another_tunable_is_no_setting_of_malloc():
    then = "assert keep_freed_memory()\nfaults()\nprint(faults())"
    assert printed(then, GLIBC_TUNABLES="glibc.pthread.rseq=1")[0] < PAGES / 10


def test_another_c_library_is_left_alone():
    """One without mallopt, as musl is."""
    then = """
import ctypes
ctypes.CDLL = lambda name: object()
assert not keep_freed_memory()
give_back_freed_memory()
print(faults())
"""
    assert printed(then)[0] >= 4 * PAGES
