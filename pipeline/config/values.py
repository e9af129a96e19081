"""Reads a value from its text by the type of the setting or option that it is for.

The one reading for a YAML and the command line, so that a value means the same in both.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from pipeline.config.setting import PathText, home
from pipeline.config.yaml_text import Quoted, tree_of

_TRUE = ("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON")
_FALSE = ("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF")
_NULL = ("null", "Null", "NULL")
_DIGITS = r"\d(?:_?\d)*"
_FLOAT = re.compile(
    rf"[+-]?(?:(?:0|(?!0){_DIGITS})(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?\d+)?", re.ASCII
)
_NOT_FINITE = re.compile(r"[+-]?\.?(?:inf|Inf|INF)|\.?(?:nan|NaN|NAN)", re.ASCII)
_LEADING_ZERO = re.compile(r"[+-]?0[0-9_]*[1-9][0-9_.]*", re.ASCII)
_MOST = 2**63
_SHOWN = 200  # characters of a refused value in a message


class Refused(ValueError):
    """A value that is not of its type. The message is the rule, to follow "must be"."""


def read(value: Any, kind: Any) -> Any:
    """`value` as one of the type `kind`. Raises `Refused` if it is none.

    `value` is text, as it stands in a YAML or on the command line, a list of texts or texts by
    name, or what a configuration holds already; numbers may be NumPy's or PyTorch's. `kind` is a
    type hint: bool, int, float, str, `PathText`, Path, a Literal, a tuple or a Mapping of these, or
    a union of them, with None.
    """
    given = _as_text(value)
    members = list(_members(kind))
    nullable = type(None) in members
    of_text = any(map(_is_text, members))
    if isinstance(given, str) and not (of_text and isinstance(given, Quoted)):
        if given in _NULL and nullable:
            return None
        if given == "~" and nullable and any(map(_is_path, members)):
            raise Refused(
                f"{rule(kind)}; ~ alone could be either, so write null, or ~/ for the home folder"
            )
        if given in _NULL and of_text:
            raise Refused(f"{rule(kind)}; null stands for no value")
        if given == "":
            raise Refused(rule(kind))
    for member in members:
        try:
            return _read_one(given, member)
        except ValueError:
            continue
    raise Refused(rule(kind) + _hint(given, members))


def refusal(named: str, value: Any, error: Refused) -> str:
    """The sentence about a value that was refused, with what it was given for in front of it."""
    if value == "":
        return f"{named.rstrip(' =')} is empty; it must be {error}"
    text = value if isinstance(value, str) else flow(value)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
    return f"{named}{text} must be {error}"


def _as_text(value: Any) -> Any:
    """What stands for `value` in a YAML: text, a list of texts, or texts by name."""
    if hasattr(value, "tolist"):  # NumPy's or PyTorch's numbers, which need not be loaded here
        value = value.tolist()
    if isinstance(value, str):
        return value
    if isinstance(value, Path):
        return Quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return {_as_text(name): _as_text(item) for name, item in value.items()}
    return [_as_text(item) for item in value] if isinstance(value, list | tuple) else value


def flow(value: Any) -> str:
    """A value as YAML has it on one line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {flow(item)}' for name, item in value.items())}}}"
    return str(_as_text(value))


def _members(kind: Any) -> Iterator[Any]:
    """The types of a union, or the one type."""
    if get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            yield from _members(one)
    else:
        yield kind


def _is_text(kind: Any) -> bool:
    return kind is str or _is_path(kind)


def _is_path(kind: Any) -> bool:
    return kind is Path or bool(kind == PathText)


def _read_one(given: Any, kind: Any) -> Any:
    """`given`, a text, a list or texts by name, as one of a type that is no union. Raises
    `ValueError`."""
    if get_origin(kind) is tuple:
        return _read_tuple(given, get_args(kind))
    if get_origin(kind) is Mapping:
        return _read_mapping(given, *get_args(kind))
    if not isinstance(given, str):
        raise ValueError
    if get_origin(kind) is Literal:
        return _chosen(given, {str(choice): choice for choice in get_args(kind)})
    if kind is bool:
        return _chosen(given, dict.fromkeys(_TRUE, True) | dict.fromkeys(_FALSE, False))
    if kind is int:
        return _whole(given)
    if kind is float:
        return _number(given)
    if kind is Path:
        return Path(home(given))
    if kind == PathText:
        return home(given)
    if kind is str:
        return str(given)
    raise ValueError  # null, which has been looked for


