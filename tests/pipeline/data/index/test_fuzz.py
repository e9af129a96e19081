"""Damaged files of every kind: taken, or refused in one sentence that names the file.

A fixed seed, and examples for about a minute in all. What was found so stands below as cases, and
in `test_bounds.py` what is too large for chance to find.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random

import container_mutations
import pytest
from container_mutations import REFUSED, TAKEN, bounded, mutate, try_reader
from container_writers import tar_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder with a file of each kind, and their contents by name."""
    folder = tmp_path_factory.mktemp("containers")
    return folder, container_mutations.containers(folder)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of warnings would be kept in memory for the report of a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", container_mutations.names())
def test_a_damaged_file_is_taken_or_refused_by_name(bench, name):
    folder, contents = bench
    path = folder / name
    assert try_reader(path) == TAKEN

    @settings(
        max_examples=500, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def reads(random: Random) -> None:
        path.write_bytes(mutate(contents[name], random))
        with bounded():
            try_reader(path)

    try:
        reads()
    finally:
        path.write_bytes(contents[name])


def test_what_is_damaged_is_refused_at_all(bench):
    """The harness would see nothing if readers took everything, or raised what it excuses."""
    folder, contents = bench
    path = folder / "tar/x.tar"
    for content in (b"", contents["tar/x.tar"][:700], b"x" * 1024):
        path.write_bytes(content)
        assert try_reader(path) == REFUSED
    path.write_bytes(contents["tar/x.tar"])
    with pytest.raises(FileNotFoundError):
        try_reader(folder / "names" / "gone" / "classes.txt")


@pytest.mark.parametrize("name", ["index/train.arrow", "index/means.npz"])
def test_every_byte_of_a_kept_file_changed_is_refused_or_gives_the_same(bench, name):
    folder, contents = bench
    path, whole = folder / name, contents[name]
    path.write_bytes(whole)
    wanted = container_mutations.kept(path)
    assert wanted is not None
    try:
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            assert container_mutations.kept(path) in (None, wanted), at
    finally:
        path.write_bytes(whole)


CASES = {
    "a name of control characters in a pickle": (
        "cifar python/cifar-10-batches-py/batches.meta",
        b"\x80\x02}(U\x0blabel_namesc\x00\x1c\n\x00\x1d\n.",
    ),
    "a line break in a name in an archive": (
        "tar/cls.tar",
        tar_of([("a.cls", b"0"), ("a.jpg", b""), ("b\n\x1b[2K.jpg", b"")]),
    ),
}
"""What the readers once raised for."""


@pytest.mark.parametrize("case", CASES)
def test_what_was_found_is_refused(bench, case):
    folder, contents = bench
    name, content = CASES[case]
    try:
        (folder / name).write_bytes(content)
        assert try_reader(folder / name) == REFUSED
    finally:
        (folder / name).write_bytes(contents[name])
