"""What the tests share: small data sets drawn once, programs that stand in for others, and the
skipping of what cannot run here."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

STOP_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
)  # fmt: skip


def pytest_configure() -> None:
    """Gives the programs under test a Ctrl-C: a suite that a script runs in the background ignores
    it, and so would they."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `gpu` tests without a GPU; those of Slurm come first, as they are long and wait most
    of their time, in which other workers have the cores."""
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The signals' handlers as they were: a command that ran in this process ignores them in the
    end, and so would the programs that later tests start."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def heard_log() -> None:
    """The log as a process begins with it, so that `caplog` hears it: a command that ran in this
    process before has set it up for itself."""
    log = logging.getLogger("trainyard")
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo set of 50 training and 30 validation images. Read only: copy it to change it."""
    from pipeline.prepare.demo import draw_demo  # Pillow: tests on a GPU may be run without it
    from pipeline.prepare.options import DemoOptions

    root = tmp_path_factory.mktemp("data") / "small"
    draw_demo(DemoOptions(root, train=50, val=30))
    return root


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
