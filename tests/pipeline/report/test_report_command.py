"""python -m pipeline.report as a person types it."""

import re
import shutil

import jobs
import pytest
from made_runs import CIFAR, RunMaker

from pipeline.config import ConfigError
from pipeline.report.__main__ import main


def test_real_runs_are_reported_one_of_them_cut_by_a_kill(uninterrupted, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(uninterrupted, killed, ignore=shutil.ignore_patterns("checkpoints", "tensor*"))
    metrics = killed / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-60])
    out = tmp_path / "report"
    job = jobs.run(["-m", "pipeline.report", str(uninterrupted), str(killed), f"--out={out}"])
    assert job.codes == [0], job.text
    assert f"report of 2 runs written to {out}/index.html and {out}/report.md" in job.text
    assert f"warning: a line of {metrics} is cut or no event of a run" in job.text
    assert {path.name for path in out.iterdir()} == {
        "index.html", "report.md", "curves-1-cifar-all.png", "curves-1-cifar-gradient-norm.png",
    }  # fmt: skip
    text = (out / "report.md").read_text()
    summary = text.partition("## Curves")[0]
    cut, whole = re.findall(r"^\| (?:killed|test) \|.*", summary, re.M)
    assert "unfinished" in cut and "unfinished" not in whole
    log = (uninterrupted / "log.txt").read_text()
    found = re.findall(r"validation: .*top1 ([\d.]+)% top5 ([\d.]+)%", log)
    best = max(float(top1) for top1, _ in found)
    wanted = [(100 - float(top1), 100 - float(top5)) for top1, top5 in found if float(top1) == best]
    (error,) = re.findall(r"\| (\d+\.\d\d) / (\d+\.\d\d)", whole)
    assert tuple(map(float, error)) == pytest.approx(wanted[0], abs=0.01)
    assert "Other data" not in text and "yet run" not in text
    assert "torch 2." in text.partition("## Where the numbers come from")[2]


def test_a_wrong_command_is_answered(tmp_path):
    run = RunMaker(tmp_path)("run", CIFAR, steps=400)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for argv, message in [
        ([tmp_path / "none"], "none is no run: there is no such folder; a run's folder holds"),
        ([tmp_path / "empty"], "empty is no run: it has no config.yaml and no metrics.jsonl"),
        ([tmp_path], "is no run but holds 1 of them; give "),
        ([tmp_path, "--out", tmp_path / "file"], "file is a file; give the folder"),
        ([run, "--out", tmp_path / "file" / "report"], "report cannot be made .Not a directory.; "),
        (["--uot=a"], "did you mean --out?"),
    ]:
        with pytest.raises((ConfigError, ValueError), match=message):
            main(list(map(str, argv)))
