"""`benchmark finetune`, of a small network that has learnt nothing, in trainings of one epoch."""

import pytest
import yaml
from weight_files import CIFAR_8, write_checkpoint

from pipeline.benchmark import finetune, rank_options
from pipeline.config import ConfigError
from pipeline.prepare.drawn import CLASSES, UNSEEN

SETTINGS = {
    "data": {"image_size": 32, "val_resize": 36},
    "model": {"family": "cifar", "depth": 8, "zero_init_last_norm": False},
    "schedule": {"epochs": 4, "warmup_epochs": 1, "drop_epochs": [2, 3]},
}


def test_both_sides_train_on_the_same_images(benchmark, tmp_path, monkeypatch):
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.setattr(finetune, "_CONFIG", config)
    init = write_checkpoint(tmp_path / "demo.pt", CIFAR_8, classes=list(CLASSES))
    found, text = benchmark(
        "finetune", f"--init={init}", "--seeds=1", "--images=4", "--val=2", "--epochs=1"
    )
    top1 = [found["raw"][f"{side}_top1"]["rounds"] for side in ("finetuned", "from_nothing")]
    assert all(len(one) == 1 and 0 <= one[0] <= 1 for one in top1)
    assert found["raw"]["gain_points"] == pytest.approx(100 * (top1[0][0] - top1[1][0]))
    assert "from_nothing" in text and "gain_points" in text


def test_no_data_set_has_the_shapes_that_are_to_be_learnt():
    assert len(UNSEEN) == 5 and not set(UNSEEN) & set(CLASSES)
    assert list(UNSEEN) == sorted(UNSEEN)


def test_a_checkpoint_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="--init=none is not a file; give a checkpoint of"):
        rank_options.FinetuneOptions(init="none")
