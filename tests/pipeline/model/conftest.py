"""One thread for all tests here; the modules for Triton's interpreter in their own process.

The interpreter has to be on before triton is imported, and then stays on: in this process the
kernels would no longer compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

INTERPRETED = ("test_kernels.py", "test_fused_norm.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: more threads would only crowd the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class OwnProcess(pytest.Item):
    """A whole test module under `TRITON_INTERPRET=1`."""

    def runtest(self) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(self.path)]
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=self.config.rootpath, env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.fail(done.stdout[-20_000:] + done.stderr[-5_000:], pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, "in Triton's interpreter"


class InterpretedModule(pytest.File):
    """Stands for a module; `TRITON_INTERPRET=1 pytest <file>` shows its tests one by one."""

    def collect(self) -> Iterator[pytest.Item]:
        yield OwnProcess.from_parent(self, name="interpreted")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> InterpretedModule | None:
    """Keeps the modules that need the interpreter from being imported without it."""
    if module_path.name in INTERPRETED and os.environ.get("TRITON_INTERPRET") != "1":
        return InterpretedModule.from_parent(parent, path=module_path)
    return None
