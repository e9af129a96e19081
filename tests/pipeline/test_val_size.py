"""Validation at a size of its own: everything that shows a view shows that one."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import RunMaker, write_evaluation
from weight_files import SMALL, made_member, with_image, write_checkpoint

from pipeline import predict
from pipeline.benchmark.__main__ import parse
from pipeline.config import Config, ConfigError, DataConfig, ModelConfig
from pipeline.data.crops import CenterCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import ValStream, train_planner, val_planner
from pipeline.evaluate.members import require_alike
from pipeline.evaluate.protocol import ViewProtocol, pool_window
from pipeline.prepare.options import MeanOptions
from pipeline.report.runs import read_run
from pipeline.train.loaders import val_passes
from pipeline.train.monitor.pictures import Pictures
from pipeline.train.validation import ErrorAnalysis
from pipeline.train.weights import describe

LARGER = dataclasses.replace(SMALL, val_size=48, val_resize=54)
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_prediction_is_of_the_view_that_validation_has(small_data, tmp_path):
    path = write_checkpoint(tmp_path / "a.pt", data=LARGER)
    val_set = open_manifest(small_data, "val")
    stream = ValStream(val_set, CenterCrop(48, 54))
    with closing(Loader(stream, [np.arange(3)], 1, 3, DecodeSettings("cpu", CPU, 1))) as loader:
        images = next(loader).images
    with torch.no_grad():
        wanted = predict_with(path, images)
    predict.main([f"--checkpoint={path}", f"--json={tmp_path}/a.json",
                  *(str(val_set.path(i)) for i in range(3))])  # fmt: skip
    for i, one in enumerate(json.loads((tmp_path / "a.json").read_text())["predictions"]):
        assert one["top"][0]["probability"] == pytest.approx(float(wanted[i].max()), abs=1e-6)
    with pytest.raises(ConfigError, match="data.image_size=40 is not the side .* data.val_size=48"):
        predict.main([f"--checkpoint={path}", "--data.image_size=40", str(val_set.path(0))])


def predict_with(path: Path, images: torch.Tensor) -> torch.Tensor:
    from pipeline.train.checkpoint import read

    return read(path).build(CPU)(images).softmax(1)


def test_a_view_has_the_size_of_validation_and_a_crop_that_of_training():
    data = DataConfig(image_sizes={0: 128, 6: 176}, val_size=224, val_resize=232)
    assert val_planner(data) == CenterCrop(224, 232)
    assert train_planner(data).size == 176
    config = Config(data=data, model=ModelConfig(depth=18))
    assert ViewProtocol().views(config)[0].size == 224
    assert pool_window(config) == 7
    with pytest.raises(ConfigError, match="7 cells a side that pooling needs at data.val_size=224"):
        ViewProtocol("multi-scale", (160,)).check(config)


def test_a_mean_image_gives_way_to_the_means_in_views_of_another_size():
    normal = with_image(32)
    decode = DecodeSettings("cpu", CPU, 1, normalisation=normal)
    assert val_passes(SMALL, decode)._decode.normalisation.image is not None
    assert val_passes(LARGER, decode)._decode.normalisation.image is None
    told = [describe(Config(data=data), ["a"], normal) for data in (SMALL, LARGER)]
    assert [(one.image_size, one.resize) for one in told] == [(32, 36), (48, 54)]
    assert [one.normalisation.image is None for one in told] == [False, True]


def test_mistakes_are_drawn_in_the_size_of_validation(small_data):
    analysis = ErrorAnalysis(2, True, CPU)
    kept = torch.tensor([0.9]), torch.tensor([1]), torch.tensor([0]), torch.zeros(1, 3, 48, 48)
    analysis._kept = kept
    analysis.hits = analysis.images = torch.ones(2, dtype=torch.int64)
    decode = DecodeSettings("cpu", CPU, 1, normalisation=with_image(32))
    stream = ValStream(open_manifest(small_data, "val"), CenterCrop(48, 54))
    drawn = dict(Pictures(decode, stream, ["a", "b"], small_data).of_validation(analysis))
    # Zeros are the means: those of the channels, as a mean image of 32 pixels fits no view of 48.
    assert drawn["val/mistakes"][60, 60].tolist() == [100, 110, 120]


def test_an_ensemble_is_of_views_of_one_size_by_whichever_setting():
    one = made_member("a.pt", data=DataConfig(val_size=192))
    same = made_member("b.pt", data=DataConfig(image_size=192))
    other = made_member("c.pt", data=DataConfig(image_size=192, val_size=224))
    require_alike([one, same])
    require_alike([same, one])
    with pytest.raises(
        ConfigError, match=r"c.pt has data.val_size=224 and a.pt has data.val_size=192"
    ):
        require_alike([one, other])


def test_a_report_compares_the_crops_of_validation(tmp_path):
    folder = RunMaker(tmp_path)("a", {"data.image_size": 176, "data.val_size": 224}, steps=800)
    write_evaluation(folder, "ours", data={"val_size": 224})
    write_evaluation(folder, "older")
    run = read_run(folder)
    assert run.crop == (224, 256)
    assert sorted(one.crop for one in run.evaluated) == [(176, 256), (224, 256)]


@pytest.mark.parametrize(
    ("text", "option", "size"),
    [
        ("image_sizes: {0: 128, 6: 288}", [], 288),
        ("image_sizes: {0: 128, 6: 288}", ["--data.image_size=96"], 96),
        ("{image_size: 160, val_size: 224}", [], 160),
    ],
)
def test_a_benchmark_is_of_one_size_the_largest_of_training(tmp_path, text, option, size):
    (tmp_path / "a.yaml").write_text(f"data: {text}\n" if text[0] == "{" else f"data.{text}\n")
    _, options, _ = parse(["model", f"--config={tmp_path}/a.yaml", *option])
    data = options.config.data
    assert (data.image_size, data.image_sizes, data.val_size) == (size, None, None)


def test_means_are_of_the_largest_crop(tmp_path, small_data):
    (tmp_path / "a.yaml").write_text("data.image_sizes: {0: 128, 6: 160}\ndata.mean: channel\n")
    config = tmp_path / "a.yaml"
    assert MeanOptions(root=small_data, config=config).data.train_size == 160
    assert MeanOptions(root=small_data, config=config, image_size=320).data.train_size == 320
