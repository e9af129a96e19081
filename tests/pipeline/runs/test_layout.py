"""The list of runs and their differences on terminals of any width, and where there is none."""

from __future__ import annotations

import re
import subprocess
import sys

import jobs
import pytest
from made_runs import CIFAR, RunMaker, held_by
from terminal import Terminal

from pipeline.runs.listing import as_json, describe, describe_differences, differences, list_runs

LONG = "a-sweep-over-rates-and-decays-lr0.01-wd0.0005"
CAUSE = (
    "the loss of step 401 is not finite (lr 0.01, loss nan); lower optim.base_lr, or look at the "
    "images of that step"
)


@pytest.fixture
def below(tmp_path):
    """Runs of one network with different settings, one of them failed and one with a long name."""
    make = RunMaker(tmp_path)
    make("short", CIFAR, steps=400)
    failed = make("failed", CIFAR | {"optim.base_lr": 0.01}, steps=400, finished=False)
    (failed / "failure.txt").write_text(f"error: {CAUSE}\nrank 0 on here\n")
    held = make(LONG, CIFAR | {"run.seed": 3}, steps=400, finished=False)
    (held / "lock").write_text(held_by("node07", slurm_job="4711"))
    return tmp_path


def lines(below, width):
    return describe(list_runs(below), below, width).splitlines()


def test_a_terminal_has_every_run_within_its_width_and_loses_nothing(below):
    found = list_runs(below)
    for width in range(40, 260):
        shown = describe(found, below, width).splitlines()
        assert [line for line in shown if len(line) > width and line != LONG] == [], width
        text = " ".join(" ".join(shown).split())
        for part in (
            "short", "failed", LONG, "89.00%", CAUSE, "node07, job 4711", "400/?",
            "CIFAR ResNet-20 A", "base_lr=0.01 seed=0", "base_lr=0.1 seed=3",
        ):  # fmt: skip
            assert part in text, (width, part)


def test_what_leaves_the_table_stands_below_its_run(below):
    shown = lines(below, 80)
    head = shown[0].split()
    assert head[:2] == ["run", "state"] and "differs" not in head and "note" not in head
    at = next(i for i, line in enumerate(shown) if line.startswith("failed "))
    assert shown[at + 1] == "    base_lr=0.01 seed=0"
    assert " ".join(line.strip() for line in shown[at + 2 :]).startswith(CAUSE)
    # Nothing is said of what is not known.
    assert not any(line.strip().startswith("-") for line in shown)


def test_a_name_too_long_for_a_column_stands_alone(below):
    shown = lines(below, 80)
    cells = shown[shown.index(LONG) + 1]
    assert cells[: shown[0].index("state")].strip() == ""
    assert cells.split()[0] in ("running", "silent")


def test_where_a_finished_run_was_is_no_line_of_its_own(tmp_path):
    folder = RunMaker(tmp_path)("a", CIFAR, steps=400)
    (folder / "lock").write_text(held_by("node07"))
    assert "node07" not in "".join(lines(tmp_path, 80))
    assert "node07" in "".join(lines(tmp_path, 200))


def test_numbers_end_below_each_other(tmp_path):
    make = RunMaker(tmp_path)
    make("a", CIFAR, steps=50)
    make("b", CIFAR, steps=1000)
    head, first, second = lines(tmp_path, 100)
    end = head.index("step") + len("step")
    assert {len(row[:end].rstrip()) for row in (first, second)} == {end}


def test_what_fits_stays_one_line_a_run(below):
    assert len(lines(below, 400)) == 4


def test_without_a_terminal_a_run_is_one_line_of_all_columns_whatever_its_length(below):
    piped = subprocess.run(
        [sys.executable, "-m", "pipeline.runs", str(below)],
        env=jobs.environment(COLUMNS="40"), cwd=jobs.REPOSITORY,
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert piped[0].split("  ")[0] == "run" and piped[0].endswith("note")
    assert len(piped) == 4 and any(line.endswith(CAUSE) for line in piped)


def test_a_terminal_of_80_columns_gets_its_80_columns(below):
    terminal = Terminal(["-m", "pipeline.runs", str(below)], jobs.environment(), columns=80)
    assert terminal.wait() == 0
    shown = terminal.shown_lines()
    assert shown == lines_without_age(lines(below, 80), shown)
    assert max(map(len, shown)) <= 80


def lines_without_age(wanted, shown):
    """`wanted`, with the ages of `shown`: some time lies between the two."""
    age = re.compile(r"\d+ (?:s|min) ago")
    return [
        age.sub(found[0], line) if (found := age.search(other)) else line
        for line, other in zip(wanted, shown, strict=True)
    ]


def test_json_has_nothing_of_the_layout(below):
    (failed,) = [run for run in as_json(list_runs(below))["runs"] if run["run"] == "failed"]
    assert failed["note"] == CAUSE
    assert failed["differs_in"] == {"optim.base_lr": 0.01, "run.seed": 0}


def test_differences_too_wide_for_a_terminal_have_a_paragraph_for_each_setting(below):
    folders = [below / name for name in ("short", "failed", LONG)]
    found = differences(folders)
    assert describe_differences(folders, found, 200) == describe_differences(folders, found)
    shown = describe_differences(folders, found, 60).splitlines()
    assert shown[0] == "optim.base_lr"
    assert [line.split() for line in shown[1:4]] == [
        ["short", "0.1"], ["failed", "0.01"], [LONG, "0.1"],
    ]  # fmt: skip
