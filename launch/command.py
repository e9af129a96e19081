"""The command `trainyard`, which an installation brings: `trainyard COMMAND ...`.

Each of its commands is a module, and runs as `python -m MODULE` would, but for how its help names
it. Only the standard library is imported until that module is known to be trainyard's own.
"""

from __future__ import annotations

import difflib
import os
import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parents[1]


class Command(NamedTuple):
    """What a command runs: a module, the options that it is always given, and a line of help."""

    module: str
    about: str
    options: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("pipeline.train", "train a network, on one process or as a rank of several"),
    "launch": Command("launch.local", "start a command on several ranks of this machine"),
    "slurm": Command("launch.slurm", "start a command on every rank of a Slurm job"),
    "doctor": Command("launch.doctor", "check a machine, or the nodes of a job, before training"),
    "prepare": Command("pipeline.prepare", "draw, unpack, split, index and verify data sets"),
    "evaluate": Command("pipeline.evaluate", "test checkpoints by the paper's protocols"),
    "predict": Command("pipeline.predict", "name what images show"),
    "export": Command("pipeline.export", "write weights in other forms, or read them"),
    "runs": Command("pipeline.runs", "list the runs, or follow one"),
    "report": Command("pipeline.report", "compare runs by curves and tables, as HTML and Markdown"),
    "benchmark": Command("pipeline.benchmark", "measure this machine"),
    "setup-horovod": Command(
        "launch.horovod_build", "build Horovod for the installed PyTorch", ("--install",)
    ),
}
"""By name, in the order in which the help lists them."""


def main() -> None:
    """Runs the command that the process was started with; exits with its code, or with 2 after one
    line of error."""
    name, *rest = sys.argv[1:] or ["--help"]
    refused = None
    if name in ("-h", "--help"):
        _show(usage())
    elif name == "--version":
        refused = other_package("pipeline", sys.path)
        if refused is None:
            from pipeline.system.version import VERSION

            _show(f"trainyard {VERSION}")
    elif name not in COMMANDS:
        refused = unknown(name)
    else:
        refused = shadowed(COMMANDS[name].module)
        if refused is None:
            _run(COMMANDS[name], rest)
    if refused is not None:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)


def _run(command: Command, rest: list[str]) -> None:
    # argv[0] stays: by it `pipeline.config.reading.program` names the command in its help.
    sys.argv[1:] = [*command.options, *rest]
    try:
        runpy.run_module(command.module, run_name="__main__")
    except KeyboardInterrupt:  # the module still loads: it does not answer Ctrl-C itself yet
        sys.exit(1)


def usage() -> str:
    """The help: what there is, each in a line."""
    lines = [f"  {name:<15}{command.about}" for name, command in COMMANDS.items()]
    head = ["usage: trainyard COMMAND [options]", "       trainyard --version", ""]
    tail = ["", "trainyard COMMAND --help lists the options of one."]
    return "\n".join([*head, *lines, *tail])


def unknown(name: str) -> str:
    """What is wrong with a name that is none of a command."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
    return f"trainyard has no command {name}; {hint}"


def shadowed(module: str) -> str | None:
    """Why `module` cannot be run here, None if it can: Python would find another package before
    one of trainyard's, in this process or in those that it starts by `python -m`."""
    # Those find packages in the working folder first; this one does not, as a script.
    folders = ["", *sys.path]
    names = dict.fromkeys(("pipeline", module.partition(".")[0]))
    return next((said for name in names if (said := other_package(name, folders))), None)


def other_package(name: str, folders: list[str]) -> str | None:
    """What to say of a package `name` that Python finds in `folders` before trainyard's; None if
    there is none. An editable installation's own need not be in any of them."""
    spec = PathFinder.find_spec(name, folders)
    if spec is None:
        return None
    # A folder without __init__.py is in the way only where no folder after it has the package.
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    found = Path(places[0]).resolve()
    if found in (_ROOT / name, _ROOT / name / "__init__.py"):
        return None
    return (
        f"{found} would be taken for trainyard's own package {name}, which is {_ROOT / name}; "
        "start trainyard in another folder, without that one on PYTHONPATH, or rename it"
    )


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `head` has had what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
