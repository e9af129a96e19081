"""The batch scripts that come along, for who has no checkout: `trainyard slurm --script NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import ConfigError, require
from pipeline.system.console import say

OPTION = "--script"
_IN_WHEEL = Path(__file__).resolve().parent / "scripts"
SCRIPTS = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).resolve().parents[2] / "slurm"
"""Within the package where a wheel has put them (setup.py), else at the top of the checkout."""


def show(argv: Sequence[str]) -> None:
    """Prints the script of the one name in `argv`. Raises `ConfigError`, with the names that there
    are, for another."""
    names = sorted(path.stem for path in SCRIPTS.glob("*.sh"))
    require(len(argv) == 1, f"{OPTION} needs one name; there are: {', '.join(names)}")
    name = argv[0].removesuffix(".sh")
    if name not in names:
        raise ConfigError(f"{OPTION} {name}: there are: {', '.join(names)}")
    say(*(SCRIPTS / f"{name}.sh").read_text(encoding="utf-8").splitlines())
