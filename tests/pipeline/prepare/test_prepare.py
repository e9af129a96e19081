"""The command `pipeline.prepare`: help and wrong options, answered before anything heavy loads."""

from __future__ import annotations

import subprocess
import sys

import jobs
import pytest

from pipeline.config import ConfigError
from pipeline.prepare.__main__ import main, parse
from pipeline.prepare.options import OPTIONS

ARCHIVES = ["imagenet", "--train-tar=README.md", "--val-tar=README.md", "--out=x"]
LOADS = """
import sys
from pipeline.prepare.__main__ import main
from pipeline.prepare.options import OPTIONS
for name in ([], *([name] for name in OPTIONS)):
    try:
        main([*name, "--help"])
    except SystemExit:
        print("loaded:", *({"torch", "nvidia", "numpy", "pyarrow", "PIL"} & set(sys.modules)))
"""


def test_help_names_every_option_and_loads_nothing_heavy():
    argv = [sys.executable, "-c", LOADS]
    done = subprocess.run(argv, cwd=jobs.REPOSITORY, text=True, capture_output=True, check=True)
    overview, *texts, end = done.stdout.split("loaded:\n")
    assert end == ""
    holds = {"verify": "train or val or both", "parity": "train or val or both", "mean": "train"}
    for (name, kind), text in zip(OPTIONS.items(), texts, strict=True):
        if name in holds:
            assert f"which holds {holds[name]}." in " ".join(text.split())
        assert f"{name:<10}{kind.__doc__}" in overview
        assert f"usage: python -m pipeline.prepare {name}" in text
        for field in kind.__dataclass_fields__:
            assert "--" + field.rstrip("_").replace("_", "-") in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name of a subcommand is missing; there are: demo"),
        (["imagnet"], "there is no subcommand imagnet; did you mean imagenet?"),
        (["verify", "--ful"], "did you mean --full?"),
        (["verify"], "--root is missing; see python -m pipeline.prepare verify --help"),
        (["verify", "--root=none"], "--root none is not a folder; give a data set's"),
        (["verify", "--root=docs"], "--root docs has neither a folder train nor val"),
        (["verify", "--root=docs", "--workers=-1"], "--workers=-1 must be 0 or more"),
        (["verify", "--root=docs", "--report=no/r"], "--report no/r: the folder no does not exist"),
        (["verify", "--root=docs", "--repair=docs/x"], "whose files are never changed; give a"),
        (["parity", "--root=docs", "--images=0"], "--images=0 must be at least 1"),
        (["stage", "--from=docs"], "--to is missing"),
        (["stage", "--from=none", "--to=x"], "--from none is not a folder; give a data set's"),
        (["stage", "--from=docs", "--to=docs/x"], "lie in each other; give a folder apart"),
        (["stage", "--from=docs", "--to=x", "--workers=0"], "--workers=0 must be at least 1"),
        (["imagenet", "--layout=zip"], "--layout zip must be one of folders, shards"),
        (["demo", "--train=few"], "--train few must be a whole number"),
        ([*ARCHIVES, "--devkit=none"], "--devkit none is not a file; give the archive's path"),
        ([*ARCHIVES, "--devkit=README.md", "--shard-mb=0"], "--shard-mb=0 must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_commands_are_refused_by_name(argv, message, monkeypatch):
    monkeypatch.chdir(jobs.REPOSITORY)
    with pytest.raises(ConfigError) as caught:
        main(argv)
    assert message in str(caught.value)


def test_options_arrive_in_their_dataclass(tmp_path):
    name, options = parse(["verify", f"--root={tmp_path}", "--full", "--workers=3"])
    assert (name, options.root, options.full) == ("verify", tmp_path, True)
    assert (options.workers, options.repair, options.report.name) == (3, None, "verify.jsonl")
