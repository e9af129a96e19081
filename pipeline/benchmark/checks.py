"""Checks of the benchmarks' options, and lists with commas between. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def at_least_one(options: object, *names: str) -> None:
    """Raises `ConfigError` unless every named option is 1 or more."""
    for name in names:
        value = getattr(options, name)
        if value < 1:
            raise wrong(f"--{name}={value} must be at least 1")


def whole_numbers(options: object, name: str, least: int) -> None:
    """Raises `ConfigError` unless the option lists whole numbers of at least `least`."""
    value = getattr(options, name)
    if not all(part.isdecimal() and int(part) >= least for part in value.split(",")):
        raise wrong(
            f"--{name}={value} must be whole numbers of at least {least} with commas between"
        )


def numbers(value: str) -> list[int]:
    """The numbers of a list with commas, ascending, each once."""
    return sorted({int(part) for part in value.split(",")})


def within(options: object, name: str, known: Sequence[str]) -> None:
    """Raises `ConfigError` unless the option lists only names that are `known`."""
    value = getattr(options, name)
    if not set(value.split(",")) <= set(known):
        raise wrong(f"--{name}={value} must be some of {', '.join(known)} with commas between")


def chosen(value: str, known: Sequence[T]) -> list[T]:
    """The names of a list with commas, in its order."""
    return [one for name in value.split(",") for one in known if one == name]


def wrong(message: str) -> ValueError:
    """A `ConfigError` to raise."""
    # Only now: it brings yaml, which a machine that shall only measure a GPU may not have.
    from pipeline.config import ConfigError

    return ConfigError(message)
