"""A process that may not do everything: as another user, or with a limit on the size of files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def nobody(tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Makes this process that of a user without rights for a while; `tmp_path` is open to it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 1:
            folder.chmod(0o755)

    @contextlib.contextmanager
    def become() -> Iterator[None]:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return become
