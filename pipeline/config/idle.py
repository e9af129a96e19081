"""Idle settings: those without effect on the training because of another setting.

Two configurations that differ in such settings alone are one training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.config.setting import shown
from pipeline.config.training import has_bottlenecks

_OF_CROP = {
    "random_resized_crop": ("data.area",),
    "scale_jitter": ("data.short_side",),
    "padded": ("data.padding",),
}
_OF_PLATEAU = ("schedule.patience", "schedule.min_improvement")


def idle_settings(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The settings without effect on the training, each with those that make it idle.

    `settings` are all of a configuration by `part.name`. What makes a setting idle is never free to
    change during a run, so that it is idle for the whole of it (`train.state.fingerprint`).
    """
    crop, rule = settings["data.train_crop"], settings["schedule.rule"]
    idle: dict[str, tuple[str, ...]] = {}
    for other, names in _OF_CROP.items():
        if other != crop:
            idle |= dict.fromkeys(names, ("data.train_crop",))
    if crop == "padded":  # images of cifar-10 are taken as they are
        idle["data.val_resize"] = ("data.train_crop",)
    if settings["data.image_sizes"] is not None and settings["data.val_size"] is not None:
        idle["data.image_size"] = ("data.image_sizes", "data.val_size")
    if not has_bottlenecks(settings["model.family"], settings["model.depth"]):
        idle["model.variant"] = ("model.family", "model.depth")
    if rule == "plateau":
        idle["schedule.drop_epochs"] = ("schedule.rule",)
        if settings["schedule.max_drops"] == 0:
            idle |= dict.fromkeys(_OF_PLATEAU, ("schedule.max_drops",))
    else:
        idle |= dict.fromkeys((*_OF_PLATEAU, "schedule.max_drops"), ("schedule.rule",))
    if settings["schedule.warmup_epochs"] == 0 and settings["schedule.warmup_until_error"] is None:
        idle["schedule.warmup_start_factor"] = ("schedule.warmup_epochs",)
    if settings["optim.weight_decay"] == 0:
        idle["optim.decay_norm_and_bias"] = ("optim.weight_decay",)
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
