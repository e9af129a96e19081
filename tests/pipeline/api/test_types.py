"""What mypy, strict, knows of the API in a file of a user's."""

import subprocess
import sys

import jobs
import pytest
from jobs import REPOSITORY

USE = """
from pathlib import Path

import pipeline
from pipeline.api import EvaluateResult, Loaded, TrainResult

result = pipeline.train("demo.yaml", {"schedule.epochs": 2}, on_metrics=lambda line: print(line))
reveal_type(result)
reveal_type(result.history[-1].top1)
reveal_type(result.best_checkpoint)
reveal_type(pipeline.evaluate(result.folder, protocol="10-crop").confusion)
model, classes, transform = pipeline.load(Path("best.pt"), weights="ema")
reveal_type(model)
reveal_type(classes)
reveal_type(transform("cat.jpg"))
reveal_type(pipeline.images("photos", "train"))
pipeline.train("demo.yaml", on_metric=print)
pipeline.evaluate(result.folder, protocol="2-crop")
"""
REVEALED = (
    "pipeline.api.training.TrainResult",
    "float",
    "pathlib.Path | None",
    "numpy.ndarray",
    "torch.nn.modules.module.Module",
    "list[str]",
    "torch._tensor.Tensor",
    "pipeline.api.dataset.Images",
)


@pytest.mark.slow
def test_a_users_file_is_checked_by_the_functions_types(tmp_path):
    (tmp_path / "use.py").write_text(USE)
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", f"--config-file={REPOSITORY}/pyproject.toml",
            f"--cache-dir={REPOSITORY}/.mypy_cache", str(tmp_path / "use.py"),
        ],
        cwd=tmp_path, env=jobs.environment(MYPYPATH=str(REPOSITORY)), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    notes = [line.partition("Revealed type is ")[2] for line in lines if "Revealed" in line]
    assert len(notes) == len(REVEALED), done.stdout
    for note, wanted in zip(notes, REVEALED, strict=True):
        assert wanted.split(" | ")[0] in note, done.stdout
    errors = [line for line in lines if ": error: " in line]
    assert len(errors) == 2, done.stdout
    assert 'Unexpected keyword argument "on_metric"' in errors[0]
    assert "protocol" in errors[1]
