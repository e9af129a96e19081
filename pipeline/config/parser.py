"""The parser of a command line, with type hints for its options and errors of ours.

Who reads the settings by it is pipeline/config/reading.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from pipeline.config import ConfigError
from pipeline.config.help import PlainHelp


class Parsed(argparse.Namespace):
    """What a command line gave, also by name: `parsed["data.root"]`, None where it is not there.

    An option without a default is in it only if it was given.
    """

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name, None)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose options have a type hint as their `type`, by which `parse` reads
    them; what argparse itself refuses is raised as `ConfigError`."""

    def __init__(self, prog: str, description: str) -> None:
        self.kinds: dict[str, Any] = {}
        """The type hints, by the option's name in `Parsed`."""
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=PlainHelp
        )

    def add_argument(self, *names: Any, **about: Any) -> argparse.Action:
        """As argparse's own, but for `type`."""
        kind = about.pop("type", None)
        action = super().add_argument(*names, **about)
        if kind is not None:
            self.kinds[action.dest] = action.kind = kind  # type: ignore[attr-defined]
        return action

    def error(self, message: str) -> NoReturn:
        """Raises `ConfigError`."""
        file = message.partition("unrecognized arguments: ")[2]
        known = option_names(self)
        meant = [o for suffix, o in _OPTION_OF if o in known and file.endswith(suffix)]
        hints = (f"; did you mean {option} {shlex.quote(file)}?" for option in meant)
        raise ConfigError(message.removeprefix("argument ") + "".join(hints))


# The option that a file without one was meant for.
_OPTION_OF = ((".yaml", "--config"), (".yml", "--config"), (".pt", "--checkpoint"))


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """All that can stand for an option of `parser`, as --help and -h."""
    return [option for action in parser._actions for option in action.option_strings]


def program(command: str) -> str:
    """How the user has started the module `command`, with its subcommand if any: by `trainyard` or
    by `python -m`."""
    if Path(sys.argv[0]).name != "trainyard":
        return f"python -m {command}"
    return f"trainyard {'launch' if command == 'launch.local' else command.partition('.')[2]}"
