"""`benchmark demo`: whole calls of the program and of a plain script, small ones."""

from __future__ import annotations

import pytest
import yaml

from pipeline.benchmark import demo
from pipeline.benchmark.rank_options import DemoOptions
from pipeline.config import Config, ConfigError, ScheduleConfig
from pipeline.system.failure import TrainingError

SETTINGS = {
    "data": {"global_batch_size": 8, "image_size": 32, "val_resize": 36},
    "model": {"family": "cifar", "depth": 8},
    "schedule": {"epochs": 4, "warmup_epochs": 1, "drop_epochs": [2, 3]},
    "run": {"log_every_steps": 3},
}


@pytest.fixture
def config(tmp_path):
    """Writes a configuration that differs from `SETTINGS` in one part; gives its path."""

    def write(**parts: dict) -> str:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({k: v | parts.get(k, {}) for k, v in SETTINGS.items()}))
        return str(path)

    return write


def test_the_program_and_a_plain_script_train_the_same_in_turn(
    benchmark, config, small_data, monkeypatch
):
    # A DataLoader's workers hand tensors over by sockets in it, whose paths may have 107 letters;
    # in a longer one it hangs.
    monkeypatch.setenv("TMPDIR", "/tmp")
    found, text = benchmark(
        "demo", f"--config={config()}", f"--data={small_data}", "--rounds=1", "--epochs=2",
        "--engines=torch",
    )  # fmt: skip
    raw = found["raw"]
    assert list(found["ratios"]) == ["demo_vs_plain_images_per_sec", "demo_vs_plain_whole_call"]
    for name, key in (("images_per_sec", "images_per_sec"), ("whole_call", "call_sec")):
        ours, theirs = (raw[f"{side}_{key}"]["rounds"] for side in ("demo_torch", "plain"))
        assert found["ratios"][f"demo_vs_plain_{name}"] == ours[0] / theirs[0]
    for side in ("demo_torch", "plain"):
        assert raw[f"{side}_call_sec"]["rounds"][0] > 100 / raw[f"{side}_images_per_sec"]["median"]
        assert 0 <= raw[f"{side}_top1"]["median"] <= 1
    assert "whole call s" in text


def test_a_shorter_run_keeps_the_places_of_warmup_and_drops():
    config = Config(schedule=ScheduleConfig(epochs=10, warmup_epochs=1, drop_epochs=(7, 9)))
    found = demo.shortened(config, 5).schedule
    assert (found.epochs, found.warmup_epochs, found.drop_epochs) == (5, 0.5, (3.5, 4.5))


def test_the_speed_of_lines_of_different_lengths():
    lines = [{"position": 100, "images_per_sec": 10.0}, {"position": 110, "images_per_sec": 1.0}]
    assert demo.mean_speed(lines) == 110 / 20


def test_what_the_script_does_not_know_is_refused(config, small_data):
    options = DemoOptions(config(data={"train_crop": "scale_jitter"}), str(small_data))
    with pytest.raises(ConfigError, match="has data.train_crop=scale_jitter, and the plain script"):
        demo.run(options)
    options = DemoOptions(config(data={"global_batch_size": 9}), str(small_data))
    with pytest.raises(ConfigError, match="--ranks=2 must divide data.global_batch_size=9"):
        demo.run(options)


@pytest.mark.parametrize(
    ("name", "value"), [("mixup", 0.2), ("repeats", 2), ("augment", "trivial"), ("val_size", 24)]
)
def test_what_came_after_the_script_is_refused(config, small_data, name, value):
    options = DemoOptions(config(data={name: value}), str(small_data))
    with pytest.raises(ConfigError, match=f"has data.{name}={value}, and the plain script knows"):
        demo.run(options)


def test_a_call_that_fails_ends_the_benchmark(config, small_data, tmp_path, capfd):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    call = demo.DemoCall(
        DemoOptions(config(), str(tmp_path / "empty")), tmp_path / "empty", tmp_path, "torch"
    )
    with pytest.raises(TrainingError, match="a call of pipeline.train failed; its last lines are"):
        call.measure()
    assert "error: " in capfd.readouterr().err
