"""Checks of the benchmarks' options, and lists with commas between. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pipeline.config.setting import require

T = TypeVar("T")


def whole_numbers(options: object, name: str, least: int) -> None:
    """Raises `ConfigError` unless the option lists whole numbers of at least `least`."""
    value = getattr(options, name)
    require(
        all(part.isdecimal() and int(part) >= least for part in value.split(",")),
        f"--{name}={value} must be whole numbers of at least {least} with commas between",
    )


def numbers(value: str) -> list[int]:
    """The numbers of a list with commas, ascending, each once."""
    return sorted({int(part) for part in value.split(",")})


def within(options: object, name: str, known: Sequence[str]) -> None:
    """Raises `ConfigError` unless the option lists only names that are `known`."""
    value = getattr(options, name)
    require(
        set(value.split(",")) <= set(known),
        f"--{name}={value} must be some of {', '.join(known)} with commas between",
    )


def chosen(value: str, known: Sequence[T]) -> list[T]:
    """The names of a list with commas, in its order."""
    return [one for name in value.split(",") for one in known if one == name]
