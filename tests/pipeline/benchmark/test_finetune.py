"""`benchmark finetune`, with a network that has learnt nothing and a training of one epoch."""

import pytest
from weight_files import RESNET_18, write_checkpoint

from pipeline.benchmark import rank_options
from pipeline.config import ConfigError
from pipeline.prepare.drawn import CLASSES, UNSEEN


def test_both_sides_train_on_the_same_images(benchmark, tmp_path):
    init = write_checkpoint(tmp_path / "demo.pt", RESNET_18, classes=list(CLASSES))
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
