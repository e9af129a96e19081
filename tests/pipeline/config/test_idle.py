"""Idle settings: they are known as such, and two trainings that differ in them alone are one."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from one_process import train_here

from pipeline.config import Config, later_defaults
from pipeline.config.idle import idle_settings, shown_idle
from pipeline.config.reading import load_config
from pipeline.data.effects import train_effects
from pipeline.data.stream import train_planner, val_planner
from pipeline.model.network import network_facts, network_of
from pipeline.system.failure import Reported
from pipeline.train.checkpoint import require_same_run
from pipeline.train.ema import decay_of
from pipeline.train.optimizer import Update, build_optimizer
from pipeline.train.schedule import make_schedule
from pipeline.train.state import compared, fingerprint

CIFAR = (
    "--data.dataset=cifar-10", "--data.train_crop=padded", "--data.image_size=32",
    "--model.family=cifar", "--model.depth=20",
)  # fmt: skip
JITTER = ("--data.train_crop=scale_jitter",)
PLATEAU = ("--schedule.rule=plateau",)
CURVE = ("--schedule.rule=polynomial",)
UNTIL_ERROR = ("--schedule.warmup_epochs=0", "--schedule.warmup_until_error=0.8")
EMA = ("--optim.ema_decay=0.99",)
OF_RAND = "data.augment_ops", "data.augment_magnitude", "data.augment_std"
NO_EFFECTS = {
    "data.augment_ops": "3", "data.augment_magnitude": "4", "data.augment_std": "0.5",
    "data.erase_area": "[0.1,0.2]", "data.erase_aspect": "[1,2]",
}  # fmt: skip
# Settings, with what they are given, by the other options given.
IDLE = {
    (): {"data.short_side": "[300,400]", "data.padding": "2", "schedule.patience": "7",
         "schedule.min_improvement": "0.5", "schedule.max_drops": "9", "schedule.power": "2",
         "schedule.end_factor": "0.5", **NO_EFFECTS},
    ("--data.augment=trivial",): {name: NO_EFFECTS[name] for name in OF_RAND},
    JITTER: {"data.area": "[0.5,1]", "data.padding": "2"},
    CIFAR: {"data.area": "[0.5,1]", "data.short_side": "[300,400]", "data.val_resize": "64",
            "model.variant": "v1"},
    ("--model.depth=34",): {"model.variant": "v1"},
    PLATEAU: {"schedule.drop_epochs": "[3]", "schedule.power": "2", "schedule.end_factor": "0.5"},
    ("--schedule.rule=cosine",): {"schedule.drop_epochs": "[3]", "schedule.power": "2",
                                  "schedule.patience": "7", "schedule.max_drops": "9"},
    CURVE: {"schedule.drop_epochs": "[3]", "schedule.min_improvement": "0.5"},
    (*PLATEAU, "--schedule.max_drops=0"): {"schedule.patience": "7",
                                           "schedule.min_improvement": "0.5"},
    ("--schedule.warmup_epochs=0",): {"schedule.warmup_start_factor": "0.5"},
    ("--optim.weight_decay=0",): {"optim.decay_norm_and_bias": "true"},
    ("--optim.ema_decay=null",): {"optim.ema_every_steps": "5", "optim.ema_warmup": "true"},
}  # fmt: skip
COUNTING = {
    (): {"data.area": "[0.5,1]", "data.val_resize": "300", "model.variant": "v1",
         "schedule.drop_epochs": "[3]", "schedule.warmup_start_factor": "0.5",
         "optim.decay_norm_and_bias": "true", "optim.nesterov": "true", "optim.optimizer": "lars",
         "optim.clip_norm": "1", "schedule.rule": "cosine", "data.augment": "trivial",
         "data.erase": "0.5", "data.repeats": "2", "data.sampling": "balanced"},
    ("--data.augment=rand",): {name: NO_EFFECTS[name] for name in OF_RAND},
    ("--data.erase=0.5",): {"data.erase_area": "[0.1,0.2]", "data.erase_aspect": "[1,2]"},
    CURVE: {"schedule.power": "2", "schedule.end_factor": "0.5", "schedule.epochs": "91"},
    ("--schedule.rule=cosine",): {"schedule.end_factor": "0.5", "schedule.epochs": "91"},
    ("--optim.optimizer=lars",): {"optim.trust_coefficient": "0.01", "optim.nesterov": "true"},
    ("--optim.optimizer=lamb",): {"optim.beta2": "0.9", "optim.clip_norm": "1"},
    JITTER: {"data.short_side": "[300,400]"},
    CIFAR: {"data.padding": "2"},
    PLATEAU: {"schedule.patience": "7", "schedule.min_improvement": "0.5",
              "schedule.max_drops": "9"},
    UNTIL_ERROR: {"schedule.warmup_start_factor": "0.5"},
    EMA: {"optim.ema_every_steps": "5", "optim.ema_warmup": "true"},
}  # fmt: skip


def cases(table: dict[tuple[str, ...], dict[str, str]]) -> list[tuple[tuple[str, ...], str, str]]:
    return [
        (others, *setting) for others, settings in table.items() for setting in settings.items()
    ]


@cache
def configured(*options: str) -> Config:
    return load_config(["--config=configs/resnet50.yaml", "--run.name=a", *options], "", "")


def what_is_trained(config: Config) -> tuple[Any, ...]:
    """Crops of training and validation, learning rates, network, weight decay, and the average of
    the weights."""
    optim = config.optim
    layer = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(
        layer, 0.1, optim.momentum, optim.weight_decay, optim.decay_norm_and_bias, Update.of(optim)
    )
    schedule = make_schedule(config, 1000)
    rates = [schedule.lr(position) for position in range(0, 40_000, 250)]
    rule = getattr(schedule.fall, "most", 0) and schedule  # with drops, all of the rule counts
    model = dataclasses.asdict(config.model)
    average = optim.ema_decay and (optim.ema_every_steps, decay_of(2, optim))
    return (
        train_planner(config.data), train_effects(config.data), config.data.repeats,
        config.data.sampling, val_planner(config.data), rates, rule, network_of(model),
        network_facts(config.model), [group["weight_decay"] for group in optimizer.param_groups],
        type(optimizer), Update.of(optim), optim.clip_norm, average,
    )  # fmt: skip


def facts(config: Config) -> dict[str, Any]:
    return fingerprint(config, {"train": "aa", "val": "bb"})


@pytest.mark.parametrize(("options", "name", "value"), cases(IDLE))
def test_an_idle_setting_changes_nothing_that_is_trained(options, name, value):
    one, other = configured(*options), configured(*options, f"--{name}={value}")
    assert one.get(name) != other.get(name)
    assert name in idle_settings(one.values())
    assert name in idle_settings(other.values())
    assert what_is_trained(one) == what_is_trained(other)
    # A checkpoint of either resumes under the other.
    require_same_run(Path("a.pt"), facts(one), compared(facts(other), other))
    require_same_run(Path("a.pt"), facts(other), compared(facts(one), one))


@pytest.mark.parametrize(("options", "name", "value"), cases(COUNTING))
def test_a_setting_that_counts_is_compared(options, name, value):
    one, other = configured(*options), configured(*options, f"--{name}={value}")
    assert what_is_trained(one) != what_is_trained(other)
    with pytest.raises(ValueError, match=f"belongs to another run .{name}: .* now.; set these"):
        require_same_run(Path("a.pt"), facts(one), compared(facts(other), other))


def test_what_makes_a_setting_idle_is_itself_compared():
    """Else a setting could count again within a run, unnoticed."""
    for options in {**IDLE, **COUNTING}:
        config = configured(*options)
        kept = {**later_defaults(), **compared(facts(config), config)}
        for reasons in idle_settings(config.values()).values():
            assert set(reasons) <= kept.keys()


def test_a_setting_that_comes_to_count_is_compared_with_what_the_checkpoint_kept():
    plateau = configured(*PLATEAU, "--schedule.drop_epochs=[3]")
    steps = configured("--schedule.drop_epochs=[7]")
    with pytest.raises(ValueError) as error:
        require_same_run(Path("a.pt"), facts(plateau), compared(facts(steps), steps))
    for part in ("rule: plateau in the checkpoint, steps", "drop_epochs: [3.0] in the checkpoint"):
        assert part in str(error.value)


LATER = {
    "optim.optimizer": ("lars", "sgd"), "optim.nesterov": ("True", "False"),
    "optim.clip_norm": ("1.0", "null"),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_a_setting_that_came_later_is_kept_only_where_it_was_changed(name):
    """So that a checkpoint of before, which knows no such setting, is one of its default."""
    value, default = LATER[name]
    before = configured()
    changed = configured(f"--{name}={value.lower()}")
    assert name not in facts(before) and name in facts(changed)
    require_same_run(Path("a.pt"), facts(before), compared(facts(before), before))
    for stored, now, told in (
        (before, changed, f"{name}: {default} in the checkpoint, {value} now"),
        (changed, before, f"{name}: {value} in the checkpoint, {default} now"),
    ):
        with pytest.raises(ValueError) as error:
            require_same_run(Path("a.pt"), facts(stored), compared(facts(now), now))
        assert f"belongs to another run ({told}); set these back" in str(error.value)


def test_a_later_setting_that_had_no_effect_is_not_held_against_a_run():
    stored, now = configured("--schedule.end_factor=0.5"), configured()
    assert "schedule.end_factor" in facts(stored)
    require_same_run(Path("a.pt"), facts(stored), compared(facts(now), now))
    curve = configured("--schedule.rule=cosine")
    with pytest.raises(ValueError) as error:
        require_same_run(Path("a.pt"), facts(stored), compared(facts(curve), curve))
    told = "(schedule.rule: steps in the checkpoint, cosine now); set these back"
    assert told in str(error.value)


def test_those_that_somebody_set_are_told_with_the_reason():
    assert shown_idle(Config()) == ""
    told = shown_idle(configured(*JITTER, "--data.area=[0.5,1]", "--model.depth=34",
                                    "--model.variant=v1"))  # fmt: skip
    assert told == (
        "data.area=[0.5,1.0] (at data.train_crop=scale_jitter), "
        "model.variant=v1 (at model.family=imagenet and model.depth=34)"
    )


def test_a_run_says_them_and_goes_on_without_them(small_data, tmp_path):
    run = train_here(small_data, tmp_path, "--data.short_side=[40,50]", "--schedule.epochs=0.5")
    told = "without effect: data.short_side=[40,50] (at data.train_crop=random_resized_crop)\n"
    assert told in (run / "log.txt").read_text()
    train_here(small_data, tmp_path, "--data.short_side=[41,50]", "--model.variant=v1")
    assert "resuming from" in (run / "log.txt").read_text()
    with pytest.raises(Reported, match=r"data\.area: \[0\.35, 1\.0\] in the checkpoint, \[0\.5, 1"):
        train_here(small_data, tmp_path, "--data.area=[0.5,1]")
