"""The run that every interrupted one must equal, and a process of one thread."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
import torch


@pytest.fixture(scope="session")
def uninterrupted(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of 2 ranks, `jobs.resumable`, that nothing interrupted."""
    runs = tmp_path_factory.mktemp("uninterrupted")
    ranks = jobs.run(["-m", "pipeline.train", *jobs.resumable(small_data, runs)], ranks=2)
    assert ranks.codes == [0, 0], ranks.text
    yield runs / "test"
    shutil.rmtree(runs)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors: more threads would only crowd the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
