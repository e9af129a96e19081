"""The properties that each setting declares where it is defined, and the error that a wrong one
raises."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")

PathText = Annotated[str, Path]
"""A path as text. Where it is read, a `~` at its beginning becomes the home folder, as the shell
has it (`home`)."""


def home(text: str) -> str:
    """A path as the user gave it, with the home folder for a `~` or `~user` at its beginning; one
    of a user who does not exist stays as it is."""
    return os.path.expanduser(str(text))  # plain text of any kind of it


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


class Limits(NamedTuple):
    """Between which numbers a setting lies, and whether it may be one of the two."""

    text: str
    low: float
    low_too: bool
    high: float
    high_too: bool

    @classmethod
    def of(cls, text: str) -> Limits:
        """What `text`, such as "[0, 1)" or "[1, inf)", stands for. Raises `ValueError`."""
        found = re.fullmatch(r"([\[(])(\S+), (\S+)([])])", text)
        if found is None or not float(found[2]) < float(found[3]):
            raise ValueError(f"limits={text!r} must be such as '[0, 1)'")
        return cls(text, float(found[2]), found[1] == "[", float(found[3]), found[4] == "]")

    def hold(self, value: float) -> bool:
        """Whether `value` lies in them; not a number lies nowhere."""
        above = self.low <= value if self.low_too else self.low < value
        return above and (value <= self.high if self.high_too else value < self.high)

    def broken_by(self, value: float) -> str:
        """The rule for a `value` that does not lie in them, as what follows "must"."""
        if self.high < math.inf:
            return f"lie in {self.text}"
        if value == math.inf:
            return "be finite"
        return f"be {'at least' if self.low_too else 'greater than'} {self.low:g}"


@dataclass(frozen=True)
class Setting:
    """The properties of a setting that the code asks for, instead of keeping lists of names."""

    kind: Kind
    commands: tuple[Command, ...] = ()
    """Commands that let it be changed; `benchmark` is that of the model, and part of all."""
    limits: Limits | None = None
    """Between which numbers it lies; null is always allowed where its type has it. None: other
    checks have to do."""
    of_view: bool = False
    """Whether it determines which pixels of an image a test sees."""
    of_network: bool = False
    """Whether it determines the function of the network."""
    asked: int | None = None
    """Its rank among those that people ask for first when they compare runs, from 1."""
    in_table: bool = False
    """Whether TensorBoard's table of hyperparameters has it; it has those of the network and
    those in `asked` anyway."""
    later: bool = False
    """Whether checkpoints were written before it existed; one that does not name it has its
    default, and none names it at its default."""


_KEY = "setting"


def setting(
    default: T, kind: Kind, commands: tuple[Command, ...] = (), *, limits: str | None = None,
    of_view: bool = False, of_network: bool = False, asked: int | None = None,
    in_table: bool = False, later: bool = False,
) -> T:  # fmt: skip
    """A field of a configuration's dataclass that says what it is, as `Setting` has it.

    Raises `ValueError` if `limits` are not as `Limits.of` reads them.
    """
    parsed = None if limits is None else Limits.of(limits)
    said = Setting(kind, commands, parsed, of_view, of_network, asked, in_table, later)
    # `field` gives a Field, of which the dataclass makes the default: the type is right for both.
    found: T = dataclasses.field(default=default, metadata={_KEY: said})
    return found


def said_by(field: dataclasses.Field[object]) -> Setting:
    """The `Setting` of a field that `setting` made. Raises `KeyError` for any other."""
    found: Setting = field.metadata[_KEY]
    return found


def check_limits(part: Any, prefix: str) -> None:
    """Raises `ConfigError` for a setting of `part` outside its `limits`; `prefix` as "data."."""
    for field in dataclasses.fields(part):
        limits, value = said_by(field).limits, getattr(part, field.name)
        if limits is None or value is None or limits.hold(value):
            continue
        null = ", or null" if str(field.type).endswith("| None") else ""
        raise ConfigError(f"{prefix}{field.name}={value} must {limits.broken_by(value)}{null}")


def shown(value: Any) -> str:
    """A value as YAML and the command line have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {shown(item)}' for name, item in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{','.join(map(shown, value))}]"
    return str(value)
