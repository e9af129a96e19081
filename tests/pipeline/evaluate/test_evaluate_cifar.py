"""`pipeline.evaluate` on CIFAR-10: held-out training images, or the archive's test images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cifar_archives import write
from one_process import evaluate_here, train_here

from pipeline.config import ModelConfig
from pipeline.data.cifar import open_cifar
from pipeline.data.normalisation import Normalisation
from pipeline.model.resnet import build_network
from pipeline.report.runs import read_run
from pipeline.system.failure import Reported
from pipeline.train.checkpoint import read_verified

OPTIONS = (
    "--data.dataset=cifar-10", "--data.train_crop=padded", "--data.held_out=20",
    "--data.mean=pixel", "--model.family=cifar", "--model.depth=8", "--optim.amp=off",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate-cifar")
    write(folder / "data", test=25)
    return train_here(folder / "data", folder / "runs", *OPTIONS)


def evaluated(run: Path, *options: str) -> dict:
    out = run.parent / "result.json"
    evaluate_here("--checkpoint", str(run / "checkpoints" / "best.pt"), f"--json={out}", *options)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def plain(run):
    """The result with no options."""
    return evaluated(run)


def right_by_hand(run: Path, held_out: int | None) -> tuple[int, int]:
    """Images, and how many of them the network gets right without any loader."""
    content = read_verified(run / "checkpoints" / "best.pt")
    normal = Normalisation.from_state(content["normalisation"])
    model = build_network(ModelConfig(family="cifar", depth=8), 10, "reference").eval()
    model.load_state_dict(content["model"])
    _, val = open_cifar(run.parent.parent / "data", held_out)
    images = torch.from_numpy((val.pixels - normal.image) / normal.std).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = model(images.contiguous(memory_format=torch.channels_last))
    return len(val), int((scores.argmax(1).numpy() == val.labels).sum())


def test_the_test_images_are_evaluated_where_that_is_asked(run, plain):
    tested = evaluated(run, "--test-images")
    assert (plain["images"], plain["top1_correct"]) == right_by_hand(run, 20)
    assert (tested["images"], tested["top1_correct"]) == right_by_hand(run, None)
    assert (plain["test_images"], tested["test_images"]) == (False, True)
    assert (run / "evaluate-1-crop.json").is_file()
    assert (run / "evaluate-1-crop-test-images.json").is_file()


def test_true_averages_over_the_epoch_are_of_the_images_that_are_not_held_out(run, plain):
    result = evaluated(run, "--bn-images=all", "--test-images")
    assert (result["images"], result["bn_images"]) == (25, "all")
    assert result["weights"] != plain["weights"]


def test_a_result_with_other_settings_or_data_leaves_that_of_the_training_alone(
    run, plain, tmp_path
):
    files = set(run.glob("evaluate-*.json"))
    before = (run / "evaluate-1-crop.json").read_bytes()
    other_amp = evaluated(run, "--optim.amp=bf16", "--data.val_resize=64")  # that has no effect
    write(tmp_path / "noisy", batches=(30, 50), test=25)
    noisy = evaluated(run, f"--data.root={tmp_path}/noisy")
    write(tmp_path / "copy", test=25)
    copied = evaluated(run, f"--data.root={tmp_path}/copy", "--test-images")
    tested = evaluated(run, f"--data.root={tmp_path}/noisy", "--test-images")
    assert [one["changed"] for one in (plain, other_amp, noisy)] == [{}, {"optim.amp": "bf16"}, {}]
    known = [one["other_data"] for one in (plain, other_amp, noisy, copied, tested)]
    assert known == [False, False, True, False, True]
    names = {path.name for path in set(run.glob("evaluate-*.json")) - files}
    assert names - {"evaluate-1-crop-test-images.json"} == {
        "evaluate-1-crop-amp-bf16.json", f"evaluate-1-crop-data-{noisy['data_hash'][:8]}.json",
        f"evaluate-1-crop-test-images-data-{tested['data_hash'][:8]}.json",
    }  # fmt: skip
    assert (run / "evaluate-1-crop.json").read_bytes() == before
    stored = [e for e in read_run(run).evaluations if (e.is_plain, e.images) == (True, 20)]
    assert len(stored) == 1  # of the same images as the last validation, which counts once


def test_other_protocols_than_one_crop_are_refused(run):
    for options in ("--protocol=10-crop",), ("--protocol=multi-scale", "--scales", "32"):
        with pytest.raises(Reported, match=r"is not for data.dataset=cifar-10, whose images are"):
            evaluated(run, *options)
