"""Sizes by epoch as a setting: how they are written, kept and refused."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Config, ConfigError, DataConfig, ScheduleConfig, plain
from pipeline.config.idle import idle_settings
from pipeline.config.reading import load_config, new_parser
from pipeline.config.setting import shown
from pipeline.train.checkpoint import require_same_run
from pipeline.train.state import compared, fingerprint

GROWING = {0: 128, 6: 160, 30: 192}
HASHES = {"train": "aa", "val": "bb"}


def load(*options: str) -> Config:
    return load_config(["--config=configs/resnet50.yaml", *options], "", "")


@pytest.mark.parametrize(
    "text", ["{0: 128, 6: 160, 30: 192}", "{0:128,6:160,30:192}", "{ 0x0: 128, 6 : 160, 30: 192 }"]
)
def test_sizes_are_written_alike_in_a_yaml_and_on_the_command_line(text, tmp_path):
    assert load(f"--data.image_sizes={text}").data.image_sizes == GROWING
    path = tmp_path / "a.yaml"
    for written in (f"data:\n  image_sizes: {text}\n", f"data.image_sizes: {text}\n"):
        path.write_text(written)
        assert load_config([f"--config={path}"]).data.image_sizes == GROWING


def test_a_yaml_may_have_a_line_for_each_and_one_that_builds_on_it_replaces_all(tmp_path):
    (tmp_path / "a.yaml").write_text("data:\n  image_sizes:\n    0: 128\n    6: 160\n    30: 192\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ndata:\n  image_sizes: {0: 176}\n")
    assert load_config([f"--config={tmp_path}/a.yaml"]).data.image_sizes == GROWING
    assert load_config([f"--config={tmp_path}/b.yaml"]).data.image_sizes == {0: 176}
    nothing = load_config([f"--config={tmp_path}/b.yaml", "--data.image_sizes=null"])
    assert nothing.data.image_sizes is None


def test_the_resolved_configuration_reads_back_to_an_equal_one(tmp_path):
    config = Config(data=DataConfig(image_sizes=GROWING, val_size=224))
    assert "  image_sizes:\n    0: 128\n    6: 160\n    30: 192\n" in config.to_yaml()
    (tmp_path / "a.yaml").write_text(config.to_yaml())
    assert load_config([f"--config={tmp_path}/a.yaml", "--run.name=default"]).data == config.data


def test_a_fingerprint_is_the_same_after_json_and_after_a_checkpoint():
    config = Config(data=DataConfig(image_sizes=GROWING, val_size=224))
    facts = fingerprint(config, HASHES)
    assert facts["data.image_sizes"] == {"0": 128, "6": 160, "30": 192}
    assert json.loads(json.dumps(facts)) == facts
    stored = io.BytesIO()
    torch.save(facts, stored)
    assert torch.load(io.BytesIO(stored.getvalue()), weights_only=True) == facts
    assert plain(config.data.image_sizes) == facts["data.image_sizes"]


def test_a_run_is_held_to_its_sizes_and_one_from_before_them_to_the_one_it_had():
    one, other = (Config(data=DataConfig(image_sizes=s)) for s in (GROWING, {0: 128, 6: 160}))
    facts = fingerprint(one, HASHES)
    require_same_run(Path("a.pt"), facts, compared(facts, one))
    with pytest.raises(ValueError, match=r"another run \(data.image_sizes: .*160\} now\); set"):
        require_same_run(Path("a.pt"), facts, compared(fingerprint(other, HASHES), other))
    old = fingerprint(Config(), HASHES)
    assert not {"data.image_sizes", "data.val_size"} & set(old)
    require_same_run(Path("a.pt"), old, compared(old, Config()))
    with pytest.raises(ValueError, match="data.val_size: null in the checkpoint, 256 now"):
        held = Config(data=DataConfig(val_size=256))
        require_same_run(Path("a.pt"), old, compared(fingerprint(held, HASHES), held))


def test_the_one_size_is_idle_where_both_others_are_given():
    def idle(**data: Any) -> set[str]:
        return set(idle_settings(Config(data=DataConfig(**data)).values()))

    assert "data.image_size" in idle(image_sizes=GROWING, val_size=224)
    assert "data.image_size" not in idle(image_sizes=GROWING)
    assert "data.image_size" not in idle(val_size=224)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "128",
            "128 must be a mapping of whole numbers in braces, such as {0: 128, 6: 160} or null",
        ),
        ("[0,128]", "[0,128] must be a mapping of whole numbers in braces"),
        ("{0: small}", "{0: small} must be a mapping of whole numbers"),
        ("{0: 128, 00: 160}", "{0: 128, 00: 160} must be a mapping of whole numbers"),
        ("{0: 128, 0: 160}", "{0: 128, 0: 160} must be a mapping of whole numbers"),
        ("{0: [128]}", "must be a mapping of whole numbers"),
        ("{0.5: 128}", "must be a mapping of whole numbers"),
        ("{0: 128", "must be a mapping of whole numbers"),
    ],
)
def test_what_is_no_mapping_of_numbers_is_answered_with_one(text, rule):
    with pytest.raises(ConfigError) as error:
        load(f"--data.image_sizes={text}")
    assert f"data.image_sizes={rule}" in str(error.value) or rule in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_sizes": {}}, "data.image_sizes={} must begin with epoch 0"),
        ({"image_sizes": {1: 128}}, "data.image_sizes={1: 128} must begin with epoch 0, with"),
        ({"image_sizes": {-1: 96, 0: 128}}, "{-1: 96, 0: 128} must begin with epoch 0"),
        ({"image_sizes": {0: 160, 6: 128}}, "{0: 160, 6: 128} must hold sides in pixels that rise"),
        ({"image_sizes": {0: 160, 6: 160}}, "{0: 160, 6: 160} must hold sides in pixels that rise"),
        ({"image_sizes": {0: 0, 6: 160}}, "{0: 0, 6: 160} must hold sides in pixels that rise"),
        (
            {"image_sizes": GROWING, "mean": "pixel"},
            "data.mean=pixel, whose mean image has one size; set data.mean=channel",
        ),
        (
            {"image_sizes": GROWING, "train_crop": "scale_jitter", "short_side": (160, 480)},
            "data.short_side=[160,480] must satisfy 192 <= least <= most, as the largest of "
            "data.image_sizes={0: 128, 6: 160, 30: 192} needs",
        ),
        (
            {"image_sizes": {0: 16, 3: 32}, "dataset": "cifar-10", "train_crop": "padded",
             "image_size": 32},
            "data.image_sizes={0: 16, 3: 32} is not for data.dataset=cifar-10, whose",
        ),
        (
            {"val_size": 40, "dataset": "cifar-10", "train_crop": "padded", "image_size": 32},
            "data.val_size=40 is not for data.dataset=cifar-10, whose images are not",
        ),
        ({"val_size": 288}, "data.val_resize=256 must be at least data.val_size=288; raise it"),
        ({"image_size": 288}, "data.val_resize=256 must be at least data.image_size=288; raise it"),
        ({"val_size": 0}, "data.val_size=0 must be at least 1, or null"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_with_value_rule_and_cure(data, message):
    with pytest.raises(ConfigError) as error:
        DataConfig(**data)
    assert message in str(error.value)


def test_a_size_that_no_epoch_reaches_is_refused():
    data = DataConfig(image_sizes={0: 128, 18: 160})
    with pytest.raises(ConfigError) as error:
        Config(data=data, schedule=ScheduleConfig(epochs=18.0, drop_epochs=()))
    assert str(error.value) == (
        "data.image_sizes={0: 128, 18: 160} begins a size with epoch 18, which "
        "schedule.epochs=18.0 does not reach; leave it out, or lengthen the run"
    )
    Config(data=data, schedule=ScheduleConfig(epochs=18.5, drop_epochs=()))


@pytest.mark.parametrize(
    "data",
    [
        {"image_sizes": {0: 176}, "mean": "pixel"},  # which is one size
        {"image_sizes": GROWING, "mean": "channel"},
        {"image_sizes": {0: 288}, "val_size": 224},  # larger than validation's
        {"image_sizes": GROWING, "train_crop": "scale_jitter", "short_side": (192, 480)},
        {"val_size": 288, "val_resize": 288},
        {"image_size": 300, "image_sizes": GROWING, "val_size": 224},
    ],
)
def test_what_is_possible_is_accepted(data):
    DataConfig(**data)


def test_sizes_of_training_and_of_validation():
    def sizes(**data: Any) -> tuple[int, int]:
        config = DataConfig(**data)
        return config.train_size, config.view_size

    assert sizes() == (224, 224)
    assert sizes(image_sizes=dict(reversed(GROWING.items()))) == (192, 224)
    assert sizes(val_size=256) == (224, 256)
    assert sizes(image_size=160, image_sizes=GROWING) == (192, 160)


def test_the_help_shows_the_form_and_a_message_the_value():
    text = new_parser("prog", "").format_help()
    assert "--data.image_sizes {N:N,...}" in text
    assert shown(GROWING) == "{0: 128, 6: 160, 30: 192}"
    assert dataclasses.asdict(DataConfig(image_sizes=GROWING))["image_sizes"] == GROWING
