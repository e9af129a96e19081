"""A maker of run folders for every test of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import RunMaker


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Writes a run below the test's folder `runs`."""
    return RunMaker(tmp_path / "runs")
