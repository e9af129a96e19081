"""python -m pipeline.report as a person types it."""

import re
import shutil
import sys

import jobs
import pytest
from made_runs import CIFAR, RunMaker


def report(*argv):
    return jobs.run(["-m", "pipeline.report", *map(str, argv)], PYTHONPATH=":".join(sys.path))


def test_a_real_run_is_reported(uninterrupted, tmp_path):
    job = report(uninterrupted, "--out", tmp_path / "report")
    assert job.codes == [0], job.text
    assert f"report of 1 run written to {tmp_path}/report/index.html and " in job.text
    assert "warning" not in job.text.lower()
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "index.html", "report.md", "curves-1-cifar-all.png",
        "curves-1-cifar-gradient-norm.png",
    }  # fmt: skip
    text = (tmp_path / "report" / "report.md").read_text()
    other = text.partition("### Other data")[2].partition("## The runs")[0]
    (row,) = re.findall(r"\| [\w ]*ResNet-8[\w ]* \| 1-crop \|.*", other)
    (errors,) = re.findall(r"\| (\d+\.\d\d) / (\d+\.\d\d) \|", row)
    last = [
        line
        for line in (uninterrupted / "log.txt").read_text().splitlines()
        if "validation: " in line
    ]
    top1, top5 = re.findall(r"top1 ([\d.]+)% top5 ([\d.]+)%", last[-1])[0]
    assert float(errors[0]) == pytest.approx(100 - float(top1), abs=0.01)
    assert float(errors[1]) == pytest.approx(100 - float(top5), abs=0.01)
    assert "30 images" in row
    assert "torch 2." in text.partition("## The runs")[2]


def test_metrics_cut_by_a_kill_are_reported_with_a_warning(uninterrupted, tmp_path):
    copy = tmp_path / "killed"
    shutil.copytree(
        uninterrupted, copy, ignore=shutil.ignore_patterns("checkpoints", "tensorboard")
    )
    metrics = copy / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-60])
    job = report(copy, "--out", tmp_path / "report")
    assert job.codes == [0], job.text
    assert f"warning: a line of {metrics} is cut and left out" in job.text
    assert "run unfinished" in (tmp_path / "report" / "report.md").read_text()


def test_help_shows_the_options():
    job = report("--help")
    assert job.codes == [0], job.text
    for part in ("usage: python -m pipeline.report", "RUN", "--out", "--debug", "all below runs/"):
        assert part in job.text


def test_a_wrong_command_is_answered_in_one_line(tmp_path):
    run = RunMaker(tmp_path)("run", CIFAR, steps=400)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for argv, message in [
        ([tmp_path / "none"], "none is no run: there is no such folder; a run's folder holds"),
        ([tmp_path / "empty"], "empty is no run: it has no config.yaml and no metrics.jsonl"),
        ([tmp_path, "--out", tmp_path / "file"], "file is a file; give the folder"),
        ([run, "--out", tmp_path / "file" / "report"], "report cannot be made (Not a directory); "),
        (["--uot=a"], "did you mean --out?"),
    ]:
        job = report(*argv)
        assert job.codes == [2], job.text
        (line,) = job.text.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert "Traceback" in report(tmp_path / "none", "--debug").text
