"""A real job on CIFAR-10: two ranks, its own mean image, resumed from the other archive."""

import shutil
from types import SimpleNamespace

import jobs
import numpy as np
import pytest
import torch
from cifar_archives import write
from one_process import train_here
from run_files import checkpoint_steps, metrics, newest_checkpoint, state_differences

from pipeline.config import ModelConfig
from pipeline.data.cifar import open_cifar
from pipeline.data.normalisation import Normalisation
from pipeline.data.statistics import of_pixels
from pipeline.model.resnet import build_network
from pipeline.system.failure import Reported

OPTIONS = [
    "--data.dataset=cifar-10", "--data.train_crop=padded", "--data.held_out=20",
    "--data.mean=pixel", "--model.family=cifar", "--model.depth=8", "--optim.amp=off",
    "--run.checkpoint_every_steps=3", "--run.keep_checkpoints=9",
]  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run of 2 ranks that nothing interrupted, and one that resumed from its step 6 with the
    Python archive."""
    root = tmp_path_factory.mktemp("cifar-job")
    write(root / "binary")
    write(root / "python", "python", packed=True)
    whole, cut = root / "whole/test", root / "cut/test"
    done = jobs.run(jobs.train(root / "binary", root / "whole", *OPTIONS), ranks=2)
    assert done.codes == [0, 0], done.text
    shutil.copytree(whole, cut)
    for step in checkpoint_steps(whole):
        if step > 6:
            (cut / f"checkpoints/step-{step:09d}.pt").unlink()
    again = jobs.run(jobs.train(root / "python", root / "cut", *OPTIONS), ranks=2)
    assert again.codes == [0, 0], again.text
    return SimpleNamespace(root=root, whole=whole, cut=cut, text=again.text)


def test_a_resumed_run_ends_with_the_bits_of_one_that_nothing_interrupted(job):
    assert "resuming from" in job.text and "step-000000006.pt" in job.text
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
    model = build_network(ModelConfig(family="cifar", depth=8), 10, "reference").eval()
    model.load_state_dict(content["model"])
    images = torch.from_numpy((val.pixels - normal.image) / normal.std).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = model(images.contiguous(memory_format=torch.channels_last))
    last = content["history"][-1]
    assert last["images"] == 20
    assert last["top1_correct"] == int((scores.argmax(1).numpy() == val.labels).sum())
    assert 0 < last["top5_correct"] <= 20


def test_the_log_says_that_nothing_is_decoded_and_the_loss_falls(job):
    assert "images that need no decoding" in (job.whole / "log.txt").read_text()
    losses = [line["loss"] for line in metrics(job.whole) if line["event"] == "train"]
    assert losses[-1] < losses[0]


def test_a_run_refuses_to_go_on_with_other_data_or_other_means(job, tmp_path):
    write(tmp_path / "other", batches=(50, 30))
    runs, options = job.root / "whole", [*OPTIONS, "--schedule.epochs=2"]
    with pytest.raises(Reported, match="data hash of train: .* in the checkpoint, .* now"):
        train_here(tmp_path / "other", runs, *options)
    with pytest.raises(Reported, match="means and deviations: .* in the checkpoint, .* now"):
        train_here(job.root / "binary", runs, *options, "--data.mean=channel")
