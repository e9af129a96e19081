"""`pipeline.evaluate`: a result is that of the command, and of the training's validation."""

import json
import shutil

import numpy as np
import pytest
from one_process import evaluate_here, train_here

import pipeline
from pipeline.api import ConfigError, DamagedCheckpoint
from pipeline.train.folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory) -> RunFolder:
    return RunFolder(train_here(small_data, tmp_path_factory.mktemp("runs")))


def test_it_is_the_result_of_the_validation_and_of_the_command(run, tmp_path, capsys):
    found = pipeline.evaluate(run.path)
    assert capsys.readouterr().out.count("top-1") == 0  # a caller says it
    done = run.last("done")
    assert (found.top1, found.top5) == (done["top1"], done["top5"])
    assert (found.images, found.protocol, found.views, found.step) == (30, "1-crop", 1, 7)
    assert found.top1_correct == int(found.confusion.trace()) and found.confusion.sum() == 30
    assert found.balanced_top1 == pytest.approx(sum(found.class_top1().values()) / 10)
    assert found.checkpoints == (run.checkpoints / "best.pt",)
    assert json.loads(found.file.read_text()) == found.details
    evaluate_here(f"--checkpoint={run.checkpoints}/best.pt", f"--json={tmp_path}/a.json")
    command = json.loads((tmp_path / "a.json").read_text())
    command.pop("date")
    assert command == {name: value for name, value in found.details.items() if name != "date"}


def test_arguments_are_the_commands_options(run, small_data):
    best = run.checkpoints / "best.pt"
    found = pipeline.evaluate(
        [best, best], protocol="multi-scale", scales=np.array([36, 40]), mirror=True,
        data=small_data, bn_images=16, settings={"run.device": "cpu"},
    )  # fmt: skip
    assert (found.views, len(found.checkpoints)) == (4, 2)
    assert found.details["bn_images"] == 16 and found.details["scales"] == [36, 40]


def test_a_result_that_its_run_does_not_take_has_no_file(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    for kept in copy.glob("evaluate-*.json"):
        kept.unlink()
    found = pipeline.evaluate(copy)
    found.file.unlink()
    found.file.mkdir()
    again = pipeline.evaluate(copy)
    assert again.file is None and again.top1_correct == found.top1_correct


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"protocol": "2-crop"}, "protocol=2-crop must be one of 1-crop, 10-crop, multi-scale"),
        ({"weights": "best"}, "weights=best must be one of auto, raw, ema"),
        ({"mirror": True}, "--mirror is for --protocol multi-scale"),
        *(
            (
                {"protocol": "multi-scale", "scales": one},
                "scales=.* must be a list of whole numbers",
            )
            for one in ("256", 256, [36.5], [])
        ),
        ({"settings": ["run.device"]}, "settings=..run.device.. must be a dict of settings"),
        ({"bn_images": 1}, "bn_images=1 must be a number of training images, at least 2, or all"),
        ({"settings": {"model.depth": 9}}, "model.depth comes from the checkpoint; what can"),
        ({"settings": {"run.devise": "cpu"}}, "no setting run.devise; did you mean run.device"),
        ({"settings": {"run.device": "gpu"}}, "run.device=gpu must be one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_argument_is_a_config_error(given, message, run):
    with pytest.raises(ConfigError, match=message):
        pipeline.evaluate(run.path, **given)


def test_what_is_no_checkpoint_is_a_value_error(run, tmp_path):
    with pytest.raises(ConfigError, match="gone.pt does not exist; .* or of a run's folder"):
        pipeline.evaluate(tmp_path / "gone.pt")
    for wrong in (None, [run.path, 3]):
        with pytest.raises(ConfigError, match="checkpoint=(None|3) must be the path of a .pt file"):
            pipeline.evaluate(wrong)
    with pytest.raises(ConfigError, match="checkpoint is an empty list"):
        pipeline.evaluate([])
    whole = (run.checkpoints / "best.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-1000])
    with pytest.raises(DamagedCheckpoint, match=r"cut.pt is damaged"):
        pipeline.evaluate(tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        pipeline.evaluate(run.path, data=tmp_path / "nowhere")
