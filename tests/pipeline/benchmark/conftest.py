"""A benchmark as its command runs it, in this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmark.__main__ import main

Benchmark = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    one_thread: None,
) -> Benchmark:  # fmt: skip
    """Runs the one of that name with options; gives its JSON and what was printed.

    Asserts what holds for each: every ratio has a line, the machine and the versions are named, and
    no temporary files are left.
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def run(name: str, *options: str) -> tuple[dict[str, Any], str]:
        path = tmp_path / f"{name}.json"
        main([name, "--json", str(path), *options])
        printed, found = capfd.readouterr().out, json.loads(path.read_text())
        assert found["benchmark"] == name
        assert all(f"{ratio} = " in printed for ratio in found["ratios"])
        assert {"cpu", "cores", "gpu"} <= found["machine"].keys()
        assert {"python", "torch", "commit"} <= found["versions"].keys()
        assert not list(scratch.glob("tmp*"))
        return found, printed

    return run
