"""A running Slurm for the tests marked `slurm`, and programs that stand in for others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    """A cluster of two nodes with 8 fake GPUs each."""
    missing = slurm_cluster.missing_programs()
    if missing:
        pytest.skip(
            f"needs Slurm, and {', '.join(missing)} is not here: install the Debian package "
            "slurm-wlm"
        )
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a program of that name, made of these shell lines, before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    return put
