"""The run that every interrupted one must equal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest


@pytest.fixture(scope="session")
def uninterrupted(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of 2 ranks, `jobs.resumable`, that nothing interrupted."""
    runs = tmp_path_factory.mktemp("uninterrupted")
    ranks = jobs.run(["-m", "pipeline.train", *jobs.resumable(small_data, runs)], ranks=2)
    assert ranks.codes == [0, 0], ranks.text
    yield runs / "test"
    shutil.rmtree(runs)
