"""A running Slurm for the tests marked `slurm`."""

from __future__ import annotations

from collections.abc import Iterator

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
