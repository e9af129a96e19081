"""Exact validation: every image once, the same integers on any number of ranks, or a failure."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from count_ranks import BATCHES, CPU, DECODE, count, small_model
from one_process import evaluate_here

from pipeline.data.crops import CenterCrop
from pipeline.data.dali import Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import ValStream
from pipeline.ranks.world import World
from pipeline.system.failure import ExitCode, Reported
from pipeline.train.events import read_metrics
from pipeline.train.precision import Precision
from pipeline.train.validation import validate


@pytest.fixture(scope="module")
def val_set(small_data):
    return open_manifest(small_data, "val")


@pytest.fixture(scope="module")
def model(val_set):
    return small_model(val_set)


@pytest.fixture(scope="module")
def one_rank(small_data):
    threads = torch.get_num_threads()
    yield count(World(), small_data)
    torch.set_num_threads(threads)


def open_loader(val_set, *starts: int, size: int = 5) -> Loader:
    chunks = [np.arange(start, start + size) for start in starts]
    return Loader(ValStream(val_set, CenterCrop(32, 36)), chunks, len(chunks), size, DECODE)


def validated(model, loader: Loader, images: int = 30):
    with closing(loader):
        return validate(model, loader, Precision("off", CPU), World(), images, 10)


def test_the_counts_are_those_of_a_plain_loop(val_set, model, one_rank):
    top1 = top5 = 0
    predicted, losses = set(), []
    with closing(open_loader(val_set, *range(30), size=1)) as loader, torch.no_grad():
        for batch in loader:
            scores = model(batch.images)[0].tolist()
            label = int(batch.labels)
            place = sorted(scores, reverse=True).index(scores[label])
            top1 += place == 0
            top5 += place < 5
            predicted.add(int(np.argmax(scores)))
            losses.append(float(torch.tensor(scores).logsumexp(0)) - scores[label])
    assert len(predicted) > 4  # else a wrong count could go unnoticed
    assert 0 < top1 < top5 < 30
    for images, top1_correct, top5_correct, loss in one_rank.values():
        assert (images, top1_correct, top5_correct) == (30, top1, top5)
        assert loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_count_the_same_integers_also_with_fewer_chunks_than_ranks(
    small_data, tmp_path, one_rank, ranks
):
    out = tmp_path / "counts.json"
    job = jobs.run(["tests/count_ranks.py", str(small_data), str(out)], ranks)
    assert job.codes == [0] * ranks, job.text
    found = json.loads(out.read_text())
    assert set(found) == {str(batch_size) for batch_size in BATCHES}
    for batch_size, (*counts, loss) in one_rank.items():
        assert found[str(batch_size)][:3] == counts
        assert found[str(batch_size)][3] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    ("starts", "counted"),
    [((0, 5, 10, 15, 20), 25), ((0, 5, 10, 15, 20, 25, 10), 35), ((30, 35), 0)],
    ids=["a chunk is missing", "a chunk comes twice", "padding alone"],
)
def test_a_validation_that_does_not_count_every_image_once_fails(val_set, model, starts, counted):
    message = f"validation counted {counted} images, the data set has 30"
    with pytest.raises(Reported, match=message) as error:
        validated(model, open_loader(val_set, *starts))
    assert error.value.code == ExitCode.FAILED


def test_padding_counts_nowhere(val_set, model, one_rank):
    exact = validated(model, open_loader(val_set, 0, 10, 20, size=10))
    padded = validated(model, open_loader(val_set, 0, 10, 20, 30, 40, size=10))
    assert padded == exact
    assert exact.top1_correct == one_rank[4][1]


def test_a_bad_file_met_in_validation_is_named(small_data, tmp_path, model):
    root = tmp_path / "data"
    shutil.copytree(small_data / "val", root / "val")
    bad = sorted((root / "val").rglob("*.JPEG"))[7]
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(Reported) as error:
        validated(model, open_loader(open_manifest(root, "val"), *range(0, 30, 5)))
    assert str(bad) in error.value.message
    assert "met in validation by rank 0" in error.value.message
    assert error.value.code == ExitCode.WRONG_INPUT


def test_evaluate_gives_the_number_of_the_training_on_any_number_of_ranks(uninterrupted, tmp_path):
    checkpoint = uninterrupted / "checkpoints" / "best.pt"
    alone, two = tmp_path / "alone.json", tmp_path / "two.json"
    evaluate_here("--checkpoint", str(checkpoint), f"--json={alone}")
    job = jobs.run(["-m", "pipeline.evaluate", "--checkpoint", str(checkpoint), f"--json={two}"], 2)
    assert job.codes == [0, 0], job.text
    for result in (json.loads(out.read_text()) for out in (alone, two)):
        lines = read_metrics(uninterrupted / "metrics.jsonl")
        (validation,) = [m for m in lines if m["event"] == "val" and m["step"] == result["step"]]
        for name in ("top1", "top5", "images"):
            assert result[name] == validation[name]
        assert result["loss"] == pytest.approx(validation["loss"], rel=1e-12)
        assert result["top1_correct"] == round(result["top1"] * 30)
        assert result["top5_correct"] == round(result["top5"] * 30)
        assert Path(result["checkpoint"]) == checkpoint
    said = f"top-1 {result['top1']:.2%} ({result['top1_correct']} of 30), top-5 "
    assert job.text.count(said) == 1  # rank 0 says it, the others nothing
