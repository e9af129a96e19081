"""How `--help` shows an option: the form of its value, and its default as one would type it."""

from __future__ import annotations

import types
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pipeline.config.setting import PathText, shown

PRINT_CONFIG = "--print-config"
PRINT_CONFIG_HELP = (
    "print every setting in force as a YAML with comments, which --config reads back, and end"
)

_METAVARS = {int: "N", float: "X", bool: "{true,false}", Path: "PATH", PathText: "PATH"}


class PlainHelp(HelpFormatter):
    """Shows a type as the form of its value, and no default where it says nothing.

    A default of null is shown where the help says what null means.
    """

    def _expand_help(self, action: Action) -> str:
        """The help as it stands: its percent signs are no format."""
        return self._get_help_string(action)

    def _get_help_string(self, action: Action) -> str:
        help_text = action.help or ""
        plain = (
            action.nargs == 0  # a switch, or --help
            or not action.option_strings
            or action.default == SUPPRESS
            or "default:" in help_text
            or (action.default is None and "null" not in help_text)
        )
        if plain:
            return help_text
        return f"{help_text} (default: {shown(action.default)})".strip()

    def _metavar_formatter(
        self, action: Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        metavar = metavar_of(getattr(action, "kind", None))
        if metavar is None or action.metavar is not None:
            return super()._metavar_formatter(action, default_metavar)
        return lambda count: (metavar,) * count


def metavar_of(kind: Any) -> str | None:
    """The placeholder for a value of a type: N, X, PATH, {a,b}, [X,X], [NAME,...] or {N:N,...};
    None for any other."""
    if get_origin(kind) in (Union, types.UnionType):
        inner = [one for one in get_args(kind) if one is not type(None)]
        return metavar_of(inner[0]) if len(inner) == 1 else None
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        parts = ["..." if one is ... else metavar_of(one) or "NAME" for one in get_args(kind)]
        return f"[{','.join(parts)}]"
    if get_origin(kind) is Mapping:
        name, value = (metavar_of(one) or "ITEM" for one in get_args(kind))
        return f"{{{name}:{value},...}}"
    return _METAVARS.get(kind)
