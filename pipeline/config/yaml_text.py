"""Reads YAML as text: every scalar as its characters, to be typed by the setting that it is for.

YAML's own guesses (`off` is false, `010` is 8, `1:30` is 90, a date is a date) come before anybody
knows whose value it is.
"""

from __future__ import annotations

from typing import Any

import yaml

Tree = Any
"""A `str`, a list of trees, or a dict of trees by name."""


class Quoted(str):
    """A scalar in quotes, or in a block: text as it stands, where a plain `null` is no value."""


class Name(str):
    """A name in a mapping, with the line that it stands in, counted from 1."""

    line: int


def tree_of(text: str) -> Tree:
    """The one document in `text`; None for none.

    Raises `yaml.YAMLError` for what is not YAML, a name that occurs twice, where YAML would quietly
    forget the first, and for what only YAML's own types need: tags, merge keys and names that are
    no text.
    """
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if node is None else _of_node(node, {})
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def _of_node(node: yaml.Node, known: dict[int, Tree]) -> Tree:
    # An alias is the node it stands for, built once; one that contains itself is still being built.
    if id(node) not in known:
        known[id(node)] = _UNFINISHED
        known[id(node)] = _built(node, known)
    found = known[id(node)]
    if found is _UNFINISHED:
        raise yaml.YAMLError("an alias in it stands for what contains the alias; write it out")
    return found


_UNFINISHED = object()
_DEFAULT_TAGS = {
    yaml.ScalarNode: "tag:yaml.org,2002:str",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.MappingNode: "tag:yaml.org,2002:map",
}


def _built(node: yaml.Node, known: dict[int, Tree]) -> Tree:
    if node.tag != _DEFAULT_TAGS[type(node)]:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise yaml.YAMLError(f"a value has the tag {tag}; write it without, a setting has its type")
    if isinstance(node, yaml.ScalarNode):
        return str(node.value) if node.style is None else Quoted(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_of_node(item, known) for item in node.value]
    found: dict[Name, Tree] = {}
    for key, value in node.value:
        name = _of_node(key, known)
        if not isinstance(name, str):
            raise yaml.YAMLError("a name is a list or a mapping; write it as text")
        if name == "<<":
            raise yaml.YAMLError("merge keys (<<) are not read; take `base: FILE` to build on one")
        placed = Name(name)
        placed.line = key.start_mark.line + 1
        if placed in found:
            first = next(one.line for one in found if one == placed)
            raise yaml.YAMLError(f"{name} occurs twice, in line {first} and line {placed.line}")
        found[placed] = _of_node(value, known)
    return found


def in_words(error: Exception) -> str:
    """What a YAML's reader says of a text, on one line, with the line and column where it can."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1}, #x{error.character:04x}: {error.reason}"
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    said = ", ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(said.split())
