"""Checkpoints are given by their files or by the folders of their runs."""

from pathlib import Path

import pytest
from PIL import Image
from weight_files import CLASSES, write_checkpoint

from pipeline import predict
from pipeline.config import ConfigError
from pipeline.evaluate.__main__ import parse_options
from pipeline.export import __main__ as export
from pipeline.train.checkpoint_path import checkpoint_at
from pipeline.train.folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """The folder of a run whose best checkpoint is not the one of its last step."""
    run = RunFolder(tmp_path / "runs" / "a")
    run.checkpoints.mkdir(parents=True)
    run.lock.touch()
    write_checkpoint(run.checkpoints / "best.pt")
    write_checkpoint(run.checkpoints / "step-000000009.pt", classes=CLASSES[:2])
    return run


def test_a_file_is_itself_and_a_run_its_best(run):
    newest = run.checkpoints / "step-000000009.pt"
    assert checkpoint_at("--checkpoint", str(newest)) == newest
    assert checkpoint_at("--checkpoint", str(run.path)) == run.checkpoints / "best.pt"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (None, "--checkpoint is missing; give the path of a .pt file, or of a run's folder"),
        ("none.pt", "--checkpoint none.pt does not exist; give .* or of a run's folder"),
        ("runs", "--checkpoint runs is a folder, and no run's, .* config.yaml; give .* .pt file"),
        ("runs/a/checkpoints", "runs/a/checkpoints is a folder, and no run's, .* a .pt file"),
        ("runs/new", "runs/new is a run without checkpoints/best.pt, .* another checkpoint$"),
        ("a" * 300, "--checkpoint a+ cannot be read: File name too long; give the path of a .pt"),
    ],
)
def test_what_is_neither_is_refused_with_what_may_be_given(run, monkeypatch, place, said):
    monkeypatch.chdir(run.path.parents[1])
    new = RunFolder(Path("runs/new"))
    new.path.mkdir()
    new.lock.touch()
    with pytest.raises(ConfigError, match=said):
        checkpoint_at("--checkpoint", place)


def test_of_a_run_that_has_not_validated_the_newest_checkpoint_is_named(run):
    (run.checkpoints / "best.pt").unlink()
    newest = run.checkpoints / "step-000000009.pt"
    with pytest.raises(
        ConfigError, match=f"without checkpoints/best.pt, .* another .*, as {newest}$"
    ):
        checkpoint_at("--checkpoint", run.path)


def test_evaluate_takes_runs(run):
    newest, best = run.checkpoints / "step-000000009.pt", run.checkpoints / "best.pt"
    options = parse_options(["--checkpoint", str(run.path), str(newest)])
    assert options.checkpoint == [best, newest]


def test_predict_takes_a_run(run, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 50), (200, 100, 50)).save(photo)
    said = []
    for place in (run.path, run.checkpoints / "best.pt"):
        predict.main([f"--checkpoint={place}", str(photo)])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_export_takes_a_run(run, tmp_path, capsys):
    export.main([f"--checkpoint={run.path}", f"--out={tmp_path}/a.safetensors"])
    assert f", {len(CLASSES)} classes, " in capsys.readouterr().out, "else it is the newest"
