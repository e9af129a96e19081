"""The command `pipeline.prepare`: help and wrong options, answered before anything heavy loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.prepare.__main__ import parse
from pipeline.prepare.options import OPTIONS

ROOT = Path(__file__).parents[3]
LOADS = """
import sys
from pipeline.prepare.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
except ValueError as error:
    print(error)
print("loaded:", *({"torch", "nvidia", "numpy", "pyarrow", "PIL"} & set(sys.modules)))
"""


def loaded(*argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *argv], cwd=ROOT, text=True, capture_output=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("name", OPTIONS)
def test_help_names_every_option_and_loads_nothing_heavy(name):
    text = loaded(name, "--help")
    assert f"usage: python -m pipeline.prepare {name}" in text
    for field in OPTIONS[name].__dataclass_fields__:
        assert "--" + field.rstrip("_").replace("_", "-") in text
    assert text.endswith("loaded:\n")


def test_the_overview_names_every_subcommand():
    text = loaded("--help")
    for name, kind in OPTIONS.items():
        assert f"{name:<10}{kind.__doc__}" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name of a subcommand is missing; there are: demo"),
        (["imagnet"], "there is no subcommand imagnet; did you mean imagenet?"),
        (["verify", "--ful"], "did you mean --full?"),
        (["verify"], "--root is missing; see python -m pipeline.prepare verify --help"),
        (["stage", "--from=tests"], "--to is missing"),
        (["stage", "--from=none", "--to=x"], "--from none is not a folder"),
        (["imagenet", "--layout=zip"], "layout"),
        (["stage", "--from=tests", "--to=x", "--workers=0"], "--workers=0 must be at least 1"),
    ],
    ids=" ".join,
)
def test_wrong_commands_are_refused_by_name(argv, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse(argv)


def test_options_arrive_in_their_dataclass(tmp_path):
    name, options = parse(["verify", f"--root={tmp_path}", "--full", "--workers=3"])
    assert (name, options.root, options.full) == ("verify", tmp_path, True)
    assert (options.workers, options.repair, options.report) == (3, None, Path("verify.jsonl"))
