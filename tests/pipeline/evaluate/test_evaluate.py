"""`pipeline.evaluate` from checkpoint to files: the same integers on any number of ranks."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jobs
import pytest
from jobs import copy_data
from one_process import evaluate_here, train_here
from PIL import Image

from pipeline.config import ConfigError
from pipeline.data.index.manifest import open_manifest
from pipeline.system.failure import ExitCode, Reported
from pipeline.train.checkpoint import read_verified, write_atomically

SIZES = ((120, 90), (90, 120), (120, 90), (100, 100))
"""Of the validation images, in turn: several have one size, as a photograph's are."""


@dataclass
class Trained:
    """A run with checkpoints after steps 3, 6 and 7, and the data it was trained on."""

    root: Path
    run: Path

    def checkpoint(self, name: str = "best") -> str:
        """The path of one."""
        return str(self.run / "checkpoints" / f"{name}.pt")


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    root = copy_data(small_data, folder / "data")
    for number, path in enumerate(sorted((root / "val").rglob("*.JPEG"))):
        with Image.open(path) as image:
            resized = image.convert("RGB").resize(SIZES[number % len(SIZES)])
        resized.save(path, quality=95)
    options = ("--run.checkpoint_every_steps=3", "--run.keep_checkpoints=9", "--optim.base_lr=1.6")
    run = train_here(root, folder / "runs", *options)
    yield Trained(root, run)
    shutil.rmtree(folder)


