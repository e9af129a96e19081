"""The properties that each setting declares where it is defined, and the error that a wrong one
raises."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Kind = Literal["identity", "kept", "recipe", "execution", "place", "start"]
"""identity: part of what is trained; a checkpoint is held to it, and another value is another
experiment. kept: a checkpoint is held to it, but another value makes no other experiment, such as
another seed. recipe: another value is another experiment, but a run may continue with one: its
length, and what its data have to be, whose hash the checkpoint is held to. execution: how it runs.
place: where things lie. start: how this start begins."""

Command = Literal["evaluate", "predict", "export", "benchmark", "benchmark all", "doctor"]
"""A command besides training that takes settings of its own, instead of all of them."""


class ConfigError(ValueError):
    """A setting the user can correct: names the value seen, the rule and the setting."""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def at_least_one(owner: object, prefix: str, *names: str) -> None:
    """Raises `ConfigError` unless each named field of `owner` is 1 or more.

    Messages have `prefix` in front of a name, such as `--` or `data.`.
    """
    for name in names:
        value = getattr(owner, name.replace("-", "_"))
        require(value >= 1, f"{prefix}{name}={value} must be at least 1")


@dataclass(frozen=True)
class Setting:
    """The properties of a setting that the code asks for, instead of keeping lists of names."""

    kind: Kind
    commands: tuple[Command, ...] = ()
    """Commands in which it can be changed; `benchmark` is that of the model, and part of all."""
    limits: str | None = None
    """The range it must lie in, such as "[0, 1)" or "[1, inf)"; null is always allowed where its
    type has it. None: other checks apply."""
    of_view: bool = False
    """Whether it determines which pixels of an image a test sees."""
    of_network: bool = False
    """Whether it determines the function of the network."""
    asked: int | None = None
    """Its rank among those that people ask for first when they compare runs, from 1."""
    in_table: bool = False
    """Whether TensorBoard's table of hyperparameters has it; it has those of the network and
    those in `asked` anyway."""


_KEY = "setting"


def setting(default: T, kind: Kind, commands: tuple[Command, ...] = (), **said: Any) -> T:
    """A field of a configuration's dataclass with the properties of a `Setting`."""
    # `field` gives a Field, of which the dataclass makes the default: the type is right for both.
    found: T = dataclasses.field(default=default, metadata={_KEY: Setting(kind, commands, **said)})
    return found


def said_by(field: dataclasses.Field[object]) -> Setting:
    """The `Setting` of a field that `setting` made. Raises `KeyError` for any other."""
    found: Setting = field.metadata[_KEY]
    return found


def check_limits(part: Any, prefix: str) -> None:
    """Raises `ConfigError` for a setting of `part` outside its `limits`; `prefix` as "data."."""
    for field in dataclasses.fields(part):
        limits, value = said_by(field).limits, getattr(part, field.name)
        if limits is None or value is None:
            continue
        low, high = map(float, limits[1:-1].split(","))
        above = low <= value if limits[0] == "[" else low < value
        below = value <= high if limits[-1] == "]" else value < high
        rule = f"lie in {limits}"
        if high == math.inf:
            rule = f"be {'at least' if limits[0] == '[' else 'greater than'} {low:g}"
        null = ", or null" if str(field.type).endswith("| None") else ""
        require(above and below, f"{prefix}{field.name}={value} must {rule}{null}")


def shown(value: Any) -> str:
    """A value as YAML and the command line have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{','.join(map(shown, value))}]"
    return str(value)
