"""What a setting is to the rest of the house, said where the setting stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

Kind = Literal["identity", "kept", "recipe", "execution", "place", "start"]
"""identity: part of what is trained; a checkpoint is held to it, and another value is another
experiment. kept: a checkpoint is held to it, but another value makes no other experiment, such as
another seed. recipe: another value is another experiment, but a run may go on with one: its length,
and what its data have to be, whose hash the checkpoint is held to. execution: how it runs. place:
where things lie. start: how this start begins."""

Command = Literal["evaluate", "predict", "export", "benchmark", "benchmark all", "doctor"]
"""A command besides training that takes settings of its own, instead of all of them."""


@dataclass(frozen=True)
class Setting:
    """What the code asks of a setting instead of keeping lists of names."""

    kind: Kind
    commands: tuple[Command, ...] = ()
    """Commands that let it be changed; `benchmark` is that of the model, and part of all."""
    of_view: bool = False
    """Whether it decides which pixels of an image a test sees."""
    of_network: bool = False
    """Whether it decides which function the network is."""
    asked: int | None = None
    """Its place among those that people ask for first when they compare runs, from 1."""
    in_table: bool = False
    """Whether TensorBoard's table of hyperparameters has it; it has those of the network and
    those in `asked` anyway."""


_KEY = "setting"


def setting(
    default: T, kind: Kind, commands: tuple[Command, ...] = (), *, of_view: bool = False,
    of_network: bool = False, asked: int | None = None, in_table: bool = False,
) -> T:  # fmt: skip
    """A field of a configuration's dataclass that says what it is, as `Setting` has it."""
    said = Setting(kind, commands, of_view, of_network, asked, in_table)
    # `field` gives a Field, of which the dataclass makes the default: the type is right for both.
    found: T = dataclasses.field(default=default, metadata={_KEY: said})
    return found


def said_by(field: dataclasses.Field[object]) -> Setting:
    """What a field says that `setting` made. Raises `KeyError` for any other."""
    found: Setting = field.metadata[_KEY]
    return found