def _chosen(text: str, choices: dict[str, Any]) -> Any:
    if text not in choices:
        raise ValueError
    return choices[text]


def _whole(text: str) -> int:
    # Base 0 takes what Python's own source does, so neither 010 nor 1e3.
    if not text.isascii() or text != text.strip():
        raise ValueError
    value = int(text, 0)
    if abs(value) >= _MOST:
        raise ValueError
    return value


def _number(text: str) -> float:
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if not _FLOAT.fullmatch(text) or math.isinf(float(text)):
        raise ValueError
    return float(text)


def _read_tuple(given: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    given = _written_out(given, "[")
    if not isinstance(given, list):
        raise ValueError
    each = [kinds[0]] * len(given) if kinds[-1] is ... else list(kinds)
    if len(each) != len(given):
        raise ValueError
    return tuple(_read_one(item, kind) for item, kind in zip(given, each, strict=True))


def _read_mapping(given: Any, name_kind: Any, kind: Any) -> dict[Any, Any]:
    given = _written_out(given, "{")
    if not isinstance(given, dict):
        raise ValueError
    found: dict[Any, Any] = {}
    for name, value in given.items():
        if value == "":  # {0:128}, which YAML reads as the name 0:128 of nothing
            name, _, value = name.partition(":")
        found[_read_one(name, name_kind)] = _read_one(value, kind)
    if len(found) != len(given):  # 1 and 01
        raise ValueError
    return found


def _written_out(given: Any, opening: str) -> Any:
    """A list or a mapping that is `given` as text and begins with `opening`; None for other text,
    and all else as it is."""
    if not isinstance(given, str):
        return given
    try:
        return tree_of(given) if given.startswith(opening) else None
    except yaml.YAMLError:
        return None


_KINDS = {
    int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
    str: "text", Path: "a path",
}  # fmt: skip


def rule(kind: Any) -> str:
    """What a value of a type is, in words that follow "must be"."""
    kinds: list[str] = []
    choices: list[str] = []
    for one in _members(kind):
        if get_origin(one) is Literal:
            choices += map(str, get_args(one))
        elif get_origin(one) is tuple:
            inner = get_args(one)
            length = "" if inner[-1] is ... else f"{len(inner)} "
            what, such = ("names", "[stem,1]") if inner[0] is str else ("numbers", "[30,60]")
            if get_origin(inner[0]) is Literal:
                names = get_args(inner[0])
                what, such = f"any of {', '.join(names)}", f"[{','.join(names[:2])}]"
            kinds.append(f"a list of {length}{what} in brackets, such as {such}")
        elif get_origin(one) is Mapping:
            kinds.append("a mapping of whole numbers in braces, such as {0: 128, 6: 160}")
        else:
            kinds.append("a path" if one == PathText else _KINDS[one])
    if set(kinds) <= {"null"}:
        return f"one of {', '.join(choices + kinds)}"
    *others, last = kinds[:1] + choices + kinds[1:]
    return f"{', '.join(others)} or {last}" if others else last


def _hint(given: Any, members: list[Any]) -> str:
    """What a value may have been meant for: the nearest choice, if one is near."""
    if isinstance(given, str) and _LEADING_ZERO.fullmatch(given) and {int, float} & set(members):
        return "; write it without the 0 in front, which may mean base 8"
    choices = [str(c) for one in members if get_origin(one) is Literal for c in get_args(one)]
    switched_off = [c for c in ("off", "none") if c in choices and given in _FALSE]
    if switched_off:  # what YAML's own reading makes of `off`
        return f"; did you mean {switched_off[0]}?"
    near = difflib.get_close_matches(given, choices, 1, 0.7) if isinstance(given, str) else []
    return f"; did you mean {near[0]}?" if near else ""