@dataclass
class Outcome:
    """What the evaluations of one job left, by name."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)


PROTOCOLS = {
    "multi-scale": ("--protocol=multi-scale", "--scales", "40", "56", "--mirror"),
    "ensemble": ("--protocol=10-crop",),
    "bn": ("--bn-images=40",),
}
TABLES = ("per-class", "confusion")


def commands(trained: Trained, folder: Path) -> list[list[str]]:
    """A command line for each of `PROTOCOLS`, whose files go to `folder`."""
    lines = []
    for name, options in PROTOCOLS.items():
        names = ("best", "step-000000003") if name == "ensemble" else ("best",)
        files = [f"--{table}={folder / name}-{table}.csv" for table in TABLES]
        checkpoints = [trained.checkpoint(one) for one in names]
        lines.append(
            ["--checkpoint", *checkpoints, f"--json={folder / name}.json", *options, *files]
        )
    return lines


def outcome(folder: Path) -> Outcome:
    """What `commands` left in `folder`."""
    found = Outcome()
    for name in PROTOCOLS:
        found.results[name] = json.loads((folder / f"{name}.json").read_text())
        for table in TABLES:
            rows = (folder / f"{name}-{table}.csv").read_text().splitlines()
            found.tables[f"{name} {table}"] = list(csv.reader(rows))
    return found


@pytest.fixture(scope="module")
def one_rank(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for command in commands(trained, folder):
        evaluate_here(*command)
    return outcome(folder)


def test_every_protocol_gives_the_same_integers_on_three_ranks(trained, one_rank, tmp_path):
    file = tmp_path / "commands.json"
    file.write_text(json.dumps(commands(trained, tmp_path)))
    job = jobs.run(["tests/evaluate_ranks.py", str(file)], ranks=3, engine="torch")
    assert job.codes == [0] * 3, job.text
    assert job.text.count("at step 7, multi-scale: top-1 ") == 1  # rank 0 says it
    several = outcome(tmp_path)
    for name, alone in one_rank.results.items():
        found = several.results[name]
        for exact in ("images", "top1_correct", "top5_correct", "weights", "views"):
            assert found[exact] == alone[exact], name
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-12), name
    assert several.tables == one_rank.tables


def test_the_tables_hold_the_counts(one_rank):
    predicted = set()
    for name, result in one_rank.results.items():
        header, *rows = one_rank.tables[f"{name} confusion"]
        assert header[1:] == [row[0] for row in rows]
        matrix = [[int(cell) for cell in row[1:]] for row in rows]
        assert sum(map(sum, matrix)) == result["images"] == 30
        assert sum(matrix[i][i] for i in range(10)) == result["top1_correct"]
        header, *rows = one_rank.tables[f"{name} per-class"]
        assert [int(row[2]) for row in rows] == [sum(line) for line in matrix]
        assert [int(row[3]) for row in rows] == [matrix[i][i] for i in range(10)]
        assert sum(int(row[4]) for row in rows) == result["top5_correct"]
        predicted |= {(name, i) for line in matrix for i, count in enumerate(line) if count}
    assert len(predicted) > 2 * len(PROTOCOLS)  # else a wrong count could go unnoticed


def test_a_result_says_how_it_was_obtained(trained, one_rank):
    results = one_rank.results
    assert [(result["protocol"], result["views"]) for result in results.values()] == [
        ("multi-scale", 4), ("10-crop", 10), ("1-crop", 1),
    ]  # fmt: skip
    assert (results["multi-scale"]["scales"], results["multi-scale"]["mirror"]) == ([40, 56], True)
    best, third = trained.checkpoint(), trained.checkpoint("step-000000003")
    assert results["ensemble"]["ensemble"] == [best, third]
    assert len(set(results["ensemble"]["weights"])) == 2
    assert (results["bn"]["bn_images"], results["ensemble"]["bn_images"]) == (40, None)
    assert results["bn"]["weights"] != results["multi-scale"]["weights"]
    for result in results.values():
        assert (result["run"], result["step"], result["checkpoint"]) == ("test", 7, best)
        assert "softmax probabilities" in result["scores"]
        assert result["top1"] == result["top1_correct"] / 30


def test_results_lie_next_to_the_run(trained, one_rank):
    names = {
        "multi-scale": "evaluate-multi-scale-40-56-mirror",
        "ensemble": "evaluate-10-crop-ensemble-of-2", "bn": "evaluate-1-crop-bn-40",
    }  # fmt: skip
    for name, file in names.items():
        found = json.loads((trained.run / f"{file}.json").read_text())
        changing = {"date": 0, "loss": 0}  # another test's ranks may have written it since
        assert found | changing == one_rank.results[name] | changing


def spoil(trained: Trained, folder: Path) -> tuple[Path, Path]:
    """The data with a validation image cut in the middle: root and that image."""
    root = copy_data(trained.root, folder / "data")
    bad = open_manifest(root, "val").path(13)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    return root, bad


def test_a_bad_image_ends_the_evaluation_and_is_named(trained, tmp_path):
    root, bad = spoil(trained, tmp_path)
    command = ["--checkpoint", trained.checkpoint(), f"--data.root={root}", "--protocol=10-crop"]
    with pytest.raises(Reported) as error:
        evaluate_here(*command)
    assert str(bad) in error.value.message
    assert "met in the evaluation by rank 0" in error.value.message
    assert error.value.code == ExitCode.WRONG_INPUT


def test_a_bad_image_counts_as_wrong_where_that_is_allowed(trained, one_rank, tmp_path):
    root, _ = spoil(trained, tmp_path)
    out = tmp_path / "result.json"
    command = ["--checkpoint", trained.checkpoint(), f"--data.root={root}", f"--json={out}"]
    evaluate_here(*command, "--data.bad_images=exclude", *PROTOCOLS["multi-scale"])
    result = json.loads(out.read_text())
    assert (result["images"], result["unreadable"]) == (30, 1)
    whole = one_rank.results["multi-scale"]["top1_correct"]
    assert whole - 1 <= result["top1_correct"] <= whole


def test_statistics_need_the_images_of_the_training(trained, tmp_path):
    root = copy_data(trained.root, tmp_path / "data")
    next((root / "train").rglob("*.JPEG")).unlink()
    command = ["--checkpoint", trained.checkpoint(), "--bn-images=all", f"--data.root={root}"]
    with pytest.raises(Reported) as error:
        evaluate_here(*command)
    digests = [open_manifest(one, "train").digest[:16] for one in (trained.root, root)]
    assert "--bn-images needs the images that" in error.value.message
    assert all(digest in error.value.message for digest in digests)


def test_imported_weights_get_statistics_of_any_images_of_their_classes(trained, tmp_path):
    content = read_verified(Path(trained.checkpoint()))
    content["fingerprint"] = {"weights from": "elsewhere.pth"}
    path, out = tmp_path / "imported.pt", tmp_path / "result.json"
    write_atomically(path, content)
    command = ["--checkpoint", str(path), f"--json={out}", "--bn-images=8"]
    evaluate_here(*command)
    result = json.loads(out.read_text())
    assert (result["run"], result["bn_images"], result["images"]) == (None, 8, 30)
    assert {file.name for file in tmp_path.iterdir()} == {"imported.pt", "result.json"}
    content["classes"] = [*content["classes"][:-1], "zebra"]
    write_atomically(path, content)
    with pytest.raises(Reported, match="data: triangle|needs training images of the 10 classes"):
        evaluate_here(*command)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--protocol=10crop"],
            "--protocol 10crop must be one of 1-crop, 10-crop, multi-scale; did you mean 10-crop?",
        ),
        (["--bn-images=foo"], "--bn-images foo must be a whole number, all or null"),
        (["--protocol=10-crop", "--mirror"], "--mirror is not for --protocol 10-crop"),
        (["--bn-images=0"], "--bn-images 0 must be a number of training images, at least 2"),
        (["--per-class=/none/a.csv"], "--per-class /none/a.csv: the folder /none does not exist"),
        (["--confusion=/none/a.csv"], "--confusion /none/a.csv: the folder /none does not exist"),
        (["none.pt"], "--checkpoint none.pt does not exist"),
        (["--mirror", "b.pt"], "unrecognized arguments: b.pt; did you mean --checkpoint b.pt?"),
    ],
)
def test_a_wrong_option_is_answered_before_the_checkpoint_is_read(tmp_path, options, message):
    nothing = tmp_path / "empty.pt"
    nothing.touch()
    with pytest.raises(ConfigError) as error:
        evaluate_here("--checkpoint", str(nothing), *options)
    assert message in str(error.value)


def test_a_protocol_that_does_not_fit_the_checkpoint_is_refused(trained):
    scales = ("--data.image_size=64", "--data.val_resize=64", "--scales", "32", "64")
    with pytest.raises(Reported, match="--scales 32: the smallest possible is 61, whose feature"):
        evaluate_here("--checkpoint", trained.checkpoint(), "--protocol=multi-scale", *scales)
    with pytest.raises(Reported, match="--test-images is for runs that hold out training images"):
        evaluate_here("--checkpoint", trained.checkpoint(), "--test-images")
