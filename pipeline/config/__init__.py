"""The typed configuration: settings, their units, and the checks of each part.

`pipeline/config/reading.py` reads it from YAML and the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast, get_type_hints

from pipeline.config.data import DataConfig
from pipeline.config.run import RunConfig, profiled_steps
from pipeline.config.setting import (
    Command,
    ConfigError,
    Kind,
    PathText,
    Setting,
    require,
    said_by,
    setting,
    shown,
)
from pipeline.config.training import ModelConfig, OptimConfig, ScheduleConfig

__all__ = [
    "Config", "ConfigError", "DataConfig", "ModelConfig", "OptimConfig", "RunConfig",
    "ScheduleConfig", "later_defaults", "lists", "names_for", "names_of", "plain", "require",
    "setting_names", "setting_types", "settings",
]  # fmt: skip

_LEAST_FP32 = 2.0**-126  # the least that is held with full precision


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: PathText = setting("auto", "start")
    """auto: resume the run of this name if there is one; none: refuse a folder that holds a run; or
    the path of a checkpoint."""
    init: PathText | None = setting(None, "start")
    """File of the weights with which a new run begins: a checkpoint of this program (.pt, or the
    run's folder, for its best; the average of its weights where it has one), safetensors, or a
    state_dict with torchvision's or timm's names of a ResNet (.pth). Classes of the same name keep
    their row of the head, other rows are drawn anew. A run that resumes does not need it; null: all
    weights are drawn by run.seed."""
    profile: str | None = setting(None, "start")
    """Steps to trace into <run>/profile/: 5 for so many soon after the start, or 20-25, first and
    last counted from 0; null: none."""

    def __post_init__(self) -> None:
        require(
            self.data.output != "float16" or self.optim.amp in ("bf16", "fp16"),
            f"data.output=float16 needs mixed precision and optim.amp is {self.optim.amp}; set "
            "optim.amp=bf16 or fp16, or data.output=float32",
        )
        require(
            self.run.sums != "fixed" or self.optim.gradient_compression == "none",
            f"optim.gradient_compression={self.optim.gradient_compression} rounds sums on their "
            "way between ranks, and run.sums=fixed promises the same bits on any number of them; "
            "set it to none, or run.sums=auto",
        )
        require(
            self.init is None or self.resume in ("auto", "none"),
            f"--init {self.init} and --resume {self.resume} both say what the weights begin as; "
            "leave one of them out (--init=null where the YAML has it): a checkpoint that is "
            "resumed has its own",
        )
        require(
            self.data.sampling == "each" or self.optim.class_weights == "none",
            f"data.sampling={self.data.sampling} and optim.class_weights="
            f"{self.optim.class_weights} both make up for classes of few images, which would count "
            "twice too much; set data.sampling=each, or optim.class_weights=none",
        )
        self._check_smallest_rate()
        self._check_last_size()
        if self.profile is not None:
            profiled_steps(self.profile)

    def _check_smallest_rate(self) -> None:
        """LARS and LAMB came with this check; SGD's runs of before are free to have such drops,
        which hardly ever come."""
        optim, schedule = self.optim, self.schedule
        if optim.optimizer == "sgd" or schedule.rule != "plateau":
            return
        own = optim.trust_coefficient if optim.optimizer == "lars" else 1.0
        peak = optim.base_lr * self.data.global_batch_size / 256 * own
        require(
            peak * 0.1**schedule.max_drops >= _LEAST_FP32,
            f"schedule.max_drops={schedule.max_drops} of schedule.rule=plateau lets the step of "
            f"optim.optimizer={optim.optimizer} fall below what fp32 holds, {_LEAST_FP32:.3g}, to "
            "nothing; lower schedule.max_drops",
        )

    def _check_last_size(self) -> None:
        # How many epochs schedule.steps are is known once the images are counted.
        sizes, epochs = self.data.image_sizes, self.schedule.epochs
        require(
            sizes is None or epochs is None or max(sizes) < epochs,
            f"data.image_sizes={shown(sizes)} begins a size with epoch {max(sizes or (0,))}, which "
            f"schedule.epochs={shown(epochs)} does not reach; leave it out, or lengthen the run",
        )

    def values(self) -> dict[str, Any]:
        """Every setting by `part.name`."""
        return {name: self.get(name) for name in settings()}

    def to_yaml(self) -> str:
        """Writes the resolved configuration; `--config` reads it back to an equal object."""
        import yaml  # only here: a machine that only measures a GPU may not have it

        return yaml.safe_dump(lists(dataclasses.asdict(self)), sort_keys=False)

    def get(self, name: str) -> Any:
        """The value of the setting `part.name`."""
        part, _, rest = name.partition(".")
        return getattr(getattr(self, part), rest) if rest else getattr(self, part)


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples as lists, and names in a mapping as text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def lists(value: Any) -> Any:
    """A value with tuples as lists, which YAML has."""
    if isinstance(value, Mapping):
        return {name: lists(item) for name, item in value.items()}
    return [lists(item) for item in value] if isinstance(value, tuple | list) else value


@cache
def settings() -> Mapping[str, Setting]:
    """The `Setting` of each setting, by `part.name`, in order."""
    found = {}
    for part in dataclasses.fields(Config):
        inner = part.default_factory
        if inner is dataclasses.MISSING:
            found[part.name] = said_by(part)
        else:
            fields = dataclasses.fields(cast(Any, inner))
            found |= {f"{part.name}.{field.name}": said_by(field) for field in fields}
    return found


@cache
def setting_types() -> Mapping[str, Any]:
    """The type hint of each setting, by `part.name`, in order."""
    hints = get_type_hints(Config, include_extras=True)
    inner = {
        part: get_type_hints(owner, include_extras=True)
        for part, owner in hints.items()
        if dataclasses.is_dataclass(owner)
    }
    found = {}
    for name in settings():
        part, _, rest = name.partition(".")
        found[name] = inner[part][rest] if rest else hints[part]
    return found


def setting_names() -> list[str]:
    """Every setting as `part.name`, in order."""
    return list(settings())


def names_of(*kinds: Kind) -> list[str]:
    """The settings of these kinds as `part.name`, in order."""
    return [name for name, said in settings().items() if said.kind in kinds]


@cache
def later_defaults() -> Mapping[str, Any]:
    """What a checkpoint that does not name a setting was trained with: the defaults, as YAML has
    them, of those that a run is held to and that came later (`Setting.later`)."""
    names = [name for name in names_of("identity", "kept") if settings()[name].later]
    return {name: plain(Config().get(name)) for name in names}


def names_for(command: Command) -> list[str]:
    """The settings that a command besides training lets change, as `part.name`, in order."""
    return [name for name, said in settings().items() if command in said.commands]
