"""A real job on CIFAR-10: two ranks, its own mean image, killed, resumed from the other archive."""

import json
from pathlib import Path
from types import SimpleNamespace

import jobs
import numpy as np
import pytest
import torch
from cifar_archives import write
from jobs import SABOTEUR
from one_process import train_here
from run_files import metrics, newest_checkpoint, state_differences

from pipeline.config import ModelConfig
from pipeline.data.cifar import open_cifar
from pipeline.data.normalisation import Normalisation
from pipeline.data.statistics import of_pixels
from pipeline.model.backends import choose_backend
from pipeline.model.resnet import build_network
from pipeline.system.failure import Reported

OPTIONS = [
    "--data.dataset=cifar-10", "--data.train_crop=padded", "--data.held_out=20",
    "--data.mean=pixel", "--model.family=cifar", "--model.depth=8", "--optim.amp=off",
    "--run.checkpoint_every_steps=3", "--run.keep_checkpoints=9",
]  # fmt: skip


def settings(data: Path, runs: Path) -> list[str]:
    return [*jobs.small_settings(data, runs), *OPTIONS]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run of 2 ranks that nothing interrupted, and one that was killed at step 8 and went on
    with the Python archive."""
    root = tmp_path_factory.mktemp("cifar-job")
    write(root / "binary")
    write(root / "python", "python", packed=True)
    whole = jobs.run(["-m", "pipeline.train", *settings(root / "binary", root / "whole")], ranks=2)
    assert whole.codes == [0, 0], whole.text
    cut = [str(SABOTEUR), "kill-step:8:1", *settings(root / "binary", root / "cut")]
    assert jobs.run(cut, ranks=2).codes[1] == -9
    again = jobs.run(["-m", "pipeline.train", *settings(root / "python", root / "cut")], ranks=2)
    assert again.codes == [0, 0], again.text
    return SimpleNamespace(root=root, whole=root / "whole/test", cut=root / "cut/test", text=again)


def test_a_killed_run_ends_with_the_bits_of_one_that_never_was(job):
    assert "resuming from" in job.text.text
    assert state_differences(job.cut, job.whole) == []
    assert newest_checkpoint(job.whole)["step"] == 13  # two epochs of 50 images by 8


def test_the_mean_image_of_the_training_images_is_in_the_checkpoint(job):
    train, _ = open_cifar(job.root / "binary", held_out=20)
    content = newest_checkpoint(job.cut)
    found, wanted = Normalisation.from_state(content["normalisation"]), of_pixels(train.pixels)
    assert found.digest == wanted.digest
    assert content["fingerprint"]["means and deviations"] == wanted.digest
    np.testing.assert_array_equal(found.image, wanted.image)


def test_the_last_validation_counts_each_held_out_image_once(job):
    _, val = open_cifar(job.root / "binary", held_out=20)
    content = newest_checkpoint(job.whole)
    normal = Normalisation.from_state(content["normalisation"])
    norm = choose_backend("reference", torch.device("cpu"), "off")
    model = build_network(ModelConfig(family="cifar", depth=8), 10, norm)
    model.load_state_dict(content["model"])
    images = torch.from_numpy((val.pixels - normal.image) / normal.std).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = model.eval()(images.contiguous(memory_format=torch.channels_last))
    last = content["history"][-1]
    assert last["images"] == 20
    assert last["top1_correct"] == int((scores.argmax(1).numpy() == val.labels).sum())
    assert 0 < last["top5_correct"] <= 20


def test_an_evaluation_on_one_rank_counts_as_the_two_ranks_did(job, tmp_path):
    out = tmp_path / "result.json"
    checkpoint = job.cut / "checkpoints/step-000000013.pt"
    found = jobs.run(["-m", "pipeline.evaluate", "--checkpoint", str(checkpoint), f"--json={out}"])
    assert found.codes == [0], found.text
    result, last = json.loads(out.read_text()), newest_checkpoint(job.whole)["history"][-1]
    for count in ("images", "top1_correct", "top5_correct"):
        assert result[count] == last[count]
    assert result["loss"] == pytest.approx(last["loss"], rel=1e-6)


def test_the_log_says_that_nothing_is_decoded_and_the_loss_falls(job):
    assert "images that need no decoding" in (job.whole / "log.txt").read_text()
    losses = [line["loss"] for line in metrics(job.whole) if line["event"] == "train"]
    assert losses[-1] < losses[0]


def test_a_run_refuses_to_go_on_with_other_data_or_other_means(job, tmp_path):
    write(tmp_path / "other", batches=(50, 30))
    runs = job.root / "whole"
    with pytest.raises(Reported, match="data hash of train: .* in the checkpoint, .* now"):
        train_here(tmp_path / "other", runs, *OPTIONS, "--schedule.epochs=2")
    with pytest.raises(Reported, match="means and deviations: .* in the checkpoint, .* now"):
        train_here(
            job.root / "binary", runs, *OPTIONS, "--schedule.epochs=2", "--data.mean=channel"
        )
