"""Files, classes and folders of any name: they reach people escaped and programs as they are, and
cost no result, whatever the terminal's character set."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import jobs
import pytest
from container_writers import draw_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.system.words import shell_word
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.board import _val_pictures

CLASSES = [b"caf\xe9", b"a\nerror: forged", b"\x1b[31mred", b"<b>&$x$", "日本".encode()]
BAD = b"error: b\xe4d\x1b[2J.jpg"
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
NOT_SHOWN = re.compile(r"[^\n\x20-\x7e]")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder whose name is not UTF-8, with data of such names; one image of each set is cut."""
    place = Path(os.fsdecode(bytes(tmp_path_factory.mktemp("odd")) + b"/d\xe9t \x1b[1m"))
    for split, count in (("train", 20), ("val", 10)):
        folder = os.path.join(os.fsencode(place), b"data", split.encode())
        for number, (_, _, content) in enumerate(draw_images(count)):
            inside = os.path.join(folder, CLASSES[number % 5])
            os.makedirs(inside, exist_ok=True)
            with open(os.path.join(inside, b"\xff\n%d.jpg" % number), "wb") as file:
                file.write(content)
        with open(os.path.join(folder, CLASSES[1], BAD), "wb") as file:
            file.write(content[:300])
    return place


def run(*argv: str) -> tuple[int, str]:
    """The code and output of a command for a terminal that knows ASCII only."""
    job = jobs.run(["-m", *argv], **ASCII)
    (code,) = job.codes
    return code, job.text


def assert_shown(text: str, *, errors: int = 0) -> None:
    """Nothing in it moves a cursor, and no name has become an error.

    libjpeg's own lines are coloured: they are not ours.
    """
    ours = [line for line in text.split("\n") if "libjpeg" not in line]
    assert [line for line in ours if NOT_SHOWN.search(line)] == []
    assert len([line for line in ours if line.startswith("error:")]) == errors, text


@pytest.fixture(scope="module")
def trained(place) -> Path:
    """The run's folder, after one that the bad image ended."""
    settings = [
        *jobs.small_settings(place / "data", place / "runs"),
        "--schedule.epochs=1", "--schedule.drop_epochs=[]",
    ]  # fmt: skip
    folder = place / "runs" / "test"
    code, text = run("pipeline.train", *settings)
    assert code == 2, text
    assert_shown(text, errors=1)
    first, rank, end = (folder / "failure.txt").read_bytes().split(b"\n")
    assert first.startswith(rb"error: the image ") and rb"b\xe4d\x1b[2J.jpg cannot be used" in first
    assert (rank[:7], end) == (b"rank 0 ", b"")
    code, text = run("pipeline.runs", str(place / "runs"))
    assert code == 0 and r"b\xe4d\x1b[2J.jpg cannot be used" in text
    assert_shown(text)
    code, text = run("pipeline.train", *settings, "--data.bad_images=exclude")
    assert code == 0, text
    assert_shown(text)
    return folder


def test_a_run_says_what_it_goes_on_without(trained):
    lines = (trained / "log.txt").read_text("ascii").splitlines()
    excluded = [line for line in lines if "the run continues without it" in line]
    assert [r"a\nerror: forged/error: b\xe4d\x1b[2J.jpg cannot" in e for e in excluded] == [
        True
    ] * 2
    assert lines[-1].endswith(f"tensorboard --logdir {shell_word(str(trained.parent))}")


def test_curves_and_settings_are_in_tensorboard(trained, tmp_path):
    # TensorBoard itself reads folders of UTF-8 alone.
    shutil.copytree(trained / "tensorboard", tmp_path / "copy")
    read = EventAccumulator(str(tmp_path / "copy")).Reload()
    assert "val/classes" in read.Tags()["images"] and "train/loss" in read.Tags()["scalars"]
    # What a start that resumes here keeps of the pictures.
    (validated,) = [line for line in RunFolder(trained).lines() if line["event"] == "val"]
    assert list(_val_pictures(trained / "tensorboard", validated["position"]))


