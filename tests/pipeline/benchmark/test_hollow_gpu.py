"""The harness of `make hollow-gpu`, which CI cannot run: it skips in a sentence, and follows the
modules that it names."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import torch

HARNESS = jobs.REPOSITORY / "benchmarks" / "hollow_gpu"
SCRIPTS = sorted(path.name for path in HARNESS.glob("*.py"))


@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch is built for CUDA")
def test_without_a_cuda_build_it_is_skipped_in_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, HARNESS / "table.py"], env=jobs.environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == (
        f"hollow-gpu: skipped, PyTorch {torch.__version__} is not built for CUDA\n"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_it_imports_of_the_program_is_there(script: str) -> None:
    if script == "launches.py":
        pytest.importorskip("triton")
    missing = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(Path(HARNESS / script).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline")
        for alias in node.names
        if not hasattr(importlib.import_module(node.module or ""), alias.name)
    ]
    assert not missing
