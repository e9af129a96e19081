"""What a wrong setting or option raises."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting the user can mend: holds the value seen, the rule and the setting's name."""


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
