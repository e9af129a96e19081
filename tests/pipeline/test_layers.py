"""Imports run downwards only, and each library is imported in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jobs

ROOT = jobs.REPOSITORY

LAYERS = (
    ("config",),
    ("system", "model"),
    ("ranks",),
    ("data",),
    ("train", "prepare"),
    ("benchmark", "evaluate", "export", "report", "runs", "launch"),
    ("predict",),
    ("api",),
)
"""Rooms from the ground up: one imports only from those below it and from itself."""

ONLY = {
    "horovod": ("pipeline/ranks/", "launch/horovod_build.py", "launch/doctor/"),
    "nvidia.dali": ("pipeline/data/dali/", "launch/doctor/"),
    "nvidia.nvimgcodec": ("pipeline/data/parser.py",),
    "triton": ("pipeline/model/kernels/", "pipeline/model/backends.py"),
    "pickle": ("pipeline/data/cifar.py",),  # where no object is ever made
    # The plain script is what others write.
    "torch.distributed": ("pipeline/ranks/", "pipeline/benchmark/plain_script.py"),
}
"""Where alone a library is imported."""


def modules() -> Iterator[tuple[str, Path]]:
    for top in ("pipeline", "launch"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports from the top"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def room(module: str) -> str:
    """ "data" of pipeline.data.order; launch is one room."""
    first, _, rest = module.partition(".")
    return "launch" if first == "launch" else rest.partition(".")[0]


def arrows() -> Iterator[tuple[str, str, str]]:
    """(importing module, imported module of the house, file and line)."""
    known = dict(modules())
    for name, path in known.items():
        for line, target in imported(path):
            found = target if target in known else target.rpartition(".")[0]
            if found in known and found != name:
                yield name, found, f"{path.relative_to(ROOT)}:{line}"


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if name in rooms)


def test_imports_run_downwards():
    upward = []
    for source, target, place in arrows():
        above, below = room(source), room(target)
        if not above or not below or above == below:
            continue
        if floor(below) >= floor(above):
            upward.append(f"{place}: {above} imports {target}, which is not below it")
    assert not upward, "\n".join(upward)


def test_the_pipeline_has_few_names_at_its_top():
    others = ("__pycache__", "py.typed")
    names = {p.stem for p in (ROOT / "pipeline").iterdir() if p.name not in others}
    rooms = {name for layer in LAYERS for name in layer} - {"launch"}
    assert names == {"__init__", *rooms}


def test_no_modules_import_each_other():
    """In a circle of any length, whatever the arrows are for."""
    below: dict[str, set[str]] = {}
    for source, target, _ in arrows():
        below.setdefault(source, set()).add(target)
    settled: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "a circle: " + " -> ".join([*path, module])
        if module not in settled:
            for target in sorted(below.get(module, ())):
                walk(target, (*path, module))
            settled.add(module)

    for module in sorted(below):
        walk(module, ())


def test_nothing_is_read_that_could_run():
    """torch.load runs what is in a file unless it is told not to."""
    calls = {path: path.read_text().count("torch.load(") for _, path in modules()}
    safe = {path: path.read_text().count("weights_only=True)") for _, path in modules()}
    assert {p for p in calls if calls[p] > safe[p]} == set()


def test_each_library_is_imported_in_one_place():
    wrong = []
    for name, path in modules():
        place = str(path.relative_to(ROOT))
        for line, target in imported(path):
            for library, places in ONLY.items():
                if re.match(rf"{re.escape(library)}(\.|$)", target) and not place.startswith(
                    places
                ):
                    wrong.append(f"{place}:{line}: {name} imports {library}")
    assert not wrong, "\n".join(wrong)