def test_a_follower_sees_the_log_alone(trained):
    code, text = run("pipeline.runs", "--follow", str(trained))
    assert code == 0 and r"forged/error: b\xe4d\x1b[2J.jpg" in text
    assert_shown(text)


def test_an_evaluation_and_its_files(trained, place):
    names = [os.fsdecode(name) for name in sorted(CLASSES)]
    out, rows, matrix = place / "e.json", place / "p.csv", place / "c.csv"
    code, text = run(
        "pipeline.evaluate", f"--checkpoint={trained}/checkpoints/best.pt", f"--json={out}",
        f"--per-class={rows}", f"--confusion={matrix}",
    )  # fmt: skip
    assert code == 0, text
    assert_shown(text)
    assert r"d\xe9t \x1b[1m/runs/test/checkpoints/best.pt at step" in text
    result = json.loads(out.read_text("ascii"))
    assert result["config"]["data"]["root"] == str(place / "data")
    for file in (rows, matrix):
        with open(file, encoding="utf-8", errors="surrogateescape", newline="") as table:
            assert [row[0] for row in csv.reader(table)][1:] == names


def test_a_prediction_and_its_file(trained, place):
    image = place / "data/val" / os.fsdecode(CLASSES[0]) / "\udcff\n0.jpg"
    out = place / "p.json"
    checkpoint = f"{trained}/checkpoints/best.pt"
    code, text = run("pipeline.predict", f"--checkpoint={checkpoint}", f"--json={out}", str(image))
    assert code == 0, text
    assert_shown(text)
    first, *guesses = text.splitlines()
    assert first.endswith(r"/data/val/caf\xe9/\xff\n0.jpg") and len(guesses) == 5
    assert sorted(guess.split("%  ")[1] for guess in guesses) == sorted(
        [r"caf\xe9", r"a\nerror: forged", r"\x1b[31mred", "<b>&$x$", r"\u65e5\u672c"]
    )
    (found,) = json.loads(out.read_text("ascii"))["predictions"]
    assert found["image"] == str(image)
    assert {one["class"] for one in found["top"]} == {os.fsdecode(name) for name in CLASSES}


def test_a_report_of_the_run(trained, place):
    code, text = run("pipeline.report", f"--out={place}/report", str(trained))
    assert code == 0, text
    assert_shown(text)
    for name in ("index.html", "report.md"):
        page = (place / "report" / name).read_text("utf-8")
        assert "d\\xe9t" in page.replace("\\\\", "\\") and "\x1b" not in page


def test_verify_names_the_images_for_people_and_for_training(place):
    report = place / "v.jsonl"
    code, text = run("pipeline.prepare", "verify", f"--root={place}/data", f"--report={report}")
    assert code == 2
    assert_shown(text, errors=1)
    paths = [json.loads(line)["path"] for line in report.read_text("ascii").splitlines()]
    assert len(paths) == 2
    for path, split in zip(paths, ("train", "val"), strict=True):
        wanted = place / "data" / split / os.fsdecode(CLASSES[1]) / os.fsdecode(BAD)
        assert path == str(wanted) and wanted.exists()


def test_the_index_and_a_copy(place):
    for command in (
        ["index", f"--root={place}/data"], ["stage", f"--from={place}/data", f"--to={place}/copy"],
    ):  # fmt: skip
        code, text = run("pipeline.prepare", *command)
        assert code == 0, text
        assert_shown(text)


def test_a_checkpoint_of_another_run_is_known_again_by_a_name_of_any_bytes(trained, place):
    """origin.txt is read back: the same command resumes the run that it began."""
    checkpoint = next((trained / "checkpoints").glob("step-*.pt"))
    argv = [
        *jobs.small_settings(place / "data", place / "runs"), "--run.name=next",
        "--schedule.epochs=2", "--schedule.drop_epochs=[]", "--data.bad_images=exclude",
        f"--resume={checkpoint}",
    ]  # fmt: skip
    for _ in range(2):
        code, text = run("pipeline.train", *argv)
        assert code == 0, text
    assert "is finished" in text
