"""Where ranks keep the kernels that Triton compiles."""

import tempfile
from pathlib import Path

import jobs
import pytest

from pipeline.system.machine import keep_triton_cache_on_this_node, triton_cache

SHOW = """
import os
from pipeline.ranks import connect

connect()
print(os.environ.get("TRITON_CACHE_DIR"))
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The machine's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    return tmp_path


def test_the_cache_lies_in_a_temporary_folder_of_this_user_alone(temporary):
    folder = triton_cache().parent
    assert folder.parent == temporary and folder.stat().st_mode & 0o777 == 0o700
    assert triton_cache().parent == folder, "the same each time"


def test_a_folder_that_the_user_names_stays(temporary, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    keep_triton_cache_on_this_node()
    assert triton_cache() == Path("/elsewhere")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("trap", ["open", "link"])
def test_a_folder_that_others_can_write_to_is_not_used(temporary, trap):
    folder = triton_cache().parent
    if trap == "open":
        folder.chmod(0o777)
    else:
        folder.rmdir()
        folder.symlink_to(temporary)
    assert triton_cache() == Path.home() / ".triton" / "cache"


@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_several_ranks_keep_it_on_their_node(engine, tmp_path):
    env = {"TMPDIR": str(tmp_path)}
    ranks = jobs.run(["-c", SHOW], ranks=2, engine=engine, **env)
    folder = next(tmp_path.glob("trainyard-*"))
    assert [text.split() for text in ranks.outputs] == [[str(folder / "triton")]] * 2


def test_one_process_keeps_it_where_triton_does_unless_slurm_started_it(tmp_path):
    env = {"TMPDIR": str(tmp_path)}
    assert jobs.run(["-c", SHOW], **env).text.split() == ["None"]
    assert str(tmp_path) in jobs.run(["-c", SHOW], SLURM_JOB_ID="7", **env).text
