"""Launching compiled kernels directly: what they get, and when the ordinary way is taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton

from pipeline.model.kernels import launch
from pipeline.model.kernels.launch import Launch, launches_directly

GRID, REST, WARPS, STREAM = (3, 5), (100, 64, True), 8, 77


class Launcher37:
    """What Triton 3.7 and later give a compiled kernel as `run`."""

    global_scratch_size = profile_scratch_size = 0
    launch_cooperative_grid = launch_pdl = False
    arg_annotations, kernel_signature = "annotations", b"signature"

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    def launch(self, *arguments: Any) -> None:
        self._calls.append(("launch", *arguments))

    def __call__(self, *arguments: Any) -> None:
        self._calls.append(("run", *arguments))


class Launcher36:
    """The same of Triton 3.6, which has no signature of its arguments."""

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    def __call__(self, *arguments: Any) -> None:
        self._calls.append(("run", *arguments))


class Compiled:
    function, packed_metadata = "function", (8, 1, 0)

    def __init__(self, run: Any) -> None:
        self.run = run


class Kernel:
    """A JIT function: `kernel[grid](...)` launches it and returns what was compiled."""

    def __init__(self, compiled: Any) -> None:
        self.compiled, self.calls = compiled, list[Any]()

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launched(*arguments: Any, num_warps: int) -> Any:
            self.calls.append((grid, *arguments, num_warps))
            return self.compiled

        return launched


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Sets the version of Triton with `version.setattr(triton, "__version__", ...)`."""
    monkeypatch.setattr(triton, "__version__", "3.8.0")
    launches_directly.cache_clear()
    yield monkeypatch
    launches_directly.cache_clear()


def aligned() -> torch.Tensor:
    return torch.zeros(64)  # torch's allocator: 64 bytes


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("launcher", "wanted"),
    [
        (Launcher37, lambda a, b: (
            "launch", 3, 5, 1, STREAM, "function", False, False, (8, 1, 0), None, None, None, None,
            None, "annotations", b"signature", (a, None, b, 0.5, *REST))),
        (Launcher36, lambda a, b: (
            "run", 3, 5, 1, STREAM, "function", (8, 1, 0), None, None, None,
            a, None, b, 0.5, *REST)),
    ],
    ids=["3.7", "3.6"],
)  # fmt: skip
def test_the_first_launch_is_ordinary_and_the_next_gives_addresses(
    launcher: Any, wanted: Any
) -> None:
    calls: list[Any] = []
    kernel = Kernel(Compiled(launcher(calls)))
    call, a, b = Launch(kernel, GRID, REST, WARPS), aligned(), aligned()
    call(STREAM, (a, None, b), (0.5,))
    assert kernel.calls == [(GRID, a, None, b, 0.5, *REST, WARPS)] and calls == []
    other = aligned()
    call(STREAM, (a, None, other), (0.5,))
    assert len(kernel.calls) == 1
    assert calls == [wanted(a.data_ptr(), other.data_ptr())]


@pytest.mark.usefixtures("version")
def test_a_launcher_that_makes_scratch_memory_is_called_whole() -> None:
    calls: list[Any] = []
    launcher = Launcher37(calls)
    launcher.global_scratch_size = 128
    call = Launch(Kernel(Compiled(launcher)), GRID, REST, WARPS)
    for _ in range(2):
        call(STREAM, (aligned(),))
    assert [name for name, *_ in calls] == ["run"]


@pytest.mark.usefixtures("version")
def test_addresses_that_16_does_not_divide_go_the_ordinary_way_and_fix_no_kernel() -> None:
    calls: list[Any] = []
    kernel = Kernel(Compiled(Launcher37(calls)))
    call, odd = Launch(kernel, GRID, REST, WARPS), aligned()[1:]
    for tensor in (odd, odd, aligned(), odd):
        call(STREAM, (tensor,))
    assert len(kernel.calls) == 4 and calls == []
    call(STREAM, (aligned(),))
    assert len(kernel.calls) == 4 and len(calls) == 1


@pytest.mark.parametrize("compiled", [None, object()], ids=["interpreted", "unknown"])
@pytest.mark.usefixtures("version")
def test_what_is_not_known_is_launched_the_ordinary_way(compiled: Any) -> None:
    kernel = Kernel(compiled)
    call = Launch(kernel, GRID, REST, WARPS)
    for _ in range(3):
        call(STREAM, (aligned(),))
    assert len(kernel.calls) == 3


@pytest.mark.parametrize("other", ["3.5.1", "3.10.0", "4.0.0", "main"])
def test_other_versions_of_triton_take_the_ordinary_way_and_say_so_once(
    version: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    version.setattr(triton, "__version__", other)
    calls: list[Any] = []
    kernel = Kernel(Compiled(Launcher37(calls)))
    with caplog.at_level(logging.INFO, "trainyard"):
        for call in (Launch(kernel, GRID, REST, WARPS) for _ in range(2)):
            call(STREAM, (aligned(),))
            call(STREAM, (aligned(),))
    assert len(kernel.calls) == 4 and calls == []
    said = [record.message for record in caplog.records]
    assert said == [
        f"norm layers: Triton {other} launches each kernel the ordinary way, which takes more of "
        "the host's time than that of Triton 3.6 to 3.9"
    ]


def test_on_a_cpu_there_is_no_stream() -> None:
    assert launch.current_stream(aligned().get_device()) == 0
