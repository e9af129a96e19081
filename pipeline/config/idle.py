"""Idle settings: those without effect on the training because of another setting.

Two configurations that differ in such settings alone are one training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.config.setting import shown
from pipeline.config.training import CURVES, has_bottlenecks

_OF_CROP = {
    "random_resized_crop": ("data.area",),
    "scale_jitter": ("data.short_side",),
    "padded": ("data.padding",),
}
_OF_RAND = ("data.augment_ops", "data.augment_magnitude", "data.augment_std")
_OF_ERASING = ("data.erase_area", "data.erase_aspect")
_OF_PLATEAU = ("schedule.patience", "schedule.min_improvement")
_OF_OPTIMIZER = {"optim.trust_coefficient": "lars", "optim.beta2": "lamb"}
_OF_EMA = ("optim.ema_every_steps", "optim.ema_warmup")


def idle_settings(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The settings without effect on the training, each with those that make it idle.

    `settings` are all of a configuration by `part.name`. What makes a setting idle is never free to
    change during a run, so that it is idle for the whole of it (`train.state.fingerprint`).
    """
    crop = settings["data.train_crop"]
    idle: dict[str, tuple[str, ...]] = {}
    for other, names in _OF_CROP.items():
        if other != crop:
            idle |= dict.fromkeys(names, ("data.train_crop",))
    if settings["data.augment"] != "rand":
        idle |= dict.fromkeys(_OF_RAND, ("data.augment",))
    if settings["data.erase"] == 0:
        idle |= dict.fromkeys(_OF_ERASING, ("data.erase",))
    if crop == "padded":  # images of cifar-10 are taken as they are
        idle["data.val_resize"] = ("data.train_crop",)
    if settings["data.image_sizes"] is not None and settings["data.val_size"] is not None:
        idle["data.image_size"] = ("data.image_sizes", "data.val_size")
    if not has_bottlenecks(settings["model.family"], settings["model.depth"]):
        idle["model.variant"] = ("model.family", "model.depth")
    idle |= _of_rates(settings)
    if settings["schedule.warmup_epochs"] == 0 and settings["schedule.warmup_until_error"] is None:
        idle["schedule.warmup_start_factor"] = ("schedule.warmup_epochs",)
    if settings["optim.weight_decay"] == 0:
        idle["optim.decay_norm_and_bias"] = ("optim.weight_decay",)
    for name, optimizer in _OF_OPTIMIZER.items():
        if settings["optim.optimizer"] != optimizer:
            idle[name] = ("optim.optimizer",)
    if settings["optim.ema_decay"] is None:
        idle |= dict.fromkeys(_OF_EMA, ("optim.ema_decay",))
    return idle


def _of_rates(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The idle ones of the rule by which the learning rate falls."""
    rule, names = settings["schedule.rule"], []
    if rule != "steps":
        names.append("schedule.drop_epochs")
    if rule != "plateau":
        names += [*_OF_PLATEAU, "schedule.max_drops"]
    if rule not in CURVES:
        names.append("schedule.end_factor")
    if rule != "polynomial":
        names.append("schedule.power")
    idle: dict[str, tuple[str, ...]] = dict.fromkeys(names, ("schedule.rule",))
    if rule == "plateau" and settings["schedule.max_drops"] == 0:
        idle |= dict.fromkeys(_OF_PLATEAU, ("schedule.max_drops",))
    return idle


def shown_idle(config: Config) -> str:
    """The idle settings that are not at their defaults, for the log; empty if there are none."""
    settings, defaults = config.values(), Config().values()
    found = [
        f"{name}={shown(settings[name])} "
        f"(at {' and '.join(f'{why}={shown(settings[why])}' for why in reasons)})"
        for name, reasons in idle_settings(settings).items()
        if settings[name] != defaults[name]
    ]
    return ", ".join(found)
