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
def test_help_shows_the_options_and_ends_well(argv, shown, capsys):
    with pytest.raises(SystemExit) as ended:
        jobs.command_module(argv[0]).main([*argv[1:], "--help"])
    assert not ended.value.code
    said = capsys.readouterr().out
    for part in shown:
        assert part in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pipeline.train", "--config=none.yaml"], "--config none.yaml cannot be read"),
        (
            ["pipeline.evaluate"],
            "--checkpoint is missing; give the path of a .pt file, or of a run's folder",
        ),
        (["pipeline.evaluate", "--checkpiont=a"], "did you mean --checkpoint?"),
        (["pipeline.prepare"], "demo"),
        (["pipeline.prepare", "dmeo"], "did you mean demo?"),
        (["pipeline.prepare", "demo", "--trian=30"], "did you mean --train?"),
        (["pipeline.prepare", "demo", "--train=few"], "few"),
        (["pipeline.prepare", "demo", "--train=3"], "at least 10: one image for each class"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_refused_in_one_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:
        jobs.command_module(argv[0]).main(argv[1:])
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_is_one_line_and_debug_shows_where_it_comes_from(debug):
    job = jobs.run(["-m", "pipeline.train", "--optim.momentum=2", *["--debug"] * debug])
    assert job.codes == [2]
    *before, line = job.text.splitlines()
    assert line == "error: optim.momentum=2.0 must lie in [0, 1)"
    assert ("Traceback (most recent call last):" in before) == debug == bool(before)


def test_prepare_demo_draws_the_set_once(tmp_path, capsys):
    prepare = jobs.command_module("pipeline.prepare").main
    out = tmp_path / "demo"
    argv = ["demo", f"--out={out}", "--train=20", "--val=10"]
    prepare(argv)
    assert f"20 train and 10 val images drawn in {out}" in capsys.readouterr().out
    assert [len(open_manifest(out, split)) for split in ("train", "val")] == [20, 10]
    assert len(open_manifest(out, "train").classes) == 10
    drawn = {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")}
    prepare(argv)
    assert f"20 train and 10 val images are in {out}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")} == drawn
    with pytest.raises(ValueError, match=r"holds a demo set of seed 0 \(now 1\)"):
        prepare([*argv, "--seed=1"])
