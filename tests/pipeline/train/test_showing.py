"""Pictures: the pixels they were, and rank 0's alone, so that none may end a run."""

import json
from contextlib import closing

import jobs
import numpy as np
import pytest
import torch
from cifar_archives import write
from pipeline.train.monitor.showing import mean_in_views

from pipeline.data.cifar import open_cifar
from pipeline.data.crops import PaddedCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.stream import TrainStream

POSITIONS = np.arange(16)


def normalisation(image: np.ndarray | None) -> Normalisation:
    return Normalisation(IMAGENET.mean, IMAGENET.std, image, IMAGENET.color_axes)


def loaded(stream: TrainStream, decoder: str, normal: Normalisation) -> np.ndarray:
    """Views (16, 32, 32, 3) as the network gets them."""
    how = DecodeSettings(decoder, torch.device("cpu"), 1, normalisation=normal)
    with closing(Loader(stream, [POSITIONS], 1, len(POSITIONS), how)) as loader:
        return next(loader).images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("decoder", ["cpu", "none"])
def test_a_mean_image_is_added_back_as_it_was_subtracted(small_data, tmp_path, decoder):
    if decoder == "none":
        write(tmp_path)
        stream = TrainStream(open_cifar(tmp_path, None)[0], PaddedCrop(), seed=3)
        beyond = IMAGENET.mean
    else:
        stream = TrainStream(open_manifest(small_data, "train"), RandomResizedCrop(32), seed=3)
        beyond = None
    image = np.random.default_rng(1).uniform(90, 150, (32, 32, 3)).astype(np.float32)
    plan = stream.select(POSITIONS).plan
    assert set(plan.flips.tolist()) == {0, 1}
    with_image = loaded(stream, decoder, normalisation(image)) * IMAGENET.std
    with_means = loaded(stream, decoder, normalisation(None)) * IMAGENET.std
    found = with_image + mean_in_views(plan, image, beyond)
    np.testing.assert_allclose(found, with_means + IMAGENET.mean, atol=1e-3)
    assert np.abs(with_image + image - with_means - IMAGENET.mean).max() > 10  # as it lies in none


def test_a_picture_that_cannot_be_drawn_costs_a_warning_and_not_the_run(small_data, tmp_path):
    program = (
        "import sys, pipeline.train.monitor.showing as s\n"
        "def broken(*_): raise ValueError('no such colour')\n"
        "s._pixels = broken\n"
        "from pipeline.train.__main__ import main; main(sys.argv[1:])"
    )
    options = [*jobs.small_settings(small_data, tmp_path), "--schedule.epochs=1",
               "--schedule.drop_epochs=[]"]  # fmt: skip
    ranks = jobs.run(["-c", program, *options])
    assert ranks.codes == [0], ranks.text
    assert "warning: a picture for TensorBoard is left out: no such colour" in ranks.text
    last = (tmp_path / "test" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "done"
