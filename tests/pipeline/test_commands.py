"""The commands as a person types them: help, drawing the demo data, and how they end."""

import jobs
import pytest

from pipeline.data.index.manifest import open_manifest


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["pipeline.train"], ["usage: python -m pipeline.train", "--config FILE", "--data.root"]),
        (["pipeline.evaluate"], ["usage: python -m pipeline.evaluate", "--checkpoint", "--json"]),
        (["pipeline.prepare"], ["usage: python -m pipeline.prepare", "demo"]),
        (["pipeline.prepare", "demo"], ["--out", "--seed", "--train", "--val"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_help_shows_the_options_and_ends_well(argv, shown):
    job = jobs.run(["-m", *argv, "--help"])
    assert job.codes == [0], job.text
    for part in shown:
        assert part in job.text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pipeline.train", "--optim.momentum=2"], "optim.momentum=2.0 must lie in [0, 1)"),
        (["pipeline.train", "--config=none.yaml"], "--config none.yaml cannot be read"),
        (["pipeline.evaluate"], "--checkpoint is missing; give the path of a .pt file of a run"),
        (["pipeline.evaluate", "--checkpiont=a"], "did you mean --checkpoint?"),
        (["pipeline.prepare"], "demo"),
        (["pipeline.prepare", "dmeo"], "demo"),
        (["pipeline.prepare", "demo", "--trian=30"], "did you mean --train?"),
        (["pipeline.prepare", "demo", "--train=few"], "few"),
        (["pipeline.prepare", "demo", "--train=3"], "at least 10: one image for each class"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_answered_in_one_line(argv, message, tmp_path):
    more = [f"--out={tmp_path}/demo"] if "--train=3" in argv else []
    job = jobs.run(["-m", *argv, *more])
    assert job.codes == [2], job.text
    (line,) = job.text.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_debug_shows_where_an_error_comes_from():
    job = jobs.run(["-m", "pipeline.train", "--optim.momentum=2", "--debug"])
    assert job.codes == [2]
    assert "Traceback" in job.text
    assert "\nerror: optim.momentum=2.0" in job.text


def test_prepare_demo_draws_the_set_once(tmp_path):
    out = tmp_path / "demo"
    argv = ["-m", "pipeline.prepare", "demo", f"--out={out}", "--train=20", "--val=10"]
    first = jobs.run(argv)
    assert first.codes == [0], first.text
    assert f"20 train and 10 val images drawn in {out}" in first.text
    assert [len(open_manifest(out, split)) for split in ("train", "val")] == [20, 10]
    assert len(open_manifest(out, "train").classes) == 10
    drawn = {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")}
    again = jobs.run(argv)
    assert again.codes == [0], again.text
    assert f"20 train and 10 val images are in {out}" in again.text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")} == drawn
    other = jobs.run([*argv, "--seed=1"])
    assert other.codes == [2], other.text
    assert "was begun with seed 0 (now 1)" in other.text
