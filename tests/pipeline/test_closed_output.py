"""Whoever stops listening costs a command nothing: files first, words after, and its own code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
from container_writers import draw_images, write_folders
from made_runs import CIFAR, RunMaker
from one_process import train_here

NO_ROOM = "error: not all of the output could be written: No space left on device\n"


def run(command: list[str], how: str) -> tuple[int, str]:
    """The code and stderr of `python -m command`, its stdout a pipe whose reader has gone, closed,
    or a full disk."""
    reader, writer = os.pipe()
    os.close(reader)
    stdout = {"gone": writer, "closed": None, "full": os.open("/dev/full", os.O_WRONLY)}[how]
    shell = ["bash", "-c", 'exec "$@" >&-', "bash"] if how == "closed" else []
    try:
        done = subprocess.run(
            [*shell, sys.executable, "-m", *command], stdout=stdout, stderr=subprocess.PIPE,
            cwd=jobs.REPOSITORY, env=jobs.environment(), text=True, check=False, timeout=120,
        )  # fmt: skip
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six images in train and three in val, of which one is cut off."""
    root = tmp_path_factory.mktemp("data")
    images = draw_images(6)
    write_folders(root / "train", images)
    write_folders(root / "val", images[:3])
    bad = next((root / "val").rglob("*.JPEG"))
    bad.write_bytes(bad.read_bytes()[:300])
    return root


@pytest.fixture(scope="module")
def checkpoint(small_data, tmp_path_factory) -> Path:
    return train_here(small_data, tmp_path_factory.mktemp("runs")) / "checkpoints" / "best.pt"


@pytest.mark.parametrize("how", ["gone", "closed", "full"])
def test_verify_writes_its_report_and_its_list(data, tmp_path, how):
    report = tmp_path / "report.jsonl"
    code, said = run(["pipeline.prepare", "verify", f"--root={data}", f"--report={report}"], how)
    assert code == 2 and "Traceback" not in said
    assert [line for line in said.splitlines() if line.startswith("error:")][0].startswith(
        f"error: 1 of 9 images would fail in training: {report} names them"
    )
    assert len(report.read_text().splitlines()) == 1
    assert report.with_suffix(".exclude.json").exists()


@pytest.mark.parametrize(("how", "code"), [("gone", 0), ("closed", 0), ("full", 1)])
def test_commands_without_a_network_do_their_work(data, tmp_path, how, code):
    folder, data = RunMaker(tmp_path)("a", CIFAR), jobs.copy_data(data, tmp_path / "data")
    index = ["pipeline.prepare", "index", f"--root={data}", f"--cache-dir={tmp_path}/cache"]
    report = ["pipeline.report", f"--out={tmp_path}/out", str(folder)]
    demo = ["pipeline.prepare", "demo", f"--out={tmp_path}/demo", "--train=10", "--val=10"]
    for command in (index, report, demo, ["pipeline.runs", str(tmp_path)]):
        ended, said = run(command, how)
        assert ended == code, said
        assert said.endswith(NO_ROOM) if code else "error" not in said, said
        assert "Traceback" not in said
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2
    assert (tmp_path / "out" / "index.html").exists() and (tmp_path / "out" / "report.md").exists()
    assert len(list((tmp_path / "demo").rglob("*.JPEG"))) == 20


@pytest.mark.parametrize("how", ["gone", "full"])
def test_commands_with_a_network_write_their_files(checkpoint, small_data, tmp_path, how):
    image = next((small_data / "val").rglob("*.JPEG"))
    out = tmp_path / "out.json"
    weights = tmp_path / "x.safetensors"
    for command, file in (
        (["pipeline.predict", "--checkpoint", str(checkpoint), f"--json={out}", str(image)], out),
        (["pipeline.evaluate", f"--checkpoint={checkpoint}", f"--json={out}"], out),
        (["pipeline.export", f"--checkpoint={checkpoint}", f"--out={weights}"], weights),
    ):
        ended, said = run(command, how)
        assert (ended, said.endswith(NO_ROOM)) == (int(how == "full"), how == "full"), said
        assert "Traceback" not in said
        assert file.stat().st_size > 0
        file.unlink()


def test_a_file_that_is_the_closed_pipe_itself_is_no_error(checkpoint, small_data):
    image = next((small_data / "val").rglob("*.JPEG"))
    command = ["pipeline.predict", f"--checkpoint={checkpoint}", "--json=/dev/stdout", str(image)]
    assert run(command, "gone")[0] == 0


@pytest.mark.parametrize("how", ["gone", "closed", "full"])
@pytest.mark.parametrize(
    "command", [["pipeline.train", "--help"], ["pipeline.prepare", "--help"]], ids=" ".join
)
def test_help_that_nobody_reads_is_no_error(command, how):
    assert run(command, how) == (0, "")


def test_a_result_that_cannot_be_kept_is_told(checkpoint, small_data, monkeypatch, capsys):
    main = jobs.command_module("pipeline.predict").main
    image = next((small_data / "val").rglob("*.JPEG"))
    argv = ["--checkpoint", str(checkpoint), "--json=/dev/full", str(image)]
    with pytest.raises(OSError, match="No space left"):
        main(argv)
    assert str(image) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "reason"),
    [("absent/x.json", "the folder absent does not exist"), ("{}", "is a folder; give the path")],
)
def test_a_file_that_could_not_be_written_is_refused_before_the_work(
    path, reason, checkpoint, tmp_path
):
    main = jobs.command_module("pipeline.evaluate").main
    with pytest.raises(ValueError, match=f"--json .*{reason}"):
        main([f"--checkpoint={checkpoint}", f"--json={path.format(tmp_path)}"])
