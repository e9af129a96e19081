"""What a wrong setting raises."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting the user can mend: holds the value seen, the rule and the setting's name."""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
